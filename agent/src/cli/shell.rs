//! `virtuoso completions` and `virtuoso man`: what belongs around a command.

use super::{Cli, output};
use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::path::PathBuf;
use std::process::ExitCode;

/// Print completions for a shell
#[derive(Args)]
#[command(after_help = "\
Examples:
  virtuoso completions bash > /usr/share/bash-completion/completions/virtuoso
  virtuoso completions zsh > ~/.zfunc/_virtuoso")]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Print the manual page, or write the pages of all verbs into a directory
#[derive(Args)]
#[command(after_help = "Examples:\n  virtuoso man | man -l -\n  virtuoso man /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// Where the pages go
    dir: Option<PathBuf>,
}

impl CompletionsArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        // The generator panics if it can't write; a buffer always takes it.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "virtuoso", &mut script);
        output::write(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl ManArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Some(dir) = self.dir else {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page).context("Can't make the manual page")?;
            output::write(&page)?;
            return Ok(ExitCode::SUCCESS);
        };
        std::fs::create_dir_all(&dir).with_context(|| format!("Can't create {}", dir.display()))?;
        let written = clap_mangen::generate_to(Cli::command(), &dir);
        written.with_context(|| format!("Can't write manual pages into {}", dir.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

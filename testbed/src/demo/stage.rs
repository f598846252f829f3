//! Where the demo's commands are run: on the hosts of a lab, as their users would, each shown with what it prints.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command;
use crate::console;
use crate::host::Start;
use crate::lab::{Lab, Settings};
use crate::sandbox;
use crate::topology::Topology;

pub(super) struct Stage {
    pub(super) lab: Lab,
    /// What is found as `virtuoso`.
    programs: PathBuf,
    /// Where the users are.
    desk: PathBuf,
}

impl Stage {
    pub(super) fn build(topology: &Topology, settings: &Settings) -> Result<Self> {
        let lab = Lab::build(topology, settings)?;
        let programs = sandbox::fresh_dir("bin")?;
        symlink(&settings.agent, programs.join("virtuoso")).context("Cannot link the agent's binary")?;
        Ok(Self { lab, programs, desk: sandbox::fresh_dir("desk")? })
    }

    /// A file of the users.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.desk.join(name)
    }

    pub(super) fn start_agent(&mut self, name: &str, start: &Start) -> Result<()> {
        let host = self.lab.host(name)?;
        let line = command::line(&host.agent_command(start)?);
        let line = line.replacen(&host.binary().to_string_lossy().into_owned(), "virtuoso", 1);
        console::line(format!("{name}$ {line} &"));
        let host = self.lab.host_mut(name)?;
        // The log of an agent that ran before is there already.
        let before = host.log_text().lines().count();
        host.start(start)?;
        host.log_text().lines().skip(before).for_each(console::line);
        Ok(())
    }

    /// Runs a line of a shell on a host, shows it with its output, and gives its output.
    pub(super) fn run(&self, host: &str, line: &str) -> Result<String> {
        console::line(format!("{host}$ {line}"));
        let output = self.look(host, line)?;
        if !output.trim().is_empty() {
            console::line(format!("{}\n", output.trim_end()));
        }
        Ok(output)
    }

    /// What a line of a shell prints on a host.
    pub(super) fn look(&self, host: &str, line: &str) -> Result<String> {
        command::run_within(&mut self.shell(host, line)?, LINE_TIME_MAX)
    }

    fn shell(&self, host: &str, line: &str) -> Result<Command> {
        let host = self.lab.host(host)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = host.namespace().command("/bin/sh");
        command.args(["-c", &format!("exec 2>&1; {line}")]).current_dir(&self.desk);
        command.env("VIRTUOSO_SOCKET", host.socket()).env("PATH", format!("{}:{path}", self.programs.display()));
        Ok(command)
    }
}

/// Longer than any of the lines waits for a guest.
const LINE_TIME_MAX: Duration = Duration::from_secs(200);

/// What the reader should know before what comes next.
pub(super) fn say(text: &str) {
    console::line("");
    text.lines().for_each(|line| console::line(format!("# {line}")));
}

/// Copies a file onto the desk.
pub(super) fn copy(from: &str, to: PathBuf) -> Result<PathBuf> {
    fs::copy(from, &to).with_context(|| format!("Cannot copy {from} to {}", to.display()))?;
    Ok(to)
}

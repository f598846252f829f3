//! A move that is under way, and what its log says of it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use super::BOOT_TIME_MAX;
use crate::command;
use crate::interrupt;
use crate::lab::Lab;

/// What the operator is told while memory can't be fetched.
pub(crate) const SEVERED: &str = "does not answer, before it has all of the VM's memory";
pub(crate) const STARVING: &str = "A VM hangs";

/// A move that is under way.
pub(crate) struct Moving {
    client: JoinHandle<Result<Output>>,
    /// Where the log of the source is written, and how long it was.
    log: PathBuf,
    begin: usize,
}

impl Moving {
    /// From alpha to beta.
    pub(crate) fn start(lab: &Lab, options: &[&str]) -> Result<Self> {
        Self::between(lab, "alpha", "beta", options)
    }

    pub(crate) fn between(lab: &Lab, from: &str, to: &str, options: &[&str]) -> Result<Self> {
        let from = lab.host(from)?;
        let mut command = Command::new(from.binary());
        command.args(["vm", "migrate", "one", "--to", to]).args(options).arg("--socket").arg(from.socket());
        let begin = from.log_text().len();
        let client = std::thread::spawn(move || command::output(&mut command));
        Ok(Self { client, log: from.log_path().to_owned(), begin })
    }

    /// Waits until the source says that it has come to a phase. Looks often: some phases last milliseconds.
    pub(crate) fn await_phase(&self, phase: &str) -> Result<()> {
        let wanted = format!("Migration: {phase}");
        let deadline = Instant::now() + BOOT_TIME_MAX;
        loop {
            let log = fs::read(&self.log).unwrap_or_default();
            let news = String::from_utf8_lossy(log.get(self.begin..).unwrap_or_default()).into_owned();
            if news.contains(&wanted) {
                return Ok(());
            }
            if self.client.is_finished() || Instant::now() > deadline {
                bail!("The move did not come to phase {phase}; the source said: {news}");
            }
            interrupt::pause(Duration::from_millis(2))?;
        }
    }

    /// How it ended: well, or with these words.
    pub(crate) fn end(self) -> Result<Result<(), String>> {
        let output = self.client.join().map_err(|_| anyhow!("The moving thread panicked"))??;
        let words = || String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(if output.status.success() { Ok(()) } else { Err(words()) })
    }

    /// It must have been given up, for a reason with `part` in it.
    pub(crate) fn expect_stay(self, part: &str) -> Result<()> {
        match self.end()? {
            Err(words) if words.contains(part) && !words.trim().is_empty() => Ok(()),
            other => bail!("The move was not given up as it should: {other:?}"),
        }
    }
}

//! A terminal with a program in it, as a user has it before him.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command;
use crate::interrupt;
use crate::sys;
use crate::wait;

pub(crate) struct Terminal {
    /// The user's side.
    screen: File,
    /// The program's side.
    line: OwnedFd,
    child: Child,
    /// What was shown since the last look.
    shown: String,
}

impl Terminal {
    pub(crate) fn run(command: &mut Command) -> Result<Self> {
        let (screen, line) = sys::open_terminal().context("Cannot open a terminal")?;
        let child = command::spawn_on(command, &line)?;
        Ok(Self { screen: screen.into(), line, child, shown: String::new() })
    }

    pub(crate) fn type_in(&mut self, text: &str) -> Result<()> {
        self.screen.write_all(text.as_bytes()).context("Cannot type")
    }

    /// Waits until `text` is shown; all that was shown before it since the last look.
    pub(crate) fn await_text(&mut self, text: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(at) = self.shown.find(text) {
                let rest = self.shown.split_off(at + text.len());
                let mut before = std::mem::replace(&mut self.shown, rest);
                before.truncate(at);
                return Ok(before);
            }
            interrupt::check()?;
            if Instant::now() >= deadline {
                bail!("Waited {limit:?} for {text:?}; shown: {:?}", self.shown);
            }
            self.look(TURN)?;
        }
    }

    /// Runs words in the shell that is shown; what they say.
    pub(crate) fn shell(&mut self, words: &str, limit: Duration) -> Result<String> {
        // The shell shows what is typed, so the mark must be the result of something; and it may show what was before.
        let words = if words.is_empty() { ":" } else { words };
        let number = sys::monotonic_ns();
        self.type_in(&format!("{words}; echo MARK-$(({number} + 1))\n"))?;
        self.await_text(&format!("MARK-{}", number + 1), limit).with_context(|| format!("`{words}`"))
    }

    /// Whether keys go to the program one by one, unseen.
    pub(crate) fn is_raw(&self) -> Result<bool> {
        sys::is_raw(self.line.as_fd()).context("Cannot read the terminal's settings")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the program's end; what was shown since the last look.
    pub(crate) fn await_end(&mut self, limit: Duration) -> Result<(ExitStatus, String)> {
        let status = wait::until("the program in the terminal to end", limit, || {
            self.look(Duration::ZERO)?;
            Ok(self.child.try_wait()?.map_or_else(|| wait::Seen::NotYet(self.shown.clone()), wait::Seen::Done))
        })?;
        self.look(TURN)?;
        Ok((status, std::mem::take(&mut self.shown)))
    }

    fn look(&mut self, limit: Duration) -> Result<()> {
        let mut buffer = [0; 4096];
        while sys::wait_readable(&[self.screen.as_fd()], Some(limit)).is_ok_and(|ready| ready[0]) {
            let length = self.screen.read(&mut buffer).context("Cannot see the terminal")?;
            self.shown.push_str(&String::from_utf8_lossy(&buffer[..length]));
            if length < buffer.len() {
                break;
            }
        }
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Between two looks at whether there was a signal.
const TURN: Duration = Duration::from_millis(50);

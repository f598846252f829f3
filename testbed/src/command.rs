//! Running the system's own tools: output captured, failures named with the command line that failed.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, bail};

use crate::sys;

/// Runs `command` to its end; its stdout, or an error that carries its stderr.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    bail!("`{}` ended with {}: {} {}", line(command), output.status, stderr.trim(), stdout.trim());
}

/// Runs `command` to its end, whatever its exit status.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    contain(command);
    let text = line(command);
    command.stdin(Stdio::null()).output().with_context(|| format!("Cannot run `{text}`"))
}

/// Starts `command` with the streams it was given. The thread that calls must outlive the child.
pub(crate) fn spawn(command: &mut Command) -> Result<Child> {
    contain(command);
    let text = line(command);
    command.stdin(Stdio::null()).spawn().with_context(|| format!("Cannot start `{text}`"))
}

/// The command as a user would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Daemons live in sbin directories that an ordinary user's PATH lacks.
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into(), "/usr/local/sbin".into()]);
    dirs.into_iter().any(|dir| dir.join(program).is_file())
}

/// The child gets its own process group, so that Ctrl-C reaches the testbed alone, and dies with the testbed.
fn contain(command: &mut Command) {
    command.process_group(0);
    // SAFETY: only one async-signal-safe system call between fork and exec.
    unsafe { command.pre_exec(sys::die_with_parent) };
}

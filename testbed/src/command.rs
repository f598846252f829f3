//! Running the system's own tools: output captured, failures named with the command line that failed.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::sys;

/// Runs `command` to its end; its stdout, or an error that carries its stderr.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    run_within(command, RUN_TIME_MAX)
}

/// `run` with a limit of its own.
pub(crate) fn run_within(command: &mut Command, limit: Duration) -> Result<String> {
    let output = output_within(command, limit)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    bail!("`{}` ended with {}: {} {}", line(command), output.status, stderr.trim(), stdout.trim());
}

/// Runs `command` to its end, whatever its exit status; an error if it does not end in time.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    output_within(command, RUN_TIME_MAX)
}

fn output_within(command: &mut Command, limit: Duration) -> Result<Output> {
    let mut child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    match collect(&mut child, Instant::now() + limit) {
        Ok((stdout, stderr)) => Ok(Output { status: child.wait()?, stdout, stderr }),
        Err(error) => {
            // It is not ours to wait for any longer; that it may have ended just now changes nothing.
            let _ = child.kill();
            let _ = child.wait();
            Err(error).with_context(|| format!("`{}` did not end within {limit:?}", line(command)))
        }
    }
}

/// All that `child` writes until it closes both streams.
fn collect(child: &mut Child, deadline: Instant) -> Result<(Vec<u8>, Vec<u8>)> {
    let stdout = OwnedFd::from(child.stdout.take().context("The streams are piped")?);
    let stderr = OwnedFd::from(child.stderr.take().context("The streams are piped")?);
    let mut streams = [(stdout, Vec::new(), true), (stderr, Vec::new(), true)];
    let mut buffer = vec![0; 65_536];
    while streams.iter().any(|(_, _, is_open)| *is_open) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let said: Vec<u8> = streams.into_iter().flat_map(|(_, text, _)| text).collect();
            bail!("So far it said: {}", String::from_utf8_lossy(&said).trim());
        }
        for (fd, text, is_open) in streams.iter_mut().filter(|(_, _, is_open)| *is_open) {
            // Interrupted by a signal: looked at again in the next round.
            let is_readable = sys::wait_readable(&[fd.as_fd()], Some(left.min(TURN))).is_ok_and(|ready| ready[0]);
            if is_readable {
                let length = sys::read(fd, &mut buffer).context("Cannot read its words")?;
                text.extend(&buffer[..length]);
                *is_open = length > 0;
            }
        }
    }
    let [(_, stdout, _), (_, stderr, _)] = streams;
    Ok((stdout, stderr))
}

/// Longer than any tool or verb of a lab takes.
const RUN_TIME_MAX: Duration = Duration::from_secs(60);
/// One stream is waited for while the other may have something.
const TURN: Duration = Duration::from_millis(10);

/// Starts `command` with the streams it was given. The thread that calls must outlive the child.
pub(crate) fn spawn(command: &mut Command) -> Result<Child> {
    contain(command);
    let text = line(command);
    command.stdin(Stdio::null()).spawn().with_context(|| format!("Cannot start `{text}`"))
}

/// Starts `command` with all its streams on a terminal.
pub(crate) fn spawn_on(command: &mut Command, terminal: &OwnedFd) -> Result<Child> {
    contain(command);
    let text = line(command);
    let stream = || terminal.try_clone().context("Cannot copy a descriptor");
    command.stdin(stream()?).stdout(stream()?).stderr(stream()?);
    command.spawn().with_context(|| format!("Cannot start `{text}`"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collects_both_streams_and_the_status() {
        let output = output(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"])).unwrap();
        assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
        assert_eq!(output.status.code(), Some(3));
    }

    #[test]
    fn more_than_a_pipe_holds_is_no_deadlock() {
        let output = output(Command::new("sh").args(["-c", "head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero"]));
        let output = output.unwrap();
        assert_eq!((output.stdout.len(), output.stderr.len()), (300_000, 300_000));
    }

    #[test]
    fn what_does_not_end_is_ended() {
        let mut command = Command::new("sh");
        let error = output_within(command.args(["-c", "echo here; exec sleep 100"]), Duration::from_millis(300));
        let text = format!("{:#}", error.unwrap_err());
        assert!(text.contains("did not end") && text.contains("here"), "{text}");
    }

    #[test]
    fn a_failure_names_the_command() {
        let error = run(&mut Command::new("false")).unwrap_err();
        assert!(error.to_string().starts_with("`false` ended with"), "{error}");
        assert!(is_installed("sh") && !is_installed("no-such-program"));
    }
}

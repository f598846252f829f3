//! The only place that writes to stdout and, besides the log, to stderr.

use std::io::{self, ErrorKind, Write};

/// Writes bytes to stdout as they are.
pub(super) fn write(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Writes one line to stdout.
pub(super) fn line(text: &str) -> io::Result<()> {
    write(format!("{text}\n").as_bytes())
}

/// Writes what went wrong to stderr. If that is closed, nobody wants to know.
pub(super) fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "virtuoso: {text}");
}

/// Writes a hint to stderr, where it does not disturb a script.
pub(super) fn hint(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether the reader of stdout has gone.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

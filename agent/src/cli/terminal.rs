//! The user's terminal as a guest's: every key goes to the guest, but one that detaches.

use super::output;
use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Ctrl-], as in telnet: no shell and no editor uses it.
const DETACH: u8 = 0x1d;
/// Pieces of input that wait for the guest.
const PIECES_MAX: usize = 16;

/// A terminal in raw mode, which becomes what it was when this is dropped.
struct Raw(libc::termios);

impl Raw {
    /// Nothing if stdin is no terminal.
    fn enter() -> io::Result<Option<Self>> {
        let fd = io::stdin().as_fd().as_raw_fd();
        let mut before = MaybeUninit::uninit();
        // SAFETY: there is room for one `termios` behind the pointer.
        if unsafe { libc::tcgetattr(fd, before.as_mut_ptr()) } != 0 {
            return Ok(None);
        }
        // SAFETY: the call succeeded, and so filled all of it.
        let before: libc::termios = unsafe { before.assume_init() };
        let mut raw = before;
        // SAFETY: the pointer is that of a whole `termios`.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        set(&raw)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        set(&self.0).ok();
    }
}

fn set(termios: &libc::termios) -> io::Result<()> {
    let fd = io::stdin().as_fd().as_raw_fd();
    // SAFETY: the pointer is that of a whole `termios`, which the call only reads.
    let result = unsafe { libc::tcsetattr(fd, libc::TCSANOW, std::ptr::from_ref(termios)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Joins the terminal with `guest` until the user detaches or the guest ends. True if the user detached. Signals that
/// end programs are a way to detach: the terminal is what it was before.
pub(super) async fn join(guest: impl AsyncRead + AsyncWrite) -> io::Result<bool> {
    let raw = Raw::enter()?;
    let (mut read, mut write) = tokio::io::split(guest);
    let show = async {
        let mut buffer = [0; 4096];
        loop {
            let length = read.read(&mut buffer).await?;
            if length == 0 {
                return Ok(false);
            }
            output::write(&buffer[..length])?;
        }
    };
    let type_in = async {
        let mut keys = keys();
        while let Some(piece) = keys.recv().await {
            let (typed, detaches) = until_detach(&piece, raw.is_some());
            write.write_all(typed).await?;
            write.flush().await?;
            if detaches {
                break;
            }
        }
        Ok(true)
    };
    let [mut interrupt, mut terminate, mut hangup] =
        [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
    tokio::select! {
        ended = show => ended,
        detached = type_in => detached,
        _ = interrupt.recv() => Ok(true),
        _ = terminate.recv() => Ok(true),
        _ = hangup.recv() => Ok(true),
    }
}

/// What the user types. The thread ends with the process: a read of a terminal can't be cancelled.
fn keys() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(length @ 1..) = io::stdin().read(&mut buffer) {
            if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// What goes to the guest, and whether the user detaches behind it. Only a terminal has such a key.
fn until_detach(typed: &[u8], is_terminal: bool) -> (&[u8], bool) {
    match typed.iter().position(|byte| *byte == DETACH).filter(|_| is_terminal) {
        Some(end) => (&typed[..end], true),
        None => (typed, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_detaches() {
        assert_eq!(until_detach(b"ls\x1dx", true), (&b"ls"[..], true));
        assert_eq!(until_detach(b"ls\x1dx", false), (&b"ls\x1dx"[..], false));
        assert_eq!(until_detach(b"", true), (&b""[..], false));
    }
}

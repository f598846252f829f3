//! The receiving end of sd_notify: an agent tells that it is ready, so nobody has to guess by sleeping.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::interrupt;

pub(crate) struct NotifySocket {
    socket: UnixDatagram,
    path: PathBuf,
}

impl NotifySocket {
    pub(crate) fn bind(path: &Path) -> Result<Self> {
        // The name of an agent's earlier life.
        let _ = std::fs::remove_file(path);
        let socket = UnixDatagram::bind(path).with_context(|| format!("Cannot make {}", path.display()))?;
        socket.set_read_timeout(Some(ALIVE_CHECK_INTERVAL))?;
        Ok(Self { socket, path: path.to_owned() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for `READY=1`; `still_alive` is asked now and then and ends the wait with its error.
    pub(crate) fn wait_ready(&self, limit: Duration, mut still_alive: impl FnMut() -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut last = "nothing".to_owned();
        while Instant::now() < deadline {
            interrupt::check()?;
            let mut buffer = [0; 4096];
            if let Ok(length) = self.socket.recv(&mut buffer) {
                last = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if is_ready(&last) {
                    return Ok(());
                }
            } else {
                still_alive()?;
            }
        }
        bail!("Waited {limit:?} for READY=1; last seen: {last:?}");
    }
}

const ALIVE_CHECK_INTERVAL: Duration = Duration::from_millis(100);

fn is_ready(message: &str) -> bool {
    message.lines().any(|line| line == "READY=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_may_stand_among_other_lines() {
        assert!(is_ready("STATUS=Running\nREADY=1\n"));
        assert!(!is_ready("STATUS=READY=1"));
    }

    #[test]
    fn the_end_of_the_process_ends_the_wait() {
        let path = std::env::temp_dir().join(format!("virtuoso-notify-{}", std::process::id()));
        let socket = NotifySocket::bind(&path).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.send_to(b"READY=1", socket.path()).unwrap();
        socket.wait_ready(Duration::from_secs(5), || bail!("gone")).unwrap();
        let error = socket.wait_ready(Duration::from_secs(5), || bail!("gone")).unwrap_err();
        assert_eq!(error.to_string(), "gone");
        std::fs::remove_file(path).unwrap();
    }
}

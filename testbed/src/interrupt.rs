//! Ctrl-C and SIGTERM end a run in good order: the signal is remembered here, every wait asks, and what
//! stands is taken down on the way out like after any other error.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::sys;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

pub(crate) fn install() -> Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        sys::on_signal(signal, remember)?;
    }
    Ok(())
}

pub(crate) fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("Interrupted by a signal");
    }
    Ok(())
}

/// Between two looks at something that offers no event. Returns early, with an error, when a signal came.
pub(crate) fn pause(duration: Duration) -> Result<()> {
    check()?;
    match sys::wait_readable(&[], Some(duration)) {
        Err(error) if error.kind() != std::io::ErrorKind::Interrupted => return Err(error.into()),
        _ => {}
    }
    check()
}

/// Blocks until a signal comes.
pub(crate) fn wait() {
    while check().is_ok() {
        // A signal that comes between the check and the wait is seen one period later.
        let _ = pause(Duration::from_secs(1));
    }
}

extern "C" fn remember(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

//! Waits for several descriptors in one call.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// The descriptors of the last wait. Its memory is kept, so that a wait allocates nothing.
#[derive(Default)]
pub(super) struct Poller {
    descriptors: Vec<libc::pollfd>,
    /// Whether the last wait found something.
    has_found: bool,
}

impl Poller {
    /// Forgets the descriptors of the last wait.
    pub(super) fn begin(&mut self) {
        self.descriptors.clear();
    }

    /// Waits for `events` at `what`, too. Without events, the kernel still tells of a device that is gone.
    pub(super) fn watch(&mut self, what: &impl AsFd, events: libc::c_short) {
        self.descriptors.push(libc::pollfd { fd: what.as_fd().as_raw_fd(), events, revents: 0 });
    }

    /// Waits until something is ready or `timeout` is over.
    pub(super) fn wait(&mut self, timeout: Duration) {
        let timeout = libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // SAFETY: the descriptors are open, the array has the length that is passed with it, and the timeout outlives
        // the call.
        let result = unsafe {
            libc::ppoll(
                self.descriptors.as_mut_ptr(),
                self.descriptors.len() as libc::nfds_t,
                &raw const timeout,
                std::ptr::null(),
            )
        };
        self.has_found = result > 0;
        if result < 0 {
            // A signal: look at nothing and wait again.
            for descriptor in &mut self.descriptors {
                descriptor.revents = 0;
            }
        }
    }

    /// Whether the last wait found something, and did not end by its timeout.
    pub(super) fn has_found(&self) -> bool {
        self.has_found
    }

    /// Whether the last wait found something to read at the descriptor that was watched as number `index`, be it an
    /// error.
    pub(super) fn is_readable(&self, index: usize) -> bool {
        self.descriptors.get(index).is_some_and(|descriptor| descriptor.revents & !libc::POLLOUT != 0)
    }
}

//! Waits for the socket, the command channel and all ports in one call.

use super::super::command::Wake;
use super::super::port::Port;
use super::super::socket::Socket;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;
use virtuoso_overlay::ids::NetworkId;

/// What can be ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ready {
    Socket,
    Wake,
    /// The port of the network at this place of [`Poller::networks`].
    Port(usize),
}

/// Places of the fixed descriptors; those of ports follow.
const SOCKET: usize = 0;
const WAKE: usize = 1;
const PORTS: usize = 2;

/// The descriptors of the last wait. Its vectors are kept, so that a wait allocates nothing.
#[derive(Default)]
pub(super) struct Poller {
    descriptors: Vec<libc::pollfd>,
    networks: Vec<NetworkId>,
}

impl Poller {
    /// Waits until something is ready or `timeout` is over. While the socket is full it waits for room in it, and not
    /// for ports.
    pub(super) fn wait(
        &mut self,
        socket: &Socket,
        is_full: bool,
        wake: &Wake,
        ports: &BTreeMap<NetworkId, Port>,
        timeout: Duration,
    ) {
        self.descriptors.clear();
        self.networks.clear();
        self.watch(socket, if is_full { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN });
        self.watch(wake, libc::POLLIN);
        for (network, port) in ports {
            self.networks.push(*network);
            // Without events, the kernel still tells of a device that is gone.
            self.watch(port, if is_full { 0 } else { libc::POLLIN });
        }
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
        if result < 0 {
            // A signal: look at nothing and wait again.
            for descriptor in &mut self.descriptors {
                descriptor.revents = 0;
            }
        }
    }

    /// Whether the last wait found something here, be it an error.
    pub(super) fn is_ready(&self, what: Ready) -> bool {
        let (index, wanted) = match what {
            Ready::Socket => (SOCKET, !libc::POLLOUT),
            Ready::Wake => (WAKE, !0),
            Ready::Port(port) => (PORTS + port, !0),
        };
        self.descriptors.get(index).is_some_and(|descriptor| descriptor.revents & wanted != 0)
    }

    /// The networks of the ports that were waited for.
    pub(super) fn networks(&self) -> &[NetworkId] {
        &self.networks
    }

    fn watch(&mut self, what: &impl AsFd, events: libc::c_short) {
        self.descriptors.push(libc::pollfd { fd: what.as_fd().as_raw_fd(), events, revents: 0 });
    }
}

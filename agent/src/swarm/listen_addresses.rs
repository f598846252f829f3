//! Under which addresses a listening socket can be reached on this machine, kept current while interfaces change.

use futures::Stream;
use if_watch::IfEvent;
use if_watch::tokio::IfWatcher;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

/// A change of the addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The socket is reachable here.
    Added(SocketAddr),
    /// It no longer is.
    Removed(SocketAddr),
}

/// The addresses of one socket.
pub(super) struct ListenAddresses {
    bound: SocketAddr,
    /// Only for a socket that is bound to no particular address.
    watcher: Option<IfWatcher>,
    ready: VecDeque<Change>,
}

impl ListenAddresses {
    /// Begins to watch for a socket with this local address. Needs a tokio runtime.
    pub(super) fn new(bound: SocketAddr) -> Self {
        let mut ready = VecDeque::new();
        let watcher = if bound.ip().is_unspecified() {
            IfWatcher::new()
                .inspect_err(|error| {
                    tracing::warn!(%error, "No interface addresses: other hosts learn this one's only by observing it");
                })
                .ok()
        } else {
            ready.push_back(Change::Added(bound));
            None
        };
        Self { bound, watcher, ready }
    }

    /// The next change.
    pub(super) fn poll_change(&mut self, cx: &mut Context<'_>) -> Poll<Change> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Poll::Ready(change);
            }
            let Some(watcher) = &mut self.watcher else { return Poll::Pending };
            match Pin::new(watcher).poll_next(cx) {
                Poll::Ready(Some(Ok(event))) => self.on_interface_event(event),
                Poll::Ready(Some(Err(error))) => {
                    tracing::warn!(%error, "Interface addresses are watched no longer");
                    self.watcher = None;
                }
                Poll::Ready(None) => self.watcher = None,
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn on_interface_event(&mut self, event: IfEvent) {
        let (net, change): (_, fn(SocketAddr) -> Change) = match event {
            IfEvent::Up(net) => (net, Change::Added),
            IfEvent::Down(net) => (net, Change::Removed),
        };
        if serves(self.bound, net.addr()) {
            self.ready.push_back(change(SocketAddr::new(net.addr(), self.bound.port())));
        }
    }
}

/// Whether a socket bound to an unspecified address is worth announcing under `ip`: of a family that it takes
/// (an IPv6 socket is dual-stack), and of use to another machine.
fn serves(bound: SocketAddr, ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    (bound.is_ipv6() || ip.is_ipv4()) && !ip.is_loopback() && !link_local
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dual_stack_socket_is_announced_under_useful_addresses_of_both_families() {
        let (v4, v6): (SocketAddr, SocketAddr) = ("0.0.0.0:1".parse().unwrap(), "[::]:1".parse().unwrap());
        for (ip, on_v4, on_v6) in [
            ("10.0.0.1", true, true),
            ("2001:db8::1", false, true),
            ("127.0.0.1", false, false),
            ("::1", false, false),
            ("169.254.1.1", false, false),
            ("fe80::1", false, false),
        ] {
            let ip = ip.parse().unwrap();
            assert_eq!((serves(v4, ip), serves(v6, ip)), (on_v4, on_v6), "{ip}");
        }
    }

    #[tokio::test]
    async fn a_concrete_address_is_announced_as_it_is() {
        let bound = "127.0.0.1:7".parse().unwrap();
        let mut addresses = ListenAddresses::new(bound);
        let change = std::future::poll_fn(|cx| addresses.poll_change(cx)).await;
        assert_eq!(change, Change::Added(bound));
    }
}

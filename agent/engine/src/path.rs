//! The ways below a link. QUIC never sees them: it talks to one stable name per connection, and the engine decides
//! which way a packet really goes. A path is chosen by this host alone; the source address of a packet never moves a
//! connection that is up.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

/// One way to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Path {
    /// UDP straight to this address.
    Direct(SocketAddr),
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(address) => write!(f, "direct udp {address}"),
        }
    }
}

/// Addresses of a peer that are tried at once. A host has a few: IPv4 and IPv6, private and public.
pub(crate) const CANDIDATES_MAX: usize = 8;

/// The paths of one connection: candidates while it is being made, then the one that answered.
#[derive(Debug)]
pub(crate) struct Route {
    candidates: Vec<Candidate>,
    active: Option<Path>,
}

/// A path that may turn out to work.
#[derive(Debug)]
struct Candidate {
    path: Path,
    answered: bool,
}

impl Route {
    /// For a connection that this host dials: every first packet goes to all addresses, and the first to answer wins.
    pub(crate) fn dialled(addresses: &[SocketAddr]) -> Self {
        let candidates = addresses
            .iter()
            .take(CANDIDATES_MAX)
            .map(|address| Candidate { path: Path::Direct(*address), answered: false })
            .collect();
        Self { candidates, active: None }
    }

    /// For a connection that came in over `path`.
    pub(crate) fn accepted(path: Path) -> Self {
        Self { candidates: vec![Candidate { path, answered: true }], active: Some(path) }
    }

    /// A packet came over `path` while the connection is being made.
    pub(crate) fn hear(&mut self, path: Path) {
        for candidate in &mut self.candidates {
            candidate.answered |= candidate.path == path;
        }
    }

    /// The handshake is done, its last packet came over `last`: a candidate that answers is the path from now on.
    pub(crate) fn settle(&mut self, last: Path) {
        if self.active.is_some() {
            return;
        }
        let known = self.candidates.iter().find(|candidate| candidate.path == last);
        let answered = || self.candidates.iter().find(|candidate| candidate.answered);
        self.active = known.or_else(answered).map(|candidate| candidate.path);
    }

    /// The path that packets take, if it is decided.
    pub(crate) fn active(&self) -> Option<Path> {
        self.active
    }

    /// Where the next packet goes: the active path, or all candidates.
    pub(crate) fn targets(&self) -> impl Iterator<Item = Path> + '_ {
        let candidates = if self.active.is_none() { &self.candidates[..] } else { &[] };
        self.active.into_iter().chain(candidates.iter().map(|candidate| candidate.path))
    }
}

/// What QUIC takes for the peer's address of a connection that this host dials: never a real one (240.0.0.0/4 is
/// reserved), and another one whenever the slot is used again.
pub(crate) fn stable_name(slot: u16, generation: u16) -> SocketAddr {
    let [slot_high, slot_low] = slot.to_be_bytes();
    let [generation_high, generation_low] = generation.to_be_bytes();
    let ip = Ipv4Addr::new(240 | (generation_high & 0x0f), generation_low, slot_high, slot_low);
    SocketAddr::new(ip.into(), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direct(port: u16) -> Path {
        Path::Direct(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port))
    }

    fn dialled(ports: &[u16]) -> Route {
        let addresses: Vec<_> = ports.iter().map(|port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), *port)).collect();
        Route::dialled(&addresses)
    }

    #[test]
    fn all_candidates_are_tried_and_one_wins() {
        let mut route = dialled(&[1, 2, 3]);
        assert_eq!(route.targets().count(), 3);
        route.hear(direct(2));
        route.settle(direct(2));
        assert_eq!(route.targets().collect::<Vec<_>>(), [direct(2)]);
        route.settle(direct(3));
        assert_eq!(route.active(), Some(direct(2)), "a settled route stays");
    }

    #[test]
    fn an_unknown_source_is_never_followed() {
        let mut route = dialled(&[1, 2]);
        route.hear(direct(1));
        route.hear(direct(9));
        route.settle(direct(9));
        assert_eq!(route.active(), Some(direct(1)));
    }

    #[test]
    fn names_differ_by_slot_and_generation() {
        let names = [stable_name(0, 0), stable_name(1, 0), stable_name(256, 0), stable_name(0, 1), stable_name(0, 256)];
        for (index, name) in names.iter().enumerate() {
            assert!(!names[..index].contains(name));
            assert!(matches!(name.ip(), std::net::IpAddr::V4(ip) if ip.octets()[0] >= 240));
        }
    }
}

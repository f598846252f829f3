//! How many streams each connection carries.

use super::STREAMS_PER_PEER_MAX;
use libp2p::PeerId;
use libp2p::swarm::ConnectionId;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The counts. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases(Arc<Mutex<Counts>>);

type Counts = HashMap<PeerId, HashMap<ConnectionId, usize>>;

/// One stream's place. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct Lease {
    leases: Leases,
    peer: PeerId,
    connection: ConnectionId,
}

impl Leases {
    /// A place for one more stream, if the peer may have one.
    pub(super) fn take(&self, peer: PeerId, connection: ConnectionId) -> Option<Lease> {
        let mut counts = self.counts();
        let of_peer = counts.entry(peer).or_default();
        if of_peer.values().sum::<usize>() >= STREAMS_PER_PEER_MAX {
            return None;
        }
        *of_peer.entry(connection).or_default() += 1;
        Some(Lease { leases: self.clone(), peer, connection })
    }

    /// Peers and connections with streams.
    pub(super) fn busy(&self) -> (BTreeSet<PeerId>, BTreeSet<ConnectionId>) {
        let counts = self.counts();
        (counts.keys().copied().collect(), counts.values().flat_map(HashMap::keys).copied().collect())
    }

    /// No holder can panic half-way.
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// The connection on which the place is.
    pub(super) fn connection(&self) -> ConnectionId {
        self.connection
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut counts = self.leases.counts();
        let Some(of_peer) = counts.get_mut(&self.peer) else { return };
        if let Some(count) = of_peer.get_mut(&self.connection) {
            *count -= 1;
            if *count == 0 {
                of_peer.remove(&self.connection);
            }
        }
        if of_peer.is_empty() {
            counts.remove(&self.peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_per_peer_and_come_back() {
        let leases = Leases::default();
        let (peer, other) = (PeerId::random(), PeerId::random());
        let at = ConnectionId::new_unchecked;
        let mut held: Vec<_> = (0..STREAMS_PER_PEER_MAX).map(|n| leases.take(peer, at(n % 3)).unwrap()).collect();
        assert!(leases.take(peer, at(9)).is_none());
        let of_other = leases.take(other, at(7)).unwrap();
        assert_eq!(leases.busy().0.len(), 2);
        assert_eq!(leases.busy().1, [at(0), at(1), at(2), at(7)].into());
        held.pop();
        assert!(leases.take(peer, at(9)).is_some());
        drop((held, of_other));
        assert!(leases.busy().0.is_empty() && leases.counts().is_empty());
    }
}

//! The table of connected peers: what each connection is, and what the peer said of itself.

use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use std::collections::HashMap;
use std::time::Duration;
use virtuoso_overlay::ids::HostId;
use virtuoso_overlay::time::Instant;

/// Introductions that a peer may make per minute. A pending host asks every few seconds.
const ADMITS_PER_MINUTE_MAX: u32 = 30;
/// Protocol names that are kept of what a peer lists.
const PROTOCOLS_MAX: usize = 32;
/// The longest text that is kept of a peer's version.
const AGENT_CHARS_MAX: usize = 64;

/// One connection, for `peers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRow {
    /// Who.
    pub host: HostId,
    /// The other end.
    pub address: Multiaddr,
    /// Whether this host dialled.
    pub dialled: bool,
    /// How long it stands.
    pub age: Duration,
    /// Whether the peer is an admitted member.
    pub member: bool,
    /// Whether the protocols of members run on it.
    pub ready: bool,
    /// The latest ping.
    pub rtt: Option<Duration>,
    /// The peer's software, by its own word.
    pub agent: String,
    /// What the peer listed at last.
    pub protocols: Vec<String>,
}

#[derive(Default)]
pub(super) struct Peers(HashMap<PeerId, Peer>);

pub(super) struct Peer {
    pub(super) host: HostId,
    pub(super) connections: HashMap<ConnectionId, Connection>,
    /// Where the peer says that it listens.
    pub(super) listens: Vec<Multiaddr>,
    agent: String,
    protocols: Vec<String>,
    admits: u32,
    admits_since: Instant,
}

pub(super) struct Connection {
    pub(super) address: Multiaddr,
    pub(super) dialled: bool,
    pub(super) ready: bool,
    pub(super) rtt: Option<Duration>,
    since: Instant,
}

impl Peers {
    pub(super) fn get(&self, peer: &PeerId) -> Option<&Peer> {
        self.0.get(peer)
    }

    pub(super) fn get_mut(&mut self, peer: &PeerId) -> Option<&mut Peer> {
        self.0.get_mut(peer)
    }

    pub(super) fn connection_mut(&mut self, peer: &PeerId, id: ConnectionId) -> Option<&mut Connection> {
        self.0.get_mut(peer)?.connections.get_mut(&id)
    }

    /// Adds a connection; says whether it is the peer's first.
    pub(super) fn opened(
        &mut self,
        peer: PeerId,
        host: HostId,
        id: ConnectionId,
        address: Multiaddr,
        dialled: bool,
        now: Instant,
    ) -> bool {
        let entry = self.0.entry(peer).or_insert_with(|| Peer::new(host, now));
        entry.connections.insert(id, Connection { address, dialled, ready: false, rtt: None, since: now });
        entry.connections.len() == 1
    }

    /// Removes a connection; gives the host if it was its last.
    pub(super) fn closed(&mut self, peer: &PeerId, id: ConnectionId) -> Option<HostId> {
        let entry = self.0.get_mut(peer)?;
        entry.connections.remove(&id);
        let is_last = entry.connections.is_empty();
        is_last.then(|| self.0.remove(peer)).flatten().map(|peer| peer.host)
    }

    pub(super) fn is_ready(&self, peer: &PeerId) -> bool {
        self.0.get(peer).is_some_and(|peer| peer.connections.values().any(|c| c.ready))
    }

    pub(super) fn any_ready(&self) -> bool {
        self.0.values().any(|peer| peer.connections.values().any(|c| c.ready))
    }

    pub(super) fn rows(&self, now: Instant, is_member: impl Fn(&HostId) -> bool) -> Vec<PeerRow> {
        let rows_of = |peer: &Peer| {
            let row = |connection: &Connection| PeerRow {
                host: peer.host,
                address: connection.address.clone(),
                dialled: connection.dialled,
                age: now.since(connection.since),
                member: is_member(&peer.host),
                ready: connection.ready,
                rtt: connection.rtt,
                agent: peer.agent.clone(),
                protocols: peer.protocols.clone(),
            };
            peer.connections.values().map(row).collect::<Vec<_>>()
        };
        let mut rows: Vec<_> = self.0.values().flat_map(rows_of).collect();
        rows.sort_by(|a, b| a.host.cmp(&b.host).then(b.age.cmp(&a.age)));
        rows
    }
}

impl Peer {
    fn new(host: HostId, now: Instant) -> Self {
        Self {
            host,
            connections: HashMap::new(),
            listens: Vec::new(),
            agent: String::new(),
            protocols: Vec::new(),
            admits: 0,
            admits_since: now,
        }
    }

    pub(super) fn identified(&mut self, agent: &str, protocols: impl Iterator<Item = String>, listens: Vec<Multiaddr>) {
        self.agent = agent.chars().filter(|c| !c.is_control()).take(AGENT_CHARS_MAX).collect();
        self.protocols = protocols.take(PROTOCOLS_MAX).collect();
        self.listens = listens;
    }

    /// Whether the peer may introduce itself once more.
    pub(super) fn may_admit(&mut self, now: Instant) -> bool {
        if now.since(self.admits_since) >= Duration::from_secs(60) {
            (self.admits, self.admits_since) = (0, now);
        }
        self.admits = self.admits.saturating_add(1);
        self.admits <= ADMITS_PER_MINUTE_MAX
    }
}

//! The control plane's surroundings: connections between agents, gossip over them, requests and answers.
//!
//! Stands for libp2p. Gossip is an epidemic over the connections: a host passes a message on once, if its node accepts
//! it; what gossipsub repairs lazily is left out, so that anti-entropy has to.

use crate::clock::{MILLISECOND, SECOND};
use crate::options::Redial;
use crate::trace::fingerprint;
use crate::world::{Event, World};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use virtuoso_overlay::node::{GossipVerdict, NodeEffect, RequestId};
use virtuoso_overlay::table::Standing;

/// Who is connected to whom. Each end knows for itself.
pub(crate) struct Connections {
    /// Peer and generation of the connection, for each host.
    ends: Vec<BTreeMap<usize, u64>>,
    /// Peers to which a connection broke, for each host.
    lost: Vec<BTreeSet<usize>>,
    generations: u64,
}

/// A gossip message on its way to everybody.
pub(crate) struct GossipMessage {
    bytes: Vec<u8>,
    hash: u64,
    /// One bit for each host that has it.
    seen: Vec<Cell<u64>>,
}

impl Connections {
    pub(crate) fn new(hosts: usize) -> Self {
        Self { ends: vec![BTreeMap::new(); hosts], lost: vec![BTreeSet::new(); hosts], generations: 0 }
    }

    /// The peers of a host, in order.
    pub(crate) fn of(&self, host: usize) -> Vec<usize> {
        self.ends[host].keys().copied().collect()
    }

    pub(crate) fn clear(&mut self, host: usize) -> BTreeMap<usize, u64> {
        self.lost[host].clear();
        std::mem::take(&mut self.ends[host])
    }

    /// All connections as their ends see them.
    pub(crate) fn all(&self) -> Vec<(usize, usize, u64)> {
        let ends = self.ends.iter().enumerate();
        ends.flat_map(|(host, peers)| peers.iter().map(move |(peer, generation)| (host, *peer, *generation))).collect()
    }

    fn is_full(&self, host: usize) -> bool {
        self.ends[host].len() >= CONNECTIONS_MAX
    }
}

impl GossipMessage {
    fn new(bytes: Vec<u8>, hosts: usize) -> Self {
        let hash = fingerprint(&bytes);
        Self { bytes, hash, seen: vec![Cell::new(0); hosts.div_ceil(64)] }
    }

    /// Whether `host` sees it for the first time.
    fn is_new_to(&self, host: usize) -> bool {
        let (word, bit) = (&self.seen[host / 64], 1 << (host % 64));
        let old = word.replace(word.get() | bit);
        old & bit == 0
    }
}

impl World {
    pub(crate) fn on_node_effect(&mut self, host: usize, effect: NodeEffect) {
        match effect {
            NodeEffect::Gossip(bytes) => {
                let message = Rc::new(GossipMessage::new(bytes, self.hosts.len()));
                message.is_new_to(host);
                self.pass_on(host, host, &message);
            }
            NodeEffect::Request { id, to, bytes } => self.send_request(host, to, id, bytes),
            NodeEffect::Changed(change) => {
                let now = self.hosts[host].now(self.now);
                if let Some(agent) = &mut self.hosts[host].agent {
                    agent.glue.on_change(now, &agent.node, &mut agent.switch, change);
                }
            }
        }
    }

    fn pass_on(&mut self, host: usize, from: usize, message: &Rc<GossipMessage>) {
        for peer in self.connections.of(host) {
            if peer == from {
                continue;
            }
            self.hosts[host].traffic.gossip_bytes += message.bytes.len() as u64;
            let Some(delay) = self.fabric.datagram(&mut self.rng, host, peer) else { continue };
            self.schedule(delay, Event::Gossip { from: host, to: peer, message: message.clone() });
            if self.rng.chance(self.options.duplicate_ppm) {
                let again = delay + self.rng.below(SECOND);
                self.schedule(again, Event::Gossip { from: host, to: peer, message: message.clone() });
            }
        }
    }

    pub(crate) fn on_gossip(&mut self, from: usize, to: usize, message: &Rc<GossipMessage>) {
        let now = self.hosts[to].now(self.now);
        let Some(agent) = self.hosts[to].working() else { return };
        if !message.is_new_to(to) {
            return;
        }
        let verdict = agent.node.handle_gossip(now, &message.bytes);
        self.note("gossip", from, to, message.hash);
        match verdict {
            GossipVerdict::Accept => self.pass_on(to, from, message),
            GossipVerdict::Ignore => {}
            GossipVerdict::Reject => self.violate(format!("host {to} rejects gossip of honest host {from}")),
        }
        self.settle(to);
    }

    fn send_request(&mut self, host: usize, to: virtuoso_overlay::ids::HostId, id: RequestId, bytes: Vec<u8>) {
        let life = self.hosts[host].life;
        self.hosts[host].traffic.sync_bytes += bytes.len() as u64;
        let target = self.index_of(to).filter(|peer| self.connections.ends[host].contains_key(peer));
        let delay = target.and_then(|peer| self.fabric.stream(&mut self.rng, host, peer, bytes.len()));
        match (target, delay) {
            (Some(to), Some(delay)) => self.schedule(delay, Event::Request { from: host, life, to, id, bytes }),
            _ => self.schedule(REQUEST_TIMEOUT, Event::Response { to: host, life, id, bytes: None }),
        }
    }

    pub(crate) fn on_request(&mut self, from: usize, life: u32, to: usize, id: RequestId, bytes: &[u8]) {
        let now = self.hosts[to].now(self.now);
        let answer = self.hosts[to].working().and_then(|agent| agent.node.handle_request(now, bytes));
        self.note("request", from, to, fingerprint(bytes));
        let size = answer.as_ref().map_or(0, Vec::len);
        self.hosts[to].traffic.sync_bytes += size as u64;
        let delay = answer.as_ref().and_then(|_| self.fabric.stream(&mut self.rng, to, from, size));
        match delay {
            Some(delay) => self.schedule(delay, Event::Response { to: from, life, id, bytes: answer }),
            None => self.schedule(REQUEST_TIMEOUT, Event::Response { to: from, life, id, bytes: None }),
        }
        self.settle(to);
    }

    pub(crate) fn on_response(&mut self, to: usize, life: u32, id: RequestId, bytes: Option<&[u8]>) {
        if !self.lives(to, life) {
            return;
        }
        let now = self.hosts[to].now(self.now);
        self.note("response", to, 0, fingerprint(bytes.unwrap_or_default()));
        if let Some(agent) = self.hosts[to].working() {
            agent.node.handle_response(now, id, bytes);
        }
        self.settle(to);
    }

    /// What the connection manager does every now and then: keep some connections, and redial as the options say.
    pub(crate) fn manage_connections(&mut self, host: usize) {
        let count = self.connections.ends[host].len();
        if count < self.options.connections {
            if let Some(peer) = self.find_peer(host, |_| true) {
                self.dial(host, peer);
            }
        } else if count > self.options.connections * 2 {
            self.trim(host);
        }
        if self.rng.below(REDIAL_TICKS) == 0
            && let Some(peer) = self.find_redial(host)
        {
            self.dial(host, peer);
        }
        let few = count < self.options.connections;
        let life = self.hosts[host].life;
        let delay = if few { 300 * MILLISECOND } else { SECOND } + self.rng.below(200 * MILLISECOND);
        self.schedule(delay, Event::Manage { host, life });
    }

    fn find_redial(&mut self, host: usize) -> Option<usize> {
        match self.options.redial {
            Redial::Never => None,
            Redial::Lost => {
                let lost: Vec<usize> = self.connections.lost[host].iter().copied().collect();
                self.rng.pick(&lost).copied()
            }
            Redial::Silent => self.find_peer(host, |standing| standing != Some(Standing::Alive)),
        }
    }

    /// A random host that this one is not connected to. Agents remember their peers over restarts, so anyone will do.
    fn find_peer(&mut self, host: usize, wanted: impl Fn(Option<Standing>) -> bool) -> Option<usize> {
        for _ in 0..FIND_TRIES {
            let peer = self.rng.index(self.hosts.len());
            let id = self.hosts[peer].id;
            let now = self.hosts[host].now(self.now).mono;
            let agent = self.hosts[host].agent.as_ref()?;
            let standing = agent.node.table().standing(id, now).map(|(standing, _)| standing);
            if peer != host && !self.connections.ends[host].contains_key(&peer) && wanted(standing) {
                return Some(peer);
            }
        }
        None
    }

    fn dial(&mut self, host: usize, peer: usize) {
        let lives = [self.hosts[host].life, self.hosts[peer].life];
        let delay = self.fabric.latency_us(host, peer) * 3;
        self.schedule(delay, Event::Connected { hosts: [host, peer], lives });
    }

    pub(crate) fn on_connected(&mut self, [a, b]: [usize; 2], lives: [u32; 2]) {
        let alive = self.lives(a, lives[0]) && self.lives(b, lives[1]);
        let full = self.connections.is_full(a) || self.connections.is_full(b);
        if !alive || full || !self.fabric.is_open(a, b) {
            return;
        }
        self.connections.generations += 1;
        let generation = self.connections.generations;
        self.note("connected", a, b, generation);
        for (host, peer) in [(a, b), (b, a)] {
            self.connections.ends[host].insert(peer, generation);
            self.connections.lost[host].remove(&peer);
            let id = self.hosts[peer].id;
            if let Some(agent) = self.hosts[host].working() {
                agent.node.handle_peer(id, true);
            }
            self.settle(host);
        }
    }

    pub(crate) fn on_disconnected(&mut self, host: usize, peer: usize, generation: u64) {
        if self.connections.ends[host].get(&peer) != Some(&generation) {
            return;
        }
        let gone = self.connections.ends[peer].get(&host) != Some(&generation);
        let closed =
            self.fabric.closed_since(host, peer).is_some_and(|since| self.now.since(since) >= IDLE_TIMEOUT_MIN);
        if !gone && !closed {
            return;
        }
        self.note("disconnected", host, peer, generation);
        self.connections.ends[host].remove(&peer);
        if closed && self.connections.lost[host].len() < CONNECTIONS_MAX {
            self.connections.lost[host].insert(peer);
        }
        let id = self.hosts[peer].id;
        if let Some(agent) = self.hosts[host].working() {
            agent.node.handle_peer(id, false);
        }
        self.settle(host);
    }

    fn trim(&mut self, host: usize) {
        let peers = self.connections.of(host);
        let Some(&peer) = self.rng.pick(&peers) else { return };
        self.close_connection(host, peer);
    }

    /// One end closes; the other hears of it.
    fn close_connection(&mut self, host: usize, peer: usize) {
        let Some(generation) = self.connections.ends[host].remove(&peer) else { return };
        let id = self.hosts[peer].id;
        if let Some(agent) = self.hosts[host].working() {
            agent.node.handle_peer(id, false);
        }
        let heard = self.fabric.stream(&mut self.rng, host, peer, 0).unwrap_or(IDLE_TIMEOUT_MIN);
        self.schedule(heard, Event::Disconnected { host: peer, peer: host, generation });
    }

    /// A host that leaves in order closes its connections.
    pub(crate) fn close_connections(&mut self, host: usize) {
        for peer in self.connections.of(host) {
            self.close_connection(host, peer);
        }
    }

    /// Some hosts can't be reached any more: the others notice after a while, if it lasts.
    pub(crate) fn expect_timeouts(&mut self) {
        for (host, peer, generation) in self.connections.all() {
            if self.fabric.closed_since(host, peer).is_some() {
                let delay = IDLE_TIMEOUT_MIN + self.rng.below(IDLE_TIMEOUT_SPREAD);
                self.schedule(delay, Event::Disconnected { host, peer, generation });
            }
        }
        self.expect_link_timeouts();
    }
}

/// A connection or link that carries nothing for this long is dead.
pub(crate) const IDLE_TIMEOUT_MIN: u64 = 12 * SECOND;
/// When exactly depends on what was sent last.
pub(crate) const IDLE_TIMEOUT_SPREAD: u64 = 3 * SECOND;

/// The most that a host accepts.
const CONNECTIONS_MAX: usize = 24;
const REQUEST_TIMEOUT: u64 = 10 * SECOND;
/// In how many ticks of a second one dial beyond the connections that a host needs is made.
const REDIAL_TICKS: u64 = 5;
const FIND_TRIES: usize = 16;

//! The control plane of one host as a state machine: it keeps the tables equal to everybody else's.
//!
//! The caller feeds it gossip, sync requests and answers, the peers it is connected to, and time; it carries out the
//! [`NodeEffect`]s. What this host says about itself goes in by [`Node::put`] and [`Node::take_back`].

mod comparison;
#[cfg(test)]
mod tests;

use crate::crypto::{Signer, Verifier};
use crate::ids::{HostId, Mac, NetworkId, SwarmId};
use crate::limits::{
    GONE_AFTER_REFRESHES, GOSSIP_BYTES_MAX, REFRESH_INTERVAL_MAX, REFRESH_INTERVAL_MIN, SYNC_INTERVAL,
    SYNC_REQUEST_BYTES_MAX, SYNC_RESPONSE_BYTES_MAX,
};
use crate::rng::Rng;
use crate::table::{
    AgedRow, Applied, Beat, Body, Gossip, Key, Row, Standing, SyncRequest, SyncResponse, Table, Tag, Version,
};
use crate::time::{Instant, Now};
use crate::wire::codec;
use comparison::Comparison;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// The control plane of one host.
pub struct Node {
    me: HostId,
    swarm: SwarmId,
    signer: Arc<dyn Signer>,
    verifier: Arc<dyn Verifier>,
    rng: Rng,
    table: Table,
    version: Version,
    peers: BTreeSet<HostId>,
    comparisons: BTreeMap<RequestId, Comparison>,
    next_request: u64,
    outbox: Vec<Row>,
    /// Addresses that more than one host claims, or did when we last looked.
    contested: BTreeSet<(NetworkId, Mac)>,
    effects: VecDeque<NodeEffect>,
    refresh_at: Instant,
    /// How often the lease was renewed.
    refreshes: u32,
    compare_at: Instant,
    sweep_at: Instant,
    counters: NodeCounters,
}

/// Correlates an answer with its request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct RequestId(pub u64);

/// What the caller must do for the node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodeEffect {
    /// Give these bytes to all members.
    Gossip(Vec<u8>),
    /// Ask a peer and bring its answer to [`Node::handle_response`].
    Request {
        /// Names the request.
        id: RequestId,
        /// Whom.
        to: HostId,
        /// What.
        bytes: Vec<u8>,
    },
    /// The tables say something new.
    Changed(Change),
}

/// Something new in the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// A row is new or says something else: see [`Table::get`].
    Put(HostId, Key),
    /// A row is gone.
    Gone(HostId, Key),
    /// A host was heard of, for the first time or again.
    Alive(HostId),
    /// A host's lease ran out.
    Silent(HostId),
    /// A host's agent began anew: what it said before is void. Its rows are told after this.
    Restarted(HostId),
    /// A host said goodbye or was silent for so long that its rows are gone.
    Left(HostId),
}

/// What a node does with gossip; the caller tells the gossip protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GossipVerdict {
    /// Something in it is new: pass it on.
    Accept,
    /// Nothing in it is new.
    Ignore,
    /// It is malformed or forged: the sender misbehaves.
    Reject,
}

/// Who a node is.
pub struct NodeConfig {
    /// The swarm it belongs to.
    pub swarm: SwarmId,
    /// Its key.
    pub signer: Arc<dyn Signer>,
    /// Checks the others'.
    pub verifier: Arc<dyn Verifier>,
    /// Grows with every start of this host.
    pub incarnation: u64,
    /// For jitter and the choice of peers.
    pub seed: u64,
}

/// What came in and was not taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeCounters {
    /// Messages that did not decode.
    pub malformed: u64,
    /// Rows with a wrong signature, wrong bounds, or of a host that is no member.
    pub refused: u64,
    /// Rows that were known already.
    pub stale: u64,
    /// Rows for which there was no room.
    pub full: u64,
}

/// Time after which a host writes its row again, in a swarm of `hosts`.
///
/// 50 ms for each host bound the rows that arrive at 20 a second up to 6,000 hosts and 33 at 10,000.
pub fn refresh_interval(hosts: usize) -> Duration {
    let hosts = u32::try_from(hosts).unwrap_or(u32::MAX);
    (Duration::from_millis(50).saturating_mul(hosts)).clamp(REFRESH_INTERVAL_MIN, REFRESH_INTERVAL_MAX)
}

impl Node {
    /// A node that knows of nobody.
    pub fn new(config: NodeConfig, now: Now) -> Self {
        let NodeConfig { swarm, signer, verifier, incarnation, seed } = config;
        let mut rng = Rng::new(seed);
        let jitter = Duration::from_micros(rng.below(1_000_000));
        Self {
            me: HostId(signer.public_key()),
            swarm,
            signer,
            verifier,
            rng,
            table: Table::default(),
            version: Version { incarnation, seq: 0 },
            peers: BTreeSet::new(),
            comparisons: BTreeMap::new(),
            next_request: 0,
            outbox: Vec::new(),
            contested: BTreeSet::new(),
            effects: VecDeque::new(),
            refresh_at: now.mono + REFRESH_INTERVAL_MIN + jitter,
            refreshes: 0,
            compare_at: now.mono + SYNC_INTERVAL + jitter,
            sweep_at: now.mono + SWEEP_INTERVAL + jitter,
            counters: NodeCounters::default(),
        }
    }

    /// This host.
    pub const fn me(&self) -> HostId {
        self.me
    }

    /// The swarm.
    pub const fn swarm(&self) -> SwarmId {
        self.swarm
    }

    /// All rows.
    pub const fn table(&self) -> &Table {
        &self.table
    }

    /// What came in and was not taken.
    pub const fn counters(&self) -> NodeCounters {
        self.counters
    }

    /// Says something about this host, or something else than before. The host row must come before all others, and
    /// its `refresh_s` is set here.
    pub fn put(&mut self, now: Now, mut body: Body) {
        if let Body::Host(row) = &mut body {
            row.refresh_s = self.refresh_s();
        }
        self.write(now, body.key(), Some(body));
    }

    /// Says nothing of `key` any more. Taking the host row back is the goodbye.
    pub fn take_back(&mut self, now: Now, key: Key) {
        if self.table.get(self.me, key).is_some_and(|row| row.body.is_some()) {
            self.write(now, key, None);
        }
    }

    /// Gossip from a member.
    pub fn handle_gossip(&mut self, now: Now, bytes: &[u8]) -> GossipVerdict {
        let Ok(gossip) = Gossip::decode(bytes) else {
            self.counters.malformed += 1;
            return GossipVerdict::Reject;
        };
        let mut verdict = GossipVerdict::Ignore;
        for row in gossip.rows {
            match self.take(now, AgedRow { row, age_s: 0 }) {
                Taken::New => verdict = GossipVerdict::Accept,
                Taken::Known => {}
                Taken::Unknown if verdict == GossipVerdict::Ignore => verdict = GossipVerdict::Accept,
                Taken::Unknown => {}
                Taken::Forged => return GossipVerdict::Reject,
            }
        }
        verdict
    }

    /// A sync request from a member; returns the answer, or nothing if it is malformed.
    pub fn handle_request(&mut self, now: Now, bytes: &[u8]) -> Option<Vec<u8>> {
        let Ok(request) = SyncRequest::decode(bytes) else {
            self.counters.malformed += 1;
            return None;
        };
        let response = match request {
            SyncRequest::Root(root) if root == self.table.root() => SyncResponse::Same,
            SyncRequest::Root(_) => SyncResponse::Buckets(self.table.buckets().to_vec()),
            SyncRequest::Tags(buckets) => SyncResponse::Tags(self.tags(&buckets)),
            SyncRequest::Rows { want, give } => {
                for row in give {
                    self.take(now, row);
                }
                SyncResponse::Rows(self.aged_rows(now.mono, &want, SYNC_RESPONSE_BYTES_MAX / 2))
            }
        };
        Some(response.encode())
    }

    /// The answer to a [`NodeEffect::Request`], or that there is none.
    pub fn handle_response(&mut self, now: Now, id: RequestId, response: Option<&[u8]>) {
        let Some(comparison) = self.comparisons.remove(&id) else { return };
        let Some(bytes) = response else { return };
        match SyncResponse::decode(bytes) {
            Ok(response) => self.on_response(now, comparison, response),
            Err(_) => self.counters.malformed += 1,
        }
    }

    /// A member is connected from now on, or no longer. Tables are compared with every new peer.
    pub fn handle_peer(&mut self, host: HostId, connected: bool) {
        if !connected {
            self.peers.remove(&host);
            self.comparisons.retain(|_, comparison| comparison.peer != host);
        } else if self.peers.insert(host) {
            self.compare(host);
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        if now.mono >= self.refresh_at {
            self.refresh(now);
        }
        if now.mono >= self.compare_at {
            self.compare_at = now.mono + SYNC_INTERVAL + Duration::from_micros(self.rng.below(2_000_000));
            if let Some(peer) = self.random_peer() {
                self.compare(peer);
            }
        }
        if now.mono >= self.sweep_at {
            self.sweep(now.mono);
        }
    }

    /// When [`Node::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Instant {
        self.refresh_at.min(self.compare_at).min(self.sweep_at)
    }

    /// Takes the next effect.
    pub fn poll_effect(&mut self) -> Option<NodeEffect> {
        if !self.outbox.is_empty() {
            self.flush();
        }
        self.effects.pop_front()
    }

    fn write(&mut self, now: Now, key: Key, body: Option<Body>) {
        self.version.seq += 1;
        let row = Row::sign(self.swarm, &*self.signer, key, self.version, body);
        debug_assert!(row.is_well_formed(), "{key:?}");
        self.outbox.push(row.clone());
        self.insert(now.mono, row, now.mono);
    }

    /// Says that this host is there: the lease of everything that it says. At first and now and then by its host row,
    /// which so reaches those who were not connected when it was written, and those who dropped it meanwhile.
    fn refresh(&mut self, now: Now) {
        let interval = self.refresh_interval();
        // Jitter keeps hosts that started together from speaking together.
        self.refresh_at = now.mono + interval - Duration::from_micros(self.rng.below(interval.as_micros() as u64 / 10));
        let Some(Body::Host(row)) = self.table.get(self.me, Key::Host).and_then(|row| row.body.clone()) else { return };
        self.refreshes = self.refreshes.saturating_add(1);
        // By lot, so that hosts that started together do not do it together.
        let is_due = self.rng.below(REFRESHES_PER_HOST_ROW) == 0;
        if is_due || self.refreshes <= HOST_ROWS_AT_FIRST {
            return self.put(now, Body::Host(row));
        }
        let beat = Beat { refresh_s: self.refresh_s() };
        self.write(now, Key::Beat, Some(Body::Beat(beat)));
    }

    /// What a sign of life promises.
    fn refresh_s(&self) -> u16 {
        u16::try_from(self.refresh_interval().as_secs()).unwrap_or(u16::MAX)
    }

    fn refresh_interval(&self) -> Duration {
        refresh_interval(self.table.host_count())
    }

    fn sweep(&mut self, now: Instant) {
        self.sweep_at = now + (self.refresh_interval() / 5).max(SWEEP_INTERVAL);
        self.tell_contested();
        let (silent, gone) = self.table.sweep(now, self.me);
        for host in silent {
            self.changed(Change::Silent(host));
        }
        for host in gone {
            for key in self.table.remove_host(host) {
                self.changed(Change::Gone(host, key));
            }
            self.changed(Change::Left(host));
        }
    }

    /// Checks a row that somebody brought and puts it in.
    fn take(&mut self, now: Now, aged: AgedRow) -> Taken {
        let AgedRow { row, age_s } = aged;
        if row.writer == self.me {
            return self.take_own(now, &row);
        }
        if self.table.get(row.writer, row.key).is_some_and(|known| known.version >= row.version) {
            self.counters.stale += 1;
            return Taken::Known;
        }
        if !row.is_well_formed() || !row.is_signed(self.swarm, &*self.verifier) {
            self.counters.refused += 1;
            return Taken::Forged;
        }
        if !self.is_member(now, &row) {
            self.counters.refused += 1;
            return Taken::Unknown;
        }
        let heard = now.mono - Duration::from_secs(age_s.into());
        self.insert(now.mono, row, heard)
    }

    /// A host row shows its writer's certificate; other rows are taken once the host row is here.
    fn is_member(&self, now: Now, row: &Row) -> bool {
        let certificate = match &row.body {
            Some(Body::Host(host)) => Some(&host.certificate),
            _ => self.table.host(row.writer).map(|host| &host.certificate),
        };
        certificate.is_some_and(|c| c.check(self.swarm, row.writer, now.wall, &*self.verifier).is_ok())
    }

    fn insert(&mut self, now: Instant, row: Row, heard: Instant) -> Taken {
        let (writer, key, left) = (row.writer, row.key, row.body.is_none());
        let before = self.table.standing(writer, now).map(|(standing, _)| standing);
        let known = self.table.get(writer, Key::Host).map(|row| row.version.incarnation);
        let restarted = key == Key::Host && known.is_some_and(|known| known < row.version.incarnation);
        let (changed, voided) = match self.table.apply(row, heard, now) {
            Applied::Accepted { changed, voided } => (changed, voided),
            Applied::Stale => {
                self.counters.stale += 1;
                return Taken::Known;
            }
            Applied::Full => {
                self.counters.full += 1;
                return Taken::Unknown;
            }
        };
        let after = self.table.standing(writer, now).map(|(standing, _)| standing);
        let is_alive_again = before != after && after == Some(Standing::Alive);
        for key in voided {
            self.changed(Change::Gone(writer, key));
        }
        if restarted && writer != self.me {
            self.tell_restarted(writer);
        }
        if key == Key::Host && left {
            self.changed(Change::Left(writer));
        } else if is_alive_again {
            self.changed(Change::Alive(writer));
        }
        // What was put and taken back between two messages was perhaps heard of in other ways.
        if changed || left {
            self.changed(if left { Change::Gone(writer, key) } else { Change::Put(writer, key) });
        }
        Taken::New
    }

    /// A row that this host is said to have written.
    fn take_own(&mut self, now: Now, row: &Row) -> Taken {
        if row.version > self.version {
            if !row.is_signed(self.swarm, &*self.verifier) {
                self.counters.refused += 1;
                return Taken::Forged;
            }
            self.outrun(now, row.version);
        }
        Taken::Known
    }

    /// Somebody has a row of ours that is newer than ours: this host's state directory is older than its last run.
    fn outrun(&mut self, now: Now, theirs: Version) {
        self.version = Version { incarnation: theirs.incarnation.saturating_add(1), seq: 0 };
        let ours: Vec<Body> = self.table.bodies_of(self.me).cloned().collect();
        for body in ours {
            self.put(now, body);
        }
    }

    fn changed(&mut self, change: Change) {
        self.effects.push_back(NodeEffect::Changed(change));
        match change {
            Change::Put(_, Key::Claim(network, mac)) if self.table.claimants(network, mac).nth(1).is_some() => {
                self.contested.insert((network, mac));
            }
            // Another claim that was not believed because of it may hold now.
            Change::Gone(host, Key::Claim(network, mac)) => self.tell_claims(network, mac, Some(host)),
            Change::Put(..)
            | Change::Gone(..)
            | Change::Alive(_)
            | Change::Silent(_)
            | Change::Restarted(_)
            | Change::Left(_) => {}
        }
    }

    /// Rows of the new life may have come before the host row that tells of it.
    fn tell_restarted(&mut self, host: HostId) {
        self.changed(Change::Restarted(host));
        let keys: Vec<Key> = self.table.bodies_of(host).map(Body::key).filter(|key| *key != Key::Host).collect();
        for key in keys {
            self.changed(Change::Put(host, key));
        }
    }

    fn tell_claims(&mut self, network: NetworkId, mac: Mac, except: Option<HostId>) {
        let claimants = self.table.claimants(network, mac).filter(|host| Some(*host) != except);
        let told = claimants.map(|host| NodeEffect::Changed(Change::Put(host, Key::Claim(network, mac))));
        self.effects.extend(told);
    }

    /// Addresses that several hosts claim are told again until all but one have given way: what was not believed when
    /// it came may be believed now.
    fn tell_contested(&mut self) {
        for (network, mac) in std::mem::take(&mut self.contested) {
            if self.table.claimants(network, mac).nth(1).is_some() {
                self.contested.insert((network, mac));
                self.tell_claims(network, mac, None);
            }
        }
    }

    /// Packs the rows written since the last call into as few messages as fit.
    fn flush(&mut self) {
        let mut rows = Vec::new();
        let mut bytes = GOSSIP_OVERHEAD_BYTES;
        for row in std::mem::take(&mut self.outbox) {
            let size = codec::encode(&row).len();
            if bytes + size > GOSSIP_BYTES_MAX && !rows.is_empty() {
                self.effects.push_back(NodeEffect::Gossip(Gossip { rows: std::mem::take(&mut rows) }.encode()));
                bytes = GOSSIP_OVERHEAD_BYTES;
            }
            bytes += size;
            rows.push(row);
        }
        self.effects.push_back(NodeEffect::Gossip(Gossip { rows }.encode()));
    }

    fn tags(&self, buckets: &[u8]) -> Vec<(u8, Vec<Tag>)> {
        let mut answer = Vec::new();
        let mut room = SYNC_RESPONSE_BYTES_MAX / 2 / TAG_BYTES_MAX;
        for &bucket in buckets {
            let tags: Vec<Tag> = self.table.tags(bucket).map(|(name, version)| Tag { name, version }).collect();
            if tags.len() > room && !answer.is_empty() {
                break;
            }
            room = room.saturating_sub(tags.len());
            answer.push((bucket, tags));
        }
        answer
    }

    fn aged_rows(&self, now: Instant, names: &[u64], mut room: usize) -> Vec<AgedRow> {
        let mut rows = Vec::new();
        for row in names.iter().filter_map(|name| self.table.by_name(*name)) {
            let size = codec::encode(row).len() + 8;
            if size > room {
                break;
            }
            room -= size;
            let age = match (row.writer == self.me, self.table.standing(row.writer, now)) {
                (false, Some((_, age))) => age,
                _ => Duration::ZERO,
            };
            rows.push(AgedRow { row: row.clone(), age_s: u32::try_from(age.as_secs()).unwrap_or(u32::MAX) });
        }
        rows
    }

    fn random_peer(&mut self) -> Option<HostId> {
        let index = match self.peers.len() {
            0 => return None,
            count => self.rng.below(count as u64),
        };
        self.peers.iter().nth(index as usize).copied()
    }
}

/// What became of a row that somebody brought.
enum Taken {
    New,
    Known,
    /// Its writer's certificate is not here, or there is no room.
    Unknown,
    Forged,
}

/// Of so many renewals of the lease one is by the whole host row on average, the others are beats. Hosts forget a
/// silent one after as many.
const REFRESHES_PER_HOST_ROW: u64 = GONE_AFTER_REFRESHES as u64;
/// A host has few connections when it starts, and its first words do not get far.
const HOST_ROWS_AT_FIRST: u32 = 3;

/// Least time between two looks for silent hosts.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes of a gossip message beside its rows: version and count.
const GOSSIP_OVERHEAD_BYTES: usize = 16;

/// Bytes of an encoded tag at most: three numbers of nine bytes.
const TAG_BYTES_MAX: usize = 27;

/// Names that one request may want: half of its bytes; the other half gives rows.
const WANT_MAX: usize = SYNC_REQUEST_BYTES_MAX / 2 / 9;

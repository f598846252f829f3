//! Which members to be connected to: ten to twenty-four, however large the swarm.
//!
//! Only decisions: time and seed are arguments, dialling and closing is the caller's. Gossipsub keeps every
//! connection it has ever used alive, so without this each host would end up connected to all others.
//! Strangers are no matter of this module; `limits` bounds them.

#[cfg(test)]
mod tests;

use super::address::is_dialable;
use super::backoff::{Backoff, Random};
use super::gate::TOGETHER_TIME;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::ConnectionId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use virtuoso_overlay::ids::HostId;
use virtuoso_overlay::time::Instant;

/// Below this many connected members, more are dialled: the gossip mesh wants 6 to 12 of them.
pub const CONNECTED_MIN: usize = 10;
/// Above this many, some are closed: each costs 60 kB and its share of keep-alives.
pub const CONNECTED_MAX: usize = 24;
/// Closing goes down to here, so that the next arrival does not close another one.
const CONNECTED_AFTER_TRIM: usize = 18;
/// Dials of members that run at once.
const DIALS_MAX: usize = 4;
/// A dial that has told nothing for so long is forgotten.
const DIAL_TIME_MAX: Duration = Duration::from_secs(30);
/// Members whose addresses are remembered; the design's largest swarm has 10,000.
const MEMBERS_KNOWN_MAX: usize = 16_384;
/// Addresses of one member. A machine with more interfaces is reached by some of them.
pub const ADDRESSES_MAX: usize = 8;
/// A connection is not closed before it could show what it is good for.
const TRIAL_TIME: Duration = Duration::from_secs(5);
/// Both sides dial each other at once when they meet; the side with the smaller id then picks one connection.
const DUPLICATE_TIME: Duration = Duration::from_secs(2);
/// The other side does if the first has not.
const DUPLICATE_TIME_MAX: Duration = Duration::from_secs(20);
/// Of two hosts that learn of each other, the one with the larger id waits this long for the other's dial.
const POLITENESS: Duration = Duration::from_millis(1_500);
/// A member that was closed for being too many is not dialled again for so long.
const TRIMMED_PAUSE: Duration = Duration::from_secs(60);

/// A member whose connection broke is dialled again even where there are enough others, one member each time: the
/// halves of a healed partition have enough connections each, and would never meet. The simulator healed 1,000 hosts
/// in 12.6 s this way, and not at all without.
const REDIAL_INTERVAL: Duration = Duration::from_secs(5);
/// Members whose connections broke: a few more than there are connections.
const LOST_MAX: usize = 64;
/// A member that was dialled in vain so often is given up: with the longest pauses, after an hour.
const LOST_FAILURES_MAX: u32 = 240;

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Dial a member at any of these addresses.
    Dial(HostId, Vec<Multiaddr>),
    /// Close this connection.
    Close(ConnectionId, Reason),
}

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Another connection to the same host stays.
    Duplicate,
    /// There are too many.
    TooMany,
}

/// The connections to members, and the members that could be dialled.
#[derive(Debug)]
pub struct Connections {
    own: HostId,
    backoff: Backoff,
    random: Random,
    known: BTreeMap<HostId, Known>,
    open: BTreeMap<ConnectionId, Open>,
    dialling: BTreeMap<HostId, Instant>,
    pinned: BTreeSet<HostId>,
    /// Members whose last connection broke.
    lost: BTreeSet<HostId>,
    redial_at: Instant,
    /// Carry streams.
    busy: BTreeSet<ConnectionId>,
}

#[derive(Debug, Default)]
struct Known {
    addresses: Vec<Address>,
    /// Connections in a row that failed or did not last.
    failures: u32,
    dial_at: Instant,
}

#[derive(Debug)]
struct Address {
    address: Multiaddr,
    failures: u32,
    dial_at: Instant,
}

#[derive(Debug)]
struct Open {
    host: HostId,
    quic: bool,
    dialled: bool,
    since: Instant,
    useful_at: Instant,
    /// Its end is decided; it takes a moment.
    closing: bool,
}

impl Connections {
    /// For the host `own`, which never dials itself.
    pub fn new(own: HostId, backoff: Backoff, seed: u64) -> Self {
        Self {
            own,
            backoff,
            random: Random::new(seed),
            known: BTreeMap::new(),
            open: BTreeMap::new(),
            dialling: BTreeMap::new(),
            pinned: BTreeSet::new(),
            lost: BTreeSet::new(),
            redial_at: Instant::default(),
            busy: BTreeSet::new(),
        }
    }

    /// Where a member can be dialled. Adds to what is known; the address that failed most gives way. Gives the
    /// addresses that are news.
    pub fn learned(
        &mut self,
        host: HostId,
        addresses: impl IntoIterator<Item = Multiaddr>,
        now: Instant,
    ) -> Vec<Multiaddr> {
        let is_new = !self.known.contains_key(&host);
        if host == self.own || (is_new && self.known.len() >= MEMBERS_KNOWN_MAX) {
            return Vec::new();
        }
        let wait = if self.own > host { POLITENESS } else { Duration::ZERO };
        let spread = self.backoff.min.mul_f64(0.25 * self.random.unit());
        let known =
            self.known.entry(host).or_insert_with(|| Known { dial_at: now + wait + spread, ..Known::default() });
        let addresses = addresses.into_iter().filter(is_dialable).map(super::address::without_peer);
        addresses.filter(|address| known.add(address, now)).collect()
    }

    /// A host that is no member any more.
    pub fn forget(&mut self, host: &HostId) {
        self.known.remove(host);
        self.pinned.remove(host);
        self.dialling.remove(host);
        self.lost.remove(host);
    }

    /// Keeps the connections of a host whatever their number.
    pub fn pin(&mut self, host: HostId, pinned: bool) {
        if pinned {
            self.pinned.insert(host);
        } else {
            self.pinned.remove(&host);
        }
    }

    /// Connections that carry streams: of two to one host, such a one is not closed.
    pub fn set_busy(&mut self, busy: BTreeSet<ConnectionId>) {
        self.busy = busy;
    }

    /// A connection to a member is there; `address` is where it leads if this host dialled it.
    pub fn opened(&mut self, id: ConnectionId, host: HostId, address: &Multiaddr, dialled: bool, now: Instant) {
        self.dialling.remove(&host);
        self.lost.remove(&host);
        let quic = address.iter().any(|part| part == Protocol::QuicV1);
        self.open.insert(id, Open { host, quic, dialled, since: now, useful_at: now, closing: false });
        if let Some(known) = self.known.get_mut(&host).filter(|_| dialled) {
            known.addresses.iter_mut().filter(|a| a.address == *address).for_each(|a| a.failures = 0);
        }
    }

    /// A host introduces itself, which it does on its first connection: those that are much older are of an earlier run
    /// of it, or have broken at its end. They are to be closed.
    pub fn introduced(&mut self, id: ConnectionId) -> Vec<ConnectionId> {
        let Some(Open { host, since, .. }) = self.open.get(&id) else { return Vec::new() };
        let (host, since) = (*host, *since);
        let dead = self.open.iter_mut().filter(|(other, open)| {
            **other != id && !open.closing && open.host == host && open.since + TOGETHER_TIME <= since
        });
        dead.map(|(id, open)| {
            open.closing = true;
            *id
        })
        .collect()
    }

    /// A connection is gone. `broke` says that neither side closed it.
    pub fn closed(&mut self, id: ConnectionId, broke: bool, now: Instant) {
        let Some(open) = self.open.remove(&id) else { return };
        let is_last = self.open.values().all(|other| other.host != open.host);
        if is_last && broke && self.lost.len() < LOST_MAX {
            self.lost.insert(open.host);
        }
        let Some(known) = self.known.get_mut(&open.host) else { return };
        let lasted = now.since(open.since) > self.backoff.max;
        known.failures = if lasted { 0 } else { known.failures.saturating_add(1) };
        let wait = self.backoff.delay(known.failures, &mut self.random);
        known.dial_at = known.dial_at.max(now + wait);
    }

    /// A dial did not lead to a connection; `failed` are the addresses that were tried.
    pub fn dial_failed(&mut self, host: &HostId, failed: &[Multiaddr], now: Instant) {
        self.dialling.remove(host);
        let Some(known) = self.known.get_mut(host) else { return };
        known.failures = known.failures.saturating_add(1);
        known.dial_at = now + self.backoff.delay(known.failures, &mut self.random);
        for address in known.addresses.iter_mut().filter(|a| failed.contains(&a.address)) {
            address.failures = address.failures.saturating_add(1);
            address.dial_at = now + self.backoff.delay(address.failures, &mut self.random);
        }
    }

    /// A host gave something of use: it is closed later than others.
    pub fn useful(&mut self, host: &HostId, now: Instant) {
        self.open.values_mut().filter(|open| open.host == *host).for_each(|open| open.useful_at = now);
    }

    /// The addresses of a member.
    pub fn addresses(&self, host: &HostId) -> Vec<Multiaddr> {
        self.known.get(host).map_or_else(Vec::new, |k| k.addresses.iter().map(|a| a.address.clone()).collect())
    }

    /// All that is known.
    pub fn known_addresses(&self) -> impl Iterator<Item = (HostId, &Multiaddr)> {
        self.known.iter().flat_map(|(host, known)| known.addresses.iter().map(|a| (*host, &a.address)))
    }

    /// How many members are connected.
    pub fn connected(&self) -> usize {
        self.hosts().len()
    }

    fn hosts(&self) -> BTreeSet<HostId> {
        self.standing().map(|(_, open)| open.host).collect()
    }

    fn standing(&self) -> impl Iterator<Item = (ConnectionId, &Open)> {
        self.open.iter().filter(|(_, open)| !open.closing).map(|(id, open)| (*id, open))
    }

    /// What to do now. `mesh` are the hosts that gossip needs: they stay.
    pub fn plan(&mut self, now: Instant, mesh: &BTreeSet<HostId>) -> Vec<Action> {
        self.dialling.retain(|_, since| now.since(*since) < DIAL_TIME_MAX);
        let mut actions = self.close_duplicates(now);
        let connected = self.hosts();
        if connected.len() > CONNECTED_MAX {
            actions.extend(self.trim(&connected, mesh, now));
        } else {
            actions.extend(self.dial(&connected, now));
            actions.extend(self.redial(&connected, now));
        }
        for action in &actions {
            if let Action::Close(id, _) = action
                && let Some(open) = self.open.get_mut(id)
            {
                open.closing = true;
            }
        }
        actions
    }

    /// Of several connections to one host one stays: QUIC before TCP, then the one that the host with the smaller id
    /// dialled, then the oldest.
    fn close_duplicates(&mut self, now: Instant) -> Vec<Action> {
        let mut best: BTreeMap<HostId, ConnectionId> = BTreeMap::new();
        let mut worse = Vec::new();
        for (id, open) in self.standing() {
            let own_is_smaller = self.own < open.host;
            let rank = |open: &Open| (!open.quic, open.dialled != own_is_smaller, open.since);
            let Some(kept) = best.insert(open.host, id) else { continue };
            if rank(&self.open[&kept]) <= rank(open) {
                best.insert(open.host, kept);
                worse.push((id, open));
            } else {
                worse.push((kept, &self.open[&kept]));
            }
        }
        worse
            .into_iter()
            .filter(|(id, _)| !self.busy.contains(id))
            .filter(|(_, open)| {
                let patience = if self.own < open.host { DUPLICATE_TIME } else { DUPLICATE_TIME_MAX };
                let newest = self.open.values().filter(|o| o.host == open.host).map(|o| o.since).max();
                newest.is_some_and(|newest| now.since(newest) >= patience)
            })
            .map(|(id, _)| Action::Close(id, Reason::Duplicate))
            .collect()
    }

    /// Closes what has been of no use for the longest time; of equal use, the oldest.
    fn trim(&mut self, connected: &BTreeSet<HostId>, mesh: &BTreeSet<HostId>, now: Instant) -> Vec<Action> {
        let keeps = |host: &HostId| mesh.contains(host) || self.pinned.contains(host);
        let mut candidates: Vec<_> = connected
            .iter()
            .filter(|host| !keeps(host))
            .filter_map(|host| {
                let of_host = || self.standing().map(|(_, open)| open).filter(|open| open.host == *host);
                let (useful, since) = (of_host().map(|o| o.useful_at).max()?, of_host().map(|o| o.since).max()?);
                (now.since(since) >= TRIAL_TIME).then_some((useful, since, *host))
            })
            .collect();
        candidates.sort_unstable();
        candidates.truncate(connected.len() - CONNECTED_AFTER_TRIM);
        let closing: BTreeSet<_> = candidates.into_iter().map(|(_, _, host)| host).collect();
        for host in &closing {
            if let Some(known) = self.known.get_mut(host) {
                known.dial_at = now + TRIMMED_PAUSE.mul_f64(0.75 + 0.5 * self.random.unit());
            }
        }
        let of_closing = self.standing().filter(|(_, open)| closing.contains(&open.host));
        of_closing.map(|(id, _)| Action::Close(id, Reason::TooMany)).collect()
    }

    /// Dials members at random while there are too few: a random graph of degree ten stays connected.
    fn dial(&mut self, connected: &BTreeSet<HostId>, now: Instant) -> Vec<Action> {
        let missing = CONNECTED_MIN.saturating_sub(connected.len() + self.dialling.len());
        let allowed = DIALS_MAX.saturating_sub(self.dialling.len());
        if missing.min(allowed) == 0 {
            return Vec::new();
        }
        let candidates = self.known.iter().filter(|(host, known)| {
            known.is_due(now) && !connected.contains(host) && !self.dialling.contains_key(host)
        });
        let candidates: Vec<_> = candidates.map(|(host, _)| *host).collect();
        let chosen = self.random.choose(candidates, missing.min(allowed));
        for host in &chosen {
            self.dialling.insert(*host, now);
        }
        chosen.into_iter().map(|host| Action::Dial(host, self.known[&host].due(now))).collect()
    }

    /// Dials one of the members that were lost, where there are enough others.
    fn redial(&mut self, connected: &BTreeSet<HostId>, now: Instant) -> Option<Action> {
        if connected.len() < CONNECTED_MIN || self.redial_at > now {
            return None;
        }
        let known = &self.known;
        self.lost.retain(|host| known.get(host).is_some_and(|known| known.failures < LOST_FAILURES_MAX));
        let due = self.lost.iter().filter(|host| self.known[host].is_due(now) && !self.dialling.contains_key(host));
        let host = *self.random.choose(due.copied().collect(), 1).first()?;
        self.redial_at = now + REDIAL_INTERVAL;
        self.dialling.insert(host, now);
        Some(Action::Dial(host, self.known[&host].due(now)))
    }
}

impl Known {
    /// Says whether the address is news, and kept.
    fn add(&mut self, address: &Multiaddr, now: Instant) -> bool {
        if self.addresses.iter().any(|known| known.address == *address) {
            return false;
        }
        if self.addresses.len() >= ADDRESSES_MAX {
            let worst = (0..self.addresses.len()).max_by_key(|i| self.addresses[*i].failures);
            match worst {
                Some(i) if self.addresses[i].failures > 0 => _ = self.addresses.swap_remove(i),
                _ => return false,
            }
        }
        self.addresses.push(Address { address: address.clone(), failures: 0, dial_at: now });
        true
    }

    fn is_due(&self, now: Instant) -> bool {
        self.dial_at <= now && self.addresses.iter().any(|a| a.dial_at <= now)
    }

    fn due(&self, now: Instant) -> Vec<Multiaddr> {
        self.addresses.iter().filter(|a| a.dial_at <= now).map(|a| a.address.clone()).collect()
    }
}

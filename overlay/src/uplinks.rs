//! Which host joins a LAN to a network, where several have an uplink to it: exactly one, or frames would run in circles
//! between the LAN and the overlay.
//!
//! Every host with an uplink sends beacons onto its LAN, so that only those on the same LAN hear each other. Of those
//! that take part the one with the smallest id is elected. The others stay on standby: what is on their bridge is part
//! of the LAN and reaches the overlay through the elected host. Nothing passes between their bridge and the overlay.
//!
//! The rules that keep two from being active at once, whatever the order in which hosts come, go and hear each other:
//! - a new uplink only listens, longer than anybody is believed to be there without being heard;
//! - who is active gives way to a smaller id that takes part, and says so only when nothing passes any more;
//! - who is on standby becomes active only when nobody smaller takes part and nobody else is active.
//!
//! A LAN that falls into parts has one active host in each; when it heals there are two until the first beacon passes.
//! An uplink without a carrier leads to no LAN: its host is on its own and passes everything.

use crate::ids::HostId;
use crate::limits::{BEACON_INTERVAL, UPLINK_HOSTS_MAX, UPLINK_LISTEN_TIME, UPLINK_SILENT_TIME};
use crate::time::Instant;
pub use crate::wire::beacon::Standing;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What the caller does for an election, in order, each to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UplinkEffect {
    /// Let frames pass between the bridge and the overlay. If they do already, another host may have let them
    /// pass as well: what bridges learned of the way to others meanwhile may be wrong.
    Open,
    /// Let none pass.
    Close,
    /// Send a beacon with this standing.
    Beacon(Standing),
    /// For the operator: whether frames pass, and the host that joins this LAN to the network, as far as known.
    Changed {
        /// Whether frames pass between the bridge and the overlay.
        open: bool,
        /// The elected host; none without a LAN, and while nobody is active.
        elected: Option<HostId>,
    },
}

/// The election for one uplink of this host in one network.
#[derive(Debug)]
pub struct Election {
    me: HostId,
    phase: Phase,
    heard: BTreeMap<HostId, Heard>,
    /// Hosts that were heard on this LAN at any time: what they claim may be of its stations.
    met: BTreeSet<HostId>,
    beacon_at: Instant,
    told: (bool, Option<HostId>),
    effects: VecDeque<UplinkEffect>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The uplink has no carrier.
    Alone,
    Listening {
        until: Instant,
    },
    Standby,
    Active,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Instant,
    standing: Standing,
}

impl Election {
    /// An uplink that begins to listen. The caller has let no frame pass between bridge and overlay until now.
    pub fn new(now: Instant, me: HostId) -> Self {
        Self {
            me,
            phase: Phase::Listening { until: now + UPLINK_LISTEN_TIME },
            heard: BTreeMap::new(),
            met: BTreeSet::new(),
            beacon_at: now,
            told: (false, None),
            effects: VecDeque::new(),
        }
    }

    /// Whether frames may pass between the bridge and the overlay.
    pub const fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Active | Phase::Alone)
    }

    /// The other hosts that have been heard on this LAN.
    pub fn met(&self) -> impl Iterator<Item = HostId> + '_ {
        self.met.iter().copied()
    }

    /// A beacon of this swarm and network came from the LAN.
    pub fn handle_beacon(&mut self, now: Instant, from: HostId, standing: Standing) {
        // One's own comes back only where the LAN itself has a loop, and says nothing new.
        if from == self.me || self.phase == Phase::Alone {
            return;
        }
        let before = if standing == Standing::Leaving {
            self.heard.remove(&from)
        } else {
            self.met.insert(from);
            self.heard.insert(from, Heard { at: now, standing })
        };
        // Whoever listened before was not active; of anybody else it is not known.
        let passive = matches!(standing, Standing::Standby | Standing::Leaving);
        let gave_way = passive && before.is_none_or(|heard| heard.standing == Standing::Active);
        if gave_way && self.phase == Phase::Active {
            self.effects.push_back(UplinkEffect::Open);
        }
        if self.heard.len() > UPLINK_HOSTS_MAX {
            self.heard.pop_last();
        }
        if self.met.len() > UPLINK_HOSTS_MAX {
            self.met.pop_last();
        }
        self.decide(now);
    }

    /// The uplink has a carrier and is in the bridge, or not any more.
    pub fn handle_lan(&mut self, now: Instant, present: bool) {
        match (self.phase, present) {
            (Phase::Alone, true) => {
                self.effects.push_back(UplinkEffect::Close);
                self.enter(now, Phase::Listening { until: now + UPLINK_LISTEN_TIME });
            }
            (Phase::Alone, false) | (_, true) => {}
            (Phase::Active, false) => self.enter(now, Phase::Alone),
            (Phase::Listening { .. } | Phase::Standby, false) => {
                self.effects.push_back(UplinkEffect::Open);
                self.enter(now, Phase::Alone);
            }
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.decide(now);
        if now >= self.beacon_at {
            self.beacon(now);
        }
    }

    /// When [`Election::handle_timeout`] has something to do; never while the uplink has no carrier.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let listened = match self.phase {
            Phase::Alone => return None,
            Phase::Listening { until } => Some(until),
            Phase::Standby | Phase::Active => None,
        };
        let silent = self.heard.values().map(|heard| heard.at + UPLINK_SILENT_TIME).min();
        listened.into_iter().chain(silent).chain([self.beacon_at]).min()
    }

    /// Takes the next effect.
    pub fn poll_effect(&mut self) -> Option<UplinkEffect> {
        self.effects.pop_front()
    }

    fn decide(&mut self, now: Instant) {
        self.heard.retain(|_, heard| now.since(heard.at) < UPLINK_SILENT_TIME);
        if matches!(self.phase, Phase::Listening { until } if now >= until) {
            self.enter(now, Phase::Standby);
        }
        let smaller = self.heard.range(..self.me).any(|(_, heard)| heard.standing != Standing::Listening);
        let active = self.heard.values().any(|heard| heard.standing == Standing::Active);
        match self.phase {
            Phase::Standby if !smaller && !active => {
                // Said before it is so: who hears it stays closed.
                self.enter(now, Phase::Active);
                self.effects.push_back(UplinkEffect::Open);
            }
            Phase::Active if smaller => {
                // Done before it is said: who hears it may open.
                self.effects.push_back(UplinkEffect::Close);
                self.enter(now, Phase::Standby);
            }
            _ => {}
        }
        self.tell();
    }

    fn enter(&mut self, now: Instant, phase: Phase) {
        self.phase = phase;
        if phase == Phase::Alone {
            self.heard.clear();
        } else {
            self.beacon(now);
        }
        self.tell();
    }

    fn beacon(&mut self, now: Instant) {
        let standing = match self.phase {
            Phase::Alone => return,
            Phase::Listening { .. } => Standing::Listening,
            Phase::Standby => Standing::Standby,
            Phase::Active => Standing::Active,
        };
        self.effects.push_back(UplinkEffect::Beacon(standing));
        self.beacon_at = now + BEACON_INTERVAL;
    }

    /// Tells the operator what is news. While one host gives way to the next nobody is active: that is no news.
    fn tell(&mut self) {
        let active = self.heard.iter().find(|(_, heard)| heard.standing == Standing::Active).map(|(host, _)| *host);
        let (open, elected) = match self.phase {
            Phase::Alone => (true, None),
            Phase::Active => (true, Some(self.me)),
            Phase::Listening { .. } | Phase::Standby => (false, active),
        };
        if open != self.told.0 || (elected.is_some() && elected != self.told.1) {
            self.told = (open, elected);
            self.effects.push_back(UplinkEffect::Changed { open, elected });
        }
    }
}

#[cfg(test)]
mod tests;

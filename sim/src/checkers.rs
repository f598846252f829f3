//! What must never happen (checked as it happens) and what must come true once faults end (checked at the end).

use crate::clock::{SECOND, Time};
use crate::frames::{self, Content};
use crate::model::Appearance;
use crate::world::World;
use std::collections::{BTreeMap, BTreeSet};
use virtuoso_overlay::drop_reason::DropReason;
use virtuoso_overlay::ids::{HostId, Mac, NetworkId};
use virtuoso_overlay::limits::HOP_LIMIT;
use virtuoso_overlay::switch::{AddressState, FdbEntry, SwitchEvent, Upward};
use virtuoso_overlay::table::{Body, Key, Version};
use virtuoso_overlay::wire::frame::{Flags, FrameHeader};

/// Something that must never happen has happened.
#[derive(Clone, Debug)]
pub struct Violation {
    /// When.
    pub at: Time,
    /// What.
    pub what: String,
}

/// The most effects that one input may lead to: a restarted host's claims to all hosts of its networks, and the rows.
const EFFECTS_MAX: usize = 20_000;

/// A frame that is older than this when the run ends should have arrived.
const FRAME_TIME_MAX: u64 = 8 * SECOND;

impl World {
    /// What has gone wrong.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// The last things that happened.
    pub fn trace_tail(&self) -> Vec<String> {
        self.trace.tail()
    }

    /// Notes that something is wrong; the run ends.
    pub fn violate(&mut self, what: String) {
        self.violations.push(Violation { at: self.now, what });
    }

    /// A frame never reaches a host without a port in its network.
    pub(crate) fn check_delivery(&mut self, host: usize, network: NetworkId) {
        if !self.hosts[host].networks.contains(&network) {
            self.violate(format!("host {host} delivers a frame of network {network} that it has no port in"));
        }
    }

    /// A frame is sent on a few times at most.
    pub(crate) fn check_transmission(&mut self, host: usize, header: FrameHeader, packet: &[u8]) {
        let Some(Content::Numbered(number)) = frames::read(packet).map(|packet| packet.content) else { return };
        let Some(frame) = self.model.frame(number).filter(|_| !header.flags.has(Flags::FLOOD)) else { return };
        frame.hops += 1;
        if frame.hops > HOP_LIMIT + 1 {
            self.violate(format!("frame {number} is sent on again and again, by host {host} now"));
        }
    }

    /// A guest gets a frame once. One that moves may meet a second copy of a flooded frame at its new place.
    pub(crate) fn check_reception(&mut self, number: u64, guest: usize, place: Appearance) {
        let now = self.now;
        let Some(frame) = self.model.frame(number) else { return };
        if frame.to != guest {
            return;
        }
        let again = frame.received.contains(&place.id);
        frame.received.push(place.id);
        frame.first = frame.first.or(Some(now));
        if again {
            self.violate(format!("guest {guest} gets frame {number} twice on host {}", place.host));
        }
    }

    pub(crate) fn note_drop(&mut self, packet: &[u8], reason: DropReason) {
        if let Some(Content::Numbered(number)) = frames::read(packet).map(|packet| packet.content)
            && let Some(frame) = self.model.frame(number)
        {
            frame.dropped = Some(reason.name());
        }
    }

    pub(crate) fn note_flood(&mut self, packet: &[u8]) {
        if let Some(Content::Numbered(number)) = frames::read(packet).map(|packet| packet.content)
            && let Some(frame) = self.model.frame(number)
        {
            frame.flooded = true;
        }
    }

    pub(crate) fn note_upward(&mut self, host: usize, upward: &Upward) {
        let (what, mac, detail) = match upward {
            Upward::Publish(claim) => ("publishes", claim.mac, claim.epoch.0),
            Upward::Withdraw { mac, .. } => ("withdraws", *mac, 0),
            Upward::FindPort { mac, .. } => ("looks for", *mac, 0),
            Upward::Event(SwitchEvent::Claimed { mac, epoch, .. }) => ("claimed", *mac, epoch.0),
            Upward::Event(SwitchEvent::Moved { mac, epoch, .. }) => ("moved", *mac, epoch.0),
            Upward::Event(SwitchEvent::Conflict { mac, .. }) => ("conflict", *mac, 0),
            Upward::Event(SwitchEvent::Released { mac, .. }) => ("released", *mac, 0),
            Upward::Service { .. } => return,
        };
        if let Upward::Event(SwitchEvent::Moved { network, mac, from, .. }) = upward
            && *from == self.hosts[host].id
            && let Some(guest) = self.model.guest_of(*network, *mac)
        {
            // The agent makes the bridge forget what has left.
            self.model.ghosts.remove(&(host, guest));
        }
        let [.., high, low] = mac.0;
        let number = usize::from(u16::from_be_bytes([high, low])).saturating_sub(1);
        self.note(what, host, number, detail);
    }

    /// Queues keep their bounds.
    pub fn check_bounds(&mut self) {
        if self.effects_max > EFFECTS_MAX {
            self.violate(format!("one input led to {} effects", self.effects_max));
        }
    }

    /// What is not in order yet, if anything: agents that are down, tables that differ, addresses without one holder.
    pub fn disorder(&self) -> Option<String> {
        let mut roots = BTreeMap::new();
        for (index, host) in self.hosts.iter().enumerate() {
            let Some(agent) = &host.agent else { return Some(format!("host {index} is down")) };
            roots.entry(agent.node.table().root()).or_insert_with(Vec::new).push(index);
        }
        if roots.len() > 1 {
            let groups: Vec<_> = roots.into_values().collect();
            return Some(format!("tables differ: {groups:?}, {}", self.difference(groups[0][0], groups[1][0])));
        }
        let networks = (0..self.options.networks).map(|network| NetworkId(network as u32 + 1));
        self.disorder_of_rows().or_else(|| networks.filter_map(|network| self.disorder_of(network)).next())
    }

    /// A row that one of two hosts lacks or has in another version.
    fn difference(&self, a: usize, b: usize) -> String {
        let rows = |host: usize| -> BTreeMap<(HostId, Key), Version> {
            let agent = self.hosts[host].agent.as_ref();
            let rows = agent.into_iter().flat_map(|agent| agent.node.table().rows());
            rows.map(|row| ((row.writer, row.key), row.version)).collect()
        };
        let (rows_a, rows_b) = (rows(a), rows(b));
        let keys: BTreeSet<_> = rows_a.keys().chain(rows_b.keys()).collect();
        let differing = keys.into_iter().find(|key| rows_a.get(key) != rows_b.get(key));
        differing.map_or_else(String::new, |key| {
            let (ours, theirs) = (rows_a.get(key), rows_b.get(key));
            format!("{:?} of host {:?} is {ours:?} at {a}, {theirs:?} at {b}", key.1, self.index_of(key.0))
        })
    }

    fn disorder_of(&self, network: NetworkId) -> Option<String> {
        let databases: Vec<(usize, BTreeMap<Mac, FdbEntry>)> = self
            .hosts
            .iter()
            .enumerate()
            .filter(|(_, host)| host.networks.contains(&network))
            .filter_map(|(index, host)| Some((index, host.agent.as_ref()?)))
            .map(|(index, agent)| (index, agent.switch.fdb(network).into_iter().map(|e| (e.mac, e)).collect()))
            .collect();
        for (number, guest) in self.model.guests.iter().enumerate().filter(|(_, guest)| guest.network == network) {
            let places: Vec<usize> = guest.places.iter().map(|place| place.host).collect();
            let mut holders: Vec<HostId> = Vec::new();
            for (index, database) in &databases {
                let Some(entry) = database.get(&guest.mac) else {
                    return Some(format!("host {index} knows no holder of guest {number}, which is at {places:?}"));
                };
                let Some(holder) = self.index_of(entry.holder).filter(|holder| places.contains(holder)) else {
                    let (holder, state) = (self.index_of(entry.holder), entry.state);
                    return Some(format!(
                        "guest {number} is at {places:?}, host {index} believes {holder:?} ({state:?}, epoch {})",
                        entry.epoch.0
                    ));
                };
                if (*index == holder) != matches!(entry.state, AddressState::Local | AddressState::Probed) {
                    return Some(format!("guest {number} of host {holder} is {:?} at host {index}", entry.state));
                }
                holders.push(entry.holder);
            }
            holders.dedup();
            if holders.len() > 1 {
                return Some(format!("guest {number} at {places:?} has several holders"));
            }
        }
        None
    }

    /// Every address is claimed by one row, which is its holder's.
    fn disorder_of_rows(&self) -> Option<String> {
        let agent = self.hosts.first()?.agent.as_ref()?;
        let mut writers: BTreeMap<(NetworkId, Mac), Vec<HostId>> = BTreeMap::new();
        for (writer, body) in agent.node.table().bodies() {
            if let Body::Claim(claim) = body {
                writers.entry((claim.network, claim.mac)).or_default().push(writer);
            }
        }
        for (number, guest) in self.model.guests.iter().enumerate() {
            let rows = writers.remove(&(guest.network, guest.mac)).unwrap_or_default();
            let hosts: Vec<Option<usize>> = rows.iter().map(|writer| self.index_of(*writer)).collect();
            let [Some(host)] = hosts[..] else {
                return Some(format!("guest {number} is claimed in rows of {hosts:?}"));
            };
            if !guest.places.iter().any(|place| place.host == host) {
                return Some(format!("guest {number} is claimed in a row of host {host}, where it is not"));
            }
        }
        None
    }

    /// Frames sent in `from..to` that no guest has received, although nothing excuses it.
    pub fn lost_frames(&self, from: Time, to: Time) -> Vec<String> {
        let end = Time(to.0.saturating_sub(FRAME_TIME_MAX));
        let sent = self.model.frames.iter().enumerate().filter(|(_, frame)| frame.sent >= from && frame.sent < end);
        // A guest that disappears from one host without a word is missed there for a while.
        let steady = |guest: usize, sent: Time| {
            self.options.is_lossless() || self.model.guests[guest].changed + FRAME_TIME_MAX < sent
        };
        sent.filter(|(_, frame)| frame.received.is_empty() && frame.single)
            .filter(|(_, frame)| steady(frame.to, frame.sent) && steady(frame.from, frame.sent))
            .map(|(number, frame)| {
                format!(
                    "frame {number} of {:.6} s from guest {} to guest {} ({:?})",
                    frame.sent.0 as f64 / 1e6,
                    frame.from,
                    frame.to,
                    frame.dropped
                )
            })
            .collect()
    }
}

//! The data plane of one host as a state machine: ports, claims, forwarding decisions, moves.
//!
//! The caller feeds it frames, messages, link states and time, carries out its [`SwitchEffect`]s, and owns every
//! socket and TAP. A packet here is a 10-byte virtio-net header and an Ethernet frame, possibly a super-frame.
//!
//! The life of an address on its host (see `segment::State`):
//!
//! ```text
//!                        a port shows it
//!   unknown ------------------------------------------> Local <-----------------+
//!      ^                                                 |  ^                    |
//!      | nobody asked                     the port is    |  | it is back         | granted
//!      |                                  gone           v  |                    |
//!      +----------------------------------------------Departed                   |
//!                                                        | asked: handoff        |
//!                       a port shows it                  v                       |
//!   Refused <----------- Wanted <---------------------- Remote                   |
//!            in use        +------------------------------------------------------+
//!            there
//! ```

mod answer;
mod claiming;
mod departing;
mod forwarding;
mod heard;
mod hold;
mod migrating;
mod parcels;
mod segment;
mod service;
mod takeover;
#[cfg(test)]
mod tests;

pub use forwarding::{Egress, Ingress};
pub use migrating::MoveCounts;
pub use segment::{NetworkSpec, PortId};
pub use service::Assignment;

use crate::claims::Claim;
use crate::crypto::{Signer, Verifier};
use crate::drop_reason::DropCounters;
use crate::ids::{Epoch, HostId, Mac, NetworkId};
use crate::limits::{EAGER_LINKS_MAX, MESSAGE_CLAIMS_MAX};
use crate::seeded::{SeededMap, SeededState};
use crate::time::Instant;
use crate::wire::frame::FrameHeader;
use crate::wire::message::Message;
use hold::HoldBudget;
use segment::{Segment, State};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// The data plane of one host.
pub struct Switch {
    me: HostId,
    signer: Arc<dyn Signer>,
    verifier: Arc<dyn Verifier>,
    seed: SeededState,
    segments: SeededMap<NetworkId, Segment>,
    hosts: BTreeMap<HostId, Peer>,
    timers: BTreeSet<(Instant, NetworkId, Mac)>,
    hold_budget: HoldBudget,
    /// Addresses that have arrived, and whose frames follow in slices.
    releasing: BTreeSet<(NetworkId, Mac)>,
    release_at: Option<Instant>,
    escort_timers: BTreeSet<(Instant, NetworkId, Mac)>,
    effects: VecDeque<SwitchEffect>,
    reply: Vec<u8>,
    drops: DropCounters,
    /// The source of this host's own ARP and ND questions.
    prober: Mac,
}

/// What the caller must do for the switch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SwitchEffect {
    /// Make a link to this host if there is none.
    Connect(HostId),
    /// Send a message on the stream of the link to `to`.
    Send {
        /// The receiver.
        to: HostId,
        /// The encoded [`Message`].
        message: Vec<u8>,
    },
    /// Send a packet over the link to `to`, and keep it (bounded) while the link is being made.
    Transmit {
        /// The receiver.
        to: HostId,
        /// The header to send it with.
        header: FrameHeader,
        /// Virtio-net header and frame.
        packet: Vec<u8>,
    },
    /// Write a packet to the port of this network.
    Deliver {
        /// The network.
        network: NetworkId,
        /// Virtio-net header and frame.
        packet: Vec<u8>,
    },
    /// Write a packet to the port of this guest alone, past the bridge.
    DeliverTo {
        /// The network.
        network: NetworkId,
        /// The guest's address.
        mac: Mac,
        /// Virtio-net header and frame.
        packet: Vec<u8>,
    },
    /// Have the bridge pass what it floods to the port of this guest, or not, from the next frame on.
    Flood {
        /// The network.
        network: NetworkId,
        /// The guest's address.
        mac: Mac,
        /// Whether it does.
        on: bool,
    },
    /// For the control plane.
    Upward(Upward),
}

/// What the control plane must do for the switch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Upward {
    /// Put this claim of ours into the tables, in place of an older one.
    Publish(Claim),
    /// Take our claim of this address out of the tables.
    Withdraw {
        /// The network of the address.
        network: NetworkId,
        /// The address.
        mac: Mac,
    },
    /// Look whether the network's bridge still knows the address behind one of its interfaces, and answer by
    /// [`Switch::handle_port_found`].
    FindPort {
        /// The network of the address.
        network: NetworkId,
        /// The address.
        mac: Mac,
    },
    /// Something an operator may want to see.
    Event(SwitchEvent),
    /// Answer a frame of a local port for the service station, by [`Switch::serve`].
    Service {
        /// The network.
        network: NetworkId,
        /// The frame.
        frame: Vec<u8>,
    },
}

/// Something an operator may want to see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SwitchEvent {
    /// An address got a holder.
    Claimed {
        /// The network of the address.
        network: NetworkId,
        /// The address.
        mac: Mac,
        /// Who has it.
        holder: HostId,
        /// Since when.
        epoch: Epoch,
    },
    /// An address changed its holder.
    Moved {
        /// The network of the address.
        network: NetworkId,
        /// The address.
        mac: Mac,
        /// The former holder.
        from: HostId,
        /// The new holder.
        to: HostId,
        /// The new epoch.
        epoch: Epoch,
    },
    /// Two hosts have the address. `holder` keeps it.
    Conflict {
        /// The network of the address.
        network: NetworkId,
        /// The address.
        mac: Mac,
        /// The host that keeps it.
        holder: HostId,
        /// The host whose port shows it too.
        other: HostId,
    },
    /// An address has no holder any more.
    Released {
        /// The network of the address.
        network: NetworkId,
        /// The address.
        mac: Mac,
        /// Who had it.
        holder: HostId,
    },
}

/// One entry of the forwarding database, for operators.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FdbEntry {
    /// The address.
    pub mac: Mac,
    /// The addresses it announced.
    pub ips: Vec<IpAddr>,
    /// Who holds it.
    pub holder: HostId,
    /// Since which epoch.
    pub epoch: Epoch,
    /// What it is to this host.
    pub state: AddressState,
    /// The interface, where it is a local one that the bridge told.
    pub port: Option<PortId>,
    /// When a frame, the bridge or a claim last confirmed it.
    pub confirmed: Instant,
}

/// What an address is to this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressState {
    /// A port of this host has it.
    Local,
    /// Another host asked for it, this one looks for it on its bridge.
    Probed,
    /// It left its port here and waits for the host that will ask.
    Departed,
    /// Another host has it.
    Remote,
    /// The lease of the host that has it ran out.
    Lapsed,
    /// A port of this host shows it, its holder has been asked.
    Wanted,
    /// A port of this host shows it, but its holder has it too.
    Duplicate,
}

/// What the switch knows of another host.
#[derive(Clone, Copy, Default)]
struct Peer {
    /// A link to it is up.
    up: bool,
    /// The control plane has not heard of it for longer than its lease.
    silent: bool,
}

impl Peer {
    /// A link that is up is better evidence than a row that is late.
    const fn is_lapsed(self) -> bool {
        self.silent && !self.up
    }
}

impl Switch {
    /// A switch without networks. `seed` keys the hash maps; the host's id is the signer's key.
    pub fn new(signer: Arc<dyn Signer>, verifier: Arc<dyn Verifier>, seed: u64) -> Self {
        let seed = SeededState(seed);
        let me = HostId(signer.public_key());
        let [a, b, c, ..] = me.0;
        Self {
            me,
            signer,
            verifier,
            seed,
            segments: SeededMap::with_hasher(seed),
            hosts: BTreeMap::new(),
            timers: BTreeSet::new(),
            hold_budget: HoldBudget::default(),
            releasing: BTreeSet::new(),
            release_at: None,
            escort_timers: BTreeSet::new(),
            effects: VecDeque::new(),
            reply: Vec::new(),
            drops: DropCounters::default(),
            prober: Mac([0x02, b'v', b'o', a, b, c]),
        }
    }

    /// Makes a network known, or changes its MTU.
    pub fn set_network(&mut self, spec: NetworkSpec) {
        self.segments.entry(spec.id).or_insert_with(|| Segment::new(spec, self.seed)).spec = spec;
    }

    /// This host has a port in the network from now on.
    pub fn attach(&mut self, network: NetworkId) {
        let Some(segment) = self.segments.get_mut(&network) else { return };
        segment.attached = true;
        self.connect_eagerly(network);
    }

    /// This host has no port in the network any more; what it claimed there departs.
    pub fn detach(&mut self, now: Instant, network: NetworkId) {
        let Some(segment) = self.segments.get_mut(&network) else { return };
        segment.attached = false;
        for mac in self.local_macs(network, |_| true) {
            self.depart(now, network, mac);
        }
    }

    /// The hosts that have a port in the network.
    pub fn set_participants(&mut self, network: NetworkId, hosts: &[HostId]) {
        let me = self.me;
        let Some(segment) = self.segments.get_mut(&network) else { return };
        let mut participants: Vec<HostId> = hosts.iter().copied().filter(|host| *host != me).collect();
        participants.sort_unstable();
        participants.dedup();
        segment.participants = participants;
        self.connect_eagerly(network);
    }

    /// The link to `host` carries frames and messages from now on.
    pub fn handle_link_up(&mut self, now: Instant, host: HostId) {
        self.hosts.entry(host).or_default().up = true;
        self.announce_to(host);
        self.ask_again(now, host);
    }

    /// The link to `host` is down.
    pub fn handle_link_down(&mut self, now: Instant, host: HostId) {
        self.hosts.entry(host).or_default().up = false;
        self.on_evidence(now, host);
    }

    /// The control plane has heard of `host`: its lease runs.
    pub fn handle_alive(&mut self, host: HostId) {
        self.hosts.entry(host).or_default().silent = false;
    }

    /// The lease of `host` ran out, or it said goodbye: its claims may be taken over.
    pub fn handle_lapsed(&mut self, now: Instant, host: HostId) {
        self.hosts.entry(host).or_default().silent = true;
        self.on_evidence(now, host);
    }

    /// `host` left, or its agent began anew: what it claimed before is void, also what no table row ever told of.
    pub fn handle_gone(&mut self, now: Instant, host: HostId) {
        let mut held: Vec<(NetworkId, Mac)> = self
            .segments
            .iter()
            .flat_map(|(network, segment)| segment.bindings.iter().map(move |(mac, binding)| (*network, *mac, binding)))
            .filter(|(_, _, binding)| binding.claim.holder == host)
            .map(|(network, mac, _)| (network, mac))
            .collect();
        held.sort_unstable();
        for (network, mac) in held {
            self.handle_released(now, network, mac, host, Epoch(u64::MAX));
        }
    }

    /// Takes the next effect.
    pub fn poll_effect(&mut self) -> Option<SwitchEffect> {
        self.effects.pop_front()
    }

    /// When [`Switch::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let firsts = [self.timers.first(), self.escort_timers.first()];
        firsts.into_iter().flatten().map(|(at, _, _)| *at).chain(self.release_at).min()
    }

    /// Does what is due. The effects must be carried out before another frame is taken.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.release_at.is_some_and(|at| at <= now) {
            self.release_at = None;
            for (network, mac) in self.releasing.clone() {
                self.release_slice(now, network, mac);
            }
        }
        while let Some(&(at, network, mac)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            if let Some(binding) = self.segments.get_mut(&network).and_then(|s| s.bindings.get_mut(&mac)) {
                binding.deadline = None;
                self.on_deadline(now, network, mac);
            }
        }
        while let Some(&(_, network, mac)) = self.escort_timers.first().filter(|(at, _, _)| *at <= now) {
            self.on_escort_deadline(now, network, mac);
        }
    }

    /// The addresses of one network, sorted.
    pub fn fdb(&self, network: NetworkId) -> Vec<FdbEntry> {
        let Some(segment) = self.segments.get(&network) else { return Vec::new() };
        let mut entries: Vec<FdbEntry> = segment
            .bindings
            .iter()
            .map(|(mac, binding)| FdbEntry {
                mac: *mac,
                ips: binding.claim.ips.clone(),
                holder: binding.claim.holder,
                epoch: binding.claim.epoch,
                state: self.address_state(&binding.state, binding.claim.holder),
                port: binding.state.port(),
                confirmed: binding.state.seen().unwrap_or(binding.since),
            })
            .collect();
        entries.sort_unstable_by_key(|entry| entry.mac);
        entries
    }

    /// Who holds an address, as far as this host knows.
    pub fn holder(&self, network: NetworkId, mac: Mac) -> Option<HostId> {
        Some(self.segments.get(&network)?.bindings.get(&mac)?.claim.holder)
    }

    /// Frames that died while they waited here.
    pub fn drops(&self) -> &DropCounters {
        &self.drops
    }

    fn address_state(&self, state: &State, holder: HostId) -> AddressState {
        match state {
            State::Local { .. } => AddressState::Local,
            State::Probed { .. } => AddressState::Probed,
            State::Departed { .. } => AddressState::Departed,
            State::Remote if self.is_lapsed(holder) => AddressState::Lapsed,
            State::Remote => AddressState::Remote,
            State::Wanted { .. } => AddressState::Wanted,
            State::Refused => AddressState::Duplicate,
        }
    }

    fn is_up(&self, host: HostId) -> bool {
        self.hosts.get(&host).is_some_and(|peer| peer.up)
    }

    fn is_lapsed(&self, host: HostId) -> bool {
        self.hosts.get(&host).is_some_and(|peer| peer.is_lapsed())
    }

    fn on_evidence(&mut self, now: Instant, host: HostId) {
        if self.is_lapsed(host) {
            self.take_over_wanted(now, host);
            self.settle_disputes(now, host);
        }
    }

    fn send(&mut self, to: HostId, message: &Message) {
        if !self.is_up(to) {
            self.effects.push_back(SwitchEffect::Connect(to));
        }
        self.effects.push_back(SwitchEffect::Send { to, message: message.encode() });
    }

    fn event(&mut self, event: SwitchEvent) {
        self.effects.push_back(SwitchEffect::Upward(Upward::Event(event)));
    }

    /// Links are made before there is traffic, so that claims reach the hosts of a small network directly.
    fn connect_eagerly(&mut self, network: NetworkId) {
        let Some(segment) = self.segments.get(&network).filter(|segment| segment.attached) else { return };
        let missing: Vec<HostId> =
            segment.participants.iter().copied().filter(|h| !self.is_up(*h)).take(EAGER_LINKS_MAX).collect();
        self.effects.extend(missing.into_iter().map(SwitchEffect::Connect));
    }

    /// Tells a host every claim of ours in the networks that it has a port in.
    fn announce_to(&mut self, host: HostId) {
        let mut claims: Vec<Claim> = self
            .segments
            .values()
            .filter(|segment| segment.participants.contains(&host))
            .flat_map(|segment| segment.bindings.values())
            .filter(|binding| binding.state.is_ours())
            .map(|binding| binding.claim.clone())
            .collect();
        claims.sort_unstable_by_key(|claim| (claim.network, claim.mac));
        for batch in claims.chunks(MESSAGE_CLAIMS_MAX) {
            self.send(host, &Message::Claims(batch.to_vec()));
        }
    }

    /// Tells every linked host of the network about a claim.
    fn announce(&mut self, claim: &Claim) {
        let Some(segment) = self.segments.get(&claim.network) else { return };
        let linked: Vec<HostId> = segment.participants.iter().copied().filter(|host| self.is_up(*host)).collect();
        let message = Message::Claims(vec![claim.clone()]).encode();
        self.effects.extend(linked.into_iter().map(|to| SwitchEffect::Send { to, message: message.clone() }));
    }

    fn set_deadline(&mut self, network: NetworkId, mac: Mac, at: Option<Instant>) {
        let Some(binding) = self.segments.get_mut(&network).and_then(|s| s.bindings.get_mut(&mac)) else { return };
        if let Some(old) = std::mem::replace(&mut binding.deadline, at) {
            self.timers.remove(&(old, network, mac));
        }
        if let Some(at) = at {
            self.timers.insert((at, network, mac));
        }
    }

    fn set_deadline_in(&mut self, now: Instant, network: NetworkId, mac: Mac, delay: Duration) {
        self.set_deadline(network, mac, Some(now + delay));
    }

    fn local_macs(&self, network: NetworkId, mut wanted: impl FnMut(&State) -> bool) -> Vec<Mac> {
        let Some(segment) = self.segments.get(&network) else { return Vec::new() };
        let mut macs: Vec<Mac> = segment
            .bindings
            .iter()
            .filter(|(_, b)| !matches!(b.state, State::Departed { .. } | State::Remote) && wanted(&b.state))
            .map(|(mac, _)| *mac)
            .collect();
        macs.sort_unstable();
        macs
    }
}

//! What a switch knows of one network: its participants, and who holds which address.

use crate::claims::Claim;
use crate::flood::FloodLimit;
use crate::ids::{HostId, Mac, NetworkId};
use crate::limits::DEPARTED_TIME;
use crate::seeded::{SeededMap, SeededState};
use crate::switch::hold::HeldFrames;
use crate::switch::migrating::MoveCounts;
use crate::switch::parcels::Escort;
use crate::switch::service::Service;
use crate::time::Instant;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// A network, as every host has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NetworkSpec {
    /// Its id.
    pub id: NetworkId,
    /// Largest IP packet in bytes.
    pub mtu: u16,
}

/// A network on this host.
pub(super) struct Segment {
    pub(super) spec: NetworkSpec,
    /// Whether this host has a port in the network.
    pub(super) attached: bool,
    /// The other hosts that have one, in order.
    pub(super) participants: Vec<HostId>,
    pub(super) bindings: SeededMap<Mac, Binding>,
    /// Who announced an IP address. An entry may be stale: its MAC's claim decides.
    pub(super) ips: SeededMap<IpAddr, Mac>,
    pub(super) local_count: usize,
    pub(super) flood: FloodLimit,
    /// Stations at this host's ports that may use one IPv4 address alone.
    pub(super) guards: SeededMap<Mac, Ipv4Addr>,
    pub(super) service: Option<Service>,
    /// Guests that leave or come: what is done about frames to groups for them.
    pub(super) escorts: BTreeMap<Mac, Escort>,
}

/// A claim and what this host does about it.
pub(super) struct Binding {
    pub(super) claim: Claim,
    pub(super) state: State,
    /// When the claim came.
    pub(super) since: Instant,
    /// Frames that wait for the address to arrive somewhere.
    pub(super) held: HeldFrames,
    /// When [`State`] wants attention; also the key of the binding's timer.
    pub(super) deadline: Option<Instant>,
    /// A claim that was not believed because the holder's lease ran: it is judged again when that changes.
    pub(super) disputed: Option<Claim>,
    /// Between whom there was a conflict, and when it last showed.
    pub(super) conflict: Option<((HostId, HostId), Instant)>,
    /// When this host last told a talker where the address went.
    pub(super) redirected: Option<(HostId, Instant)>,
    /// Its VM is on its way to this host: frames that get here before it wait.
    pub(super) is_expected: bool,
    /// Frames of its last move.
    pub(super) counts: MoveCounts,
}

/// What a binding is to this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// A port of this host has the address.
    Local {
        /// The interface, where the bridge told.
        port: Option<PortId>,
        /// When a frame or the bridge last showed it.
        seen: Instant,
    },
    /// A host asked for a local address: looking for it on the bridge.
    Probed { port: Option<PortId>, asker: HostId, since: Instant, seen: Instant },
    /// Claimed by this host, whose port has lost it: frames wait for the host that will ask, `until` nobody is expected
    /// to any more.
    Departed { since: Instant, until: Instant },
    /// Another host has it.
    Remote,
    /// A port shows an address that another host holds: the holder was asked.
    Wanted { port: Option<PortId>, seen: Instant, tries: u8 },
    /// The holder says it is in use there: what this host's port shows is a duplicate.
    Refused,
}

/// An interface in a network's bridge, by its index on this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct PortId(pub u32);

impl Segment {
    pub(super) fn new(spec: NetworkSpec, state: SeededState) -> Self {
        Self {
            spec,
            attached: false,
            participants: Vec::new(),
            bindings: SeededMap::with_hasher(state),
            ips: SeededMap::with_hasher(state),
            local_count: 0,
            flood: FloodLimit::default(),
            guards: SeededMap::with_hasher(state),
            service: None,
            escorts: BTreeMap::new(),
        }
    }

    /// The MAC that holds `ip`, if its claim still says so.
    pub(super) fn mac_of(&self, ip: &IpAddr) -> Option<(Mac, &Binding)> {
        let mac = *self.ips.get(ip)?;
        let binding = self.bindings.get(&mac)?;
        binding.claim.ips.contains(ip).then_some((mac, binding))
    }
}

impl Binding {
    pub(super) fn new(now: Instant, claim: Claim, state: State) -> Self {
        Self {
            claim,
            state,
            since: now,
            held: HeldFrames::default(),
            deadline: None,
            disputed: None,
            conflict: None,
            redirected: None,
            is_expected: false,
            counts: MoveCounts::default(),
        }
    }
}

impl Binding {
    /// Whether frames for the address queue up: it is between two hosts, or those that waited for it are still on
    /// their way.
    pub(super) fn is_waited_for(&self) -> bool {
        matches!(self.state, State::Departed { .. }) || !self.held.is_empty()
    }

    /// Whether frames that get here before their VM wait for it. What this host's own guests send goes to where the
    /// VM still is.
    pub(super) fn is_awaited(&self) -> bool {
        self.is_expected && !matches!(self.state, State::Local { .. } | State::Probed { .. })
    }
}

impl State {
    /// Of an address that may show up at another host.
    pub(super) fn departed(now: Instant) -> Self {
        Self::Departed { since: now, until: now + DEPARTED_TIME }
    }

    /// The interface of this host that shows the address, where it is known.
    pub(super) const fn port(&self) -> Option<PortId> {
        match self {
            Self::Local { port, .. } | Self::Probed { port, .. } | Self::Wanted { port, .. } => *port,
            Self::Departed { .. } | Self::Remote | Self::Refused => None,
        }
    }

    /// When a port of this host last showed the address.
    pub(super) const fn seen(&self) -> Option<Instant> {
        match self {
            Self::Local { seen, .. } | Self::Probed { seen, .. } | Self::Wanted { seen, .. } => Some(*seen),
            Self::Departed { .. } | Self::Remote | Self::Refused => None,
        }
    }

    /// Whether this host answers for the address: its claim is this host's.
    pub(super) const fn is_ours(&self) -> bool {
        matches!(self, Self::Local { .. } | Self::Probed { .. } | Self::Departed { .. })
    }
}

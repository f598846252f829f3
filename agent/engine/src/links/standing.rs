//! The connections as the links see them: whose they are, how far they are, and in which shard.

use super::Place;
use crate::path::Path;
use crate::slots::Slots;
use quinn_proto::ConnectionHandle;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;
use virtuoso_overlay::ids::HostId;

/// Who dialled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    Dialler,
    Acceptor,
}

/// How far a connection is. Frames are taken from [`Phase::Welcomed`] on and sent when it is [`Phase::Up`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The QUIC handshake runs.
    Handshake,
    /// The peer's hello has not come.
    Hello,
    /// The dialler's hello was good, but a connection that this host dialled may win.
    Held { until: Instant },
    /// The dialler's hello was answered; its confirmation has not come.
    Welcomed,
    /// Both sides know that the other one has accepted.
    Up,
    /// Closed: QUIC drains.
    Closed,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) handle: ConnectionHandle,
    /// The peer's address as QUIC knows it.
    pub(super) name: SocketAddr,
    pub(super) role: Role,
    pub(super) phase: Phase,
    /// When a connection that is not up by then is given up.
    pub(super) setup_until: Instant,
    /// The peer: whom this host dialled, or whose key the handshake proved.
    pub(super) peer: Option<HostId>,
    /// Which run of the peer's agent this is.
    pub(super) instance: u64,
    /// The way that its packets take, once it is decided.
    pub(super) path: Option<Path>,
    /// Which shard drives it.
    pub(super) place: Place,
}

impl Standing {
    /// A new connection, at home.
    pub(super) fn new(
        handle: ConnectionHandle,
        name: SocketAddr,
        role: Role,
        peer: Option<HostId>,
        setup_until: Instant,
    ) -> Self {
        let phase = Phase::Handshake;
        Self { handle, name, role, phase, setup_until, peer, instance: 0, path: None, place: Place::Home }
    }

    /// Whether the peer's certificate was accepted.
    pub(super) fn is_admitted(&self) -> bool {
        matches!(self.phase, Phase::Welcomed | Phase::Up)
    }

    /// Whether a peer dialled it and it is not up.
    pub(super) fn is_arriving(&self) -> bool {
        self.role == Role::Acceptor && !matches!(self.phase, Phase::Up | Phase::Closed)
    }

    /// The end of holding back, or of the time to come up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Held { until } => Some(until),
            Phase::Handshake | Phase::Hello | Phase::Welcomed => Some(self.setup_until),
            Phase::Up | Phase::Closed => None,
        }
    }
}

/// Connections by slot and by QUIC's handle. A slot is used again only after QUIC has forgotten its connection.
#[derive(Default)]
pub(super) struct Table {
    slots: Slots<Standing>,
    by_handle: HashMap<ConnectionHandle, u16>,
    /// How many connections there have been: it makes stable names differ.
    generation: u16,
}

impl Table {
    pub(super) fn get(&self, slot: u16) -> Option<&Standing> {
        self.slots.get(slot)
    }

    pub(super) fn get_mut(&mut self, slot: u16) -> Option<&mut Standing> {
        self.slots.get_mut(slot)
    }

    /// The slot of QUIC's connection.
    pub(super) fn slot(&self, handle: ConnectionHandle) -> Option<u16> {
        self.by_handle.get(&handle).copied()
    }

    /// A free slot.
    pub(super) fn vacant(&self) -> Option<u16> {
        self.slots.vacant()
    }

    /// A number for the next stable name.
    pub(super) fn next_generation(&mut self) -> u16 {
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }

    /// Puts a connection into a free slot.
    pub(super) fn insert(&mut self, slot: u16, standing: Standing) {
        self.by_handle.insert(standing.handle, slot);
        self.slots.put(slot, Box::new(standing));
    }

    pub(super) fn remove(&mut self, slot: u16) {
        if let Some(standing) = self.slots.take(slot) {
            self.by_handle.remove(&standing.handle);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, &Standing)> {
        self.slots.iter()
    }

    /// The slots in use.
    pub(super) fn slots(&self) -> Vec<u16> {
        self.slots.numbers()
    }
}

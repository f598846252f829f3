//! The connections by slot. The slot's number is in the connection ids that this host issues, so it is used again only
//! after QUIC has forgotten its connection.

use super::{Connection, ConnectionHandle};
use std::collections::HashMap;

/// Connections at once: links to every host of a large swarm, and those being made.
const CONNECTIONS_MAX: u16 = 4096;

/// Connections by slot and by QUIC's handle.
#[derive(Default)]
pub(super) struct Table {
    slots: Vec<Option<Box<Connection>>>,
    by_handle: HashMap<ConnectionHandle, u16>,
    /// How many connections there have been: it makes stable names differ.
    generation: u16,
}

impl Table {
    pub(super) fn get(&self, slot: u16) -> Option<&Connection> {
        self.slots.get(usize::from(slot))?.as_deref()
    }

    pub(super) fn get_mut(&mut self, slot: u16) -> Option<&mut Connection> {
        self.slots.get_mut(usize::from(slot))?.as_deref_mut()
    }

    /// The slot of QUIC's connection.
    pub(super) fn slot(&self, handle: ConnectionHandle) -> Option<u16> {
        self.by_handle.get(&handle).copied()
    }

    /// A free slot.
    pub(super) fn vacant(&self) -> Option<u16> {
        let free = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        u16::try_from(free).ok().filter(|slot| *slot < CONNECTIONS_MAX)
    }

    /// A number for the next stable name.
    pub(super) fn next_generation(&mut self) -> u16 {
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }

    /// Puts a connection into a free slot.
    pub(super) fn insert(&mut self, slot: u16, connection: Connection) {
        let index = usize::from(slot);
        if index == self.slots.len() {
            self.slots.push(None);
        }
        self.by_handle.insert(connection.handle, slot);
        self.slots[index] = Some(Box::new(connection));
    }

    pub(super) fn remove(&mut self, slot: u16) {
        if let Some(connection) = self.slots.get_mut(usize::from(slot)).and_then(Option::take) {
            self.by_handle.remove(&connection.handle);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, &Connection)> {
        self.slots.iter().enumerate().filter_map(|(slot, c)| Some((slot as u16, c.as_deref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u16, &mut Connection)> {
        self.slots.iter_mut().enumerate().filter_map(|(slot, c)| Some((slot as u16, c.as_deref_mut()?)))
    }

    /// The slots in use.
    pub(super) fn slots(&self) -> Vec<u16> {
        self.iter().map(|(slot, _)| slot).collect()
    }
}

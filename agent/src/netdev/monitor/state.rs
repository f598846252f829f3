//! What the monitor has told so far: turns the kernel's facts into events about networks. No I/O.

use super::Event;
use crate::netdev::fdb::RawEntry;
use crate::netdev::interface::Interface;
use crate::netdev::network_of_bridge;
use std::collections::{BTreeMap, BTreeSet};
use virtuoso_overlay::ids::{Mac, NetworkId};

/// Addresses that are followed over all networks. What comes beyond is not told; a guest that floods a bridge with
/// made-up addresses can't grow the agent.
const ENTRIES_MAX: usize = 131_072;

/// What is known about interfaces and bridges.
#[derive(Debug, Default)]
pub(super) struct State {
    interfaces: BTreeMap<u32, Known>,
    /// Bridge, address and VLAN to port, for bridges of networks only.
    entries: BTreeMap<(u32, Mac, Option<u16>), u32>,
    confused: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    name: String,
    controller: Option<u32>,
}

impl State {
    /// Whether something was heard that contradicts what is known; a [`State::replace`] settles it.
    pub(super) fn is_confused(&self) -> bool {
        self.confused
    }

    /// Takes over the whole truth and tells what is different.
    pub(super) fn replace(&mut self, interfaces: Vec<Interface>, entries: Vec<RawEntry>) -> Vec<Event> {
        let mut events = Vec::new();
        let there: BTreeSet<u32> = interfaces.iter().map(|interface| interface.index).collect();
        let gone: Vec<u32> = self.interfaces.keys().copied().filter(|index| !there.contains(index)).collect();
        for index in gone {
            self.interface_gone(index, &mut events);
        }
        // Bridges first, so that their ports find them.
        let (bridges, others): (Vec<_>, Vec<_>) =
            interfaces.into_iter().partition(|interface| network_of_bridge(&interface.name).is_some());
        for interface in bridges.iter().chain(&others) {
            self.interface_is(interface, &mut events);
        }
        let known: BTreeSet<_> = entries.iter().map(|entry| (entry.bridge, entry.mac, entry.vlan)).collect();
        let forgotten: Vec<_> = self.entries.keys().copied().filter(|key| !known.contains(key)).collect();
        for key in forgotten {
            self.forget(key, &mut events);
        }
        for entry in entries {
            self.entry_is(entry, &mut events);
        }
        self.confused = false;
        events
    }

    /// An interface exists and is like this.
    pub(super) fn interface_is(&mut self, interface: &Interface, events: &mut Vec<Event>) {
        let now = Known { name: interface.name.clone(), controller: interface.controller };
        let before = self.interfaces.get(&interface.index);
        if before == Some(&now) {
            return;
        }
        if before.is_some() {
            self.leave(interface.index, events);
        }
        let network = now.controller.and_then(|controller| self.network(controller));
        self.interfaces.insert(interface.index, now);
        if let Some(network) = network {
            events.push(Event::PortAdded { network, interface: interface.name.clone() });
        }
    }

    /// An interface is gone.
    pub(super) fn interface_gone(&mut self, index: u32, events: &mut Vec<Event>) {
        let ports: Vec<u32> = self
            .interfaces
            .iter()
            .filter(|(_, known)| known.controller == Some(index))
            .map(|(port, _)| *port)
            .collect();
        for port in ports {
            self.leave(port, events);
            if let Some(known) = self.interfaces.get_mut(&port) {
                known.controller = None;
            }
        }
        self.leave(index, events);
        self.interfaces.remove(&index);
    }

    /// A bridge knows this address.
    pub(super) fn entry_is(&mut self, entry: RawEntry, events: &mut Vec<Event>) {
        let Some(network) = self.network(entry.bridge) else {
            return;
        };
        let Some(port) = self.interfaces.get(&entry.port) else {
            self.confused = true;
            return;
        };
        let key = (entry.bridge, entry.mac, entry.vlan);
        if self.entries.get(&key) == Some(&entry.port) {
            return;
        }
        if self.entries.len() >= ENTRIES_MAX && !self.entries.contains_key(&key) {
            tracing::debug!(mac = %entry.mac, port = port.name, "too many addresses: not followed");
            return;
        }
        events.push(Event::FdbLearned { network, interface: port.name.clone(), mac: entry.mac, vlan: entry.vlan });
        self.entries.insert(key, entry.port);
    }

    /// A bridge no longer knows this address.
    pub(super) fn entry_gone(&mut self, entry: RawEntry, events: &mut Vec<Event>) {
        self.forget((entry.bridge, entry.mac, entry.vlan), events);
    }

    fn forget(&mut self, key: (u32, Mac, Option<u16>), events: &mut Vec<Event>) {
        let Some(port) = self.entries.remove(&key) else {
            return;
        };
        if let (Some(network), Some(known)) = (self.network(key.0), self.interfaces.get(&port)) {
            events.push(Event::FdbGone { network, interface: known.name.clone(), mac: key.1, vlan: key.2 });
        }
    }

    /// The interface leaves the bridge it is in, and what was behind it is gone.
    fn leave(&mut self, index: u32, events: &mut Vec<Event>) {
        let behind: Vec<_> = self.entries.iter().filter(|(_, port)| **port == index).map(|(key, _)| *key).collect();
        for key in behind {
            self.forget(key, events);
        }
        let Some(known) = self.interfaces.get(&index) else {
            return;
        };
        if let Some(network) = known.controller.and_then(|controller| self.network(controller)) {
            events.push(Event::PortRemoved { network, interface: known.name.clone() });
        }
    }

    fn network(&self, bridge: u32) -> Option<NetworkId> {
        network_of_bridge(&self.interfaces.get(&bridge)?.name)
    }
}

#[cfg(test)]
mod tests;

//! What the agent's core does between the control plane and the data plane of one host: changes of the tables become
//! inputs of the switch, and what the switch asks for becomes rows. No decision is made here.

use std::collections::{BTreeMap, BTreeSet};
use virtuoso_overlay::ids::{Epoch, HostId, Mac, NetworkId};
use virtuoso_overlay::node::{Change, Node};
use virtuoso_overlay::switch::{NetworkSpec, Switch, SwitchEvent, Upward};
use virtuoso_overlay::table::{Body, Key};
use virtuoso_overlay::time::Now;

/// Who has a port where, as the switch was last told.
#[derive(Default)]
pub struct Glue {
    networks: BTreeMap<HostId, BTreeSet<NetworkId>>,
    participants: BTreeMap<NetworkId, BTreeSet<HostId>>,
}

/// What is left of an [`Upward`] for the world outside the two planes.
pub enum Outside {
    /// Nothing.
    Done,
    /// Ask the bridge.
    FindPort(NetworkId, Mac),
}

impl Glue {
    /// The tables say something new.
    pub fn on_change(&mut self, now: Now, node: &Node, switch: &mut Switch, change: Change) {
        match change {
            Change::Put(host, Key::Host) | Change::Gone(host, Key::Host) => self.on_host(node, switch, host),
            Change::Put(host, key @ Key::Claim(..)) if host != node.me() => {
                tell_claim(now, node, switch, host, key);
            }
            // A row that is gone does not tell its epoch any more: whatever it said is over.
            Change::Gone(host, Key::Claim(network, mac)) if host != node.me() => {
                switch.handle_released(now.mono, network, mac, host, Epoch(u64::MAX));
            }
            Change::Alive(host) => switch.handle_alive(host),
            Change::Silent(host) => switch.handle_lapsed(now.mono, host),
            Change::Restarted(host) => switch.handle_gone(now.mono, host),
            Change::Left(host) => {
                switch.handle_lapsed(now.mono, host);
                switch.handle_gone(now.mono, host);
            }
            Change::Put(..) | Change::Gone(..) => {}
        }
    }

    /// This host has a port in a network from now on: tells the switch everything that the tables said about it before.
    pub fn attach(&self, now: Now, node: &Node, switch: &mut Switch, spec: NetworkSpec) {
        switch.set_network(spec);
        switch.attach(spec.id);
        self.tell_participants(switch, spec.id);
        for (host, body) in node.table().bodies() {
            match body {
                Body::Claim(claim) if claim.network == spec.id && host != node.me() => {
                    switch.handle_claim(now.mono, claim.clone());
                }
                _ => {}
            }
        }
    }

    /// What the switch asks of the control plane.
    pub fn on_upward(&self, now: Now, node: &mut Node, switch: &mut Switch, upward: Upward) -> Outside {
        match upward {
            Upward::Publish(claim) => node.put(now, Body::Claim(claim)),
            Upward::Withdraw { network, mac } => node.take_back(now, Key::Claim(network, mac)),
            Upward::FindPort { network, mac } => return Outside::FindPort(network, mac),
            // A claim that lost against the one that is gone may hold now.
            Upward::Event(SwitchEvent::Released { network, mac, holder }) => {
                for host in node.table().claimants(network, mac).filter(|host| *host != holder && *host != node.me()) {
                    tell_claim(now, node, switch, host, Key::Claim(network, mac));
                }
            }
            // Simulated networks have no address plan.
            Upward::Event(_) | Upward::Service { .. } => {}
        }
        Outside::Done
    }

    fn on_host(&mut self, node: &Node, switch: &mut Switch, host: HostId) {
        let new: BTreeSet<NetworkId> =
            node.table().host(host).map(|row| row.networks.iter().copied().collect()).unwrap_or_default();
        let old = self.networks.insert(host, new.clone()).unwrap_or_default();
        for network in old.symmetric_difference(&new) {
            let participants = self.participants.entry(*network).or_default();
            if new.contains(network) {
                participants.insert(host);
            } else {
                participants.remove(&host);
            }
            self.tell_participants(switch, *network);
        }
    }

    fn tell_participants(&self, switch: &mut Switch, network: NetworkId) {
        let hosts: Vec<HostId> = self.participants.get(&network).into_iter().flatten().copied().collect();
        switch.set_participants(network, &hosts);
    }
}

fn tell_claim(now: Now, node: &Node, switch: &mut Switch, host: HostId, key: Key) {
    if let Some(Body::Claim(claim)) = node.table().get(host, key).and_then(|row| row.body.as_ref()) {
        switch.handle_claim(now.mono, claim.clone());
    }
}

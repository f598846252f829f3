//! What the data plane and the network devices tell the core.

use super::Core;
use super::tables::udp_addresses;
use crate::events::EventKind;
use crate::netdev::{self, network_of_bridge, network_of_tap};
use crate::text::Text;
use virtuoso_engine::EngineEvent;
use virtuoso_overlay::ids::{HostId, Mac, NetworkId};
use virtuoso_overlay::switch::{PortId, SwitchEvent, Upward};
use virtuoso_overlay::table::{Body, Key};

impl Core {
    pub(super) fn on_engine_event(&mut self, event: EngineEvent) {
        match event {
            EngineEvent::Switch(upward) => self.on_upward(upward),
            EngineEvent::LinkUp(host) => {
                tracing::info!(%host, name = self.name_of(host), "Link is up");
                self.events.emit(EventKind::LinkUp { host: Text(host) });
            }
            EngineEvent::LinkDown { host, reason } => {
                tracing::info!(%host, name = self.name_of(host), reason, "Link is down");
                self.events.emit(EventKind::LinkDown { host: Text(host), reason });
            }
            EngineEvent::Refused { host, by_us: true, reason } => {
                tracing::warn!(%host, "Refused the link of a host: {reason}");
            }
            EngineEvent::Refused { host, by_us: false, reason } => {
                tracing::warn!(%host, "A host refused our link: {reason}");
            }
            EngineEvent::AddressWanted(host) => self.find_addresses(host),
            EngineEvent::PortLost { network, error } => {
                tracing::error!(network = self.network_name(network), "The TAP of a network failed: {error}");
            }
        }
    }

    /// The row of a host tells where it is.
    fn find_addresses(&mut self, host: HostId) {
        let row = self.node.as_ref().and_then(|node| node.table().host(host));
        let addresses: Vec<_> = row.into_iter().flat_map(udp_addresses).collect();
        if !addresses.is_empty() {
            self.plane.set_addresses(host, addresses);
        }
    }

    fn on_upward(&mut self, upward: Upward) {
        let now = self.clock.now();
        match upward {
            Upward::Publish(claim) => {
                if let Some(node) = &mut self.node {
                    node.put(now, Body::Claim(claim));
                }
            }
            Upward::Withdraw { network, mac } => {
                if let Some(node) = &mut self.node {
                    node.take_back(now, Key::Claim(network, mac));
                }
            }
            Upward::FindPort { network, mac } => {
                let (netdev, engine) = (self.netdev.clone(), self.plane.engine());
                tokio::spawn(async move {
                    match netdev.fdb_lookup(network, mac).await {
                        Ok(interface) => {
                            let found = interface
                                .is_some_and(|name| is_port(&name) || network_of_bridge(&name) == Some(network));
                            // The engine is gone only when the agent stops.
                            engine
                                .cast(move |switch, now| switch.handle_port_found(now.mono, network, mac, found))
                                .await
                                .ok();
                        }
                        // No answer is no evidence: the address stays until its probe ends.
                        Err(error) => tracing::debug!(%network, %mac, "Can't ask the bridge: {error:#}"),
                    }
                });
            }
            Upward::Event(event) => self.on_switch_event(event),
            Upward::Service { network, frame } => self.on_service(network, &frame),
        }
    }

    fn on_switch_event(&mut self, event: SwitchEvent) {
        match event {
            SwitchEvent::Moved { network, mac, from, to, epoch } => {
                if from == self.me() {
                    self.forget_port(network, mac);
                }
                let network = self.network_name(network);
                tracing::info!(network, %mac, from = self.name_of(from), to = self.name_of(to), "An address moved");
                let (from, to) = (Text(from), Text(to));
                self.events.emit(EventKind::ClaimMoved { network, mac: Text(mac), from, to, epoch: epoch.0 });
            }
            SwitchEvent::Conflict { network, mac, holder, other } => {
                let network = self.network_name(network);
                let (holder_name, other_name) = (self.name_of(holder), self.name_of(other));
                tracing::warn!(
                    network,
                    %mac,
                    "Two hosts have this address: {holder_name} keeps it, the port of {other_name} is cut off"
                );
                let hosts = vec![Text(holder), Text(other)];
                self.events.emit(EventKind::ClaimConflict { network, mac: Text(mac), hosts });
            }
            SwitchEvent::Claimed { network, mac, holder, .. } => {
                tracing::debug!(%network, %mac, %holder, "An address is claimed");
            }
            SwitchEvent::Released { network, mac, holder } => {
                tracing::debug!(%network, %mac, %holder, "An address is released");
                self.tell_claims_again(network, mac, holder);
            }
        }
    }

    /// An address that left may still be known behind a port that stays: a LAN, or another virtual switch.
    fn forget_port(&self, network: NetworkId, mac: Mac) {
        let netdev = self.netdev.clone();
        tokio::spawn(async move {
            if let Err(error) = netdev.fdb_forget(network, mac).await {
                tracing::debug!(%network, %mac, "Can't tell the bridge that an address left: {error:#}");
            }
        });
    }

    /// A claim that lost against the one that is gone may hold now.
    fn tell_claims_again(&mut self, network: NetworkId, mac: Mac, except: HostId) {
        let (Some(node), me) = (&self.node, self.me()) else { return };
        let claimants: Vec<HostId> = node.table().claimants(network, mac).collect();
        for host in claimants.into_iter().filter(|host| *host != except && *host != me) {
            self.on_put(host, Key::Claim(network, mac));
        }
    }

    pub(super) fn on_device_event(&mut self, event: netdev::Event) {
        match event {
            netdev::Event::Synced => {}
            netdev::Event::PortAdded { network, interface } if is_port(&interface) => {
                let network = self.network_name(network);
                self.events.emit(EventKind::PortAttached { network, interface });
            }
            netdev::Event::PortRemoved { network, interface } if is_port(&interface) => {
                let port = self.networks.port_id(network, &interface);
                self.plane.switch(move |switch, now| switch.handle_port_gone(now, network, port));
                let network = self.network_name(network);
                self.events.emit(EventKind::PortDetached { network, interface });
            }
            netdev::Event::FdbLearned { network, interface, mac, .. } if is_port(&interface) => {
                let port: PortId = self.networks.port_id(network, &interface);
                self.plane.switch(move |switch, now| switch.handle_learned(now, network, mac, port));
            }
            // An address that the bridge forgot may only have been silent: its port's end is what counts.
            netdev::Event::PortAdded { .. }
            | netdev::Event::PortRemoved { .. }
            | netdev::Event::FdbLearned { .. }
            | netdev::Event::FdbGone { .. } => {}
        }
    }

    /// The name of a network that is attached here, or its id.
    pub(super) fn network_name(&self, network: NetworkId) -> String {
        self.networks.name(network).map_or_else(|| network.to_string(), str::to_owned)
    }
}

/// Whether an interface is a guest's or an uplink's, and not the agent's own way to other hosts.
pub(super) fn is_port(interface: &str) -> bool {
    network_of_tap(interface).is_none() && network_of_bridge(interface).is_none()
}

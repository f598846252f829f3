//! The networks of this host: made, attached, left.

mod saved;

pub(crate) use saved::NETWORKS;
pub use saved::SavedNetworks;

use super::switch_events::is_port;
use super::{Core, Handle, host_addresses, uplinks};
use crate::clock;
use crate::control::model::NetworkCreate;
use crate::control::problem::{ApiError, ErrorCode};
use crate::name::{Name, meant};
use crate::netdev::{BridgeRemoval, Netdev, NetdevError, RemoveBridge, Tap};
use crate::text::Text;
use anyhow::Context;
use saved::SavedNetwork;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use virtuoso_engine::LinkLimits;
use virtuoso_overlay::congestion::Congestion;
use virtuoso_overlay::ids::{HostId, Mac, NetworkId};
use virtuoso_overlay::limits::{NETWORK_MTU_DEFAULT, NETWORK_MTU_MAX, NETWORK_MTU_MIN};
use virtuoso_overlay::names::AddressPlan;
use virtuoso_overlay::node::Node;
use virtuoso_overlay::switch::{NetworkSpec, PortId};
use virtuoso_overlay::table::{Body, Key, NetworkRow};

/// The networks of this host.
#[derive(Default)]
pub(super) struct Networks {
    saved: SavedNetworks,
    attached: BTreeMap<NetworkId, Attached>,
    ports: BTreeMap<(NetworkId, String), PortId>,
    next_port: u32,
}

struct Attached {
    name: Name,
    participants: Vec<HostId>,
    mtu: u16,
    plan: Option<AddressPlan>,
    limits: LinkLimits,
    /// This host's own address on the bridge.
    own: Option<Ipv4Addr>,
}

/// What a network's row says of links.
fn limits_of(row: &NetworkRow) -> LinkLimits {
    LinkLimits { congestion: row.congestion, rate_mbit: row.rate_mbit }
}

impl Networks {
    /// The networks that are attached here, in order.
    pub(super) fn attached(&self) -> impl Iterator<Item = NetworkId> + '_ {
        self.attached.keys().copied()
    }

    pub(super) fn is_attached(&self, network: NetworkId) -> bool {
        self.attached.contains_key(&network)
    }

    pub(super) fn name(&self, network: NetworkId) -> Option<&str> {
        self.attached.get(&network).map(|attached| &*attached.name)
    }

    /// This host's own address in a network.
    pub(super) fn own_address(&self, network: NetworkId) -> Option<Ipv4Addr> {
        self.attached.get(&network)?.own
    }

    /// Remembers this host's own address; false if the network is no longer attached.
    pub(super) fn set_own_address(&mut self, network: NetworkId, ip: Option<Ipv4Addr>) -> bool {
        self.attached.get_mut(&network).map(|attached| attached.own = ip).is_some()
    }

    /// This host's own addresses in all networks.
    pub(super) fn own_addresses(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.attached.values().filter_map(|attached| attached.own)
    }

    /// Largest IP packet of a network that is attached here.
    pub(super) fn mtu(&self, network: NetworkId) -> Option<u16> {
        Some(self.attached.get(&network)?.mtu)
    }

    /// How stations of a network that is attached here get addresses.
    pub(super) fn plan(&self, network: NetworkId) -> Option<AddressPlan> {
        self.attached.get(&network)?.plan
    }

    pub(super) fn is_uplink(&self, network: &Name, interface: &str) -> bool {
        self.saved.networks.get(network).is_some_and(|saved| saved.uplinks.contains(interface))
    }

    /// Remembers who has ports in a network; true if that is news.
    pub(super) fn participants_changed(&mut self, network: NetworkId, hosts: &[HostId]) -> bool {
        let Some(attached) = self.attached.get_mut(&network).filter(|attached| attached.participants != hosts) else {
            return false;
        };
        attached.participants = hosts.to_vec();
        true
    }

    /// The number by which the switch knows an interface.
    pub(super) fn port_id(&mut self, network: NetworkId, interface: &str) -> PortId {
        let next = &mut self.next_port;
        *self.ports.entry((network, interface.to_owned())).or_insert_with(|| {
            *next += 1;
            PortId(*next)
        })
    }

    /// The interface that the switch knows by a number.
    pub(super) fn interface(&self, port: PortId) -> Option<&str> {
        self.ports.iter().find(|(_, known)| **known == port).map(|((_, interface), _)| interface.as_str())
    }
}

impl Core {
    /// What earlier runs of this host have attached.
    pub fn restore_networks(&mut self, saved: SavedNetworks) {
        self.networks.saved = saved;
    }

    /// This host is a member: its networks are the swarm's.
    pub(super) fn enter_networks(&mut self) {
        for (name, saved) in self.networks.saved.networks.clone() {
            if let Some(swarm) = self.node.as_ref().map(Node::swarm) {
                self.publish_network(saved.row(swarm, &name));
            }
            if saved.attached {
                let (handle, netdev) = (self.handle(), self.netdev.clone());
                tokio::spawn(async move {
                    if let Err(error) = reattach(&handle, &netdev, &name, &saved).await {
                        tracing::warn!("Can't attach network {name} again: {error:#}");
                    }
                });
            }
        }
    }

    /// The network of this name, as the swarm has it.
    pub(super) fn find_network(&self, name: &str) -> Result<NetworkRow, ApiError> {
        let node = self.node.as_ref().ok_or_else(not_a_member)?;
        let rows = node.table().bodies().filter_map(|(_, body)| match body {
            Body::Network(row) if row.name == name => Some(row),
            _ => None,
        });
        let oldest = rows.min_by_key(|row| (row.created, row.mtu, row.plan, row.congestion, row.rate_mbit)).cloned();
        oldest.ok_or_else(|| {
            let names = node.table().bodies().filter_map(|(_, body)| match body {
                Body::Network(row) => Some(&*row.name),
                _ => None,
            });
            let meant = meant(name, names);
            ApiError::not_found(format!("There is no network {name}: `virtuoso net create {name}` makes it{meant}"))
        })
    }

    pub(super) fn create_network(&mut self, request: NetworkCreate) -> Result<NetworkRow, ApiError> {
        let NetworkCreate { name, mtu_bytes: mtu, subnet, dhcp, host_addresses, congestion, rate_mbit } = request;
        let name = &name;
        if subnet.is_none() && (dhcp.is_some() || host_addresses.is_some()) {
            return Err(ApiError::invalid("DHCP and addresses of hosts need a subnet: name one"));
        }
        let plan = subnet.map(|Text(subnet)| AddressPlan {
            subnet,
            dhcp: dhcp.unwrap_or(true),
            host_addresses: host_addresses.unwrap_or(true),
        });
        let swarm = self.node.as_ref().ok_or_else(not_a_member)?.swarm();
        let mtu = mtu.map_or(Ok(NETWORK_MTU_DEFAULT), u16::try_from).ok();
        let mtu = mtu.filter(|mtu| (NETWORK_MTU_MIN..=NETWORK_MTU_MAX).contains(mtu)).ok_or_else(|| {
            ApiError::invalid(format!("The MTU of a network is {NETWORK_MTU_MIN} to {NETWORK_MTU_MAX} bytes"))
        })?;
        if let Ok(row) = self.find_network(name) {
            return Err(ApiError::conflict(format!("Network {name} exists already, with an MTU of {} bytes", row.mtu)));
        }
        let id = NetworkId::of(swarm, name);
        if let Some(other) = self.network_of_id(id) {
            return Err(ApiError::conflict(format!(
                "The name {name} has the same id as network {other}: choose another"
            )));
        }
        let created = clock::wall();
        let congestion = congestion.map_or(Congestion::None, |Text(rule)| rule);
        let rate_mbit = rate_mbit.unwrap_or_default();
        let row = NetworkRow { id, name: name.to_string(), mtu, created, plan, congestion, rate_mbit };
        self.networks.saved.networks.insert(name.clone(), SavedNetwork::of(&row));
        self.save_networks()?;
        self.publish_network(row);
        self.events.emit(crate::events::EventKind::NetworkCreated { network: name.to_string() });
        self.find_network(name)
    }

    pub(super) fn delete_network(&mut self, name: &Name) -> Result<(), ApiError> {
        let row = self.find_network(name)?;
        let hosts = self.hosts_in(row.id);
        if !hosts.is_empty() {
            let names: Vec<String> = hosts.into_iter().map(|host| self.name_of(host)).collect();
            return Err(ApiError::conflict(format!(
                "Network {name} is attached on {}: detach it there first",
                names.join(", ")
            )));
        }
        let me = self.me();
        let node = self.node.as_mut().ok_or_else(not_a_member)?;
        let others: Vec<HostId> = node
            .table()
            .bodies()
            .filter(|(host, body)| *host != me && body.key() == Key::Network(row.id))
            .map(|(host, _)| host)
            .collect();
        if let Some(other) = others.first() {
            let other = self.name_of(*other);
            return Err(ApiError::conflict(format!("Network {name} was made on {other}: delete it there")));
        }
        node.take_back(self.clock.now(), Key::Network(row.id));
        self.networks.saved.networks.remove(name);
        self.save_networks()?;
        self.events.emit(crate::events::EventKind::NetworkDeleted { network: name.to_string() });
        Ok(())
    }

    /// The hosts that have a port in a network.
    pub(super) fn hosts_in(&self, network: NetworkId) -> Vec<HostId> {
        let Some(node) = &self.node else { return Vec::new() };
        node.table().hosts().filter(|(_, row)| row.networks.contains(&network)).map(|(host, _)| host).collect()
    }

    /// The TAP is there: frames flow from now on.
    fn begin_network(&mut self, row: &NetworkRow, name: &Name, tap: Tap) -> anyhow::Result<()> {
        let spec = NetworkSpec { id: row.id, mtu: row.mtu };
        let (mtu, plan, limits) = (row.mtu, row.plan, limits_of(row));
        let attached = Attached { name: name.clone(), participants: Vec::new(), mtu, plan, limits, own: None };
        self.networks.attached.insert(row.id, attached);
        // An uplink that an earlier run left in the bridge may lead to a LAN that another host joins to the network.
        let joins = self.networks.saved.networks.get(name).is_none_or(|saved| saved.uplinks.is_empty());
        self.plane.switch(move |switch, _| {
            switch.set_network(spec);
            switch.set_service(spec.id, plan);
            if joins {
                switch.attach(spec.id);
            }
        });
        self.plane.limit_network(row.id, limits);
        self.plane.add_port(row.id, row.mtu, tap);
        let claims = self.node.iter().flat_map(|node| node.table().bodies()).filter_map(|(_, body)| match body {
            Body::Claim(claim) if claim.network == row.id => Some(claim.clone()),
            _ => None,
        });
        let claims = claims.collect::<Vec<_>>();
        self.plane.switch(move |switch, now| claims.into_iter().for_each(|claim| switch.handle_claim(now, claim)));
        self.claim_plugged(row.id, name);
        let new = || SavedNetwork::of(row);
        self.networks.saved.networks.entry(name.clone()).or_insert_with(new).attached = true;
        self.save_networks()?;
        self.publish_network(row.clone());
        self.publish_host_row();
        Ok(())
    }

    /// The rows of a network may say something new about its addresses and limits: the oldest one holds.
    pub(super) fn refresh_network(&mut self, network: NetworkId) {
        let Some(name) = self.networks.name(network).map(str::to_owned) else { return };
        let Ok(row) = self.find_network(&name) else { return };
        let Some(attached) = self.networks.attached.get_mut(&network) else { return };
        let limits = limits_of(&row);
        if std::mem::replace(&mut attached.limits, limits) != limits {
            self.plane.limit_network(network, limits);
        }
        if std::mem::replace(&mut attached.plan, row.plan) != row.plan {
            self.plane.switch(move |switch, _| switch.set_service(network, row.plan));
            self.settle_soon(network);
        }
    }

    /// The network is no longer attached here.
    fn end_network(&mut self, row: &NetworkRow, name: &Name) -> anyhow::Result<()> {
        let id = row.id;
        self.networks.attached.remove(&id);
        self.plane.remove_port(id);
        if let Some(saved) = self.networks.saved.networks.get_mut(name) {
            saved.attached = false;
            saved.interfaces.clear();
            saved.uplinks.clear();
        }
        self.save_networks()?;
        self.publish_host_row();
        Ok(())
    }

    pub(super) fn remember_interface(
        &mut self,
        name: &Name,
        interface: &str,
        kind: Option<Attachment>,
    ) -> anyhow::Result<()> {
        let Some(saved) = self.networks.saved.networks.get_mut(name) else { return Ok(()) };
        saved.interfaces.remove(interface);
        saved.uplinks.remove(interface);
        match kind {
            Some(Attachment::Interface) => saved.interfaces.insert(interface.to_owned()),
            Some(Attachment::Uplink) => saved.uplinks.insert(interface.to_owned()),
            None => false,
        };
        self.save_networks()
    }

    fn publish_network(&mut self, row: NetworkRow) {
        let now = self.clock.now();
        if let Some(node) = &mut self.node {
            node.put(now, Body::Network(row));
        }
    }

    pub(super) fn network_of_id(&self, id: NetworkId) -> Option<String> {
        self.node.as_ref()?.table().bodies().find_map(|(_, body)| match body {
            Body::Network(row) if row.id == id => Some(row.name.clone()),
            _ => None,
        })
    }

    fn save_networks(&self) -> anyhow::Result<()> {
        self.state.write_json(&NETWORKS, &self.networks.saved).context("Can't keep the list of networks")
    }
}

/// Leaves the kernel as it was found: bridges that others use stay, the rest goes.
pub(super) async fn leave_devices(netdev: &Netdev, attached: Vec<(NetworkId, Option<AddressPlan>)>) {
    for (network, plan) in attached {
        if let Some(plan) = plan
            && let Err(error) = netdev.leave_address(network, plan.subnet).await
        {
            tracing::debug!(%network, "Can't take this host's address off a bridge: {error:#}");
        }
        match netdev.remove_bridge(network, RemoveBridge::IfUnused).await {
            Ok(BridgeRemoval::Kept(users)) => tracing::info!(%network, ?users, "A bridge stays for what uses it"),
            Ok(BridgeRemoval::Removed | BridgeRemoval::Absent) => {}
            Err(error) => tracing::warn!(%network, "Can't remove a bridge: {error:#}"),
        }
    }
}

/// What an interface is to a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attachment {
    Interface,
    Uplink,
}

/// Attaches a network on this host, unless it is.
pub(super) async fn attach(handle: &Handle, netdev: &Netdev, name: &Name) -> Result<NetworkRow, ApiError> {
    let wanted = name.clone();
    let (row, attached) = handle
        .call(move |core| core.find_network(&wanted).map(|row| (row.clone(), core.networks.is_attached(row.id))))
        .await??;
    if attached {
        return Ok(row);
    }
    netdev.ensure_bridge(row.id, row.mtu).await.map_err(device_error)?;
    let offloads = handle.call(|core| core.config.offloads).await?;
    let tap = match netdev.create_tap(row.id, offloads).await {
        Ok(tap) => tap,
        Err(error) => {
            // A bridge without its TAP leads nowhere. What keeps it from going is in the error that follows.
            netdev.remove_bridge(row.id, RemoveBridge::IfUnused).await.ok();
            return Err(device_error(error));
        }
    };
    let (begun, wanted) = (row.clone(), name.clone());
    handle.call(move |core| core.begin_network(&begun, &wanted, tap)).await??;
    if row.plan.is_some() {
        host_addresses::settle(handle, netdev, row.id).await;
    }
    Ok(row)
}

/// Puts an interface into an attached network. Addresses that are known to be behind it are claimed at once.
pub(super) async fn attach_interface(
    handle: &Handle,
    netdev: &Netdev,
    (name, row): (&Name, &NetworkRow),
    (interface, kind): (&str, Attachment),
    macs: Vec<Mac>,
) -> Result<(), ApiError> {
    if kind == Attachment::Uplink {
        return uplinks::attach_uplink(handle, netdev, (name, row), interface).await;
    }
    let (id, nic) = (row.id, interface.to_owned());
    if handle.call(move |core| core.uplinks.get(&id).is_some_and(|uplink| uplink.interface == nic)).await? {
        return Err(ApiError::conflict(format!(
            "Interface {interface} is the uplink of network {name}: detach it first"
        )));
    }
    netdev.attach(row.id, interface).await.map_err(device_error)?;
    let (name, network, interface) = (name.clone(), row.id, interface.to_owned());
    let claim = move |core: &mut Core| {
        core.remember_interface(&name, &interface, Some(kind))?;
        let port = core.networks.port_id(network, &interface);
        core.plane.switch(move |switch, now| {
            for mac in macs {
                switch.handle_local(now, network, mac, Some(port), &[]);
            }
        });
        anyhow::Ok(())
    };
    Ok(handle.call(claim).await??)
}

/// Takes an interface out of a network. What is behind it departs first, so that no frame for it is lost.
pub(super) async fn detach_interface(
    handle: &Handle,
    netdev: &Netdev,
    (name, row): (&Name, &NetworkRow),
    interface: &str,
) -> Result<(), ApiError> {
    let network = row.id;
    let members = netdev.ports(network).await.map_err(device_error)?;
    if !members.iter().any(|port| port.name == interface) || !is_port(interface) {
        let (wanted, nic) = (name.clone(), interface.to_owned());
        if handle.call(move |core| core.networks.is_uplink(&wanted, &nic)).await? {
            // A NIC that is gone, or that somebody took out.
            return forget_interface(handle, (name, network), interface).await;
        }
        return Err(ApiError::not_found(format!("Interface {interface} is not in network {name} on this host")));
    }
    let learned = netdev.fdb(network).await.map_err(device_error)?;
    let macs: Vec<Mac> =
        learned.into_iter().filter(|entry| entry.interface == interface).map(|entry| entry.mac).collect();
    let gone = interface.to_owned();
    let (engine, port) = handle.call(move |core| (core.plane.engine(), core.networks.port_id(network, &gone))).await?;
    engine
        .call(move |switch, now| {
            let now = now.mono;
            macs.into_iter().for_each(|mac| switch.depart(now, network, mac));
            switch.handle_port_gone(now, network, port);
        })
        .await
        .map_err(ApiError::from)?;
    netdev.detach(network, interface).await.map_err(device_error)?;
    // What the port showed meanwhile departs as well.
    engine.cast(move |switch, now| switch.handle_port_gone(now.mono, network, port)).await.map_err(ApiError::from)?;
    forget_interface(handle, (name, network), interface).await
}

/// The interface is no longer in the bridge.
async fn forget_interface(
    handle: &Handle,
    (name, network): (&Name, NetworkId),
    interface: &str,
) -> Result<(), ApiError> {
    uplinks::end_uplink(handle, network, interface).await?;
    let (name, interface) = (name.clone(), interface.to_owned());
    Ok(handle.call(move |core| core.remember_interface(&name, &interface, None)).await??)
}

/// Takes a network off this host, with all its ports.
pub(super) async fn detach(handle: &Handle, netdev: &Netdev, name: &Name) -> Result<NetworkRow, ApiError> {
    let wanted = name.clone();
    let (row, attached, vms, uplink, engine) = handle
        .call(move |core| {
            let row = core.find_network(&wanted)?;
            let (attached, vms) = (core.networks.is_attached(row.id), core.vms_in(&wanted));
            let leaves = attached && vms.is_empty();
            let uplink = if leaves { core.uplinks.remove(&row.id) } else { None };
            Ok::<_, ApiError>((row, attached, vms, uplink, core.plane.engine()))
        })
        .await??;
    if !attached {
        return Err(ApiError::conflict(format!("Network {name} is not attached on this host")));
    }
    if !vms.is_empty() {
        let vms = vms.join(", ");
        return Err(ApiError::conflict(format!("Network {name} is used on this host by VM {vms}: stop it first")));
    }
    let network = row.id;
    let farewell = match uplink {
        Some(uplink) => Some(uplink.halt().await),
        None => None,
    };
    engine.call(move |switch, now| switch.detach(now.mono, network)).await.map_err(ApiError::from)?;
    if let Some(farewell) = farewell {
        farewell.say();
    }
    let (ended, wanted) = (row.clone(), name.clone());
    handle.call(move |core| core.end_network(&ended, &wanted)).await??;
    netdev.remove_bridge(network, RemoveBridge::Always).await.map_err(device_error)?;
    Ok(row)
}

/// Attaches what an earlier run had attached. An interface that is gone is missed, not fatal.
async fn reattach(handle: &Handle, netdev: &Netdev, name: &Name, saved: &SavedNetwork) -> anyhow::Result<()> {
    let row = attach(handle, netdev, name).await?;
    for (interface, kind) in saved.attachments() {
        if let Err(error) = attach_interface(handle, netdev, (name, &row), (&interface, kind), vec![]).await {
            tracing::info!("Interface {interface} is not in network {name} any more: {error}");
            let name = name.clone();
            handle.call(move |core| core.remember_interface(&name, &interface, None)).await??;
        }
    }
    Ok(())
}

/// What the kernel refused, under a code that scripts can tell.
pub(super) fn device_error(error: anyhow::Error) -> ApiError {
    let code = match error.downcast_ref::<NetdevError>() {
        Some(NetdevError::NoInterface { .. }) => ErrorCode::NotFound,
        Some(
            NetdevError::MissingRight { .. }
            | NetdevError::MissingRawRight { .. }
            | NetdevError::TunDevice
            | NetdevError::NoKernelSupport { .. },
        ) => ErrorCode::MissingRights,
        Some(_) => ErrorCode::Conflict,
        None => ErrorCode::Internal,
    };
    ApiError::new(code, format!("{error:#}"))
}

/// This host is in no swarm.
pub(super) fn not_a_member() -> ApiError {
    ApiError::new(
        ErrorCode::NotPermittedBySwarm,
        "This host is not a member of a swarm yet: `virtuoso status` tells what it waits for",
    )
}

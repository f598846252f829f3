//! This host's own address on the bridge of a network, and whether it may have one.

use super::error::{errno, explain};
use super::{Netdev, bridge_name, network_of_tap};
use futures::StreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader};
use rtnetlink::{LinkBridge, LinkMessageBuilder, RouteMessageBuilder};
use std::net::{IpAddr, Ipv4Addr};
use virtuoso_overlay::ids::{Mac, NetworkId};
use virtuoso_overlay::names::Subnet;

/// Routes with shorter prefixes are ways to the rest of the world, which every subnet is a part of.
const PREFIX_MIN: u8 = 8;

impl Netdev {
    /// Sets the Ethernet address of the network's bridge.
    ///
    /// # Errors
    /// If there is no bridge, or the right is missing.
    pub async fn set_bridge_mac(&self, network: NetworkId, mac: Mac) -> anyhow::Result<()> {
        let name = bridge_name(network);
        if self.interface(&name).await?.mac == Some(mac) {
            return Ok(());
        }
        let message = LinkMessageBuilder::<LinkBridge>::new(&name).address(mac.0.to_vec()).build();
        self.change(message, format!("to set the address of bridge {name}")).await
    }

    /// Makes `ip` the one address of `subnet` on the network's bridge, or leaves none there.
    ///
    /// # Errors
    /// If there is no bridge, or the right is missing.
    pub async fn set_address(&self, network: NetworkId, subnet: Subnet, ip: Option<Ipv4Addr>) -> anyhow::Result<()> {
        let bridge = self.interface(&bridge_name(network)).await?;
        let mut is_there = false;
        for (message, known) in self.addresses_v4(bridge.index).await? {
            if Some(known) == ip && message.header.prefix_len == subnet.prefix() {
                is_there = true;
            } else if subnet.contains(known) {
                let deleted = self.handle.address().del(message).execute().await;
                deleted.map_err(|error| explain(error, format!("to take {known} off bridge {}", bridge.name)))?;
            }
        }
        let Some(ip) = ip.filter(|_| !is_there) else { return Ok(()) };
        match self.handle.address().add(bridge.index, IpAddr::V4(ip), subnet.prefix()).execute().await {
            // Set by another at this moment.
            Err(error) if errno(&error) == Some(libc::EEXIST) => Ok(()),
            done => done.map_err(|error| explain(error, format!("to set {ip} on bridge {}", bridge.name))),
        }
    }

    /// Takes this host's own address off a bridge that nothing but the agent uses, so that it can go.
    ///
    /// # Errors
    /// If there is no bridge, or the right is missing.
    pub async fn leave_address(&self, network: NetworkId, subnet: Subnet) -> anyhow::Result<()> {
        let ports = self.ports(network).await?;
        match ports.iter().all(|port| network_of_tap(&port.name) == Some(network)) {
            true => self.set_address(network, subnet, None).await,
            false => Ok(()),
        }
    }

    /// A route of this host that leads elsewhere to some address of `subnet`, as `10.0.0.0/8 dev eth0`.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub async fn route_into(&self, network: NetworkId, subnet: Subnet) -> anyhow::Result<Option<String>> {
        let own = self.find_interface(&bridge_name(network)).await?.map(|bridge| bridge.index);
        let names = self.interfaces().await?;
        let _listing = self.listing.lock().await;
        let question = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut routes = std::pin::pin!(self.handle.route().get(question).execute());
        let mut found = None;
        while let Some(route) = routes.next().await {
            let route = route.map_err(|error| explain(error, "to list routes"))?;
            let (mut base, mut device) = (None, None);
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(ip)) => base = Some(*ip),
                    RouteAttribute::Oif(index) => device = Some(*index),
                    _ => {}
                }
            }
            let prefix = route.header.destination_prefix_length;
            let is_main = route.header.table == RouteHeader::RT_TABLE_MAIN;
            let Some(base) = base.filter(|_| is_main && prefix >= PREFIX_MIN && device != own) else { continue };
            if subnet.overlaps(base, prefix) {
                let device = names.iter().find(|interface| Some(interface.index) == device);
                let device = device.map(|interface| format!(" dev {}", interface.name)).unwrap_or_default();
                found.get_or_insert_with(|| format!("{base}/{prefix}{device}"));
            }
        }
        Ok(found)
    }

    async fn addresses_v4(&self, index: u32) -> anyhow::Result<Vec<(AddressMessage, Ipv4Addr)>> {
        let _listing = self.listing.lock().await;
        let mut addresses = Vec::new();
        let mut messages = self.handle.address().get().set_link_index_filter(index).execute();
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| explain(error, "to list addresses"))?;
            let ip = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(IpAddr::V4(ip)) => Some(*ip),
                _ => None,
            });
            addresses.extend(ip.map(|ip| (message, ip)));
        }
        Ok(addresses)
    }
}

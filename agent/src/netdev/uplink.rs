//! A NIC of the user's own LAN as a port of a network: whether it may become one.
//!
//! A NIC in a bridge no longer receives for the host itself. One that the host is reached at would cut it off, so its
//! addresses must move to the bridge first.

use super::{Interface, Netdev, NetdevError, bridge_name};
use futures::StreamExt;
use netlink_packet_route::address::AddressAttribute;
use std::net::IpAddr;
use virtuoso_overlay::ids::NetworkId;

impl Netdev {
    /// Checks that an interface may become an uplink of a network with this MTU.
    ///
    /// # Errors
    /// If there is no such interface, the host is reached at it, it is too small for the network's packets, or the
    /// kernel does not say.
    pub async fn check_uplink(&self, network: NetworkId, mtu: u16, name: &str) -> anyhow::Result<Interface> {
        let interface = self.interface(name).await?;
        let addresses = self.host_addresses(interface.index).await?;
        if !addresses.is_empty() {
            let (name, bridge) = (interface.name, bridge_name(network));
            return Err(NetdevError::HasAddresses { name, bridge, addresses: addresses.join(" ") }.into());
        }
        if interface.mtu_bytes < u32::from(mtu) {
            let (name, mtu_bytes) = (interface.name, interface.mtu_bytes);
            return Err(NetdevError::SmallMtu { name, mtu_bytes, network_mtu_bytes: mtu.into() }.into());
        }
        Ok(interface)
    }

    /// The addresses at which the host is reached through an interface, with their prefixes. Every NIC has a
    /// link-local one; nobody relies on it.
    async fn host_addresses(&self, index: u32) -> anyhow::Result<Vec<String>> {
        let _listing = self.listing.lock().await;
        let mut addresses = Vec::new();
        let mut messages = self.handle.address().get().set_link_index_filter(index).execute();
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| super::error::explain(error, "to list addresses"))?;
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(IpAddr::V6(ip)) if ip.is_unicast_link_local() => None,
                AddressAttribute::Address(ip) => Some(format!("{ip}/{}", message.header.prefix_len)),
                _ => None,
            });
            addresses.extend(address);
        }
        Ok(addresses)
    }
}

//! The Linux bridge of a network on this host.
//!
//! The kernel switches between local ports; the overlay joins the bridges of all hosts. So the bridge is as plain as
//! it gets: no spanning tree (the overlay has no loops), no VLAN filter (tags pass), no multicast snooping (the
//! querier may be on another host, and a snooping bridge without one loses IPv6).

use super::error::{errno, explain};
use super::{Interface, Netdev, NetdevError, bridge_name, network_of_tap, sysctl};
use anyhow::Context;
use netlink_packet_route::link::BridgeStpState;
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec};
use virtuoso_overlay::ids::NetworkId;

/// Addresses that one bridge learns at most. The whole network's count: those of other hosts are behind the TAP.
/// Kernels before 6.8 have no such bound and ignore it.
const FDB_LEARNED_MAX: u32 = 65_536;

/// When a bridge is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveBridge {
    /// Only if no interface of others is in it and no IP address is on it.
    IfUnused,
    /// In any case; interfaces of others become free.
    Always,
}

/// What became of a bridge that was to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BridgeRemoval {
    /// It is gone.
    Removed,
    /// There was none.
    Absent,
    /// It stays, for what uses it: interfaces or IP addresses.
    Kept(Vec<String>),
}

impl Netdev {
    /// Makes the network's bridge, or brings an existing one into shape.
    ///
    /// # Errors
    /// If its name is taken by something else, or a right or the kernel's bridge is missing.
    pub async fn ensure_bridge(&self, network: NetworkId, mtu: u16) -> anyhow::Result<Interface> {
        let name = bridge_name(network);
        let existing = match self.find_interface(&name).await? {
            Some(existing) => existing,
            None => self.create_bridge(&name).await?,
        };
        if !existing.is_bridge {
            return Err(NetdevError::NameTaken { name, expected: "bridge" }.into());
        }
        sysctl::quieten_bridge(&name);
        let shape = settings(LinkMessageBuilder::<LinkBridge>::new(&name)).mtu(u32::from(mtu)).up().build();
        self.change(shape, format!("to set up bridge {name}")).await?;
        self.interface(&name).await
    }

    /// Removes the network's bridge.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn remove_bridge(&self, network: NetworkId, when: RemoveBridge) -> anyhow::Result<BridgeRemoval> {
        let name = bridge_name(network);
        let Some(bridge) = self.find_interface(&name).await? else {
            return Ok(BridgeRemoval::Absent);
        };
        if !bridge.is_bridge {
            return Err(NetdevError::NameTaken { name, expected: "bridge" }.into());
        }
        if when == RemoveBridge::IfUnused {
            let mut users: Vec<_> = self.ports_of(bridge.index).await?.into_iter().map(|port| port.name).collect();
            users.retain(|port| network_of_tap(port) != Some(network));
            users.extend(self.addresses(bridge.index).await?.iter().map(ToString::to_string));
            if !users.is_empty() {
                return Ok(BridgeRemoval::Kept(users));
            }
        }
        self.delete(bridge.index, &name).await?;
        Ok(BridgeRemoval::Removed)
    }

    async fn create_bridge(&self, name: &str) -> anyhow::Result<Interface> {
        // An address of its own: else the bridge takes that of its lowest port, and changes it with its ports.
        let message = settings(LinkMessageBuilder::<LinkBridge>::new(name)).address(random_mac()?.to_vec()).build();
        match self.handle.link().add(message).execute().await {
            Ok(()) => {}
            // Made by another at this moment.
            Err(error) if errno(&error) == Some(libc::EEXIST) => {}
            Err(error) if errno(&error) == Some(libc::EOPNOTSUPP) => {
                return Err(NetdevError::NoKernelSupport { what: "bridges", module: "bridge" }.into());
            }
            Err(error) => return Err(explain(error, format!("to make bridge {name}"))),
        }
        self.interface(name).await
    }

    /// The interfaces in the bridge with this index.
    pub(super) async fn ports_of(&self, bridge: u32) -> anyhow::Result<Vec<Interface>> {
        let mut ports = self.interfaces().await?;
        ports.retain(|interface| interface.controller == Some(bridge));
        Ok(ports)
    }

    /// Puts the interface with this index into a bridge.
    pub(super) async fn enslave(&self, index: u32, name: &str, bridge: &Interface) -> anyhow::Result<()> {
        let message = LinkUnspec::new_with_index(index).controller(bridge.index).build();
        self.change(message, format!("to put {name} into bridge {}", bridge.name)).await
    }
}

/// VLAN filtering is off by default, and a kernel built without it refuses to hear of it.
fn settings(builder: LinkMessageBuilder<LinkBridge>) -> LinkMessageBuilder<LinkBridge> {
    builder.stp_state(BridgeStpState::Disabled).forward_delay(0).mcast_snooping(false).fdb_max_learned(FDB_LEARNED_MAX)
}

fn random_mac() -> anyhow::Result<[u8; 6]> {
    let mut mac = [0; 6];
    getrandom::fill(&mut mac).context("Can't get random bytes for a bridge's address")?;
    // Locally administered, a single station.
    mac[0] = mac[0] & 0xfc | 0x02;
    Ok(mac)
}

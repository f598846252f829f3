//! What the kernel's bridges have learned: which address is behind which port.

use super::error::{errno, explain};
use super::{Netdev, bridge_name};
use anyhow::bail;
use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use std::collections::BTreeMap;
use virtuoso_overlay::ids::{Mac, NetworkId};

/// An address that a bridge knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    /// The address.
    pub mac: Mac,
    /// The VLAN it was seen in; bridges that don't filter VLANs learn without.
    pub vlan: Option<u16>,
    /// The port it is behind. The bridge's own name stands for this host.
    pub interface: String,
}

/// An entry by the kernel's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RawEntry {
    pub(super) bridge: u32,
    pub(super) mac: Mac,
    pub(super) vlan: Option<u16>,
    pub(super) port: u32,
}

impl RawEntry {
    /// Reads a neighbour message. `None` if it is not about an address in a bridge that frames come from: an IP
    /// neighbour, a device's own filter, a multicast group, or the address of a port itself.
    pub(super) fn from_message(message: &NeighbourMessage) -> Option<Self> {
        let (mut mac, mut vlan, mut bridge) = (None, None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::LinkLocalAddress(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
                NeighbourAttribute::Vlan(id) => vlan = (*id != 0).then_some(*id),
                NeighbourAttribute::Controller(index) => bridge = Some(*index),
                _ => {}
            }
        }
        let port = message.header.ifindex;
        let entry = Self { bridge: bridge?, mac: mac?, vlan, port };
        let of_port_itself = message.header.state == NeighbourState::Permanent && port != entry.bridge;
        let from_bridge = message.header.family == AddressFamily::Bridge;
        (from_bridge && !of_port_itself && !entry.mac.is_group()).then_some(entry)
    }
}

impl Netdev {
    /// All that the network's bridge knows.
    ///
    /// # Errors
    /// If there is no bridge, or the kernel does not say.
    pub async fn fdb(&self, network: NetworkId) -> anyhow::Result<Vec<FdbEntry>> {
        let bridge = self.interface(&bridge_name(network)).await?;
        let names: BTreeMap<u32, String> =
            self.interfaces().await?.into_iter().map(|interface| (interface.index, interface.name)).collect();
        let mut entries = self.raw_fdb().await?;
        entries.retain(|entry| entry.bridge == bridge.index);
        let named = entries.into_iter().filter_map(|entry| {
            let interface = names.get(&entry.port)?.clone();
            Some(FdbEntry { mac: entry.mac, vlan: entry.vlan, interface })
        });
        Ok(named.collect())
    }

    /// The port of the network's bridge that `mac` is behind at this moment, if the bridge knows.
    ///
    /// # Errors
    /// If there is no bridge, or the kernel does not say.
    pub async fn fdb_lookup(&self, network: NetworkId, mac: Mac) -> anyhow::Result<Option<String>> {
        let bridge = self.interface(&bridge_name(network)).await?;
        let Some(entry) = self.raw_lookup(bridge.index, mac).await? else {
            return Ok(None);
        };
        if entry.port == bridge.index {
            return Ok(Some(bridge.name));
        }
        let ports = self.ports_of(bridge.index).await?;
        Ok(ports.into_iter().find(|port| port.index == entry.port).map(|port| port.name))
    }

    /// Makes the network's bridge forget where `mac` is: it is on another host now, while its port here stays.
    ///
    /// # Errors
    /// If there is no bridge, or the kernel refuses.
    pub async fn fdb_forget(&self, network: NetworkId, mac: Mac) -> anyhow::Result<()> {
        let bridge = self.interface(&bridge_name(network)).await?;
        let Some(entry) = self.raw_lookup(bridge.index, mac).await?.filter(|entry| entry.port != bridge.index) else {
            return Ok(());
        };
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = entry.port;
        message.header.flags = NeighbourFlags::Controller;
        message.attributes = vec![NeighbourAttribute::LinkLocalAddress(mac.0.to_vec())];
        match self.handle.neighbours().del(message).execute().await {
            // It aged or left by itself.
            Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(()),
            done => done.map_err(|error| explain(error, format!("to forget where {mac} was"))),
        }
    }

    /// The entries of all bridges.
    pub(super) async fn raw_fdb(&self) -> anyhow::Result<Vec<RawEntry>> {
        let _listing = self.listing.lock().await;
        let mut request = self.handle.neighbours().get();
        request.message_mut().header.family = AddressFamily::Bridge;
        let messages: Vec<_> =
            request.execute().try_collect().await.map_err(|error| explain(error, "to list forwarding entries"))?;
        Ok(messages.iter().filter_map(RawEntry::from_message).collect())
    }

    async fn raw_lookup(&self, bridge: u32, mac: Mac) -> anyhow::Result<Option<RawEntry>> {
        let mut question = NeighbourMessage::default();
        question.header.family = AddressFamily::Bridge;
        question.attributes =
            vec![NeighbourAttribute::LinkLocalAddress(mac.0.to_vec()), NeighbourAttribute::Controller(bridge)];
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(question));
        request.header.flags = NLM_F_REQUEST;
        let mut handle = self.handle.clone();
        let answers = handle.request(request).map_err(|error| explain(error, "to look up an address"))?;
        let Some(answer) = std::pin::pin!(answers).next().await else {
            bail!("The kernel did not answer the look-up of {mac}");
        };
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(found)) => {
                Ok(RawEntry::from_message(&found))
            }
            NetlinkPayload::Error(error) => {
                let error = rtnetlink::Error::NetlinkError(error);
                if errno(&error) == Some(libc::ENOENT) {
                    Ok(None)
                } else {
                    Err(explain(error, "to look up an address"))
                }
            }
            other => bail!("The kernel answered the look-up of {mac} with {other:?}"),
        }
    }
}

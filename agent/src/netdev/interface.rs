//! An interface of the host, as netlink describes it.

use super::{Netdev, NetdevError, error};
use anyhow::{Context, ensure};
use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use rtnetlink::LinkUnspec;
use std::net::IpAddr;
use virtuoso_overlay::ids::Mac;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The kernel's number for it, unique while it exists.
    pub index: u32,
    /// Its Ethernet address, if it has one.
    pub mac: Option<Mac>,
    /// The largest packet that it takes.
    pub mtu_bytes: u32,
    /// Whether frames pass.
    pub state: InterfaceState,
    /// The index of the bridge, bond or team that it is in.
    pub controller: Option<u32>,
    pub(super) is_bridge: bool,
    pub(super) is_ethernet: bool,
    pub(super) is_loopback: bool,
}

/// Whether frames pass through an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterfaceState {
    /// They pass.
    Up,
    /// It is on, but has no carrier: no cable, or nobody at the other end.
    NoCarrier,
    /// It is off.
    Down,
}

impl InterfaceState {
    /// The stable name, as the API shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::NoCarrier => "no-carrier",
            Self::Down => "down",
        }
    }
}

impl Interface {
    /// Reads a link message. `None` if it has no name, which the kernel never omits.
    pub(super) fn from_message(message: &LinkMessage) -> Option<Self> {
        let flags = message.header.flags;
        let state = match (flags.contains(LinkFlags::Up), flags.contains(LinkFlags::LowerUp)) {
            (false, _) => InterfaceState::Down,
            (true, false) => InterfaceState::NoCarrier,
            (true, true) => InterfaceState::Up,
        };
        let mut interface = Self {
            name: String::new(),
            index: message.header.index,
            mac: None,
            mtu_bytes: 0,
            state,
            controller: None,
            is_bridge: false,
            is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            is_loopback: flags.contains(LinkFlags::Loopback),
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name.clone_from(name),
                LinkAttribute::Address(bytes) => interface.mac = bytes.as_slice().try_into().ok().map(Mac),
                LinkAttribute::Mtu(mtu) => interface.mtu_bytes = *mtu,
                LinkAttribute::Controller(index) => interface.controller = (*index != 0).then_some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    interface.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                }
                _ => {}
            }
        }
        (!interface.name.is_empty()).then_some(interface)
    }
}

impl Netdev {
    /// The interface `name`.
    ///
    /// # Errors
    /// [`NetdevError::NoInterface`] if there is none.
    pub async fn interface(&self, name: &str) -> anyhow::Result<Interface> {
        self.find_interface(name).await?.ok_or_else(|| NetdevError::no_interface(name).into())
    }

    /// The interface `name`, if there is one.
    ///
    /// # Errors
    /// If the name can't be one, or the kernel does not say.
    pub async fn find_interface(&self, name: &str) -> anyhow::Result<Option<Interface>> {
        ensure!(
            is_interface_name(name),
            "{name:?} can't be the name of an interface: it has 1 to 15 characters, none of them a blank or a slash"
        );
        let links = self.handle.link().get().match_name(name.to_owned()).execute();
        let found = std::pin::pin!(links).try_next().await;
        match found {
            Ok(message) => Ok(message.as_ref().and_then(Interface::from_message)),
            Err(error) if error::errno(&error) == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error::explain(error, format!("to look up interface {name}"))),
        }
    }

    /// All interfaces of the namespace.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub async fn interfaces(&self) -> anyhow::Result<Vec<Interface>> {
        let _listing = self.listing.lock().await;
        let links: Vec<_> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| error::explain(error, "to list interfaces"))?;
        Ok(links.iter().filter_map(Interface::from_message).collect())
    }

    /// The IP addresses on the interface with this index. An interface that becomes a port should have none: the
    /// host can't be reached at them any more.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub async fn addresses(&self, index: u32) -> anyhow::Result<Vec<IpAddr>> {
        let _listing = self.listing.lock().await;
        let mut addresses = Vec::new();
        let mut messages = self.handle.address().get().set_link_index_filter(index).execute();
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| error::explain(error, "to list addresses"))?;
            addresses.extend(message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            }));
        }
        Ok(addresses)
    }

    /// Sets the MTU of the interface `name`.
    ///
    /// # Errors
    /// If there is no such interface, the MTU is beyond what it can take, or the right is missing.
    pub async fn set_mtu(&self, name: &str, mtu_bytes: u32) -> anyhow::Result<()> {
        let index = self.interface(name).await?.index;
        let message = LinkUnspec::new_with_index(index).mtu(mtu_bytes).build();
        self.change(message, format!("to set the MTU of {name} to {mtu_bytes}")).await
    }

    /// Changes an existing interface.
    pub(super) async fn change(&self, message: LinkMessage, action: impl std::fmt::Display) -> anyhow::Result<()> {
        self.handle.link().change(message).execute().await.map_err(|error| error::explain(error, action))
    }

    /// Deletes the interface with this index.
    pub(super) async fn delete(&self, index: u32, name: &str) -> anyhow::Result<()> {
        let deleted = self.handle.link().del(index).execute().await;
        deleted.map_err(|error| error::explain(error, format!("to delete interface {name}"))).context("Can't clean up")
    }
}

/// Whether the kernel would take this as a name (`dev_valid_name`).
fn is_interface_name(name: &str) -> bool {
    let length_ok = (1..=15).contains(&name.len());
    length_ok && name != "." && name != ".." && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names() {
        for name in ["eth0", "vt-0badcafe", "a.b", "0123456789abcde"] {
            assert!(is_interface_name(name), "{name}");
        }
        for name in ["", "0123456789abcdef", "a b", "a/b", "..", "eth0:1"] {
            assert!(!is_interface_name(name), "{name}");
        }
    }
}

//! Interfaces of others in a network's bridge: a guest's TAP, one end of a veth, a NIC.

use super::{Interface, Netdev, NetdevError, bridge_name, network_of_bridge, network_of_tap};
use rtnetlink::LinkUnspec;
use virtuoso_overlay::ids::NetworkId;

impl Netdev {
    /// Puts an existing interface into the network's bridge and switches it on. It may be there already.
    ///
    /// Its MTU and its addresses are left alone: whether they suit is the caller's question.
    ///
    /// # Errors
    /// If there is no such interface or no bridge, it is in another bridge or can't be in one, or the right is missing.
    pub async fn attach(&self, network: NetworkId, name: &str) -> anyhow::Result<Interface> {
        let index = self.attach_as_it_is(network, name).await?;
        let message = LinkUnspec::new_with_index(index).up().build();
        self.change(message, format!("to switch {name} on")).await?;
        self.interface(name).await
    }

    /// As [`Netdev::attach`], but an interface that is switched off stays so. Its index.
    pub(super) async fn attach_as_it_is(&self, network: NetworkId, name: &str) -> anyhow::Result<u32> {
        let bridge = self.interface(&bridge_name(network)).await?;
        let interface = self.interface(name).await?;
        if let Some(reason) = unsuitable(&interface) {
            return Err(NetdevError::Unsuitable { name: interface.name, reason: reason.to_owned() }.into());
        }
        if let Some(controller) = interface.controller.filter(|index| *index != bridge.index) {
            let name = interface.name;
            return Err(NetdevError::InOtherBridge { name, controller: self.name_of(controller).await }.into());
        }
        self.enslave(interface.index, name, &bridge).await?;
        Ok(interface.index)
    }

    /// Takes an interface out of the network's bridge. It stays switched on.
    ///
    /// # Errors
    /// If there is no such interface, it is not in the bridge, or the right is missing.
    pub async fn detach(&self, network: NetworkId, name: &str) -> anyhow::Result<()> {
        let bridge = self.interface(&bridge_name(network)).await?;
        let interface = self.interface(name).await?;
        if interface.controller != Some(bridge.index) {
            return Err(NetdevError::NotInBridge { name: interface.name, bridge: bridge.name }.into());
        }
        let message = LinkUnspec::new_with_index(interface.index).nocontroller().build();
        self.change(message, format!("to take {name} out of bridge {}", bridge.name)).await
    }

    /// The interfaces in the network's bridge, the agent's own TAP among them (see [`network_of_tap`]).
    ///
    /// # Errors
    /// If there is no bridge, or the kernel does not say.
    pub async fn ports(&self, network: NetworkId) -> anyhow::Result<Vec<Interface>> {
        let bridge = self.interface(&bridge_name(network)).await?;
        self.ports_of(bridge.index).await
    }

    async fn name_of(&self, index: u32) -> String {
        let interfaces = self.interfaces().await.unwrap_or_default();
        let found = interfaces.into_iter().find(|interface| interface.index == index);
        found.map_or_else(|| format!("interface {index}"), |interface| interface.name)
    }
}

fn unsuitable(interface: &Interface) -> Option<&'static str> {
    if network_of_tap(&interface.name).is_some() || network_of_bridge(&interface.name).is_some() {
        Some("it is the agent's own")
    } else if interface.is_bridge {
        Some("it is a bridge itself; join the two by a veth pair")
    } else if interface.is_loopback {
        Some("it is the loopback")
    } else if !interface.is_ethernet {
        Some("it carries no Ethernet")
    } else {
        None
    }
}

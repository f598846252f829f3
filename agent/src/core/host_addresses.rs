//! This host's own addresses: one on the bridge of each network that has a subnet, so that VMs are reached by their IP
//! address with any program.

use super::{Core, Handle};
use crate::events::EventKind;
use crate::netdev::{Netdev, bridge_name};
use std::net::{IpAddr, Ipv4Addr};
use virtuoso_overlay::claims::Claim;
use virtuoso_overlay::ids::NetworkId;
use virtuoso_overlay::names::{AddressPlan, Owner, host_mac};
use virtuoso_overlay::switch::Assignment;
use virtuoso_overlay::table::VmRow;

impl Core {
    /// The plan of an attached network, and the address that this host should have there.
    fn wanted_address(&self, network: NetworkId) -> Option<(AddressPlan, Option<Ipv4Addr>)> {
        let plan = self.networks.plan(network)?;
        if !plan.host_addresses {
            return Some((plan, None));
        }
        let owner = Owner::Host(self.me());
        let addresses = self.addresses_in(network, plan.subnet);
        let own = self.networks.own_address(network).filter(|ip| addresses.is_free_for(*ip, owner));
        Some((plan, own.or_else(|| addresses.choose(owner))))
    }

    /// The bridge has this address now.
    fn has_address(&mut self, network: NetworkId, plan: AddressPlan, ip: Option<Ipv4Addr>) {
        if !self.networks.set_own_address(network, ip) {
            return;
        }
        let mac = host_mac(network, self.me());
        let port = self.networks.port_id(network, &bridge_name(network));
        self.plane.switch(move |switch, now| match ip {
            Some(ip) => {
                // Its owner may make it a router.
                let given = Assignment { ip, subnet: plan.subnet, guarded: false };
                switch.assign(now, network, mac, Some(port), given);
            }
            None => switch.handle_port_gone(now, network, port),
        });
    }

    /// Somebody with a better right may have the address that this host has.
    pub(super) fn review_own_address(&self, claim: &Claim) {
        let network = claim.network;
        let own = self.networks.own_address(network);
        if own.is_some_and(|own| claim.ips.contains(&own.into()) && claim.mac != host_mac(network, self.me())) {
            self.settle_soon(network);
        }
    }

    /// The same for what a VM was given.
    pub(super) fn review_own_addresses(&self, vm: &VmRow) {
        for (network, _, ip) in &vm.nics {
            if ip.is_some() && self.networks.own_address(*network).map(IpAddr::V4) == *ip {
                self.settle_soon(*network);
            }
        }
    }

    /// Looks again which address this host has in a network.
    pub(super) fn settle_soon(&self, network: NetworkId) {
        let (core, netdev) = (self.handle(), self.netdev.clone());
        tokio::spawn(async move { settle(&core, &netdev, network).await });
    }
}

/// Gives this host the address that it should have in a network.
pub(super) async fn settle(core: &Handle, netdev: &Netdev, network: NetworkId) {
    if let Err(error) = try_settle(core, netdev, network).await {
        tracing::warn!(%network, "This host has no address of its own in a network: {error:#}");
    }
}

async fn try_settle(core: &Handle, netdev: &Netdev, network: NetworkId) -> anyhow::Result<()> {
    let wanted = core.call(move |core| (core.me(), core.wanted_address(network))).await?;
    let (me, Some((plan, mut ip))) = wanted else { return Ok(()) };
    netdev.set_bridge_mac(network, host_mac(network, me)).await?;
    netdev.show_service(network).await?;
    if ip.is_some()
        && let Some(route) = netdev.route_into(network, plan.subnet).await?
    {
        ip = None;
        core.call(move |core| {
            let network = core.network_name(network);
            let subnet = plan.subnet;
            tracing::warn!(
                network,
                "This host gets no address of {subnet}, because its route {route} leads there. Make the network with \
                 another --subnet, or with --host-address off"
            );
            core.events.emit(EventKind::HostAddressRefused { network, subnet: subnet.to_string(), route });
        })
        .await?;
    }
    netdev.set_address(network, plan.subnet, ip).await?;
    Ok(core.call(move |core| core.has_address(network, plan, ip)).await?)
}

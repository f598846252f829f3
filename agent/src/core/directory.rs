//! What names mean, as the tables tell: inside of one network, and on this host.
//!
//! A guest hears of what is in its own network only. A host's users, who may list all VMs, hear of all.

use super::Core;
use std::net::{IpAddr, Ipv4Addr};
use virtuoso_overlay::ids::{HostId, Mac, NetworkId};
use virtuoso_overlay::names::zone::{Directory, Named, ZONE};
use virtuoso_overlay::names::{Owner, Subnet, host_mac};
use virtuoso_overlay::table::{Body, NetworkRow};

/// Names as a guest of one network sees them.
pub(super) struct InNetwork<'a> {
    core: &'a Core,
    network: NetworkId,
    subnet: Subnet,
    name: String,
}

/// Names as this host's users see them.
pub(super) struct Everywhere<'a>(pub(super) &'a Core);

impl<'a> InNetwork<'a> {
    pub(super) fn new(core: &'a Core, network: NetworkId, subnet: Subnet) -> Self {
        Self { core, network, subnet, name: core.network_name(network) }
    }
}

impl Directory for InNetwork<'_> {
    fn addresses(&self, name: &str, network: Option<&str>) -> Option<Vec<IpAddr>> {
        let is_here = network.is_none_or(|network| network == self.name);
        let found = self.core.named(name).filter(|_| is_here)?;
        let here: Vec<_> = found.into_iter().filter(|(network, _)| *network == self.network).collect();
        (!here.is_empty()).then(|| here.into_iter().flat_map(|(_, ips)| ips).collect())
    }

    fn is_network(&self, name: &str) -> bool {
        name == self.name
    }

    fn name_of(&self, ip: Ipv4Addr) -> Named {
        match self.subnet.contains(ip) {
            true => self.core.owner_name(self.network, self.subnet, &self.name, ip),
            false => Named::Foreign,
        }
    }
}

impl Directory for Everywhere<'_> {
    fn addresses(&self, name: &str, network: Option<&str>) -> Option<Vec<IpAddr>> {
        let mut found = self.0.named(name)?;
        if let Some(network) = network {
            let id = self.0.find_network(network).ok()?.id;
            found.retain(|(network, _)| *network == id);
            if found.is_empty() {
                return None;
            }
        }
        // What this host reaches comes first.
        found.sort_by_key(|(network, _)| !self.0.networks.is_attached(*network));
        Some(found.into_iter().flat_map(|(_, ips)| ips).collect())
    }

    fn is_network(&self, name: &str) -> bool {
        self.0.find_network(name).is_ok()
    }

    fn name_of(&self, ip: Ipv4Addr) -> Named {
        let rows = self.0.networks().into_iter().map(|(row, _)| row);
        let mut planned = rows.filter_map(|row: NetworkRow| Some((row.id, row.plan?.subnet, row.name)));
        match planned.find(|(_, subnet, _)| subnet.contains(ip)) {
            Some((network, subnet, name)) => self.0.owner_name(network, subnet, &name, ip),
            None => Named::Foreign,
        }
    }
}

impl Core {
    /// The networks of the VM or the host of this name, with its addresses in each.
    fn named(&self, name: &str) -> Option<Vec<(NetworkId, Vec<IpAddr>)>> {
        let node = self.node.as_ref()?;
        if let Some((host, row)) = self.vm_row(|row| row.name == name) {
            let nics = row.nics.iter().map(|(network, mac, given)| {
                let seen = self.global_ips(host, *network, *mac).filter(|ip| Some(*ip) != *given);
                (*network, given.iter().copied().chain(seen).collect())
            });
            return Some(nics.collect());
        }
        let (host, row) = node.table().hosts().find(|(_, row)| row.certificate.name == name)?;
        let networks = row.networks.iter().map(|network| {
            let ips: Vec<IpAddr> = self.global_ips(host, *network, host_mac(*network, host)).collect();
            (*network, ips)
        });
        Some(networks.filter(|(_, ips)| !ips.is_empty()).collect())
    }

    /// Link-local addresses mean nothing without the name of an interface.
    fn global_ips(&self, host: HostId, network: NetworkId, mac: Mac) -> impl Iterator<Item = IpAddr> + use<> {
        let is_global = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => !ip.is_link_local(),
            IpAddr::V6(ip) => !ip.is_unicast_link_local(),
        };
        self.ips_of(host, network, mac).into_iter().filter(is_global)
    }

    fn owner_name(&self, network: NetworkId, subnet: Subnet, network_name: &str, ip: Ipv4Addr) -> Named {
        let name = match self.addresses_in(network, subnet).owner(ip) {
            Some(Owner::Vm(id, _)) => {
                self.node.iter().flat_map(|node| node.table().bodies()).find_map(|(_, body)| match body {
                    Body::Vm(row) if row.id == id => Some(row.name.clone()),
                    _ => None,
                })
            }
            Some(Owner::Host(host)) => Some(self.name_of(host)),
            Some(Owner::Station(_)) | None => None,
        };
        name.map_or(Named::Nobody, |name| Named::Name(format!("{name}.{network_name}.{ZONE}")))
    }
}

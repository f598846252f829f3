//! Who has which address of a network's subnet, as the tables tell.

use super::Core;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use virtuoso_overlay::ids::{HostId, Mac, NetworkId, VmId};
use virtuoso_overlay::names::{Addresses, Owner, Subnet, host_mac};
use virtuoso_overlay::table::Body;

/// An interface of a VM of this host that needs another address than it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Readdress {
    /// The VM.
    pub vm: VmId,
    /// The interface's number.
    pub nic: usize,
    /// The address that it shall have; none if its network's subnet is full.
    pub ip: Option<Ipv4Addr>,
}

impl Core {
    /// Who has which address of a network's subnet.
    pub(super) fn addresses_in(&self, network: NetworkId, subnet: Subnet) -> Addresses {
        let mut addresses = Addresses::new(subnet);
        let Some(node) = &self.node else { return addresses };
        let mut vms: BTreeMap<Mac, Owner> = BTreeMap::new();
        for (_, body) in node.table().bodies() {
            let Body::Vm(row) = body else { continue };
            for (index, (_, mac, ip)) in row.nics.iter().enumerate().filter(|(_, nic)| nic.0 == network) {
                let owner = Owner::Vm(row.id, u8::try_from(index).unwrap_or(u8::MAX));
                vms.insert(*mac, owner);
                if let Some(IpAddr::V4(ip)) = ip {
                    addresses.note(*ip, owner);
                }
            }
        }
        for (host, body) in node.table().bodies() {
            let Body::Claim(claim) = body else { continue };
            // What a VM was seen with is its host's to correct.
            if claim.network == network && !vms.contains_key(&claim.mac) {
                let owner = station(network, host, claim.mac);
                claim.ips.iter().filter_map(v4).for_each(|ip| addresses.note(ip, owner));
            }
        }
        addresses
    }

    /// The interfaces of VMs here whose address another one keeps, or that have none of their network's subnet.
    pub fn lost_addresses(&self) -> Vec<Readdress> {
        let mut lost = Vec::new();
        let mut known: BTreeMap<NetworkId, Addresses> = BTreeMap::new();
        for (spec, _) in &self.guests.vms {
            for (index, nic) in spec.nics.iter().enumerate() {
                let Some(row) = self.find_network(&nic.network).ok() else { continue };
                let Some(plan) = row.plan else { continue };
                let owner = Owner::Vm(spec.id.0, u8::try_from(index).unwrap_or(u8::MAX));
                let addresses = known.entry(row.id).or_insert_with(|| self.addresses_in(row.id, plan.subnet));
                if nic.ip.is_some_and(|ip| addresses.is_free_for(ip, owner)) {
                    continue;
                }
                let ip = addresses.choose(owner);
                if let Some(ip) = ip {
                    addresses.note(ip, owner);
                }
                if ip != nic.ip {
                    lost.push(Readdress { vm: spec.id.0, nic: index, ip });
                }
            }
        }
        lost
    }
}

/// Who is behind an address that no VM has.
fn station(network: NetworkId, host: HostId, mac: Mac) -> Owner {
    if mac == host_mac(network, host) { Owner::Host(host) } else { Owner::Station(mac) }
}

fn v4(ip: &IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    }
}

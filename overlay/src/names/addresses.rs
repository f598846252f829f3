//! Who has which address of a subnet, and which one is next: pure functions of what all hosts know.
//!
//! A host chooses for its own stations, by a hash of who they are, among what nobody is known to have. Two hosts that
//! do not hear of each other may choose the same. When they do, the smaller [`Owner`] keeps the address, on every
//! host, and the other's host chooses again.

use super::Subnet;
use crate::ids::{HostId, Mac, VmId};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Choices by hash before the addresses are tried one after the other.
const HASHED_ATTEMPTS: u32 = 32;
/// Addresses that are tried one after the other: a subnet with more stations than this is never full.
const SCANNED_MAX: u32 = 1 << 17;

/// Who has an address. What is hardest to change comes first and keeps it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Owner {
    /// An interface of a VM, by its number.
    Vm(VmId, u8),
    /// A host, on its bridge.
    Host(HostId),
    /// Something else on a bridge.
    Station(Mac),
}

/// Who has which address of one subnet.
#[derive(Clone, Debug)]
pub struct Addresses {
    subnet: Subnet,
    /// Of several owners of an address, the one that keeps it.
    owners: BTreeMap<Ipv4Addr, Owner>,
}

impl Addresses {
    /// Nobody has an address yet.
    pub const fn new(subnet: Subnet) -> Self {
        Self { subnet, owners: BTreeMap::new() }
    }

    /// `owner` has or wants `ip`. The order of calls does not matter.
    pub fn note(&mut self, ip: Ipv4Addr, owner: Owner) {
        if self.subnet.has_room_for(ip) {
            let keeper = self.owners.entry(ip).or_insert(owner);
            *keeper = owner.min(*keeper);
        }
    }

    /// Who keeps `ip`.
    pub fn owner(&self, ip: Ipv4Addr) -> Option<Owner> {
        self.owners.get(&ip).copied()
    }

    /// Whether `owner` may have `ip`: it is of the subnet, and nobody with a better right has it.
    pub fn is_free_for(&self, ip: Ipv4Addr, owner: Owner) -> bool {
        self.subnet.has_room_for(ip) && self.owner(ip).is_none_or(|keeper| owner <= keeper)
    }

    /// An address for `owner` that nobody else has; none if the subnet is full.
    pub fn choose(&self, owner: Owner) -> Option<Ipv4Addr> {
        let is_free = |ip: &Ipv4Addr| self.owner(*ip).is_none_or(|keeper| keeper == owner);
        let hashed = (0..HASHED_ATTEMPTS).map(|attempt| self.subnet.station(hash(owner, attempt)));
        let first = hash(owner, HASHED_ATTEMPTS) % self.subnet.stations();
        let scanned = (0..self.subnet.stations().min(SCANNED_MAX)).map(|step| self.subnet.station(first + step));
        hashed.chain(scanned).find(is_free)
    }
}

fn hash(owner: Owner, attempt: u32) -> u32 {
    let mut hasher = blake3::Hasher::new();
    match owner {
        Owner::Vm(id, nic) => hasher.update(b"vm").update(&id.0).update(&[nic]),
        Owner::Host(id) => hasher.update(b"host").update(&id.0),
        Owner::Station(mac) => hasher.update(b"station").update(&mac.0),
    };
    hasher.update(&attempt.to_be_bytes());
    let digest = hasher.finalize();
    let [a, b, c, d, ..] = *digest.as_bytes();
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn vm(id: u8) -> Owner {
        Owner::Vm(VmId([id; 16]), 0)
    }

    fn addresses(subnet: &str) -> Addresses {
        Addresses::new(subnet.parse().unwrap())
    }

    #[test]
    fn a_choice_is_stable_and_avoids_what_others_have() {
        let mut blue = addresses("10.8.0.0/24");
        let first = blue.choose(vm(1)).unwrap();
        assert_eq!(blue.choose(vm(1)), Some(first));
        blue.note(first, vm(1));
        assert_eq!(blue.choose(vm(1)), Some(first));
        blue.note(first, Owner::Host(HostId([0; 32])));
        assert_eq!(blue.owner(first), Some(vm(1)));

        let mut taken = addresses("10.8.0.0/24");
        taken.note(first, vm(9));
        let second = taken.choose(vm(1)).unwrap();
        assert!(second != first && taken.is_free_for(second, vm(1)));
    }

    #[test]
    fn every_station_of_a_small_subnet_gets_an_address_and_then_none() {
        let mut blue = addresses("10.8.0.0/28");
        let mut seen = BTreeSet::new();
        for id in 0..13 {
            let ip = blue.choose(vm(id)).unwrap();
            assert!(seen.insert(ip), "{ip} twice");
            blue.note(ip, vm(id));
        }
        assert_eq!(blue.choose(vm(99)), None);
    }

    /// Two hosts of a partition gave one address to two VMs: both decide alike who keeps it, in any order of rows.
    #[test]
    fn of_two_that_have_one_address_the_smaller_keeps_it() {
        let ip = Ipv4Addr::new(10, 8, 0, 7);
        for owners in [[vm(1), vm(2)], [vm(2), vm(1)]] {
            let mut blue = addresses("10.8.0.0/24");
            owners.into_iter().for_each(|owner| blue.note(ip, owner));
            assert!(blue.is_free_for(ip, vm(1)) && !blue.is_free_for(ip, vm(2)));
            let next = blue.choose(vm(2)).unwrap();
            assert!(next != ip);
        }
        assert!(Owner::Host(HostId([0; 32])) > vm(255) && Owner::Station(Mac::ZERO) > Owner::Host(HostId([255; 32])));
    }

    proptest! {
        /// Hosts that chose blindly end with different addresses, whatever they chose and however often they repeat.
        #[test]
        fn collisions_come_to_an_end(ids in proptest::collection::btree_set(any::<u8>(), 1..40)) {
            let mut chosen: BTreeMap<Owner, Ipv4Addr> = BTreeMap::new();
            for id in ids {
                let alone = addresses("10.8.0.0/26");
                chosen.insert(vm(id), alone.choose(vm(id)).unwrap());
            }
            for round in 0.. {
                prop_assert!(round <= chosen.len());
                let mut all = addresses("10.8.0.0/26");
                chosen.iter().for_each(|(owner, ip)| all.note(*ip, *owner));
                let losers: Vec<Owner> =
                    chosen.iter().filter(|(owner, ip)| !all.is_free_for(**ip, **owner)).map(|(owner, _)| *owner).collect();
                if losers.is_empty() {
                    break;
                }
                for loser in losers {
                    chosen.insert(loser, all.choose(loser).unwrap());
                }
            }
            let distinct: BTreeSet<&Ipv4Addr> = chosen.values().collect();
            prop_assert_eq!(distinct.len(), chosen.len());
        }
    }
}

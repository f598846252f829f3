//! The IPv4 subnet of a network, and what is planned with its addresses.

use bincode::{Decode, Encode};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// The largest and the smallest subnet, as lengths of their prefixes. A /30 has room for the service and one station.
pub const PREFIX_MIN: u8 = 8;
/// See [`PREFIX_MIN`].
pub const PREFIX_MAX: u8 = 30;

/// A range of IPv4 addresses with a common prefix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub struct Subnet {
    base: Ipv4Addr,
    prefix: u8,
}

/// How the stations of a network get their addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub struct AddressPlan {
    /// Where the addresses are from.
    pub subnet: Subnet,
    /// Whether hosts answer DHCP.
    pub dhcp: bool,
    /// Whether each host with a port in the network has an address of its own there.
    pub host_addresses: bool,
}

/// Why a text is not a subnet.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseSubnetError {
    /// It has another form.
    #[error("Not a subnet: expected an IPv4 network such as 10.8.0.0/24")]
    Form,
    /// Its prefix is too long or too short.
    #[error("A network's subnet has a prefix of /{PREFIX_MIN} to /{PREFIX_MAX}")]
    Prefix,
    /// It names an address inside of the subnet.
    #[error("Not the first address of a subnet: did you mean {0}?")]
    HostBits(Subnet),
    /// Stations can't have its addresses.
    #[error("Addresses of this range can't be those of stations")]
    Range,
}

impl Subnet {
    /// The subnet that begins at `base`.
    ///
    /// # Errors
    /// If the prefix is out of range, `base` is not the subnet's first address, or no station can have its addresses.
    pub fn new(base: Ipv4Addr, prefix: u8) -> Result<Self, ParseSubnetError> {
        if !(PREFIX_MIN..=PREFIX_MAX).contains(&prefix) {
            return Err(ParseSubnetError::Prefix);
        }
        let first = Self { base: Ipv4Addr::from(u32::from(base) & mask_bits(prefix)), prefix };
        if !first.is_usable() {
            return Err(ParseSubnetError::Range);
        }
        if first.base == base { Ok(first) } else { Err(ParseSubnetError::HostBits(first)) }
    }

    /// Whether this value, which may come from a peer, keeps the bounds that [`Self::new`] keeps.
    pub fn is_well_formed(self) -> bool {
        Self::new(self.base, self.prefix) == Ok(self)
    }

    /// The length of the prefix in bits.
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// The mask of the prefix.
    pub const fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask_bits(self.prefix))
    }

    /// The address that DHCP and DNS are served at: the first one.
    pub const fn service(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() + 1)
    }

    /// The address that means all stations: the last one.
    pub const fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() | !mask_bits(self.prefix))
    }

    /// Whether the address is of this subnet.
    pub const fn contains(self, ip: Ipv4Addr) -> bool {
        ip.to_bits() & mask_bits(self.prefix) == self.base.to_bits()
    }

    /// Whether a station may have the address.
    pub fn has_room_for(self, ip: Ipv4Addr) -> bool {
        self.contains(ip) && ip != self.base && ip != self.service() && ip != self.broadcast()
    }

    /// How many stations have room.
    pub const fn stations(self) -> u32 {
        !mask_bits(self.prefix) - 2
    }

    /// The station's address number `index`, counted from 0, modulo the number of stations.
    pub const fn station(self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() + 2 + index % self.stations())
    }

    /// Whether the two have an address in common.
    pub const fn overlaps(self, base: Ipv4Addr, prefix: u8) -> bool {
        let mask = mask_bits(if prefix < self.prefix { prefix } else { self.prefix });
        self.base.to_bits() & mask == base.to_bits() & mask
    }

    fn is_usable(self) -> bool {
        let [first, ..] = self.base.octets();
        !self.base.is_loopback() && first != 0 && first < 224
    }
}

impl FromStr for Subnet {
    type Err = ParseSubnetError;

    fn from_str(text: &str) -> Result<Self, ParseSubnetError> {
        let (base, prefix) = text.split_once('/').ok_or(ParseSubnetError::Form)?;
        let digits = prefix.len() <= 2 && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = prefix.parse().ok().filter(|_| digits).ok_or(ParseSubnetError::Form)?;
        Self::new(base.parse().map_err(|_| ParseSubnetError::Form)?, prefix)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

const fn mask_bits(prefix: u8) -> u32 {
    if prefix == 0 { 0 } else { u32::MAX << (32 - prefix) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn a_subnet_is_read_and_shown() {
        for text in ["10.8.0.0/24", "10.0.0.0/8", "192.168.7.4/30"] {
            assert_eq!(subnet(text).to_string(), text);
        }
        for (text, error) in [
            ("10.8.0.0", ParseSubnetError::Form),
            ("10.8.0.0/x", ParseSubnetError::Form),
            ("10.8.0.0/+8", ParseSubnetError::Form),
            ("fd00::/64", ParseSubnetError::Form),
            ("10.8.0.0/31", ParseSubnetError::Prefix),
            ("0.0.0.0/0", ParseSubnetError::Prefix),
            ("10.8.0.7/24", ParseSubnetError::HostBits(subnet("10.8.0.0/24"))),
            ("224.0.0.0/24", ParseSubnetError::Range),
            ("127.0.0.0/24", ParseSubnetError::Range),
        ] {
            assert_eq!(text.parse::<Subnet>(), Err(error), "{text}");
        }
        assert!(!Subnet { base: Ipv4Addr::new(10, 8, 0, 1), prefix: 24 }.is_well_formed());
        assert!(!Subnet { base: Ipv4Addr::UNSPECIFIED, prefix: 99 }.is_well_formed());
    }

    #[test]
    fn stations_have_what_is_between_service_and_broadcast() {
        let small = subnet("10.8.0.0/29");
        assert_eq!(small.stations(), 5);
        let stations: Vec<Ipv4Addr> = (0..6).map(|index| small.station(index)).collect();
        assert_eq!((stations[0], stations[4]), (Ipv4Addr::new(10, 8, 0, 2), Ipv4Addr::new(10, 8, 0, 6)));
        assert_eq!(stations[5], stations[0]);
        assert!(stations.iter().all(|ip| small.has_room_for(*ip)));
        for taken in [small.service(), small.broadcast(), Ipv4Addr::new(10, 8, 0, 0), Ipv4Addr::new(10, 8, 0, 8)] {
            assert!(!small.has_room_for(taken), "{taken}");
        }
        assert_eq!(subnet("10.8.0.0/30").stations(), 1);
        assert_eq!(small.mask(), Ipv4Addr::new(255, 255, 255, 248));
    }

    #[test]
    fn overlaps_are_seen_both_ways() {
        let blue = subnet("10.8.0.0/24");
        for (base, prefix, expected) in
            [([10, 8, 0, 128], 25, true), ([10, 0, 0, 0], 8, true), ([10, 8, 1, 0], 24, false)]
        {
            assert_eq!(blue.overlaps(Ipv4Addr::from(base), prefix), expected);
        }
        assert!(blue.overlaps(Ipv4Addr::UNSPECIFIED, 0));
    }
}

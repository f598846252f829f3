//! IPv4 and IPv6 headers: checked views, and the Internet checksum.
//!
//! The views need the headers only; the packet may go on behind the bytes that are here.

use super::PacketError;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER_BYTES: usize = 20;
/// Bytes of an IPv6 header without extensions.
pub const IPV6_HEADER_BYTES: usize = 40;
/// IPv6 extension headers that are looked through. RFC 8200 names six, and sends none of them in practice; a longer
/// chain is an attempt to hide something.
pub const EXTENSION_HEADERS_MAX: usize = 8;

/// What an IP packet carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// ICMP for IPv6.
    pub const ICMPV6: Self = Self(58);
}

/// The header of an IPv4 packet.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4View<'a> {
    header: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Ipv4View<'a> {
    /// Reads the header of the packet that begins with `bytes`. What stands behind its total length is padding.
    ///
    /// # Errors
    /// If the bytes end before the header, are not IPv4, or contradict themselves. The checksum is not looked at.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let (fixed, _) = bytes.split_first_chunk::<IPV4_HEADER_BYTES>().ok_or(PacketError::Truncated)?;
        if fixed[0] >> 4 != 4 {
            return Err(PacketError::OtherKind);
        }
        let header_bytes = usize::from(fixed[0] & 0x0f) * 4;
        let total_bytes = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if header_bytes < IPV4_HEADER_BYTES || total_bytes < header_bytes {
            return Err(PacketError::Malformed);
        }
        let packet = &bytes[..total_bytes.min(bytes.len())];
        let (header, payload) = packet.split_at_checked(header_bytes).ok_or(PacketError::Truncated)?;
        Ok(Self { header, payload })
    }

    /// The sender.
    pub fn src(&self) -> Ipv4Addr {
        self.ip_at(12)
    }

    /// The destination.
    pub fn dst(&self) -> Ipv4Addr {
        self.ip_at(16)
    }

    /// The header with its options.
    pub fn header(&self) -> &'a [u8] {
        self.header
    }

    /// Bytes of the whole packet, of which some may not be here.
    pub fn total_bytes(&self) -> usize {
        usize::from(u16::from_be_bytes([self.header[2], self.header[3]]))
    }

    /// What it carries.
    pub fn protocol(&self) -> Protocol {
        Protocol(self.header[9])
    }

    /// Whether it must not be split.
    pub fn dont_fragment(&self) -> bool {
        self.header[6] & 0x40 != 0
    }

    /// Where in the original packet this fragment begins, in units of eight bytes; 0 for the first and for a whole.
    pub fn fragment_offset(&self) -> u16 {
        u16::from_be_bytes([self.header[6], self.header[7]]) & 0x1fff
    }

    /// Whether it is a part of a packet only.
    pub fn is_fragment(&self) -> bool {
        self.fragment_offset() != 0 || self.header[6] & 0x20 != 0
    }

    /// Whether the header's checksum is right.
    pub fn checksum_ok(&self) -> bool {
        Checksum::default().with(self.header).finish() == 0
    }

    /// What follows the header, as far as it is here.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    fn ip_at(&self, offset: usize) -> Ipv4Addr {
        Ipv4Addr::new(self.header[offset], self.header[offset + 1], self.header[offset + 2], self.header[offset + 3])
    }
}

/// The header of an IPv6 packet.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6View<'a> {
    header: &'a [u8; IPV6_HEADER_BYTES],
    payload: &'a [u8],
}

/// What stands behind the extension headers of an IPv6 packet.
#[derive(Clone, Copy, Debug)]
pub struct UpperLayer<'a> {
    /// What it is.
    pub protocol: Protocol,
    /// Its bytes, as far as they are here.
    pub bytes: &'a [u8],
    /// Where in the original packet this fragment begins, in units of eight bytes; 0 for the first and for a whole.
    pub fragment_offset: u16,
}

impl<'a> Ipv6View<'a> {
    /// Reads the header of the packet that begins with `bytes`. What stands behind its payload length is padding.
    ///
    /// # Errors
    /// If the bytes end before the header, or are not IPv6.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let (header, rest) = bytes.split_first_chunk::<IPV6_HEADER_BYTES>().ok_or(PacketError::Truncated)?;
        if header[0] >> 4 != 6 {
            return Err(PacketError::OtherKind);
        }
        let payload_bytes = usize::from(u16::from_be_bytes([header[4], header[5]]));
        Ok(Self { header, payload: &rest[..payload_bytes.min(rest.len())] })
    }

    /// The sender; unspecified while it looks for duplicates of its address.
    pub fn src(&self) -> Ipv6Addr {
        ipv6_at(self.header, 8)
    }

    /// The destination.
    pub fn dst(&self) -> Ipv6Addr {
        ipv6_at(self.header, 24)
    }

    /// The header, without extensions.
    pub fn header(&self) -> &'a [u8; IPV6_HEADER_BYTES] {
        self.header
    }

    /// Bytes of the whole packet, of which some may not be here.
    pub fn total_bytes(&self) -> usize {
        IPV6_HEADER_BYTES + self.payload_bytes()
    }

    /// Bytes behind the header, of which some may not be here.
    pub fn payload_bytes(&self) -> usize {
        usize::from(u16::from_be_bytes([self.header[4], self.header[5]]))
    }

    /// What follows the header: an extension or the upper layer.
    pub fn next_header(&self) -> Protocol {
        Protocol(self.header[6])
    }

    /// How many more routers it may pass. 255 proves that it passed none.
    pub fn hop_limit(&self) -> u8 {
        self.header[7]
    }

    /// What follows the header, as far as it is here.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Looks through the extension headers. In a fragment that is not the first it stops behind the fragment header.
    ///
    /// # Errors
    /// If the bytes end before the chain does, or the chain has more than [`EXTENSION_HEADERS_MAX`] headers.
    pub fn upper_layer(&self) -> Result<UpperLayer<'a>, PacketError> {
        let mut layer = UpperLayer { protocol: self.next_header(), bytes: self.payload, fragment_offset: 0 };
        for _ in 0..=EXTENSION_HEADERS_MAX {
            let Some(extension_bytes) = extension_bytes(&layer)? else {
                return Ok(layer);
            };
            let (extension, rest) = layer.bytes.split_at_checked(extension_bytes).ok_or(PacketError::Truncated)?;
            let is_fragment = layer.protocol == FRAGMENT;
            layer.protocol = Protocol(extension[0]);
            layer.bytes = rest;
            if is_fragment {
                layer.fragment_offset = u16::from_be_bytes([extension[2], extension[3]]) >> 3;
            }
            if layer.fragment_offset != 0 {
                return Ok(layer);
            }
        }
        Err(PacketError::Malformed)
    }
}

/// The length of the extension header that `layer` begins with, or `None` if it begins with none.
fn extension_bytes(layer: &UpperLayer<'_>) -> Result<Option<usize>, PacketError> {
    let unit = match layer.protocol {
        FRAGMENT => return Ok(Some(8)),
        AUTHENTICATION => 4,
        Protocol(0 | 43 | 60 | 135 | 139 | 140) => 8,
        _ => return Ok(None),
    };
    let length = usize::from(*layer.bytes.get(1).ok_or(PacketError::Truncated)?);
    // RFC 8200 counts units of eight bytes behind the first eight, RFC 4302 units of four behind the first eight.
    Ok(Some(8 + length * unit))
}

/// The Internet checksum (RFC 1071) over several pieces. Only the last piece may have an odd length.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checksum(u64);

impl Checksum {
    /// This sum and `bytes`.
    #[must_use]
    pub fn with(mut self, bytes: &[u8]) -> Self {
        let (pairs, odd) = bytes.as_chunks::<2>();
        for pair in pairs {
            self.0 += u64::from(u16::from_be_bytes(*pair));
        }
        if let [last] = odd {
            self.0 += u64::from(u16::from_be_bytes([*last, 0]));
        }
        self
    }

    /// This sum and the pseudo header of RFC 8200, section 8.1.
    #[must_use]
    pub fn with_ipv6_pseudo_header(self, src: Ipv6Addr, dst: Ipv6Addr, upper_bytes: u32, protocol: Protocol) -> Self {
        self.with(&src.octets()).with(&dst.octets()).with(&upper_bytes.to_be_bytes()).with(&[0, 0, 0, protocol.0])
    }

    /// The checksum to write. Over bytes that contain a right checksum it is 0.
    pub fn finish(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).expect("the carries were folded in")
    }
}

/// Whether the address can be that of a single other station.
pub(super) fn is_station_v4(ip: Ipv4Addr) -> bool {
    // 0.0.0.0/8 is "this network", 224.0.0.0/3 is multicast, reserved and broadcast.
    !ip.is_loopback() && ip.octets()[0] != 0 && ip.octets()[0] < 224
}

/// See [`is_station_v4`].
pub(super) fn is_station_v6(ip: Ipv6Addr) -> bool {
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())
}

/// The IPv6 address at `offset` of bytes that are known to hold it.
pub(super) fn ipv6_at(bytes: &[u8], offset: usize) -> Ipv6Addr {
    let mut address = [0; 16];
    address.copy_from_slice(&bytes[offset..offset + 16]);
    Ipv6Addr::from(address)
}

/// Writes an IPv6 header.
pub(super) fn push_ipv6_header(
    frame: &mut Vec<u8>,
    (src, dst): (Ipv6Addr, Ipv6Addr),
    payload_bytes: u16,
    protocol: Protocol,
    hop_limit: u8,
) {
    frame.extend_from_slice(&[0x60, 0, 0, 0]);
    frame.extend_from_slice(&payload_bytes.to_be_bytes());
    frame.extend_from_slice(&[protocol.0, hop_limit]);
    frame.extend_from_slice(&src.octets());
    frame.extend_from_slice(&dst.octets());
}

const FRAGMENT: Protocol = Protocol(44);
const AUTHENTICATION: Protocol = Protocol(51);

#[cfg(test)]
mod tests;

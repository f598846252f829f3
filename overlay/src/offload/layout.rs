//! Where the headers of a frame are that can be segmented or have a checksum completed: TCP or UDP, whole, over IPv4
//! or IPv6, behind up to two VLAN tags. Everything else has no layout, and no offload.

use crate::wire::PacketError;
use crate::wire::ethernet::{EtherType, EthernetView};
use crate::wire::ip::{IPV6_HEADER_BYTES, Ipv4View, Ipv6View, Protocol};

/// IPv6 extensions that may stand between the IP header and a segmentable transport header. With others (routing,
/// fragment, authentication) the checksum or the split is not this simple.
const HOP_BY_HOP: u8 = 0;
const DESTINATION_OPTIONS: u8 = 60;

/// Extensions that are looked through. No sender uses more than one of each.
const EXTENSIONS_MAX: usize = 2;

const UDP_HEADER_BYTES: usize = 8;
const TCP_HEADER_BYTES_MIN: usize = 20;

/// The two protocols with a layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Transport {
    #[default]
    Tcp,
    Udp,
}

/// Offsets into a frame, in order, all within it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Layout {
    pub(super) transport: Transport,
    pub(super) is_v6: bool,
    /// The IP header.
    pub(super) network: usize,
    /// The TCP or UDP header.
    pub(super) header: usize,
    /// What is segmented.
    pub(super) payload: usize,
    /// The end of the IP packet. What stands behind it is padding.
    pub(super) end: usize,
}

impl Layout {
    /// The layout of a whole `frame`.
    pub(super) fn of(frame: &[u8]) -> Result<Self, PacketError> {
        Self::of_headers(frame, frame.len())
    }

    /// The layout of a frame of `frame_bytes` that begins with `head`, which must reach up to the payload.
    pub(super) fn of_headers(head: &[u8], frame_bytes: usize) -> Result<Self, PacketError> {
        let view = EthernetView::new_checked(head)?;
        let network = view.payload_offset();
        let packet = &head[network..];
        let (is_v6, protocol, header, end) = match view.ethertype() {
            EtherType::IPV4 => ipv4(packet)?,
            EtherType::IPV6 => ipv6(packet)?,
            _ => return Err(PacketError::OtherKind),
        };
        let (header, end) = (network + header, network + end);
        if end > frame_bytes || end < header {
            return Err(PacketError::Truncated);
        }
        let segment = head.get(header..end.min(head.len())).ok_or(PacketError::Truncated)?;
        let (transport, header_bytes) = match protocol {
            Protocol::TCP => (Transport::Tcp, usize::from(*segment.get(12).ok_or(PacketError::Truncated)? >> 4) * 4),
            Protocol::UDP => (Transport::Udp, UDP_HEADER_BYTES),
            _ => return Err(PacketError::OtherKind),
        };
        if transport == Transport::Tcp && header_bytes < TCP_HEADER_BYTES_MIN {
            return Err(PacketError::Malformed);
        }
        if segment.len() < header_bytes {
            return Err(PacketError::Truncated);
        }
        Ok(Self { transport, is_v6, network, header, payload: header + header_bytes, end })
    }

    /// Where the checksum stands in the transport header.
    pub(super) const fn checksum_offset(&self) -> usize {
        match self.transport {
            Transport::Tcp => 16,
            Transport::Udp => 6,
        }
    }
}

/// Version 6?, protocol, offset of the transport header and end of the packet.
type Packet = (bool, Protocol, usize, usize);

fn ipv4(packet: &[u8]) -> Result<Packet, PacketError> {
    let view = Ipv4View::new_checked(packet)?;
    let more_fragments = view.header()[6] & 0x20 != 0;
    if more_fragments || view.fragment_offset() != 0 {
        return Err(PacketError::OtherKind);
    }
    Ok((false, view.protocol(), view.header().len(), view.total_bytes()))
}

fn ipv6(packet: &[u8]) -> Result<Packet, PacketError> {
    let view = Ipv6View::new_checked(packet)?;
    let (mut protocol, mut offset) = (view.next_header(), IPV6_HEADER_BYTES);
    for _ in 0..EXTENSIONS_MAX {
        if !matches!(protocol.0, HOP_BY_HOP | DESTINATION_OPTIONS) {
            break;
        }
        let &[next, length] =
            packet.get(offset..offset + 2).and_then(|head| head.first_chunk()).ok_or(PacketError::Truncated)?;
        protocol = Protocol(next);
        offset += 8 + usize::from(length) * 8;
    }
    Ok((true, protocol, offset, view.total_bytes()))
}

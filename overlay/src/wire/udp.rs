//! UDP over IPv4 in a frame: a checked view, and frames built from scratch.

use super::PacketError;
use super::ethernet::{EtherType, EthernetView, VlanTags, build_header};
use super::ip::{Checksum, IPV4_HEADER_BYTES, Ipv4View, Protocol};
use crate::ids::Mac;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Bytes of a UDP header.
pub const HEADER_BYTES: usize = 8;
/// What one unfragmented datagram carries at most in a network of the smallest MTU.
pub const PAYLOAD_BYTES_MAX: usize = 1280 - IPV4_HEADER_BYTES - HEADER_BYTES;

/// A whole UDP datagram.
#[derive(Clone, Copy, Debug)]
pub struct UdpView<'a> {
    /// Who sent it.
    pub src: SocketAddrV4,
    /// For whom it is.
    pub dst: SocketAddrV4,
    /// What it carries.
    pub payload: &'a [u8],
}

impl<'a> UdpView<'a> {
    /// Reads the datagram in a frame. Its checksum is not looked at: between a guest and its host it may be left out.
    ///
    /// # Errors
    /// If the frame carries no UDP over IPv4, a fragment of it, or less than its headers say.
    pub fn new_checked(frame: &EthernetView<'a>) -> Result<Self, PacketError> {
        if frame.ethertype() != EtherType::IPV4 {
            return Err(PacketError::OtherKind);
        }
        let packet = Ipv4View::new_checked(frame.payload())?;
        if packet.protocol() != Protocol::UDP || packet.is_fragment() {
            return Err(PacketError::OtherKind);
        }
        let (header, rest) = packet.payload().split_first_chunk::<HEADER_BYTES>().ok_or(PacketError::Truncated)?;
        let field = |offset: usize| u16::from_be_bytes([header[offset], header[offset + 1]]);
        let bytes = usize::from(field(4)).checked_sub(HEADER_BYTES).ok_or(PacketError::Malformed)?;
        Ok(Self {
            src: SocketAddrV4::new(packet.src(), field(0)),
            dst: SocketAddrV4::new(packet.dst(), field(2)),
            payload: rest.get(..bytes).ok_or(PacketError::Truncated)?,
        })
    }
}

/// An untagged frame with a datagram. `None` if the payload is longer than [`PAYLOAD_BYTES_MAX`].
pub fn build(
    (src_mac, src): (Mac, SocketAddrV4),
    (dst_mac, dst): (Mac, SocketAddrV4),
    payload: &[u8],
) -> Option<Vec<u8>> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return None;
    }
    let udp_bytes = u16::try_from(HEADER_BYTES + payload.len()).ok()?;
    let capacity = IPV4_HEADER_BYTES + usize::from(udp_bytes);
    let mut frame = build_header(dst_mac, src_mac, VlanTags::NONE, EtherType::IPV4, capacity);
    push_ipv4_header(&mut frame, (*src.ip(), *dst.ip()), udp_bytes, Protocol::UDP);
    let start = frame.len();
    for field in [src.port(), dst.port(), udp_bytes, 0] {
        frame.extend_from_slice(&field.to_be_bytes());
    }
    frame.extend_from_slice(payload);
    let pseudo = [&src.ip().octets()[..], &dst.ip().octets(), &[0, Protocol::UDP.0], &udp_bytes.to_be_bytes()].concat();
    // 0 says that there is no checksum; its other form says the same sum.
    let sum = match Checksum::default().with(&pseudo).with(&frame[start..]).finish() {
        0 => u16::MAX,
        sum => sum,
    };
    frame[start + 6..start + 8].copy_from_slice(&sum.to_be_bytes());
    Some(frame)
}

/// The untagged frame that answers a whole ICMP echo request, `None` for everything else.
pub fn build_echo_reply(frame: &EthernetView<'_>) -> Option<Vec<u8>> {
    let packet = Ipv4View::new_checked(frame.payload()).ok().filter(|_| frame.ethertype() == EtherType::IPV4)?;
    let whole = packet.total_bytes() == packet.header().len() + packet.payload().len() && !packet.is_fragment();
    let [8, 0, _, _, ..] = *packet.payload() else { return None };
    if packet.protocol() != Protocol::ICMP || !whole {
        return None;
    }
    let bytes = u16::try_from(packet.payload().len()).ok()?;
    let capacity = IPV4_HEADER_BYTES + usize::from(bytes);
    let mut reply = build_header(frame.src(), frame.dst(), VlanTags::NONE, EtherType::IPV4, capacity);
    push_ipv4_header(&mut reply, (packet.dst(), packet.src()), bytes, Protocol::ICMP);
    let start = reply.len();
    reply.extend_from_slice(packet.payload());
    reply[start..start + 4].fill(0);
    let sum = Checksum::default().with(&reply[start..]).finish();
    reply[start + 2..start + 4].copy_from_slice(&sum.to_be_bytes());
    Some(reply)
}

fn push_ipv4_header(frame: &mut Vec<u8>, (src, dst): (Ipv4Addr, Ipv4Addr), payload_bytes: u16, protocol: Protocol) {
    let total = payload_bytes + IPV4_HEADER_BYTES_U16;
    let start = frame.len();
    frame.extend_from_slice(&[0x45, 0]);
    frame.extend_from_slice(&total.to_be_bytes());
    // No identification, as it must not be split; room for the checksum.
    frame.extend_from_slice(&[0, 0, 0x40, 0, HOP_LIMIT, protocol.0, 0, 0]);
    frame.extend_from_slice(&src.octets());
    frame.extend_from_slice(&dst.octets());
    let sum = Checksum::default().with(&frame[start..]).finish();
    frame[start + 10..start + 12].copy_from_slice(&sum.to_be_bytes());
}

const IPV4_HEADER_BYTES_U16: u16 = 20;
const HOP_LIMIT: u8 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn frame(payload: &[u8]) -> Vec<u8> {
        let src = SocketAddrV4::new(Ipv4Addr::new(10, 8, 0, 7), 68);
        let dst = SocketAddrV4::new(Ipv4Addr::new(10, 8, 0, 1), 67);
        build((A, src), (B, dst), payload).unwrap()
    }

    #[test]
    fn what_was_built_is_read() {
        let bytes = frame(b"hello");
        let view = EthernetView::new_checked(&bytes).unwrap();
        assert!(Ipv4View::new_checked(view.payload()).unwrap().checksum_ok());
        let udp = UdpView::new_checked(&view).unwrap();
        assert_eq!((udp.src.port(), udp.dst.ip().octets(), udp.payload), (68, [10, 8, 0, 1], &b"hello"[..]));
    }

    #[test]
    fn fragments_and_cut_datagrams_are_refused() {
        let mut bytes = frame(b"hello");
        let cut = EthernetView::new_checked(&bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(UdpView::new_checked(&cut).err(), Some(PacketError::Truncated));
        bytes[20] = 0x20;
        let fragment = EthernetView::new_checked(&bytes).unwrap();
        assert_eq!(UdpView::new_checked(&fragment).err(), Some(PacketError::OtherKind));
        assert!(build((A, "10.0.0.1:1".parse().unwrap()), (B, "10.0.0.2:1".parse().unwrap()), &[0; 1300]).is_none());
    }

    #[test]
    fn an_echo_is_answered() {
        let mut bytes = frame(&[0; 12]);
        bytes[23] = Protocol::ICMP.0;
        bytes[34..42].copy_from_slice(&[8, 0, 0, 0, 1, 2, 3, 4]);
        let view = EthernetView::new_checked(&bytes).unwrap();
        let reply = build_echo_reply(&view).unwrap();
        let reply = EthernetView::new_checked(&reply).unwrap();
        let packet = Ipv4View::new_checked(reply.payload()).unwrap();
        assert_eq!((reply.dst(), packet.src().octets(), packet.payload()[0]), (A, [10, 8, 0, 1], 0));
        assert_eq!(Checksum::default().with(packet.payload()).finish(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let bytes = [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45][..], &bytes].concat();
            let view = EthernetView::new_checked(&bytes).unwrap();
            let _ = UdpView::new_checked(&view);
            let _ = build_echo_reply(&view);
        }
    }
}

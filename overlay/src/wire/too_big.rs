//! The ICMP message that tells a sender that its packet is larger than the network's MTU: "fragmentation needed" of
//! IPv4 (RFC 1191) and "packet too big" of IPv6 (RFC 8201).
//!
//! A network is one Ethernet segment and its hosts have no address in it, so the message can't come from them. It
//! comes from the destination that the packet did not reach, by IP and by Ethernet: a sender looks only at the packet
//! quoted inside, and neither the bridges on the way nor a guest's anti-spoofing see an address where it is not.
//! An IPv4 packet that may be split is answered too: a bridge does not split, and the sender can learn no other way.

use super::ethernet::{EtherType, EthernetView};
use super::ip::{
    Checksum, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, Ipv4View, Ipv6View, Protocol, is_station_v4, is_station_v6,
    push_ipv6_header,
};
use crate::ids::Mac;
use std::net::Ipv4Addr;

/// Bytes at the start of a frame that are always enough for an answer: Ethernet with two tags, the longest IPv4
/// header or IPv6 with some extensions, and what names the flow above it. More of the frame is quoted if it is there.
pub const FRAME_BYTES_WANTED: usize = 128;

/// The frame that goes back to the sender of `frame`, or `None` if no answer may be given.
///
/// `frame` is the first bytes of a frame that does not fit `mtu`; that it does not is the caller's finding. Groups,
/// broadcasts, ICMP errors, later fragments and senders that are no single station get no answer (RFC 1122, section
/// 3.2.2; RFC 4443, section 2.4). How often answers are given is the caller's limit.
pub fn build(frame: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let ethernet = EthernetView::new_checked(frame).ok()?;
    if ethernet.dst().is_group() || ethernet.src().is_group() || ethernet.src() == Mac::ZERO {
        return None;
    }
    match ethernet.ethertype() {
        EtherType::IPV4 => build_ipv4(&ethernet, mtu),
        EtherType::IPV6 => build_ipv6(&ethernet, mtu),
        _ => None,
    }
}

fn build_ipv4(frame: &EthernetView<'_>, mtu: u16) -> Option<Vec<u8>> {
    let packet = Ipv4View::new_checked(frame.payload()).ok()?;
    let errs =
        packet.protocol() == Protocol::ICMP && packet.payload().first().is_none_or(|kind| ICMPV4_ERRORS.contains(kind));
    let answerable = packet.checksum_ok()
        && is_station_v4(packet.src())
        && is_station_v4(packet.dst())
        && packet.fragment_offset() == 0
        && packet.payload().len() >= ICMPV4_QUOTED_PAYLOAD_BYTES_MIN
        && !errs;
    if !answerable {
        return None;
    }
    let quoted_bytes = (packet.header().len() + packet.payload().len()).min(ICMPV4_QUOTE_BYTES_MAX);
    let quote = &frame.payload()[..quoted_bytes];
    let icmp_bytes = ICMP_HEADER_BYTES + quote.len();
    let mut answer = frame.answer(frame.dst(), EtherType::IPV4, IPV4_HEADER_BYTES + icmp_bytes);
    push_ipv4_header(&mut answer, packet.dst(), packet.src(), icmp_bytes);
    let start = answer.len();
    answer.extend_from_slice(&[3, 4, 0, 0, 0, 0]);
    answer.extend_from_slice(&mtu.to_be_bytes());
    answer.extend_from_slice(quote);
    let sum = Checksum::default().with(&answer[start..]).finish();
    answer[start + 2..start + 4].copy_from_slice(&sum.to_be_bytes());
    Some(answer)
}

fn build_ipv6(frame: &EthernetView<'_>, mtu: u16) -> Option<Vec<u8>> {
    let packet = Ipv6View::new_checked(frame.payload()).ok()?;
    let upper = packet.upper_layer().ok()?;
    let errs = upper.protocol == Protocol::ICMPV6
        && upper.bytes.first().is_none_or(|kind| *kind < ICMPV6_FIRST_INFORMATION || *kind == ICMPV6_REDIRECT);
    let (src, dst) = (packet.src(), packet.dst());
    if !is_station_v6(src) || !is_station_v6(dst) || upper.fragment_offset != 0 || errs {
        return None;
    }
    let quoted_bytes = (IPV6_HEADER_BYTES + packet.payload().len()).min(ICMPV6_QUOTE_BYTES_MAX);
    let quote = &frame.payload()[..quoted_bytes];
    let icmp_bytes = u16::try_from(ICMP_HEADER_BYTES + quote.len()).expect("the quote is limited");
    let mut answer = frame.answer(frame.dst(), EtherType::IPV6, IPV6_HEADER_BYTES + usize::from(icmp_bytes));
    push_ipv6_header(&mut answer, (dst, src), icmp_bytes, Protocol::ICMPV6, HOP_LIMIT);
    let start = answer.len();
    answer.extend_from_slice(&[2, 0, 0, 0]);
    answer.extend_from_slice(&u32::from(mtu).to_be_bytes());
    answer.extend_from_slice(quote);
    let sum = Checksum::default()
        .with_ipv6_pseudo_header(dst, src, u32::from(icmp_bytes), Protocol::ICMPV6)
        .with(&answer[start..])
        .finish();
    answer[start + 2..start + 4].copy_from_slice(&sum.to_be_bytes());
    Some(answer)
}

fn push_ipv4_header(frame: &mut Vec<u8>, src: Ipv4Addr, dst: Ipv4Addr, payload_bytes: usize) {
    let total = u16::try_from(IPV4_HEADER_BYTES + payload_bytes).expect("the quote is limited");
    let start = frame.len();
    frame.extend_from_slice(&[0x45, ICMP_ERROR_TOS]);
    frame.extend_from_slice(&total.to_be_bytes());
    // No identification, as it must not be split; room for the checksum.
    frame.extend_from_slice(&[0, 0, 0x40, 0, HOP_LIMIT, Protocol::ICMP.0, 0, 0]);
    frame.extend_from_slice(&src.octets());
    frame.extend_from_slice(&dst.octets());
    let sum = Checksum::default().with(&frame[start..]).finish();
    frame[start + 10..start + 12].copy_from_slice(&sum.to_be_bytes());
}

const ICMP_HEADER_BYTES: usize = 8;
/// Routers' usual number of hops.
const HOP_LIMIT: u8 = 64;
/// Precedence "internetwork control", which RFC 1812, section 4.3.2.5, asks for.
const ICMP_ERROR_TOS: u8 = 0xc0;
/// Eight bytes behind the IP header are what RFC 792 quotes: they hold the ports and TCP's sequence number.
const ICMPV4_QUOTED_PAYLOAD_BYTES_MIN: usize = 8;
/// An ICMPv4 error has at most 576 bytes (RFC 1812, section 4.3.2.3).
const ICMPV4_QUOTE_BYTES_MAX: usize = 576 - IPV4_HEADER_BYTES - ICMP_HEADER_BYTES;
/// An ICMPv6 error has at most the minimum MTU (RFC 4443, section 2.4).
const ICMPV6_QUOTE_BYTES_MAX: usize = 1280 - IPV6_HEADER_BYTES - ICMP_HEADER_BYTES;
/// Unreachable, source quench, redirect, time exceeded, parameter problem.
const ICMPV4_ERRORS: [u8; 5] = [3, 4, 5, 11, 12];
/// Types below are errors (RFC 4443, section 2.1).
const ICMPV6_FIRST_INFORMATION: u8 = 128;
const ICMPV6_REDIRECT: u8 = 137;

#[cfg(test)]
mod tests;

//! Frames that the switch answers itself, and the ones it asks with: ARP and ND from claims, ICMP "too big", probes.

use super::segment::{Segment, State};
use crate::ids::{HostId, Mac};
use crate::wire::announce::{self, Announcement};
use crate::wire::arp::{self, ArpView, Operation};
use crate::wire::ethernet::{EtherType, EthernetView, VlanTags};
use crate::wire::frame::VNET_BYTES;
use crate::wire::nd::{self, Kind, NdView};
use crate::wire::too_big;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether a packet of `bytes` (without virtio-net header) has an IP packet or segment larger than `mtu`.
pub(super) fn exceeds(mtu: u16, vnet: &[u8], view: &EthernetView<'_>, bytes: usize) -> bool {
    let packet = bytes.saturating_sub(view.payload_offset());
    if packet <= usize::from(mtu) {
        return false;
    }
    match segment_bytes(vnet, view) {
        Some(segment) => segment > usize::from(mtu),
        None => true,
    }
}

/// Bytes of the largest IP packet of a super-frame, or `None` if the virtio-net header announces no segmentation.
/// Its `hdr_len` is not used: bridges leave it wrong.
fn segment_bytes(vnet: &[u8], view: &EthernetView<'_>) -> Option<usize> {
    let [_, kind, _, _, size_low, size_high, start_low, start_high, ..] = *vnet else { return None };
    if kind & !VNET_GSO_ECN == 0 {
        return None;
    }
    let transport = usize::from(u16::from_le_bytes([start_low, start_high])).checked_sub(view.payload_offset())?;
    let header = match kind & !VNET_GSO_ECN {
        VNET_GSO_UDP_L4 => 8,
        _ => usize::from(view.payload().get(transport + TCP_OFFSET_BYTE)? >> 4) * 4,
    };
    Some(transport + header + usize::from(u16::from_le_bytes([size_low, size_high])))
}

/// Writes the ICMP answer to an oversized frame into `reply`; false if none may be given.
pub(super) fn too_big(mtu: u16, frame: &[u8], reply: &mut Vec<u8>) -> bool {
    put(too_big::build(frame, mtu), reply)
}

/// Writes the answer to an ARP or ND question into `reply`, if a claim of another living host knows it.
///
/// Tagged frames are not answered: claims do not tell which VLAN an IP address belongs to.
pub(super) fn from_claims(
    segment: &Segment,
    view: &EthernetView<'_>,
    asker: Mac,
    lapsed: impl Fn(HostId) -> bool,
    reply: &mut Vec<u8>,
) -> bool {
    if view.vlan().is_some() {
        return false;
    }
    let holder = |ip: IpAddr| {
        let (mac, binding) = segment.mac_of(&ip)?;
        let elsewhere = binding.state == State::Remote && !lapsed(binding.claim.holder) && mac != asker;
        elsewhere.then_some((mac, binding))
    };
    let answer = match view.ethertype() {
        EtherType::ARP => ArpView::new_checked(view.payload()).ok().and_then(|request| {
            let asks = request.operation() == Operation::Request && !request.is_gratuitous();
            let (mac, _) = asks.then(|| holder(IpAddr::V4(request.target_ip()))).flatten()?;
            Some(arp::build_reply(view, &request, mac))
        }),
        EtherType::IPV6 => NdView::new_checked(view.payload()).ok().and_then(|question| {
            let asks = question.kind() == Kind::Solicitation;
            let (mac, binding) = asks.then(|| holder(IpAddr::V6(question.target()))).flatten()?;
            // Without the station's own word on whether it is a router an answer could unmake one.
            Some(nd::build_advertisement(view, &question, mac, binding.claim.router?))
        }),
        _ => None,
    };
    put(answer, reply)
}

/// What an untagged frame proves of its sender's addresses.
pub(super) fn announced(view: &EthernetView<'_>) -> Option<Announcement> {
    if view.vlan().is_some() { None } else { announce::announced_address(view) }
}

/// Packets that make the station `mac` speak, if it is still on the bridge and has one of `ips`.
pub(super) fn probes(mac: Mac, ips: &[IpAddr], prober: Mac) -> Vec<Vec<u8>> {
    ips.iter()
        .map(|ip| match ip {
            IpAddr::V4(ip) => arp::build_request(mac, *ip, prober, Ipv4Addr::UNSPECIFIED, VlanTags::NONE),
            IpAddr::V6(ip) => nd::build_solicitation(mac, *ip, prober, Ipv6Addr::UNSPECIFIED, VlanTags::NONE),
        })
        .map(|frame| [&[0; VNET_BYTES], &frame[..]].concat())
        .collect()
}

fn put(frame: Option<Vec<u8>>, reply: &mut Vec<u8>) -> bool {
    let Some(frame) = frame else { return false };
    reply.clear();
    reply.extend([0; VNET_BYTES]);
    reply.extend(frame);
    true
}

/// `VIRTIO_NET_HDR_GSO_UDP_L4` and the ECN bit beside the kind (virtio 1.3, section 5.1.6).
const VNET_GSO_UDP_L4: u8 = 5;
const VNET_GSO_ECN: u8 = 0x80;

/// The byte of a TCP header whose upper half is its length in words.
const TCP_OFFSET_BYTE: usize = 12;

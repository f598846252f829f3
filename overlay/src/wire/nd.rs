//! IPv6 neighbour discovery (RFC 4861): a checked view of solicitations and advertisements, answers on behalf of a
//! known claim, and probes. Router discovery and redirects are other kinds.

use super::PacketError;
use super::ethernet::{EtherType, EthernetView, VlanTags, build_header};
use super::ip::{Checksum, IPV6_HEADER_BYTES, Ipv6View, Protocol, ipv6_at, push_ipv6_header};
use crate::ids::Mac;
use std::net::Ipv6Addr;

/// What a neighbour discovery message says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Who has the target address?
    Solicitation,
    /// The target address is at the sender.
    Advertisement,
}

/// A neighbour solicitation or advertisement that passed the validation of RFC 4861, sections 7.1.1 and 7.1.2.
#[derive(Clone, Copy, Debug)]
pub struct NdView<'a> {
    ip: Ipv6View<'a>,
    kind: Kind,
    message: &'a [u8],
    link_layer: Option<Mac>,
}

impl<'a> NdView<'a> {
    /// Reads the payload of an IPv6 frame. The message must be there as a whole: its checksum is verified.
    ///
    /// # Errors
    /// If it is truncated, another kind of packet, or invalid.
    pub fn new_checked(payload: &'a [u8]) -> Result<Self, PacketError> {
        let ip = Ipv6View::new_checked(payload)?;
        let message = ip.payload();
        if ip.next_header() != Protocol::ICMPV6 {
            return Err(PacketError::OtherKind);
        }
        let kind = match message.first().ok_or(PacketError::Truncated)? {
            135 => Kind::Solicitation,
            136 => Kind::Advertisement,
            _ => return Err(PacketError::OtherKind),
        };
        if message.len() < ip.payload_bytes() {
            return Err(PacketError::Truncated);
        }
        let options = message.get(MESSAGE_BYTES..).ok_or(PacketError::Malformed)?;
        let wanted = if kind == Kind::Solicitation { SOURCE_LINK_LAYER } else { TARGET_LINK_LAYER };
        let view = Self { ip, kind, message, link_layer: find_link_layer(options, wanted)? };
        view.validate()?;
        Ok(view)
    }

    /// What it says.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The sender's IP address; unspecified in a duplicate address detection.
    pub fn src(&self) -> Ipv6Addr {
        self.ip.src()
    }

    /// The address it was sent to.
    pub fn dst(&self) -> Ipv6Addr {
        self.ip.dst()
    }

    /// The address it is about.
    pub fn target(&self) -> Ipv6Addr {
        ipv6_at(self.message, 8)
    }

    /// The Ethernet address that a solicitation gives for its sender, or an advertisement for its target.
    pub fn link_layer(&self) -> Option<Mac> {
        self.link_layer
    }

    /// Whether it asks if anyone has the target address, because its sender would like to use it (RFC 4862).
    pub fn is_duplicate_detection(&self) -> bool {
        self.kind == Kind::Solicitation && self.src().is_unspecified()
    }

    /// Whether it is an advertisement of a router.
    pub fn is_router(&self) -> bool {
        self.has_flag(ROUTER)
    }

    /// Whether it is an advertisement that answers a solicitation.
    pub fn is_solicited(&self) -> bool {
        self.has_flag(SOLICITED)
    }

    /// Whether it is an advertisement that replaces what a cache has.
    pub fn is_override(&self) -> bool {
        self.has_flag(OVERRIDE)
    }

    fn has_flag(&self, flag: u8) -> bool {
        self.kind == Kind::Advertisement && self.message[4] & flag != 0
    }

    fn validate(&self) -> Result<(), PacketError> {
        let duplicate_detection_ok = !self.is_duplicate_detection()
            || (self.link_layer.is_none() && solicited_node(self.target()) == self.dst());
        let solicited_ok = !(self.is_solicited() && self.dst().is_multicast());
        let well_formed = self.ip.hop_limit() == HOP_LIMIT
            && self.message[1] == 0
            && !self.target().is_multicast()
            && duplicate_detection_ok
            && solicited_ok;
        if !well_formed {
            return Err(PacketError::Malformed);
        }
        if checksum(self.src(), self.dst(), self.message) == 0 { Ok(()) } else { Err(PacketError::Checksum) }
    }
}

/// The frame that answers `solicitation`, which stands in `frame`: its target address is at `mac`.
///
/// `router` must be what the holder itself says in its advertisements: a router that is advertised as a plain host is
/// struck from its neighbours' default routes (RFC 4861, section 7.2.5). A duplicate address detection is answered to
/// all nodes, as its sender has no address yet. Whether to answer is the caller's decision.
pub fn build_advertisement(frame: &EthernetView<'_>, solicitation: &NdView<'_>, mac: Mac, router: bool) -> Vec<u8> {
    let flags = OVERRIDE | if router { ROUTER } else { 0 };
    let target = solicitation.target();
    if solicitation.is_duplicate_detection() {
        let header = build_header(ALL_NODES_MAC, mac, frame.tags(), EtherType::IPV6, PACKET_BYTES);
        return push_message(header, (target, ALL_NODES), 136, flags, target, Some((TARGET_LINK_LAYER, mac)));
    }
    let header = frame.answer(mac, EtherType::IPV6, PACKET_BYTES);
    let addresses = (target, solicitation.src());
    push_message(header, addresses, 136, flags | SOLICITED, target, Some((TARGET_LINK_LAYER, mac)))
}

/// A solicitation that shows whether `mac` is still there and has `ip`: it goes to that station only, in the name of
/// `src` and `src_ip`.
///
/// With an unspecified `src_ip` it has the form of a duplicate address detection, which enters no neighbour cache and
/// which the holder answers to all nodes.
pub fn build_solicitation(mac: Mac, ip: Ipv6Addr, src: Mac, src_ip: Ipv6Addr, tags: VlanTags) -> Vec<u8> {
    let header = build_header(mac, src, tags, EtherType::IPV6, PACKET_BYTES);
    let option = (!src_ip.is_unspecified()).then_some((SOURCE_LINK_LAYER, src));
    push_message(header, (src_ip, solicited_node(ip)), 135, 0, ip, option)
}

/// The group that the holders of `target` listen to (RFC 4291, section 2.7.1).
pub fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

fn push_message(
    mut frame: Vec<u8>,
    (src, dst): (Ipv6Addr, Ipv6Addr),
    kind: u8,
    flags: u8,
    target: Ipv6Addr,
    link_layer: Option<(u8, Mac)>,
) -> Vec<u8> {
    let payload_bytes = if link_layer.is_some() { MESSAGE_BYTES_U16 + OPTION_BYTES_U16 } else { MESSAGE_BYTES_U16 };
    push_ipv6_header(&mut frame, (src, dst), payload_bytes, Protocol::ICMPV6, HOP_LIMIT);
    let start = frame.len();
    frame.extend_from_slice(&[kind, 0, 0, 0, flags, 0, 0, 0]);
    frame.extend_from_slice(&target.octets());
    if let Some((option, mac)) = link_layer {
        frame.extend_from_slice(&[option, 1]);
        frame.extend_from_slice(&mac.0);
    }
    let sum = checksum(src, dst, &frame[start..]);
    frame[start + 2..start + 4].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The link-layer address in the option of type `wanted`. Every option must have a length, and fit.
fn find_link_layer(mut options: &[u8], wanted: u8) -> Result<Option<Mac>, PacketError> {
    let mut found = None;
    while let [kind, units, ..] = *options {
        let length = usize::from(units) * OPTION_UNIT_BYTES;
        if length == 0 {
            return Err(PacketError::Malformed);
        }
        let (option, rest) = options.split_at_checked(length).ok_or(PacketError::Malformed)?;
        if kind == wanted && length == OPTION_UNIT_BYTES {
            let mut mac = [0; 6];
            mac.copy_from_slice(&option[2..]);
            found = Some(Mac(mac));
        }
        options = rest;
    }
    if options.is_empty() { Ok(found) } else { Err(PacketError::Malformed) }
}

fn checksum(src: Ipv6Addr, dst: Ipv6Addr, message: &[u8]) -> u16 {
    let bytes = u32::try_from(message.len()).expect("an IPv6 payload has at most 65,535 bytes");
    Checksum::default().with_ipv6_pseudo_header(src, dst, bytes, Protocol::ICMPV6).with(message).finish()
}

/// Type, code, checksum, flags and target.
const MESSAGE_BYTES: usize = 24;
const MESSAGE_BYTES_U16: u16 = 24;
const OPTION_UNIT_BYTES: usize = 8;
const OPTION_BYTES_U16: u16 = 8;
const PACKET_BYTES: usize = IPV6_HEADER_BYTES + MESSAGE_BYTES + OPTION_UNIT_BYTES;

/// Only a message that no router has passed is believed.
const HOP_LIMIT: u8 = 255;

const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;

const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

#[cfg(test)]
mod tests;

//! Guests' frames: numbered unicast frames and ARP, behind the 10 bytes of a virtio-net header as on a TAP.

use std::net::Ipv4Addr;
use virtuoso_overlay::ids::Mac;
use virtuoso_overlay::wire::arp::{self, ArpView, Operation};
use virtuoso_overlay::wire::ethernet::{EtherType, EthernetView, VlanTags};
use virtuoso_overlay::wire::frame::VNET_BYTES;

/// What a packet is to a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// A numbered frame.
    Numbered(u64),
    /// A question for the station that has an address: who asks and from where.
    Question(Ipv4Addr),
    /// Anything else.
    Other,
}

/// A packet that a guest received.
pub struct Packet {
    /// Whom it is for.
    pub dst: Mac,
    /// Who sent it.
    pub src: Mac,
    /// What it is.
    pub content: Content,
}

/// A numbered frame.
pub fn numbered(dst: Mac, src: Mac, number: u64) -> Vec<u8> {
    let mut packet = vec![0; VNET_BYTES];
    packet.extend(dst.0);
    packet.extend(src.0);
    packet.extend(LOCAL_EXPERIMENT.0.to_be_bytes());
    packet.extend(number.to_be_bytes());
    packet.resize(VNET_BYTES + 60, 0);
    packet
}

/// "Who has `target`?", or with `target` its own an announcement.
pub fn question(src: Mac, ip: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    with_header(arp::build_request(Mac::BROADCAST, target, src, ip, VlanTags::NONE))
}

/// The answer of the station `mac` to a question in `packet`.
pub fn answer(packet: &[u8], mac: Mac) -> Option<Vec<u8>> {
    let frame = EthernetView::new_checked(packet.get(VNET_BYTES..)?).ok()?;
    let request = ArpView::new_checked(frame.payload()).ok()?;
    Some(with_header(arp::build_reply(&frame, &request, mac)))
}

/// Reads a packet.
pub fn read(packet: &[u8]) -> Option<Packet> {
    let view = EthernetView::new_checked(packet.get(VNET_BYTES..)?).ok()?;
    let content = match view.ethertype() {
        LOCAL_EXPERIMENT => match view.payload().first_chunk::<8>() {
            Some(number) => Content::Numbered(u64::from_be_bytes(*number)),
            None => Content::Other,
        },
        EtherType::ARP => match ArpView::new_checked(view.payload()) {
            Ok(arp) if arp.operation() == Operation::Request && !arp.is_gratuitous() => {
                Content::Question(arp.target_ip())
            }
            _ => Content::Other,
        },
        _ => Content::Other,
    };
    Some(Packet { dst: view.dst(), src: view.src(), content })
}

fn with_header(frame: Vec<u8>) -> Vec<u8> {
    [vec![0; VNET_BYTES], frame].concat()
}

/// IEEE 802 local experimental ethertype 1.
const LOCAL_EXPERIMENT: EtherType = EtherType(0x88b5);

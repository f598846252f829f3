//! ARP between Ethernet and IPv4 (RFC 826, RFC 5227): a checked view, answers on behalf of a known claim, and probes.

use super::PacketError;
use super::ethernet::{EtherType, EthernetView, VlanTags, build_header};
use crate::ids::Mac;
use std::net::Ipv4Addr;

/// Bytes of an ARP packet between Ethernet and IPv4.
pub const PACKET_BYTES: usize = 28;

/// What an ARP packet wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has it.
    Reply,
    /// Anything else, such as the reverse requests of RARP, which has the same format.
    Other(u16),
}

/// An ARP packet between Ethernet and IPv4.
#[derive(Clone, Copy, Debug)]
pub struct ArpView<'a>(&'a [u8; PACKET_BYTES]);

impl<'a> ArpView<'a> {
    /// Reads the payload of an ARP or RARP frame; bytes behind the packet are padding.
    ///
    /// # Errors
    /// If it is truncated, or not between Ethernet and IPv4.
    pub fn new_checked(payload: &'a [u8]) -> Result<Self, PacketError> {
        let (packet, _) = payload.split_first_chunk::<PACKET_BYTES>().ok_or(PacketError::Truncated)?;
        if packet.starts_with(&ETHERNET_AND_IPV4) { Ok(Self(packet)) } else { Err(PacketError::OtherKind) }
    }

    /// What it wants.
    pub fn operation(&self) -> Operation {
        match u16::from_be_bytes([self.0[6], self.0[7]]) {
            1 => Operation::Request,
            2 => Operation::Reply,
            other => Operation::Other(other),
        }
    }

    /// The sender's Ethernet address.
    pub fn sender_mac(&self) -> Mac {
        self.mac_at(8)
    }

    /// The sender's IP address; unspecified in a probe.
    pub fn sender_ip(&self) -> Ipv4Addr {
        self.ip_at(14)
    }

    /// The target's Ethernet address; meaningless in a request.
    pub fn target_mac(&self) -> Mac {
        self.mac_at(18)
    }

    /// The target's IP address.
    pub fn target_ip(&self) -> Ipv4Addr {
        self.ip_at(24)
    }

    /// Whether the sender announces its own address, as a request or a reply.
    pub fn is_gratuitous(&self) -> bool {
        self.sender_ip() == self.target_ip() && !self.sender_ip().is_unspecified()
    }

    /// Whether the sender asks if anyone has an address that it would like to use (RFC 5227).
    pub fn is_probe(&self) -> bool {
        self.operation() == Operation::Request && self.sender_ip().is_unspecified()
    }

    fn mac_at(&self, offset: usize) -> Mac {
        let mut mac = [0; 6];
        mac.copy_from_slice(&self.0[offset..offset + 6]);
        Mac(mac)
    }

    fn ip_at(&self, offset: usize) -> Ipv4Addr {
        Ipv4Addr::new(self.0[offset], self.0[offset + 1], self.0[offset + 2], self.0[offset + 3])
    }
}

/// The frame that answers `request`, which stands in `frame`: its target address is at `mac`.
///
/// Whether to answer is the caller's decision: never an announcement, never the claim's own holder.
pub fn build_reply(frame: &EthernetView<'_>, request: &ArpView<'_>, mac: Mac) -> Vec<u8> {
    let mut reply = frame.answer(mac, EtherType::ARP, PACKET_BYTES);
    push_packet(&mut reply, 2, (mac, request.target_ip()), (request.sender_mac(), request.sender_ip()));
    reply
}

/// A unicast request that shows whether `mac` is still there and has `ip`. It asks in the name of `src`.
///
/// With an unspecified `sender_ip` it is a probe, which enters no ARP cache (RFC 5227, section 1.1).
pub fn build_request(mac: Mac, ip: Ipv4Addr, src: Mac, sender_ip: Ipv4Addr, tags: VlanTags) -> Vec<u8> {
    let mut request = build_header(mac, src, tags, EtherType::ARP, PACKET_BYTES);
    push_packet(&mut request, 1, (src, sender_ip), (Mac::ZERO, ip));
    request
}

/// A broadcast that shows bridges where `mac` is (RARP, RFC 903): it asks nobody anything that is answered today.
pub fn build_announcement(mac: Mac) -> Vec<u8> {
    let mut frame = build_header(Mac::BROADCAST, mac, VlanTags::NONE, EtherType::RARP, PACKET_BYTES);
    push_packet(&mut frame, 3, (mac, Ipv4Addr::UNSPECIFIED), (mac, Ipv4Addr::UNSPECIFIED));
    frame
}

fn push_packet(frame: &mut Vec<u8>, operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) {
    frame.extend_from_slice(&ETHERNET_AND_IPV4);
    frame.extend_from_slice(&operation.to_be_bytes());
    for (mac, ip) in [sender, target] {
        frame.extend_from_slice(&mac.0);
        frame.extend_from_slice(&ip.octets());
    }
}

/// Hardware type 1, protocol type 0x0800, and the lengths of their addresses.
const ETHERNET_AND_IPV4: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GUEST: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([0x52, 0x54, 0, 0, 0, 2]);
    const GUEST_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const OTHER_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    #[test]
    fn a_request_is_answered_in_its_vlan() {
        let mut request = build_request(Mac::BROADCAST, OTHER_IP, GUEST, GUEST_IP, VlanTags::single(12));
        request.resize(64, 0);
        let frame = EthernetView::new_checked(&request).unwrap();
        let arp = ArpView::new_checked(frame.payload()).unwrap();
        assert_eq!((arp.operation(), arp.target_ip()), (Operation::Request, OTHER_IP));
        assert!(!arp.is_gratuitous() && !arp.is_probe());

        let reply = build_reply(&frame, &arp, OTHER);
        let frame = EthernetView::new_checked(&reply).unwrap();
        assert_eq!((frame.dst(), frame.src(), frame.vlan()), (GUEST, OTHER, Some(12)));
        let arp = ArpView::new_checked(frame.payload()).unwrap();
        assert_eq!(arp.operation(), Operation::Reply);
        assert_eq!((arp.sender_mac(), arp.sender_ip()), (OTHER, OTHER_IP));
        assert_eq!((arp.target_mac(), arp.target_ip()), (GUEST, GUEST_IP));
    }

    #[test]
    fn probes_and_announcements_are_told_apart() {
        let probe = build_request(OTHER, OTHER_IP, GUEST, Ipv4Addr::UNSPECIFIED, VlanTags::NONE);
        let view = ArpView::new_checked(&probe[14..]).unwrap();
        assert!(view.is_probe() && !view.is_gratuitous());
        let announcement = build_request(Mac::BROADCAST, GUEST_IP, GUEST, GUEST_IP, VlanTags::NONE);
        let view = ArpView::new_checked(&announcement[14..]).unwrap();
        assert!(view.is_gratuitous() && !view.is_probe());
    }

    #[test]
    fn other_kinds_are_refused() {
        let mut request = build_request(OTHER, OTHER_IP, GUEST, GUEST_IP, VlanTags::NONE);
        assert_eq!(ArpView::new_checked(&request[14..41]).err(), Some(PacketError::Truncated));
        request[15] = 6;
        assert_eq!(ArpView::new_checked(&request[14..]).err(), Some(PacketError::OtherKind));
    }

    proptest! {
        #[test]
        fn any_bytes_are_viewed_or_refused(mut bytes: Vec<u8>, prefix: bool) {
            if prefix && bytes.len() >= ETHERNET_AND_IPV4.len() {
                bytes[..ETHERNET_AND_IPV4.len()].copy_from_slice(&ETHERNET_AND_IPV4);
            }
            if let Ok(view) = ArpView::new_checked(&bytes) {
                let operation = match view.operation() {
                    Operation::Request => 1,
                    Operation::Reply => 2,
                    Operation::Other(other) => other,
                };
                let mut again = Vec::new();
                let (sender, target) = ((view.sender_mac(), view.sender_ip()), (view.target_mac(), view.target_ip()));
                push_packet(&mut again, operation, sender, target);
                prop_assert_eq!(&again[..], &bytes[..PACKET_BYTES]);
            }
        }
    }
}

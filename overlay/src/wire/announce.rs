//! Which IP address a frame proves for its sender: what a host may learn from its ports and claim for them.
//!
//! Only ARP and neighbour discovery say "this address is at this station". The source of an ordinary IP packet says
//! nothing of the kind: behind a router's Ethernet address there is the whole Internet.

use super::arp::ArpView;
use super::ethernet::{EtherType, EthernetView};
use super::ip::{is_station_v4, is_station_v6};
use super::nd::{Kind, NdView};
use std::net::IpAddr;

/// An IP address that is at the sender of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Announcement {
    /// The address.
    pub ip: IpAddr,
    /// Whether the sender says that it is an IPv6 router; answers on its behalf must say so too. Only an
    /// advertisement tells: `None` for everything else.
    pub router: Option<bool>,
}

/// The address that `frame` proves for its source station, if any. No packet proves more than one.
///
/// Addresses that no single station of the segment can have (unspecified, loopback, group, broadcast) prove nothing,
/// nor does a packet that speaks for another station than the frame's source.
pub fn announced_address(frame: &EthernetView<'_>) -> Option<Announcement> {
    if frame.src().is_group() {
        return None;
    }
    match frame.ethertype() {
        EtherType::ARP => announced_by_arp(frame),
        EtherType::IPV6 => announced_by_nd(frame),
        _ => None,
    }
}

fn announced_by_arp(frame: &EthernetView<'_>) -> Option<Announcement> {
    let arp = ArpView::new_checked(frame.payload()).ok()?;
    let ip = arp.sender_ip();
    let proves = arp.sender_mac() == frame.src() && is_station_v4(ip);
    proves.then_some(Announcement { ip: IpAddr::V4(ip), router: None })
}

fn announced_by_nd(frame: &EthernetView<'_>) -> Option<Announcement> {
    let nd = NdView::new_checked(frame.payload()).ok()?;
    let (ip, router, proves) = match nd.kind() {
        Kind::Solicitation => (nd.src(), None, nd.link_layer() == Some(frame.src())),
        // An answer to a unicast solicitation may leave the option out (RFC 4861, section 4.4).
        Kind::Advertisement => {
            (nd.target(), Some(nd.is_router()), nd.link_layer().is_none_or(|mac| mac == frame.src()))
        }
    };
    (proves && is_station_v6(ip)).then_some(Announcement { ip: IpAddr::V6(ip), router })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Mac;
    use crate::wire::ethernet::VlanTags;
    use crate::wire::{arp, nd};
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const GUEST: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([0x52, 0x54, 0, 0, 0, 2]);
    const IP4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const IP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

    fn announced(frame: &[u8]) -> Option<Announcement> {
        announced_address(&EthernetView::new_checked(frame).unwrap())
    }

    #[test]
    fn arp_proves_its_sender() {
        let frame = arp::build_request(Mac::BROADCAST, Ipv4Addr::new(10, 0, 0, 9), GUEST, IP4, VlanTags::single(3));
        assert_eq!(announced(&frame), Some(Announcement { ip: IP4.into(), router: None }));
    }

    #[test]
    fn probes_and_words_for_others_prove_nothing() {
        let probe = arp::build_request(Mac::BROADCAST, IP4, GUEST, Ipv4Addr::UNSPECIFIED, VlanTags::NONE);
        assert_eq!(announced(&probe), None);
        let mut proxied = arp::build_request(Mac::BROADCAST, IP4, GUEST, IP4, VlanTags::NONE);
        proxied[6..12].copy_from_slice(&OTHER.0);
        assert_eq!(announced(&proxied), None);
        let duplicate_detection = nd::build_solicitation(OTHER, IP6, GUEST, Ipv6Addr::UNSPECIFIED, VlanTags::NONE);
        assert_eq!(announced(&duplicate_detection), None);
    }

    #[test]
    fn solicitations_prove_their_sender_and_advertisements_their_target() {
        let target = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
        let question = nd::build_solicitation(OTHER, target, GUEST, IP6, VlanTags::NONE);
        assert_eq!(announced(&question), Some(Announcement { ip: IP6.into(), router: None }));
        let frame = EthernetView::new_checked(&question).unwrap();
        let nd_view = NdView::new_checked(frame.payload()).unwrap();
        let answer = nd::build_advertisement(&frame, &nd_view, OTHER, true);
        assert_eq!(announced(&answer), Some(Announcement { ip: target.into(), router: Some(true) }));
        let mut spoken_for = answer;
        spoken_for[6..12].copy_from_slice(&GUEST.0);
        assert_eq!(announced(&spoken_for), None);
    }

    proptest! {
        #[test]
        fn any_bytes_announce_or_not(bytes: Vec<u8>) {
            if let Ok(frame) = EthernetView::new_checked(&bytes) {
                let _ = announced_address(&frame);
            }
        }
    }
}

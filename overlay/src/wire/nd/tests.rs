use super::*;
use proptest::prelude::*;

const GUEST: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
const OTHER: Mac = Mac([0x52, 0x54, 0, 0, 0, 2]);
const GUEST_IP: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const OTHER_IP: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0x12, 0x3456);

fn solicitation(src_ip: Ipv6Addr) -> Vec<u8> {
    build_solicitation(OTHER, OTHER_IP, GUEST, src_ip, VlanTags::single(5))
}

#[test]
fn a_solicitation_is_read_and_answered_in_its_vlan() {
    let bytes = solicitation(GUEST_IP);
    let frame = EthernetView::new_checked(&bytes).unwrap();
    let question = NdView::new_checked(frame.payload()).unwrap();
    assert_eq!((question.kind(), question.target()), (Kind::Solicitation, OTHER_IP));
    assert_eq!((question.src(), question.link_layer()), (GUEST_IP, Some(GUEST)));
    assert_eq!(question.dst(), "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap());
    assert!(!question.is_duplicate_detection());

    let bytes = build_advertisement(&frame, &question, OTHER, true);
    let frame = EthernetView::new_checked(&bytes).unwrap();
    assert_eq!((frame.dst(), frame.src(), frame.vlan()), (GUEST, OTHER, Some(5)));
    let answer = NdView::new_checked(frame.payload()).unwrap();
    assert_eq!((answer.kind(), answer.target()), (Kind::Advertisement, OTHER_IP));
    assert_eq!((answer.src(), answer.dst(), answer.link_layer()), (OTHER_IP, GUEST_IP, Some(OTHER)));
    assert!(answer.is_solicited() && answer.is_override() && answer.is_router());
}

#[test]
fn duplicate_detection_is_answered_to_all_nodes() {
    let bytes = solicitation(Ipv6Addr::UNSPECIFIED);
    let frame = EthernetView::new_checked(&bytes).unwrap();
    let question = NdView::new_checked(frame.payload()).unwrap();
    assert!(question.is_duplicate_detection());
    assert_eq!(question.link_layer(), None);

    let bytes = build_advertisement(&frame, &question, OTHER, false);
    let frame = EthernetView::new_checked(&bytes).unwrap();
    assert_eq!(frame.dst(), ALL_NODES_MAC);
    let answer = NdView::new_checked(frame.payload()).unwrap();
    assert!(!answer.is_solicited() && answer.is_override() && !answer.is_router());
    assert_eq!(answer.dst(), ALL_NODES);
}

/// Changes a byte of the IPv6 packet and repairs the checksum.
fn changed(at: usize, to: u8) -> Option<PacketError> {
    let mut packet = solicitation(GUEST_IP)[18..].to_vec();
    packet[at] = to;
    packet[42..44].fill(0);
    let sum = checksum(ipv6_at(&packet, 8), ipv6_at(&packet, 24), &packet[40..]);
    packet[42..44].copy_from_slice(&sum.to_be_bytes());
    NdView::new_checked(&packet).err()
}

#[test]
fn invalid_messages_are_refused() {
    assert_eq!(changed(7, 255), None);
    assert_eq!(changed(7, 254), Some(PacketError::Malformed), "hop limit");
    assert_eq!(changed(6, 17), Some(PacketError::OtherKind), "next header");
    assert_eq!(changed(40, 134), Some(PacketError::OtherKind), "type");
    assert_eq!(changed(41, 1), Some(PacketError::Malformed), "code");
    assert_eq!(changed(48, 0xff), Some(PacketError::Malformed), "multicast target");
    assert_eq!(changed(65, 0), Some(PacketError::Malformed), "option without length");
    assert_eq!(changed(65, 2), Some(PacketError::Malformed), "option beyond the message");
}

#[test]
fn wrong_checksums_and_truncation_are_refused() {
    let packet = &solicitation(GUEST_IP)[18..];
    for n in 0..packet.len() {
        assert_eq!(NdView::new_checked(&packet[..n]).err(), Some(PacketError::Truncated), "{n}");
    }
    let mut packet = packet.to_vec();
    packet[60] ^= 1;
    assert_eq!(NdView::new_checked(&packet).err(), Some(PacketError::Checksum));
}

proptest! {
    #[test]
    fn any_bytes_are_viewed_or_refused(bytes: Vec<u8>) {
        let _ = NdView::new_checked(&bytes);
    }

    #[test]
    fn any_message_behind_good_headers_is_viewed_or_refused(
        kind in 133u8..138,
        flags: u8,
        target: u128,
        options in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2), any::<u8>()], 0..64),
    ) {
        let mut packet = Vec::new();
        let length = u16::try_from(MESSAGE_BYTES + options.len()).unwrap();
        push_ipv6_header(&mut packet, (GUEST_IP, OTHER_IP), length, Protocol::ICMPV6, HOP_LIMIT);
        packet.extend_from_slice(&[kind, 0, 0, 0, flags, 0, 0, 0]);
        packet.extend_from_slice(&target.to_be_bytes());
        packet.extend_from_slice(&options);
        let sum = checksum(GUEST_IP, OTHER_IP, &packet[40..]);
        packet[42..44].copy_from_slice(&sum.to_be_bytes());
        if let Ok(view) = NdView::new_checked(&packet) {
            prop_assert_eq!(view.target(), Ipv6Addr::from(target));
            prop_assert!(view.link_layer().is_none() || options.len() >= 8);
        }
    }

    #[test]
    fn what_is_built_is_valid(mac: [u8; 6], ip: u128, src: [u8; 6], src_ip: u128, router: bool) {
        let ip = Ipv6Addr::from(ip & !(0xff << 120));
        let src_ip = Ipv6Addr::from(src_ip & !(0xff << 120));
        let bytes = build_solicitation(Mac(mac), ip, Mac(src), src_ip, VlanTags::NONE);
        let frame = EthernetView::new_checked(&bytes).unwrap();
        let question = NdView::new_checked(frame.payload()).unwrap();
        prop_assert_eq!(question.target(), ip);
        let bytes = build_advertisement(&frame, &question, Mac(mac), router);
        let answer = NdView::new_checked(&bytes[14..]).unwrap();
        prop_assert_eq!((answer.target(), answer.link_layer(), answer.is_router()), (ip, Some(Mac(mac)), router));
    }
}

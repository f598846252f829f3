use super::*;
use proptest::prelude::*;
use std::net::Ipv6Addr;

const GUEST: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
const OTHER: Mac = Mac([0x52, 0x54, 0, 0, 0, 2]);
const GUEST_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const OTHER_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

fn ethernet(dst: Mac, ethertype: [u8; 2]) -> Vec<u8> {
    [&dst.0[..], &GUEST.0, &[0x81, 0, 0, 3], &ethertype].concat()
}

/// `change` may alter the IPv4 header; its checksum is then made right.
fn ipv4(dst: Mac, change: impl Fn(&mut [u8]), payload: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(dst, [0x08, 0x00]);
    push_ipv4_header(&mut frame, GUEST_V4, OTHER_V4, payload.len());
    frame[18 + 9] = Protocol::UDP.0;
    change(&mut frame[18..]);
    frame[28..30].fill(0);
    let sum = Checksum::default().with(&frame[18..]).finish();
    frame[28..30].copy_from_slice(&sum.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(OTHER, [0x86, 0xdd]);
    let length = u16::try_from(payload.len()).unwrap();
    push_ipv6_header(&mut frame, (src, dst), length, Protocol(protocol), 64);
    frame.extend_from_slice(payload);
    frame
}

#[test]
fn ipv4_is_answered_from_the_destination() {
    let payload = [7; 2000];
    let frame = ipv4(OTHER, |_| (), &payload);
    let answer = build(&frame, 1400).unwrap();
    let view = EthernetView::new_checked(&answer).unwrap();
    assert_eq!((view.dst(), view.src(), view.vlan()), (GUEST, OTHER, Some(3)));
    let ip = Ipv4View::new_checked(view.payload()).unwrap();
    assert!(ip.checksum_ok());
    assert_eq!((ip.src(), ip.dst(), ip.total_bytes(), ip.protocol()), (OTHER_V4, GUEST_V4, 576, Protocol::ICMP));
    let icmp = ip.payload();
    assert_eq!((icmp[0], icmp[1], &icmp[6..8]), (3, 4, &1400u16.to_be_bytes()[..]));
    assert_eq!(Checksum::default().with(icmp).finish(), 0);
    assert_eq!(&icmp[8..], &frame[18..18 + 548]);
}

#[test]
fn ipv6_is_answered_from_the_destination() {
    let frame = ipv6(GUEST_V6, OTHER_V6, 17, &[7; 2000]);
    let answer = build(&frame, 1400).unwrap();
    let view = EthernetView::new_checked(&answer).unwrap();
    assert_eq!((view.dst(), view.src(), view.vlan()), (GUEST, OTHER, Some(3)));
    let ip = Ipv6View::new_checked(view.payload()).unwrap();
    assert_eq!((ip.src(), ip.dst(), ip.total_bytes()), (OTHER_V6, GUEST_V6, 1280));
    let icmp = ip.payload();
    assert_eq!((icmp[0], icmp[1], &icmp[4..8]), (2, 0, &1400u32.to_be_bytes()[..]));
    let length = u32::try_from(icmp.len()).unwrap();
    let sum = Checksum::default().with_ipv6_pseudo_header(OTHER_V6, GUEST_V6, length, Protocol::ICMPV6).with(icmp);
    assert_eq!(sum.finish(), 0);
    assert_eq!(&icmp[8..], &frame[18..18 + 1232]);
}

#[test]
fn the_first_bytes_are_enough() {
    let frame = ipv4(OTHER, |_| (), &[7; 2000]);
    let answer = build(&frame[..FRAME_BYTES_WANTED], 1500).unwrap();
    assert_eq!(answer.len(), 18 + 20 + 8 + (FRAME_BYTES_WANTED - 18));
    let frame = ipv6(GUEST_V6, OTHER_V6, 17, &[7; 2000]);
    assert!(build(&frame[..FRAME_BYTES_WANTED], 1500).is_some());
}

#[test]
fn ipv4_that_must_not_be_answered() {
    let payload = [8; 2000];
    let refused = |change: fn(&mut [u8])| build(&ipv4(OTHER, change, &payload), 1500).is_none();
    assert!(!refused(|_| ()));
    assert!(!refused(|header| header[6] = 0), "may be split, and is answered all the same");
    assert!(!refused(|header| header[6] = 0x20), "first fragment");
    assert!(refused(|header| header[7] = 1), "later fragment");
    assert!(refused(|header| header[16..20].copy_from_slice(&[224, 0, 0, 1])), "multicast destination");
    assert!(refused(|header| header[16..20].fill(255)), "broadcast destination");
    assert!(refused(|header| header[12..16].fill(0)), "unspecified source");
    assert!(refused(|header| header[12..16].copy_from_slice(&[224, 0, 0, 1])), "multicast source");
    assert!(build(&ipv4(Mac::BROADCAST, |_| (), &payload), 1500).is_none(), "broadcast frame");

    let icmp = |kind: u8| build(&ipv4(OTHER, |header| header[9] = 1, &[kind; 2000]), 1500);
    assert!(icmp(8).is_some(), "echo request");
    for kind in ICMPV4_ERRORS {
        assert!(icmp(kind).is_none(), "ICMP error {kind}");
    }
}

#[test]
fn ipv6_that_must_not_be_answered() {
    let multicast: Ipv6Addr = "ff02::1".parse().unwrap();
    let payload = [0; 2000];
    assert!(build(&ipv6(GUEST_V6, multicast, 17, &payload), 1500).is_none());
    assert!(build(&ipv6(Ipv6Addr::UNSPECIFIED, OTHER_V6, 17, &payload), 1500).is_none());
    assert!(build(&ipv6(multicast, OTHER_V6, 17, &payload), 1500).is_none());
    assert!(build(&ipv6(GUEST_V6, OTHER_V6, 58, &[2; 2000]), 1500).is_none(), "ICMPv6 error");
    assert!(build(&ipv6(GUEST_V6, OTHER_V6, 58, &[128; 2000]), 1500).is_some(), "echo request");
    let later_fragment = [&[17, 0, 1, 0, 0, 0, 0, 1][..], &payload].concat();
    assert!(build(&ipv6(GUEST_V6, OTHER_V6, 44, &later_fragment), 1500).is_none());
}

#[test]
fn other_protocols_are_not_answered() {
    let mut frame = ethernet(OTHER, [0x08, 0x06]);
    frame.resize(2000, 0);
    assert!(build(&frame, 1500).is_none());
}

proptest! {
    #[test]
    fn any_bytes_are_answered_or_not(bytes: Vec<u8>, mtu: u16) {
        let _ = build(&bytes, mtu);
    }

    #[test]
    fn answers_are_never_answered(header in proptest::collection::vec(any::<u8>(), 54), length in 0usize..3000, version6: bool, mtu: u16) {
        let ethertype = if version6 { [0x86, 0xdd] } else { [0x08, 0x00] };
        let mut frame = ethernet(OTHER, ethertype);
        let start = frame.len();
        frame.extend_from_slice(&header);
        frame.resize(start + header.len() + length, 0);
        frame[start] = if version6 { 0x60 } else { 0x45 };
        if !version6 {
            frame[start + 10..start + 12].fill(0);
            let sum = Checksum::default().with(&frame[start..start + 20]).finish();
            frame[start + 10..start + 12].copy_from_slice(&sum.to_be_bytes());
        }
        if let Some(answer) = build(&frame, mtu) {
            prop_assert!(answer.len() <= 18 + 1280);
            prop_assert!(build(&answer, mtu).is_none());
        }
    }
}

use super::*;
use proptest::prelude::*;

/// 192.168.0.1 -> 192.168.0.199, UDP, DF; its checksum is the well-known example 0xb861.
const IPV4: [u8; 20] = [
    0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8, 0x00,
    0xc7,
];

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let length = u16::try_from(payload.len()).unwrap();
    push_ipv6_header(&mut packet, (Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED), length, Protocol(next), 64);
    packet.extend_from_slice(payload);
    packet
}

#[test]
fn ipv4_header_is_read() {
    let view = Ipv4View::new_checked(&IPV4).unwrap();
    assert_eq!((view.src(), view.dst()), (Ipv4Addr::new(192, 168, 0, 1), Ipv4Addr::new(192, 168, 0, 199)));
    assert_eq!((view.total_bytes(), view.protocol(), view.fragment_offset()), (115, Protocol::UDP, 0));
    assert!(view.dont_fragment() && view.checksum_ok());
    assert!(view.payload().is_empty(), "the view was made of the header only");
}

#[test]
fn ipv4_padding_is_cut_off_and_options_are_passed() {
    let mut packet = [&IPV4[..], &[1, 1, 1, 1], b"data", b"padding"].concat();
    packet[0] = 0x46;
    packet[2..4].copy_from_slice(&28u16.to_be_bytes());
    let view = Ipv4View::new_checked(&packet).unwrap();
    assert_eq!((view.header().len(), view.payload()), (24, &b"data"[..]));
    assert!(!view.checksum_ok());
}

#[test]
fn ipv4_contradictions_are_refused() {
    let change = |at: usize, to: u8| {
        let mut packet = IPV4;
        packet[at] = to;
        Ipv4View::new_checked(&packet).err()
    };
    assert_eq!(change(0, 0x65), Some(PacketError::OtherKind));
    assert_eq!(change(0, 0x44), Some(PacketError::Malformed));
    assert_eq!(change(0, 0x4f), Some(PacketError::Truncated));
    assert_eq!(change(3, 19), Some(PacketError::Malformed));
    assert_eq!(Ipv4View::new_checked(&IPV4[..19]).err(), Some(PacketError::Truncated));
}

#[test]
fn ipv6_extension_headers_are_passed() {
    let packet = ipv6(0, &[60, 0, 1, 4, 0, 0, 0, 0, 17, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b'u']);
    let view = Ipv6View::new_checked(&packet).unwrap();
    assert_eq!((view.src(), view.dst()), (Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED));
    let layer = view.upper_layer().unwrap();
    assert_eq!((layer.protocol, layer.bytes, layer.fragment_offset), (Protocol::UDP, &b"u"[..], 0));
}

#[test]
fn later_ipv6_fragments_are_not_looked_into() {
    let packet = ipv6(44, &[60, 0, 0, 0x18, 0, 0, 0, 1, 0xff, 0xff]);
    let layer = Ipv6View::new_checked(&packet).unwrap().upper_layer().unwrap();
    assert_eq!((layer.protocol, layer.fragment_offset), (Protocol(60), 3));
}

#[test]
fn endless_and_truncated_ipv6_chains_are_refused() {
    let chain = [60, 0, 1, 4, 0, 0, 0, 0].repeat(20);
    let packet = ipv6(60, &chain);
    assert_eq!(Ipv6View::new_checked(&packet).unwrap().upper_layer().err(), Some(PacketError::Malformed));
    let packet = ipv6(60, &chain[..12]);
    assert_eq!(Ipv6View::new_checked(&packet).unwrap().upper_layer().err(), Some(PacketError::Truncated));
}

proptest! {
    #[test]
    fn any_bytes_are_viewed_or_refused(mut bytes: Vec<u8>, version in prop_oneof![Just(None), Just(Some(0x45)), Just(Some(0x60))]) {
        if let (Some(version), Some(first)) = (version, bytes.first_mut()) {
            *first = version;
        }
        if let Ok(view) = Ipv4View::new_checked(&bytes) {
            prop_assert!(view.header().len() + view.payload().len() <= view.total_bytes().min(bytes.len()));
            let _ = (view.src(), view.dst(), view.protocol(), view.checksum_ok(), view.fragment_offset());
        }
        if let Ok(view) = Ipv6View::new_checked(&bytes) {
            prop_assert!(IPV6_HEADER_BYTES + view.payload().len() <= view.total_bytes().min(bytes.len()));
            if let Ok(layer) = view.upper_layer() {
                prop_assert!(layer.bytes.len() <= view.payload().len());
            }
        }
    }

    #[test]
    fn any_extension_chain_ends(first: u8, payload in proptest::collection::vec(prop_oneof![Just(0u8), Just(60), Just(44), Just(51), any::<u8>()], 0..200)) {
        let packet = ipv6(first, &payload);
        let _ = Ipv6View::new_checked(&packet).expect("a whole header").upper_layer();
    }

    #[test]
    fn a_written_checksum_verifies(mut bytes in proptest::collection::vec(any::<u8>(), 2..2000)) {
        bytes[..2].fill(0);
        let sum = Checksum::default().with(&bytes).finish();
        bytes[..2].copy_from_slice(&sum.to_be_bytes());
        prop_assert_eq!(Checksum::default().with(&bytes).finish(), 0);
    }
}

#![no_main]
//! ARP, and answers to it. The packet's kind is made right, so that the fuzzer gets past it.

use virtuoso_fuzz::STATION;
use virtuoso_overlay::wire::arp::{self, ArpView, Operation};
use virtuoso_overlay::wire::ethernet::EthernetView;

const ETHERNET_AND_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    let Ok(offset) = EthernetView::new_checked(&bytes).map(|frame| frame.payload_offset()) else { return };
    if let Some(kind) = bytes.get_mut(offset..offset + ETHERNET_AND_IPV4.len()) {
        kind.copy_from_slice(&ETHERNET_AND_IPV4);
    }
    let frame = EthernetView::new_checked(&bytes).expect("the header is untouched");
    let Ok(request) = ArpView::new_checked(frame.payload()) else { return };
    assert!(!(request.is_probe() && request.is_gratuitous()));
    let reply = arp::build_reply(&frame, &request, STATION);
    let frame = EthernetView::new_checked(&reply).expect("a whole frame");
    let reply = ArpView::new_checked(frame.payload()).expect("an ARP packet");
    assert_eq!(reply.operation(), Operation::Reply);
    assert_eq!((reply.sender_mac(), reply.sender_ip()), (STATION, request.target_ip()));
    assert_eq!((reply.target_mac(), reply.target_ip()), (request.sender_mac(), request.sender_ip()));
});

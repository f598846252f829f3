#![no_main]
//! UDP over IPv4 and echo requests in frames.

use virtuoso_overlay::wire::ethernet::EthernetView;
use virtuoso_overlay::wire::udp::{self, UdpView};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(frame) = EthernetView::new_checked(bytes) else { return };
    if let Ok(datagram) = UdpView::new_checked(&frame) {
        let built = udp::build((frame.dst(), datagram.dst), (frame.src(), datagram.src), datagram.payload);
        if let Some(built) = built {
            let again = EthernetView::new_checked(&built).expect("a whole frame");
            assert_eq!(UdpView::new_checked(&again).expect("a datagram").payload, datagram.payload);
        }
    }
    if let Some(reply) = udp::build_echo_reply(&frame) {
        let reply = EthernetView::new_checked(&reply).expect("a whole frame");
        assert!(udp::build_echo_reply(&reply).is_none(), "an answer to an answer");
    }
});

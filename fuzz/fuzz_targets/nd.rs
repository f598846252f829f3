#![no_main]
//! Neighbour discovery, and answers to it. Checksums are repaired, so that the fuzzer gets past them.

use virtuoso_fuzz::{STATION, repair_icmpv6};
use virtuoso_overlay::wire::ethernet::EthernetView;
use virtuoso_overlay::wire::nd::{self, Kind, NdView};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    let Ok(offset) = EthernetView::new_checked(&bytes).map(|frame| frame.payload_offset()) else { return };
    repair_icmpv6(&mut bytes[offset..]);
    let frame = EthernetView::new_checked(&bytes).expect("the header is untouched");
    let Ok(question) = NdView::new_checked(frame.payload()) else { return };
    let _ = (question.link_layer(), question.is_router(), question.is_override());
    if question.kind() != Kind::Solicitation {
        return;
    }
    let answer = nd::build_advertisement(&frame, &question, STATION, true);
    let frame = EthernetView::new_checked(&answer).expect("a whole frame");
    // The answer goes to the address that the question came from, whatever that is.
    if let Ok(answer) = NdView::new_checked(frame.payload()) {
        assert_eq!((answer.kind(), answer.target()), (Kind::Advertisement, question.target()));
        assert_eq!((answer.link_layer(), answer.is_router()), (Some(STATION), true));
    } else {
        assert!(question.src().is_multicast(), "an answer that is no message");
    }
});

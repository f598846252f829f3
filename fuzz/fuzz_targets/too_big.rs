#![no_main]
//! Answers to frames that are too big: never larger than they may be, and never answered themselves.

use virtuoso_fuzz::repair_ipv4;
use virtuoso_overlay::wire::ethernet::EthernetView;
use virtuoso_overlay::wire::too_big;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    let Ok(offset) = EthernetView::new_checked(&bytes).map(|frame| frame.payload_offset()) else { return };
    repair_ipv4(&mut bytes[offset..]);
    if let Some(answer) = too_big::build(&bytes, 1400) {
        let frame = EthernetView::new_checked(&answer).expect("a whole frame");
        assert!(frame.payload().len() <= 1280);
        assert!(too_big::build(&answer, 1400).is_none(), "an answer is answered");
    }
});

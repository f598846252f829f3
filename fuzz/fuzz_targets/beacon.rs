#![no_main]
//! Beacons of uplinks, which anybody on the LAN can send.

use virtuoso_overlay::wire::beacon::{Beacon, FRAME_BYTES};
use virtuoso_overlay::wire::ethernet::EthernetView;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(beacon) = Beacon::decode(bytes) {
        let src = EthernetView::new_checked(bytes).expect("a beacon has an Ethernet header").src();
        assert_eq!(beacon.encode(src), &bytes[..FRAME_BYTES]);
    }
});

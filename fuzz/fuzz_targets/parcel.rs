#![no_main]
//! A frame to a group, packed for one port of another host.

use virtuoso_fuzz::STATION;
use virtuoso_overlay::wire::ethernet::EthernetView;
use virtuoso_overlay::wire::frame::VNET_BYTES;
use virtuoso_overlay::wire::parcel;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(found) = parcel::open(bytes) {
        let inner = EthernetView::new_checked(&found.packet[VNET_BYTES..]).expect("a frame is in it");
        assert!(inner.dst().is_group() && inner.src() == found.src);
        if let Some(again) = parcel::pack(STATION, STATION, found.time, found.packet) {
            assert_eq!(parcel::open(&again).map(|again| again.packet), Ok(found.packet));
        }
    }
});

#![no_main]
//! Ethernet headers, and what a frame proves about its sender.

use virtuoso_overlay::wire::announce::announced_address;
use virtuoso_overlay::wire::ethernet::{EthernetView, is_link_local_group};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = EthernetView::new_checked(bytes) {
        assert_eq!(frame.payload_offset() + frame.payload().len(), bytes.len());
        assert_eq!(frame.tags().as_bytes(), &bytes[12..frame.payload_offset() - 2]);
        assert!(frame.vlan().is_none_or(|id| (1..4096).contains(&id)));
        assert!(frame.dst().is_group() || !is_link_local_group(frame.dst()));
        let _ = (frame.src(), frame.ethertype(), announced_address(&frame));
    }
});

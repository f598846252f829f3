#![no_main]
//! IPv4 and IPv6 headers, with extensions.

use virtuoso_overlay::wire::ip::{IPV6_HEADER_BYTES, Ipv4View, Ipv6View};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(packet) = Ipv4View::new_checked(bytes) {
        assert!(packet.header().len() + packet.payload().len() <= packet.total_bytes().min(bytes.len()));
        let _ = (packet.src(), packet.dst(), packet.protocol(), packet.dont_fragment());
        let _ = (packet.fragment_offset(), packet.checksum_ok());
    }
    if let Ok(packet) = Ipv6View::new_checked(bytes) {
        assert!(IPV6_HEADER_BYTES + packet.payload().len() <= packet.total_bytes().min(bytes.len()));
        let _ = (packet.src(), packet.dst(), packet.next_header(), packet.hop_limit());
        if let Ok(upper) = packet.upper_layer() {
            assert!(upper.bytes.len() <= packet.payload().len());
        }
    }
});

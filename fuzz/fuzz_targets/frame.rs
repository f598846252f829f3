#![no_main]
//! The header in front of every frame on a link.

use virtuoso_overlay::wire::frame::FrameHeader;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok((header, rest)) = FrameHeader::decode(bytes) {
        assert_eq!([&header.encode()[..], rest].concat(), bytes);
    }
});

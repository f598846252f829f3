//! Fuzzing of everything that reads bytes of peers or guests.
//!
//! Every target takes bytes, decodes them as a host would, reads all that can be read, and checks what must hold: no
//! panic, no answer to an answer, what was decoded encodes to the same value. The same properties stand as proptests
//! beside each decoder and run with every `cargo test`; libFuzzer goes deeper, guided by coverage.
//!
//! ```text
//! fuzz/run                    every target, 10 seconds each
//! fuzz/run 600 nd too_big     two targets, ten minutes each
//! ```
//!
//! It needs a C++ compiler, and no nightly Rust: coverage comes from a compiler pass that stable Rust offers, and the
//! code under test has no `unsafe` for a sanitizer to watch. `cargo fuzz run TARGET --sanitizer none` works as well,
//! where `cargo-fuzz` is installed. Inputs that failed are kept in `artifacts/TARGET/`; one is replayed by
//! `fuzz/run replay TARGET FILE`, and belongs into a test beside its decoder.
//!
//! A new target is a file in `fuzz_targets/` and its name in `Cargo.toml`.

use std::net::Ipv6Addr;
use virtuoso_overlay::ids::Mac;
use virtuoso_overlay::wire::ip::{Checksum, Protocol};

/// An Ethernet address of a station, for what the targets build.
pub const STATION: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);

/// A fuzz target for a message: what decodes, encodes to the same value.
#[macro_export]
macro_rules! message_target {
    ($type:ty) => {
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
            if let Ok(message) = <$type>::decode(bytes) {
                let encoded = message.encode();
                assert!(encoded.len() <= bytes.len(), "an encoding grows from {} to {}", bytes.len(), encoded.len());
                assert_eq!(<$type>::decode(&encoded).as_ref(), Ok(&message));
            }
        });
    };
}

/// Makes the checksum of an IPv4 header right, if there is one: a fuzzer does not guess checksums.
pub fn repair_ipv4(packet: &mut [u8]) {
    let header_bytes = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
    if let Some(header) = packet.get_mut(..header_bytes).filter(|header| header.len() >= 20) {
        header[10..12].fill(0);
        let sum = Checksum::default().with(header).finish();
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Makes the checksum of an ICMPv6 message without extension headers right, if there is one.
pub fn repair_icmpv6(packet: &mut [u8]) {
    if packet.len() < 44 || packet[6] != Protocol::ICMPV6.0 {
        return;
    }
    let (header, rest) = packet.split_at_mut(40);
    let length = usize::from(u16::from_be_bytes([header[4], header[5]])).min(rest.len());
    if length < 4 {
        return;
    }
    let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&header[at..at + 16]).expect("16 bytes"));
    let message = &mut rest[..length];
    message[2..4].fill(0);
    let upper_bytes = u32::try_from(length).expect("at most 65,535");
    let sum = Checksum::default()
        .with_ipv6_pseudo_header(address(8), address(24), upper_bytes, Protocol::ICMPV6)
        .with(message)
        .finish();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}

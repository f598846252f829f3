//! Datagrams of chunks from a peer: whatever comes out is no longer than the longest packet.

#![no_main]

use virtuoso_overlay::chunk::{PACKET_BYTES_MAX, Reassembler};
use virtuoso_overlay::time::Instant;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut reassembler = Reassembler::default();
    let mut now = Instant(0);
    let mut rest = bytes;
    // Each datagram begins with its length and the milliseconds since the one before.
    while let [length, pause, tail @ ..] = rest {
        let (datagram, next) = tail.split_at(usize::from(*length).min(tail.len()));
        now = Instant(now.0 + u64::from(*pause) * 1000);
        reassembler.feed(now, datagram, |packet| assert!(packet.len() <= PACKET_BYTES_MAX));
        rest = next;
    }
    if let Some(deadline) = reassembler.deadline() {
        reassembler.settle(deadline, |packet| assert!(packet.len() <= PACKET_BYTES_MAX));
    }
});

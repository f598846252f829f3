//! Frames of guests on their way to a link: whatever they are, they are joined, queued and dropped within bounds.

#![no_main]

use virtuoso_overlay::ids::NetworkId;
use virtuoso_overlay::offload::{Coalescer, VnetHdr};
use virtuoso_overlay::packet::PacketBuffer;
use virtuoso_overlay::queue::FqCodel;
use virtuoso_overlay::time::Instant;
use virtuoso_overlay::wire::frame::{Flags, FrameHeader, VNET_BYTES};

const HEADER: FrameHeader = FrameHeader { network: NetworkId(1), hops: 4, flags: Flags::VNET };
const ROOM: usize = 16 << 10;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut coalescer = Coalescer::default();
    let mut queue = FqCodel::new(1, ROOM);
    let mut now = Instant(0);
    let mut rest = bytes;
    // Each packet begins with its length and the milliseconds since the one before.
    while let [length, pause, tail @ ..] = rest {
        let (packet, next) = tail.split_at(usize::from(*length).min(tail.len()));
        now = Instant(now.0 + u64::from(*pause) * 1000);
        let mut send = |packet: &mut PacketBuffer| {
            if let Some((header, frame)) = packet.as_ref().split_first_chunk::<VNET_BYTES>() {
                let header = VnetHdr::decode(header).expect("what is joined was settled");
                header.rebuild(frame).expect("what is joined is accepted by a peer");
            }
            queue.push(now, HEADER, PacketBuffer::holding(packet.as_ref()), &mut |_| {});
            assert!(queue.bytes() <= ROOM);
        };
        if let Some(mut buffer) = settled(packet) {
            coalescer.push(&mut buffer, &mut send);
        }
        if pause % 2 == 0 {
            coalescer.flush(&mut send);
            queue.pop(now, &mut |_| {});
        }
        rest = next;
    }
});

/// The packet as a port reads it.
fn settled(packet: &[u8]) -> Option<PacketBuffer> {
    let mut buffer = PacketBuffer::new();
    buffer
        .fill(|bytes| {
            bytes[..packet.len()].copy_from_slice(packet);
            Ok::<_, ()>(packet.len())
        })
        .ok()?;
    let (header, frame) = buffer.as_mut().split_first_chunk_mut::<VNET_BYTES>()?;
    *header = VnetHdr::decode(header).and_then(|wish| wish.settle(frame)).ok()?.encode();
    Some(buffer)
}

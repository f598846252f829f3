//! Packets that wait for one link, in order, bounded in bytes and in time.
//!
//! It stands between the ports and QUIC. A link that connects or is blocked fills its own queue only; what finds it
//! full is dropped at the tail, so that no other link and no port waits for it.

use std::collections::VecDeque;
use std::time::Duration;
use virtuoso_overlay::limits::HOLD_TOTAL_BYTES_MAX;
use virtuoso_overlay::time::Instant;
use virtuoso_overlay::wire::frame::{Flags, FrameHeader};

/// Bytes that wait for one link: eight super-frames, 5 ms at 800 Mbit/s.
const QUEUE_BYTES_MAX: usize = 512 << 10;

/// Packets that wait for one link, whatever their size: each costs its bookkeeping too.
const QUEUE_PACKETS_MAX: usize = 2048;

/// Bounds of what follows a moved address: frames that were held for it come all at once, and none of them may be lost.
/// They are the ones that the switch has let go of, so the memory is the same.
const FOLLOWING_BYTES_MAX: usize = HOLD_TOTAL_BYTES_MAX;
/// See [`FOLLOWING_BYTES_MAX`]; frames of 64 bytes at least.
const FOLLOWING_PACKETS_MAX: usize = FOLLOWING_BYTES_MAX / 64;

/// A packet that waited this long is worth nothing any more: ARP and TCP have repeated it.
const QUEUE_AGE_MAX: Duration = Duration::from_secs(3);

/// A packet (virtio-net header and frame) with the header it goes with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Queued {
    pub(super) header: FrameHeader,
    pub(super) packet: Box<[u8]>,
    since: Instant,
}

/// What waits for one link.
#[derive(Debug, Default)]
pub(super) struct LinkQueue {
    packets: VecDeque<Queued>,
    bytes: usize,
}

impl LinkQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Adds a copy of `packet`; false if there is no room.
    pub(super) fn push(&mut self, now: Instant, header: FrameHeader, packet: &[u8]) -> bool {
        let (bytes_max, packets_max) = match header.flags.has(Flags::FORWARDED) {
            true => (FOLLOWING_BYTES_MAX, FOLLOWING_PACKETS_MAX),
            false => (QUEUE_BYTES_MAX, QUEUE_PACKETS_MAX),
        };
        if self.bytes + packet.len() > bytes_max || self.packets.len() >= packets_max {
            return false;
        }
        self.bytes += packet.len();
        self.packets.push_back(Queued { header, packet: packet.into(), since: now });
        true
    }

    /// Takes the oldest packet.
    pub(super) fn pop(&mut self) -> Option<Queued> {
        let queued = self.packets.pop_front()?;
        self.bytes -= queued.packet.len();
        Some(queued)
    }

    /// Drops what is too old, and says how many packets that were.
    pub(super) fn expire(&mut self, now: Instant) -> u64 {
        let mut expired = 0;
        while self.packets.front().is_some_and(|queued| now.since(queued.since) > QUEUE_AGE_MAX) {
            self.pop();
            expired += 1;
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtuoso_overlay::ids::NetworkId;

    const HEADER: FrameHeader = FrameHeader { network: NetworkId(1), hops: 1, flags: Flags::VNET };

    #[test]
    fn bytes_and_packets_are_bounded() {
        let mut queue = LinkQueue::default();
        let large = vec![0; 64 << 10];
        assert_eq!((0..100).filter(|_| queue.push(Instant(0), HEADER, &large)).count(), 8);
        while queue.pop().is_some() {}
        assert_eq!((0..5000).filter(|_| queue.push(Instant(0), HEADER, b"small")).count(), QUEUE_PACKETS_MAX);
    }

    #[test]
    fn what_follows_a_moved_address_is_held_as_long_as_it_was() {
        let following = FrameHeader { flags: Flags::VNET.with(Flags::FORWARDED), ..HEADER };
        let mut queue = LinkQueue::default();
        let frame = [0; 110];
        assert!((0..40_000).all(|_| queue.push(Instant(0), following, &frame)), "four seconds of 10,000 frames");
        assert!(!queue.push(Instant(0), HEADER, &frame), "other frames do not queue behind");
    }

    #[test]
    fn packets_leave_in_order_and_grow_old() {
        let mut queue = LinkQueue::default();
        for second in 0..5u64 {
            queue.push(Instant(second * 1_000_000), HEADER, &[second as u8]);
        }
        assert_eq!(queue.expire(Instant(5_500_000)), 3);
        assert_eq!(queue.pop().unwrap().packet[..], [3]);
        assert_eq!(queue.pop().unwrap().packet[..], [4]);
        assert!(queue.is_empty());
    }
}

//! Packets that wait for one link: FQ-CoDel between the ports and QUIC, so that a greedy conversation delays nobody,
//! and beside it what follows a moved address, of which nothing may be lost. A link that connects or is blocked fills
//! its own queue only. Networks with limits of their own have branches.

use super::LinkLimits;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;
use virtuoso_overlay::drop_reason::{DropCounters, DropReason};
use virtuoso_overlay::ids::NetworkId;
use virtuoso_overlay::limits::HOLD_TOTAL_BYTES_MAX;
use virtuoso_overlay::packet::PacketBuffer;
use virtuoso_overlay::queue::Branches;
use virtuoso_overlay::time::Instant;
use virtuoso_overlay::wire::frame::{Flags, FrameHeader};

/// Bytes that wait for a link that is up: 5 ms at 3 Gbit/s. The time that packets may wait bounds slower links.
pub(super) const QUEUE_BYTES_MAX: usize = 2 << 20;

/// Bytes that wait for a link that is being made: the first packets of some conversations.
pub(super) const QUEUE_BYTES_UNLINKED_MAX: usize = 512 << 10;

/// Bounds of what follows a moved address: frames that were held for it come all at once. They are the ones that the
/// switch has let go of, so the memory is the same.
const FOLLOWING_BYTES_MAX: usize = HOLD_TOTAL_BYTES_MAX;
/// See [`FOLLOWING_BYTES_MAX`]; frames of 64 bytes at least.
const FOLLOWING_PACKETS_MAX: usize = FOLLOWING_BYTES_MAX / 64;

/// A packet that waited this long is worth nothing any more: ARP and TCP have repeated it.
const QUEUE_AGE_MAX: Duration = Duration::from_secs(3);

/// Packets from this size on keep the buffer that they were read into; smaller ones are copied into one of their size.
const WHOLE_BUFFER_MIN: usize = 32 << 10;

/// Buffers that are kept for packets to come: as many as one queue holds.
const SPARES_MAX: usize = QUEUE_BYTES_MAX / PacketBuffer::BYTES;

/// A packet (virtio-net header and frame) with the header it goes with.
pub(super) type Queued = virtuoso_overlay::queue::Queued<PacketBuffer>;

/// Large buffers that nobody uses at the moment.
#[derive(Debug, Default)]
pub(super) struct Spares(Vec<PacketBuffer>);

/// What waits for one link.
#[derive(Debug)]
pub(super) struct LinkQueue {
    following: VecDeque<Queued>,
    following_bytes: usize,
    flows: Branches<PacketBuffer>,
    /// The networks that have limits of their own.
    limited: Vec<(NetworkId, LinkLimits)>,
}

impl LinkQueue {
    /// `seed` keeps guests from choosing conversations that share a queue.
    pub(super) fn new(seed: u64) -> Self {
        let flows = Branches::new(seed, QUEUE_BYTES_UNLINKED_MAX);
        Self { following: VecDeque::new(), following_bytes: 0, flows, limited: Vec::new() }
    }

    /// What limits a network from now on, beside what limits the link.
    pub(super) fn limit(&mut self, network: NetworkId, limits: LinkLimits) {
        self.limited.retain(|(limited, _)| *limited != network);
        if limits.is_none() {
            self.flows.release(network);
        } else {
            self.limited.push((network, limits));
            self.flows.limit(network, 0);
        }
    }

    /// Has `rate` say how many bits per second each limited network may send at present; zero is no limit.
    pub(super) fn adapt(&mut self, mut rate: impl FnMut(LinkLimits) -> u64) {
        for (network, limits) in &self.limited {
            self.flows.limit(*network, rate(*limits));
        }
    }

    /// Whether some network has limits of its own.
    pub(super) fn is_limited(&self) -> bool {
        !self.limited.is_empty()
    }

    /// Whether a packet of `network` would be the next one. HOT PATH
    pub(super) fn passes(&self, network: NetworkId) -> bool {
        self.following.is_empty() && self.flows.passes(network)
    }

    /// Whether something may leave now, as far as networks' limits go.
    pub(super) fn is_ready(&self, now: Instant) -> bool {
        !self.following.is_empty() || self.flows.is_ready(now)
    }

    /// When the limit of a network first lets something go that it holds up.
    pub(super) fn opens_at(&self, now: Instant) -> Option<Instant> {
        self.flows.opens_at(now)
    }

    /// How much may wait that no network's limit holds up.
    pub(super) fn set_bytes_max(&mut self, bytes_max: usize) {
        self.flows.trunk().set_bytes_max(bytes_max);
    }

    /// Packets that wait.
    pub(super) fn len(&self) -> usize {
        self.following.len() + self.flows.len()
    }

    /// Packets that were marked instead of dropped, since the beginning.
    pub(super) fn marked(&self) -> u64 {
        self.flows.marked()
    }

    /// Super-frames that lost a segment instead of being dropped, since the beginning.
    pub(super) fn cut(&self) -> u64 {
        self.flows.cut()
    }

    /// Bytes and packets that wait in the flow queues before a new packet of `network`.
    pub(super) fn backlog(&self, network: NetworkId) -> (usize, usize) {
        self.flows.backlog(network)
    }

    /// Adds a packet, which its buffer may lose. What has no room is counted in `drops` as `full`.
    pub(super) fn push(
        &mut self,
        now: Instant,
        header: FrameHeader,
        packet: &mut PacketBuffer,
        spares: &mut Spares,
        drops: &mut DropCounters,
        full: DropReason,
    ) {
        if !header.flags.has(Flags::FORWARDED) {
            let queued = Queued { header, packet: take(packet, spares), since: now };
            return self.flows.push(now, queued, &mut |queued| {
                drops.count(full);
                spares.put(queued.packet);
            });
        }
        let bytes = packet.as_ref().len();
        if self.following_bytes + bytes > FOLLOWING_BYTES_MAX || self.following.len() >= FOLLOWING_PACKETS_MAX {
            return drops.count(full);
        }
        self.following_bytes += bytes;
        self.following.push_back(Queued { header, packet: PacketBuffer::holding(packet.as_ref()), since: now });
    }

    /// Takes the packet whose turn it is. What is given up instead is counted in `drops`.
    pub(super) fn pop(&mut self, now: Instant, spares: &mut Spares, drops: &mut DropCounters) -> Option<Queued> {
        if let Some(queued) = self.following.pop_front() {
            self.following_bytes -= queued.packet.as_ref().len();
            return Some(queued);
        }
        self.flows.pop(now, &mut |queued| {
            drops.count(DropReason::Congested);
            spares.put(queued.packet);
        })
    }

    /// Drops what is too old, and says how many packets that were.
    pub(super) fn expire(&mut self, now: Instant) -> u64 {
        let mut expired = 0;
        while self.following.front().is_some_and(|queued| now.since(queued.since) > QUEUE_AGE_MAX) {
            let queued = self.following.pop_front();
            self.following_bytes -= queued.map_or(0, |queued| queued.packet.as_ref().len());
            expired += 1;
        }
        self.flows.expire(now - QUEUE_AGE_MAX, &mut |_| expired += 1);
        expired
    }
}

/// The packet as something to keep. A large one takes the buffer along, and another one takes its place.
fn take(packet: &mut PacketBuffer, spares: &mut Spares) -> PacketBuffer {
    if packet.as_ref().len() < WHOLE_BUFFER_MIN {
        PacketBuffer::holding(packet.as_ref())
    } else {
        std::mem::replace(packet, spares.get())
    }
}

impl Spares {
    /// Keeps the buffer of a packet that is done with, if it is one of the large ones.
    pub(super) fn put(&mut self, packet: PacketBuffer) {
        if packet.is_large() && self.0.len() < SPARES_MAX {
            self.0.push(packet);
        }
    }

    /// A large buffer with a copy of `packet`.
    pub(super) fn holding(&mut self, packet: &[u8]) -> PacketBuffer {
        let mut buffer = self.get();
        let bytes = packet.len().min(PacketBuffer::BYTES);
        let Ok(()) = buffer.fill(|room| {
            room[..bytes].copy_from_slice(&packet[..bytes]);
            Ok::<_, Infallible>(bytes)
        });
        buffer
    }

    fn get(&mut self) -> PacketBuffer {
        self.0.pop().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtuoso_overlay::ids::NetworkId;

    const HEADER: FrameHeader = FrameHeader { network: NetworkId(1), hops: 1, flags: Flags::VNET };

    struct Test {
        queue: LinkQueue,
        spares: Spares,
        drops: DropCounters,
    }

    impl Test {
        fn new() -> Self {
            Self { queue: LinkQueue::new(1), spares: Spares::default(), drops: DropCounters::default() }
        }

        fn push(&mut self, now: Instant, header: FrameHeader, packet: &[u8]) {
            let mut packet = PacketBuffer::holding(packet);
            self.queue.push(now, header, &mut packet, &mut self.spares, &mut self.drops, DropReason::NoLink);
        }

        fn pop(&mut self) -> Option<Queued> {
            self.queue.pop(Instant(0), &mut self.spares, &mut self.drops)
        }
    }

    #[test]
    fn bytes_are_bounded_and_what_does_not_fit_is_counted() {
        let mut test = Test::new();
        for _ in 0..100 {
            test.push(Instant(0), HEADER, &vec![0; 64 << 10]);
        }
        let left = std::iter::from_fn(|| test.pop()).count() as u64;
        assert!((3..8).contains(&left), "{left}");
        assert_eq!(test.drops.get(DropReason::NoLink), 100 - left);
    }

    #[test]
    fn what_follows_a_moved_address_is_held_as_long_as_it_was() {
        let following = FrameHeader { flags: Flags::VNET.with(Flags::FORWARDED), ..HEADER };
        let mut test = Test::new();
        for _ in 0..40_000 {
            test.push(Instant(0), following, &[0; 110]);
        }
        assert_eq!(test.drops.iter().count(), 0, "four seconds of 10,000 frames");
        test.push(Instant(0), HEADER, &[1; 110]);
        assert_eq!(test.pop().unwrap().header, following, "it goes first");
        assert_eq!(std::iter::from_fn(|| test.pop()).count(), 40_000);
    }

    #[test]
    fn packets_leave_in_order_and_grow_old() {
        let mut test = Test::new();
        for second in 0..5u64 {
            test.push(Instant(second * 1_000_000), HEADER, &[second as u8]);
        }
        assert_eq!(test.queue.expire(Instant(5_500_000)), 3);
        assert_eq!(test.pop().unwrap().packet.as_ref(), [3]);
        assert_eq!(test.pop().unwrap().packet.as_ref(), [4]);
        assert_eq!(test.queue.len(), 0);
    }

    #[test]
    fn a_large_packet_is_not_copied_and_its_buffer_used_again() {
        let mut test = Test::new();
        let mut buffer = PacketBuffer::new();
        for round in 0..5u8 {
            buffer
                .fill(|bytes| {
                    bytes[..40_000].fill(round);
                    Ok::<_, ()>(40_000)
                })
                .unwrap();
            test.queue.push(Instant(0), HEADER, &mut buffer, &mut test.spares, &mut test.drops, DropReason::NoLink);
            let queued = test.pop().unwrap();
            assert_eq!(queued.packet.as_ref(), [round; 40_000]);
            test.spares.put(queued.packet);
            assert_eq!(test.spares.0.len(), 1);
        }
    }
}

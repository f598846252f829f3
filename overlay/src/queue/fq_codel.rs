//! FQ-CoDel (RFC 8290): a queue for each conversation, turns of equal bytes, conversations that were silent first, and
//! CoDel in each queue. One greedy conversation fills its own queue and delays nobody else.

use super::codel::{Codel, Delay};
use super::ecn::mark_ce;
use super::flow::flow_hash;
use crate::offload::cut_last_segment;
use crate::packet::Packet;
use crate::time::Instant;
use crate::wire::frame::{FrameHeader, VNET_BYTES};
use std::collections::VecDeque;

/// Queues of one link. Two conversations in one of them share their turns, no more.
pub const FLOW_QUEUES: usize = 256;

/// Bytes of one turn: a large frame of a guest without offload, a quarter of a super-frame of one with it.
pub const QUANTUM_BYTES: usize = 16 << 10;

/// What a packet counts for beside its bytes: its bookkeeping and what allocators give away. It bounds the packets too.
const OVERHEAD_BYTES: usize = 192;

/// Packets that are dropped at once from a queue that is too long.
const DROP_BATCH: usize = 64;

/// Packets that a queue keeps room for while it is empty.
const ROOM_KEPT: usize = 64;

/// A packet (virtio-net header and frame) with the header it goes with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Queued<P> {
    /// What stands in front of it on the link.
    pub header: FrameHeader,
    /// The packet.
    pub packet: P,
    /// When it was queued.
    pub since: Instant,
}

/// The queues of one link.
#[derive(Debug)]
pub struct FqCodel<P> {
    seed: u64,
    bytes_max: usize,
    delay: Delay,
    /// Empty until something waits: most links never have a queue.
    flows: Vec<Flow<P>>,
    new: VecDeque<u16>,
    old: VecDeque<u16>,
    bytes: usize,
    packets: usize,
    marked: u64,
    cut: u64,
}

#[derive(Debug)]
struct Flow<P> {
    packets: VecDeque<Queued<P>>,
    bytes: usize,
    /// Bytes that it may still send in this turn.
    deficit: isize,
    codel: Codel,
    /// Whether it stands in one of the lists.
    is_listed: bool,
}

impl<P: Packet> FqCodel<P> {
    /// Queues that hold `bytes_max` bytes together. `seed` is the host's secret.
    pub fn new(seed: u64, bytes_max: usize) -> Self {
        Self {
            seed,
            bytes_max,
            delay: Delay::SITE,
            flows: Vec::new(),
            new: VecDeque::new(),
            old: VecDeque::new(),
            bytes: 0,
            packets: 0,
            marked: 0,
            cut: 0,
        }
    }

    /// How much may wait from now on. What is here already stays until the next packet comes.
    pub fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// How long packets may wait from now on.
    pub fn set_delay(&mut self, delay: Delay) {
        self.delay = delay;
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.packets == 0
    }

    /// Packets that wait.
    pub fn len(&self) -> usize {
        self.packets
    }

    /// Bytes that wait, bookkeeping included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Packets that were marked instead of dropped, since the beginning.
    pub fn marked(&self) -> u64 {
        self.marked
    }

    /// Super-frames that lost their last segment instead of being dropped, since the beginning.
    pub fn cut(&self) -> u64 {
        self.cut
    }

    /// Adds a packet. What no longer fits is taken from the head of the longest queue and handed to `dropped`: who
    /// fills the queues pays, and its flow hears of it soonest. HOT PATH
    pub fn push(&mut self, now: Instant, header: FrameHeader, packet: P, dropped: &mut impl FnMut(Queued<P>)) {
        if self.flows.is_empty() {
            self.flows.resize_with(FLOW_QUEUES, Flow::default);
        }
        let frame = packet.as_ref().get(VNET_BYTES..).unwrap_or_default();
        let index = (flow_hash(self.seed, header.network, frame) % FLOW_QUEUES as u64) as u16;
        let cost = cost(&packet);
        let flow = &mut self.flows[usize::from(index)];
        flow.packets.push_back(Queued { header, packet, since: now });
        flow.bytes += cost;
        self.bytes += cost;
        self.packets += 1;
        if !flow.is_listed {
            flow.is_listed = true;
            flow.deficit = QUANTUM_BYTES as isize;
            self.new.push_back(index);
        }
        while self.bytes > self.bytes_max && self.shorten_longest(dropped) {}
    }

    /// Takes the packet whose turn it is. What must go instead, so that a flow slows down, is handed to `dropped`; a
    /// super-frame loses one segment only.
    /// HOT PATH
    pub fn pop(&mut self, now: Instant, dropped: &mut impl FnMut(Queued<P>)) -> Option<Queued<P>> {
        loop {
            let from_new = !self.new.is_empty();
            let index = *if from_new { self.new.front() } else { self.old.front() }?;
            let flow = &mut self.flows[usize::from(index)];
            if flow.deficit <= 0 {
                flow.deficit += QUANTUM_BYTES as isize;
                self.unlist(from_new);
                self.old.push_back(index);
                continue;
            }
            if let Some(queued) = self.take(now, index, dropped) {
                self.flows[usize::from(index)].deficit -= cost(&queued.packet) as isize;
                return Some(queued);
            }
            // A new flow that is empty goes behind the old ones once: by stopping and starting it gains nothing.
            self.unlist(from_new);
            if from_new && !self.old.is_empty() {
                self.old.push_back(index);
            } else {
                let flow = &mut self.flows[usize::from(index)];
                flow.is_listed = false;
                flow.packets.shrink_to(ROOM_KEPT);
            }
        }
    }

    /// Hands everything that was queued before `time` to `dropped`.
    pub fn expire(&mut self, time: Instant, dropped: &mut impl FnMut(Queued<P>)) {
        for index in 0..self.flows.len() {
            while self.flows[index].packets.front().is_some_and(|queued| queued.since < time) {
                let Some(queued) = self.remove_first(index) else { break };
                dropped(queued);
            }
        }
    }

    /// The next packet of one queue that CoDel lets through.
    fn take(&mut self, now: Instant, index: u16, dropped: &mut impl FnMut(Queued<P>)) -> Option<Queued<P>> {
        loop {
            let Some(mut queued) = self.remove_first(index.into()) else {
                self.flows[usize::from(index)].codel.on_empty();
                return None;
            };
            let flow = &mut self.flows[usize::from(index)];
            let is_last = flow.packets.is_empty();
            if !flow.codel.must_signal(now, now.since(queued.since), is_last, self.delay) {
                return Some(queued);
            }
            if queued.packet.as_mut().get_mut(VNET_BYTES..).is_some_and(mark_ce) {
                self.marked += 1;
                return Some(queued);
            }
            // One segment tells a flow as much as the whole super-frame would, and only that must be sent again.
            if let Some(bytes) = cut_last_segment(queued.packet.as_mut()) {
                queued.packet.truncate(bytes);
                self.cut += 1;
                return Some(queued);
            }
            dropped(queued);
        }
    }

    /// Drops up to half of the longest queue, so that it need not be searched for with every packet of a flood. False
    /// if all are empty.
    fn shorten_longest(&mut self, dropped: &mut impl FnMut(Queued<P>)) -> bool {
        let listed = self.new.iter().chain(&self.old);
        let longest = listed.map(|index| usize::from(*index)).max_by_key(|index| self.flows[*index].bytes);
        let Some(longest) = longest.filter(|index| self.flows[*index].bytes > 0) else { return false };
        let half = self.flows[longest].bytes / 2;
        for _ in 0..DROP_BATCH {
            let Some(queued) = self.remove_first(longest) else { break };
            dropped(queued);
            if self.flows[longest].bytes <= half {
                break;
            }
        }
        true
    }

    fn remove_first(&mut self, index: usize) -> Option<Queued<P>> {
        let flow = &mut self.flows[index];
        let queued = flow.packets.pop_front()?;
        let cost = cost(&queued.packet);
        flow.bytes -= cost;
        self.bytes -= cost;
        self.packets -= 1;
        Some(queued)
    }

    fn unlist(&mut self, from_new: bool) {
        if from_new {
            self.new.pop_front()
        } else {
            self.old.pop_front()
        };
    }
}

impl<P> Default for Flow<P> {
    fn default() -> Self {
        Self { packets: VecDeque::new(), bytes: 0, deficit: 0, codel: Codel::default(), is_listed: false }
    }
}

fn cost<P: AsRef<[u8]>>(packet: &P) -> usize {
    packet.as_ref().len() + OVERHEAD_BYTES
}

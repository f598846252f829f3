//! The way to one peer: what waits for it, and what was counted. A lane outlives its connections, so that what waits is
//! sent when there is another one.

use super::super::clock::Tick;
use super::super::connection::Connection;
use super::super::queue::{LinkQueue, QUEUE_BYTES_MAX, QUEUE_BYTES_UNLINKED_MAX, Spares};
use super::super::stats::{LinkInfo, TrafficCounters};
use virtuoso_overlay::drop_reason::DropReason;
use virtuoso_overlay::packet::PacketBuffer;
use virtuoso_overlay::time::Instant;
use virtuoso_overlay::wire::frame::FrameHeader;

/// A lane.
#[derive(Debug)]
pub(super) struct Lane {
    /// The slot of the connection that is up.
    pub(super) active: Option<u16>,
    /// What waits.
    pub(super) queue: LinkQueue,
    /// Frames of earlier connections, and those that died in the queue.
    traffic: TrafficCounters,
    /// See [`Connection::repaired`], of earlier connections.
    repaired: u64,
}

impl Lane {
    /// A lane without connection. `seed` is the host's secret.
    pub(super) fn new(seed: u64) -> Self {
        Self { active: None, queue: LinkQueue::new(seed), traffic: TrafficCounters::default(), repaired: 0 }
    }

    /// The connection in `slot` carries the frames from now on.
    pub(super) fn rise(&mut self, slot: u16) {
        self.active = Some(slot);
        self.queue.set_bytes_max(QUEUE_BYTES_MAX);
    }

    /// The connection in `slot` carries frames no longer.
    pub(super) fn fall(&mut self, slot: u16, connection: &Connection) {
        self.traffic.add(&connection.traffic);
        self.repaired += connection.repaired;
        if self.active == Some(slot) {
            self.active = None;
            self.queue.set_bytes_max(QUEUE_BYTES_UNLINKED_MAX);
        }
    }

    /// Keeps a packet, which its buffer may lose. HOT PATH.
    pub(super) fn push(&mut self, tick: Tick, header: &FrameHeader, packet: &mut PacketBuffer, spares: &mut Spares) {
        let full = if self.active.is_some() { DropReason::QueueFull } else { DropReason::NoLink };
        self.queue.push(tick.now.mono, *header, packet, spares, &mut self.traffic.drops, full);
    }

    /// Hands waiting packets to QUIC while it has room. When the limit of a network lets more go. HOT PATH.
    pub(super) fn fill(&mut self, tick: Tick, connection: &mut Connection, spares: &mut Spares) -> Option<Instant> {
        if self.queue.is_limited() {
            self.queue.adapt(|limits| connection.rate_of(limits));
        }
        while connection.has_room(tick) {
            let Some(queued) = self.queue.pop(tick.now.mono, spares, &mut self.traffic.drops) else { break };
            connection.pack(tick, &queued.header, queued.packet.as_ref());
            spares.put(queued.packet);
        }
        let opens_at = self.queue.opens_at(tick.now.mono);
        if self.queue.is_limited() {
            connection.hold_up(opens_at.is_some());
        }
        opens_at
    }

    /// Gives up packets that wait for too long.
    pub(super) fn expire(&mut self, tick: Tick) {
        for _ in 0..self.queue.expire(tick.now.mono) {
            self.traffic.drops.count(DropReason::NoLink);
        }
    }

    /// Adds what is known here to the figures of the link.
    pub(super) fn describe(&self, info: &mut LinkInfo) {
        info.repaired_frames += self.repaired;
        info.queued_frames = self.queue.len() as u64;
        info.marked_frames = self.queue.marked();
        info.cut_frames = self.queue.cut();
        info.traffic.add(&self.traffic);
    }
}

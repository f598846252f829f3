//! Frames that wait for an address which is between two hosts. Bounded by bytes, for each address and for the host.

use crate::limits::{HOLD_BYTES_MAX, HOLD_TOTAL_BYTES_MAX};
use crate::wire::frame::FrameHeader;
use std::collections::VecDeque;

/// A packet (virtio-net header and frame) that waits, with the header it came or would go with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) header: FrameHeader,
    pub(super) packet: Vec<u8>,
}

/// The packets that wait for one address, in the order they came.
#[derive(Default)]
pub(super) struct HeldFrames {
    queue: VecDeque<Held>,
    bytes: usize,
}

/// What waits on this host altogether.
#[derive(Default)]
pub(super) struct HoldBudget {
    bytes: usize,
}

impl HeldFrames {
    /// Adds a packet; false if there is no room for it.
    pub(super) fn push(&mut self, budget: &mut HoldBudget, held: Held) -> bool {
        let bytes = held.packet.len();
        if self.bytes + bytes > HOLD_BYTES_MAX || budget.bytes + bytes > HOLD_TOTAL_BYTES_MAX {
            return false;
        }
        self.bytes += bytes;
        budget.bytes += bytes;
        self.queue.push_back(held);
        true
    }

    /// Adds a packet before all others; false if there is no room for it.
    pub(super) fn push_front(&mut self, budget: &mut HoldBudget, held: Held) -> bool {
        let is_taken = self.push(budget, held);
        if is_taken {
            self.queue.rotate_right(1);
        }
        is_taken
    }

    /// Takes the oldest packet out.
    pub(super) fn pop(&mut self, budget: &mut HoldBudget) -> Option<Held> {
        let held = self.queue.pop_front()?;
        self.bytes -= held.packet.len();
        budget.bytes -= held.packet.len();
        Some(held)
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Takes all packets out.
    pub(super) fn take(&mut self, budget: &mut HoldBudget) -> VecDeque<Held> {
        budget.bytes -= self.bytes;
        self.bytes = 0;
        std::mem::take(&mut self.queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NetworkId;
    use crate::wire::frame::Flags;

    #[test]
    fn bounds_hold_for_one_address_and_for_all() {
        let header = FrameHeader { network: NetworkId(1), hops: 1, flags: Flags::default() };
        let packet = vec![0; 64 * 1024];
        let mut budget = HoldBudget::default();
        let mut queues: Vec<HeldFrames> = (0..16).map(|_| HeldFrames::default()).collect();
        for queue in &mut queues {
            while queue.push(&mut budget, Held { header, packet: packet.clone() }) {}
            assert!(queue.bytes <= HOLD_BYTES_MAX);
        }
        assert_eq!(budget.bytes, HOLD_TOTAL_BYTES_MAX);
        let held = queues[0].take(&mut budget);
        assert_eq!(budget.bytes, HOLD_TOTAL_BYTES_MAX - held.len() * packet.len());
        assert!(queues[0].take(&mut budget).is_empty());
    }
}

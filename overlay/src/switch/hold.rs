//! Frames that wait for an address which is between two hosts. Bounded by bytes, for each address and for the host.

use super::segment::State;
use super::{Switch, SwitchEffect};
use crate::drop_reason::DropReason;
use crate::ids::{Mac, NetworkId};
use crate::limits::{HOLD_BYTES_MAX, HOLD_TOTAL_BYTES_MAX, RELEASE_BYTES, RELEASE_FRAMES, RELEASE_INTERVAL};
use crate::offload::wire_frames;
use crate::time::Instant;
use crate::wire::frame::{Flags, FrameHeader};
use crate::wire::parcel::{self, Parcel};
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

impl Held {
    fn is_parcel(&self) -> bool {
        self.header.flags == parcel::FLAGS
    }

    /// How many frames it is on a wire. A parcel is one, whatever is in it: it comes whole or not at all.
    pub(super) fn frames(&self) -> u64 {
        if self.is_parcel() { 1 } else { wire_frames(&self.packet) }
    }

    /// Takes note of when it came. Whether it counts as one that another host has sent on.
    pub(super) fn date(&mut self, now: Instant) -> bool {
        if !self.is_parcel() {
            return self.header.flags.has(Flags::FORWARDED);
        }
        let Ok(Parcel { time, counts, .. }) = parcel::open(&self.packet) else { return false };
        parcel::set_time(&mut self.packet, now.0.saturating_sub(time));
        counts
    }

    /// Makes it ready to be sent on.
    fn undate(&mut self, now: Instant) {
        let Ok(Parcel { time, .. }) = parcel::open(&self.packet) else { return };
        if self.is_parcel() {
            parcel::set_time(&mut self.packet, now.0.saturating_sub(time));
            parcel::set_counts(&mut self.packet);
        }
    }
}

impl Switch {
    /// Adds to what waits for an address.
    pub(super) fn keep(&mut self, network: NetworkId, mac: Mac, held: Held) {
        let budget = &mut self.hold_budget;
        let binding = self.segments.get_mut(&network).and_then(|segment| segment.bindings.get_mut(&mac));
        let is_kept = binding.is_some_and(|binding| {
            let frames = held.frames();
            let is_kept = binding.held.push(budget, held);
            let count = if is_kept { &mut binding.counts.buffered } else { &mut binding.counts.lost };
            *count += frames;
            is_kept
        });
        if !is_kept {
            self.drops.count(DropReason::HoldOverflow);
        }
    }

    /// The address has arrived: what waited for it follows, in order.
    pub(super) fn release_held(&mut self, now: Instant, network: NetworkId, mac: Mac) {
        self.releasing.insert((network, mac));
        self.release_slice(now, network, mac);
    }

    /// Lets some of the frames go that waited for an address. Later ones queue behind them until none is left.
    pub(super) fn release_slice(&mut self, now: Instant, network: NetworkId, mac: Mac) {
        let (mut frames, mut bytes) = (0, 0);
        while frames < RELEASE_FRAMES && bytes < RELEASE_BYTES {
            let binding = self.segments.get_mut(&network).and_then(|segment| segment.bindings.get_mut(&mac));
            // It may have departed again.
            let arrived = binding.filter(|binding| !matches!(binding.state, State::Departed { .. }));
            let next =
                arrived.and_then(|b| Some((b.held.pop(&mut self.hold_budget)?, b.claim.holder, b.state.is_ours())));
            let Some((mut held, to, is_ours)) = next else {
                self.releasing.remove(&(network, mac));
                return self.review_escort(now, network, mac);
            };
            frames += 1;
            bytes += held.packet.len();
            if is_ours && held.is_parcel() {
                if let Ok(parcel) = parcel::open(&held.packet) {
                    self.unpack(now, network, mac, parcel);
                }
                continue;
            }
            let wire_frames = held.frames();
            held.undate(now);
            let Held { header, packet } = held;
            match header.hops.checked_sub(1) {
                _ if is_ours => self.effects.push_back(SwitchEffect::Deliver { network, packet }),
                Some(hops) => {
                    let flags = header.flags.with(Flags::FORWARDED);
                    let header = FrameHeader { hops, flags, ..header };
                    self.effects.push_back(SwitchEffect::Transmit { to, header, packet });
                    if let Some(binding) = self.binding(network, mac) {
                        binding.counts.forwarded += wire_frames;
                    }
                }
                None => self.drops.count(DropReason::HopLimit),
            }
        }
        self.release_at.get_or_insert(now + RELEASE_INTERVAL);
    }

    pub(super) fn drop_held(&mut self, network: NetworkId, mac: Mac) {
        let budget = &mut self.hold_budget;
        let Some(binding) = self.segments.get_mut(&network).and_then(|s| s.bindings.get_mut(&mac)) else { return };
        for held in binding.held.take(budget) {
            binding.counts.lost += held.frames();
            self.drops.count(DropReason::HoldOverflow);
        }
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

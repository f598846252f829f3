//! What a guest gets of frames to groups on the host that it comes to, and when.
//!
//! The frames of one sender come by themselves in their order, and so do their copies. So a copy whose frame has not
//! come, and will not, goes to the guest when a later one of its sender has; or after a while, if its sender is silent.

use super::super::heard::{Fingerprint, Heard};
use crate::ids::{HostId, Mac};
use crate::limits::{
    CATCH_UP_FRAMES_MAX, CATCH_UP_TIME, CATCH_UP_TIME_MAX, HOLD_BYTES_MAX, PARCEL_ORIGINAL_TIME, PARCEL_STRAY_TIME,
    PARCEL_STRAYS_MAX, PARCEL_TAKE_TIME,
};
use crate::seeded::{SeededMap, SeededState};
use crate::time::Instant;
use crate::wire::parcel::Parcel;
use std::collections::VecDeque;

/// The guest comes to this host. Its port is off the floods for as long as this lasts.
pub(super) struct Coming {
    pub(super) from: HostId,
    heard: Heard,
    /// Frames that the guest has got as copies before they came by themselves, if they ever do.
    delivered: Heard,
    stage: Stage,
    /// Of whom frames came before the guest whose copies may still come, and when the last one did.
    awaited: SeededMap<Mac, Instant>,
    kept_back: VecDeque<Vec<u8>>,
    kept_bytes: usize,
    strays: VecDeque<Stray>,
}

#[derive(Clone, Copy)]
enum Stage {
    /// The guest does not run yet.
    Before,
    /// It runs since then; frames are kept back for it.
    CatchingUp(Instant),
    /// It runs since then, and gets frames as they come. Parcels are taken `until`, and its port joins the floods when
    /// no frame is expected any more whose copy it has got.
    Attended { since: Instant, until: Instant, ends: Instant },
}

/// A parcel whose frame has not been heard.
struct Stray {
    until: Instant,
    frame: Fingerprint,
    src: Mac,
    packet: Vec<u8>,
}

/// What the guest gets now, in order.
type Packets = VecDeque<Vec<u8>>;

impl Coming {
    pub(super) fn new(from: HostId, seed: SeededState) -> Self {
        Self {
            from,
            heard: Heard::new(seed),
            delivered: Heard::new(seed),
            stage: Stage::Before,
            awaited: SeededMap::with_hasher(seed),
            kept_back: VecDeque::new(),
            kept_bytes: 0,
            strays: VecDeque::new(),
        }
    }

    /// Whether nobody has said that the guest runs.
    pub(super) const fn is_before(&self) -> bool {
        matches!(self.stage, Stage::Before)
    }

    /// The guest runs.
    pub(super) fn begin(&mut self, now: Instant) {
        if self.is_before() {
            self.stage = Stage::CatchingUp(now);
            self.awaited = self.heard.newest_since(now - CATCH_UP_TIME);
        }
    }

    /// A frame came by itself.
    pub(super) fn hear(&mut self, now: Instant, src: Mac, packet: &[u8]) -> Packets {
        let frame = self.heard.fingerprint(packet);
        if self.delivered.take_first(frame, now - PARCEL_ORIGINAL_TIME) {
            return Packets::new();
        }
        let place = self.strays.iter().position(|stray| stray.frame == frame);
        match place {
            Some(place) => drop(self.strays.remove(place)),
            None => self.heard.note(now, frame, src),
        }
        let mut packets = self.settle_strays(now, src, place.unwrap_or(usize::MAX));
        packets.push_back(packet.to_vec());
        match self.stage {
            Stage::Before => Packets::new(),
            Stage::CatchingUp(_) => {
                self.keep_back(packets);
                Packets::new()
            }
            Stage::Attended { .. } => packets,
        }
    }

    /// Takes a parcel.
    pub(super) fn judge(&mut self, now: Instant, parcel: &Parcel<'_>) -> Packets {
        let frame = self.heard.fingerprint(parcel.packet);
        let heard = self.heard.take(frame, Instant(parcel.time));
        let since = match self.stage {
            // What follows the guest is all that it gets.
            Stage::Before => Instant(u64::MAX),
            Stage::CatchingUp(since) => since,
            Stage::Attended { until, .. } if until <= now => return Packets::new(),
            Stage::Attended { since, .. } => since,
        };
        let Some(at) = heard else {
            let until = if self.is_before() { now } else { now + PARCEL_STRAY_TIME };
            self.strays.push_back(Stray { until, frame, src: parcel.src, packet: parcel.packet.to_vec() });
            return if self.is_before() { self.overdue_strays(now) } else { Packets::new() };
        };
        // Of one sender all copies before this one have come.
        if self.awaited.get(&parcel.src).is_some_and(|last| *last <= at) {
            self.awaited.remove(&parcel.src);
        }
        let mut packets = self.settle_strays(now, parcel.src, usize::MAX);
        if at < since {
            packets.push_back(parcel.packet.to_vec());
        }
        packets
    }

    pub(super) fn is_caught_up(&mut self, now: Instant, is_waiting: bool) -> bool {
        let Stage::CatchingUp(since) = self.stage else { return false };
        self.awaited.retain(|_, at| now.since(*at) < CATCH_UP_TIME);
        let is_full = self.kept_back.len() >= CATCH_UP_FRAMES_MAX || self.kept_bytes >= HOLD_BYTES_MAX;
        let is_late = now.since(since) >= CATCH_UP_TIME_MAX;
        is_full || is_late || (self.awaited.is_empty() && !is_waiting)
    }

    /// From now on the guest gets frames as they come; what it gets before.
    pub(super) fn attend(&mut self, now: Instant) -> Packets {
        if let Stage::CatchingUp(since) = self.stage {
            let until = now + PARCEL_TAKE_TIME;
            self.stage = Stage::Attended { since, until, ends: until };
        }
        std::mem::take(&mut self.kept_back)
    }

    /// When it wants attention.
    pub(super) fn deadline(&mut self, now: Instant, is_waiting: bool) -> Option<Instant> {
        let is_caught_up = self.is_caught_up(now, is_waiting);
        let stage = match self.stage {
            Stage::Before => return None,
            Stage::CatchingUp(_) if is_caught_up => now,
            Stage::CatchingUp(since) => {
                let last = self.awaited.values().max().map(|at| *at + CATCH_UP_TIME).filter(|_| !is_waiting);
                last.unwrap_or(since + CATCH_UP_TIME_MAX)
            }
            Stage::Attended { ends, .. } => ends,
        };
        let stray = self.strays.front().map(|stray| stray.until);
        let stray = if self.strays.len() > PARCEL_STRAYS_MAX { Some(now) } else { stray };
        Some(stray.map_or(stage, |stray| stray.min(stage)))
    }

    /// Whether the guest's port may join the floods.
    pub(super) fn has_ended(&self, now: Instant) -> bool {
        matches!(self.stage, Stage::Attended { ends, .. } if ends <= now) && self.strays.is_empty()
    }

    /// Gives up waiting for the frames themselves of which copies came long ago.
    pub(super) fn overdue_strays(&mut self, now: Instant) -> Packets {
        let mut packets = Packets::new();
        while self.strays.len() > PARCEL_STRAYS_MAX || self.strays.front().is_some_and(|stray| stray.until <= now) {
            let Some(stray) = self.strays.pop_front() else { break };
            packets.push_back(self.deliver_stray(now, stray));
        }
        if matches!(self.stage, Stage::CatchingUp(_)) {
            self.keep_back(std::mem::take(&mut packets));
        }
        packets
    }

    /// It ends: all that the guest has not got yet, and what it has got before it came.
    pub(super) fn end(mut self, now: Instant) -> (Packets, Heard) {
        let mut packets = Packets::new();
        while let Some(stray) = self.strays.pop_front() {
            packets.push_back(self.deliver_stray(now, stray));
        }
        packets.append(&mut self.kept_back);
        (packets, self.delivered)
    }

    /// Gives up waiting for frames of `src` whose copies came before the one at `end`: a later one has come.
    fn settle_strays(&mut self, now: Instant, src: Mac, end: usize) -> Packets {
        let mut packets = Packets::new();
        let (mut place, mut end) = (0, end.min(self.strays.len()));
        while place < end {
            if self.strays.get(place).is_some_and(|stray| stray.src == src)
                && let Some(stray) = self.strays.remove(place)
            {
                packets.push_back(self.deliver_stray(now, stray));
                end -= 1;
            } else {
                place += 1;
            }
        }
        packets
    }

    /// The guest gets a copy in place of its frame, which may still come.
    fn deliver_stray(&mut self, now: Instant, stray: Stray) -> Vec<u8> {
        self.delivered.note(now, stray.frame, stray.src);
        if let Stage::Attended { ends, .. } = &mut self.stage {
            *ends = (*ends).max(now + PARCEL_ORIGINAL_TIME);
        }
        stray.packet
    }

    fn keep_back(&mut self, mut packets: Packets) {
        self.kept_bytes += packets.iter().map(Vec::len).sum::<usize>();
        self.kept_back.append(&mut packets);
    }
}

//! The frames to groups that a host has heard lately, so that a parcel is known for a copy of one of them.
//!
//! Two frames may be equal to the last bit. Then time tells which of them a parcel holds: the nearest one, and none
//! that is farther away than paths and queues account for.

use crate::ids::Mac;
use crate::limits::{HEARD_FRAMES_MAX, HEARD_TIME, PARCEL_EARLY_MAX, PARCEL_LATE_MAX};
use crate::seeded::{SeededMap, SeededState};
use crate::time::Instant;
use std::collections::VecDeque;
use std::hash::BuildHasher;

/// What a frame is known by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct Fingerprint(u64);

/// The frames of the last seconds.
pub(super) struct Heard {
    seed: SeededState,
    times: SeededMap<Fingerprint, VecDeque<Instant>>,
    order: VecDeque<(Instant, Fingerprint, Mac)>,
}

impl Heard {
    pub(super) fn new(seed: SeededState) -> Self {
        Self { seed, times: SeededMap::with_hasher(seed), order: VecDeque::new() }
    }

    pub(super) fn fingerprint(&self, packet: &[u8]) -> Fingerprint {
        Fingerprint(self.seed.hash_one(packet))
    }

    /// A frame of `src` came now.
    pub(super) fn note(&mut self, now: Instant, frame: Fingerprint, src: Mac) {
        let is_old = |at: Instant| now.since(at) > HEARD_TIME;
        while self.order.len() >= HEARD_FRAMES_MAX || self.order.front().is_some_and(|(at, ..)| is_old(*at)) {
            let Some((at, old, _)) = self.order.pop_front() else { break };
            self.forget_until(old, at);
        }
        self.order.push_back((now, frame, src));
        self.times.entry(frame).or_default().push_back(now);
    }

    /// When the frame came of which a copy was taken at another host at about `then`. It is not found again, nor are
    /// equal ones before it.
    pub(super) fn take(&mut self, frame: Fingerprint, then: Instant) -> Option<Instant> {
        let is_near = |at: &Instant| *at + PARCEL_EARLY_MAX >= then && *at <= then + PARCEL_LATE_MAX;
        let distance = |at: &Instant| at.0.abs_diff(then.0);
        let at = *self.times.get(&frame)?.iter().filter(|at| is_near(at)).min_by_key(|at| distance(at))?;
        self.forget_until(frame, at);
        Some(at)
    }

    /// Whether the frame was noted since `begin`: the first time is taken. It is not found again, nor are equal ones
    /// before it.
    pub(super) fn take_first(&mut self, frame: Fingerprint, begin: Instant) -> bool {
        let times = self.times.get(&frame);
        let first = times.and_then(|times| times.iter().find(|at| **at >= begin)).copied();
        first.inspect(|at| self.forget_until(frame, *at)).is_some()
    }

    /// When each station that has spoken since `begin` was heard last.
    pub(super) fn newest_since(&self, begin: Instant) -> SeededMap<Mac, Instant> {
        let mut newest = SeededMap::with_hasher(self.seed);
        newest.extend(self.order.iter().filter(|(at, ..)| *at >= begin).map(|(at, _, src)| (*src, *at)));
        newest
    }

    fn forget_until(&mut self, frame: Fingerprint, end: Instant) {
        let Some(times) = self.times.get_mut(&frame) else { return };
        while times.front().is_some_and(|at| *at <= end) {
            times.pop_front();
        }
        if times.is_empty() {
            self.times.remove(&frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SRC: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn at(ms: u64) -> Instant {
        Instant(10_000_000 + ms * 1000)
    }

    #[test]
    fn of_equal_frames_the_nearest_is_taken_and_those_before_it_are_forgotten() {
        let mut heard = Heard::new(SeededState(1));
        let frame = heard.fingerprint(b"frame");
        for ms in [0, 20, 40, 60] {
            heard.note(at(ms), frame, SRC);
        }
        assert_eq!(heard.take(frame, at(41)), Some(at(40)));
        assert_eq!(heard.take(frame, at(59)), Some(at(60)), "one after the other");
        assert_eq!(heard.take(frame, at(62)), None);
        heard.note(at(100), frame, SRC);
        assert_eq!(heard.take(frame, at(100) + PARCEL_EARLY_MAX + Duration::from_millis(1)), None, "too long ago");
        assert_eq!(heard.take(heard.fingerprint(b"other"), at(100)), None);
        assert_eq!(heard.newest_since(at(60)).get(&SRC), Some(&at(100)));
    }

    #[test]
    fn what_is_kept_is_bounded_by_time_and_number() {
        let mut heard = Heard::new(SeededState(1));
        for n in 0..(HEARD_FRAMES_MAX + 10) as u32 {
            let frame = heard.fingerprint(&n.to_be_bytes());
            heard.note(at(0), frame, SRC);
        }
        assert_eq!((heard.order.len(), heard.times.len()), (HEARD_FRAMES_MAX, HEARD_FRAMES_MAX));
        let last = heard.fingerprint(b"last");
        heard.note(at(1) + HEARD_TIME, last, SRC);
        assert_eq!((heard.order.len(), heard.times.len()), (1, 1));
    }
}

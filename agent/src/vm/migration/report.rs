//! What a migration has cost, from what both hosts have seen of it.

use crate::control::model::MigrationBytes;
use std::time::Duration;
use virtuoso_overlay::migrate::{Arrival, SourceInput};
use virtuoso_overlay::switch::MoveCounts;
use virtuoso_overlay::time::Instant;

/// Points of time at the source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) begun: Instant,
    /// Frames wait from here on.
    pub(super) closed: Option<Instant>,
    /// QEMU was told to pause the guest, or has paused it by itself.
    pub(super) stopped: Option<Instant>,
    /// It has sent all that the guest needs to run.
    pub(super) sent: Option<Instant>,
    /// The target was told that the VM is its.
    pub(super) given: Option<Instant>,
    /// It said that the VM runs.
    pub(super) taken: Option<Instant>,
}

/// Everything that is counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// At the source, before the target counted and after.
    pub(super) source: MoveCounts,
    pub(super) source_later: MoveCounts,
    pub(super) target: MoveCounts,
    pub(super) bytes: MigrationBytes,
}

impl Times {
    pub(super) const fn new(begun: Instant) -> Self {
        Self { begun, closed: None, stopped: None, sent: None, given: None, taken: None }
    }

    /// Takes the time of what QEMU says.
    pub(super) fn see(&mut self, input: &SourceInput, now: Instant) {
        match input {
            SourceInput::Stopped => self.stopped = Some(self.stopped.map_or(now, |told| told.min(now))),
            SourceInput::Sent | SourceInput::PostCopyBegun => {
                self.sent.get_or_insert(now);
            }
            _ => {}
        }
    }

    /// The hypervisor's share of the blackout: from when QEMU began to pause the guest until it had sent all that it
    /// needs to run. So QEMU counts too, but does not know that it was told to pause the guest for this. In post-copy
    /// it begins to send that when it says so, and its other half fetches the rest before the guest goes on.
    pub(super) fn downtime(&self, arrival: &Arrival) -> Duration {
        let sent = self.stopped.zip(self.sent).map(|(stopped, sent)| sent.since(stopped)).unwrap_or_default();
        sent + Duration::from_micros(arrival.fetched_us)
    }

    /// From when frames waited until the first was on its way to the guest. The two hosts' clocks are never compared:
    /// the source's runs until `Go`, the target's from `Go` on, and between them lies half of the round trip, which is
    /// the time from `Go` to the answer without what the target needed for it.
    pub(super) fn blackout(&self, arrival: &Arrival) -> Duration {
        let (Some(closed), Some(given), Some(taken)) = (self.closed, self.given, self.taken) else {
            return Duration::ZERO;
        };
        let answered = Duration::from_micros(arrival.answered_us);
        let round_trip = taken.since(given).saturating_sub(answered);
        given.since(closed) + round_trip / 2 + Duration::from_micros(arrival.opened_us)
    }
}

impl Counts {
    /// Frames that were sent on and did not come, and those that died while they waited. What was sent on while the
    /// target counted may have come or not, so it counts for neither.
    pub(super) fn lost(&self) -> u64 {
        self.source.lost + self.target.lost + self.source.forwarded.saturating_sub(self.target.arrived)
    }

    /// Frames that came more often than they were sent on.
    pub(super) fn duplicated(&self) -> u64 {
        self.target.arrived.saturating_sub(self.source_later.forwarded)
    }
}

/// The sum of what was counted for several addresses.
pub(super) fn sum(counts: impl IntoIterator<Item = MoveCounts>) -> MoveCounts {
    counts.into_iter().fold(MoveCounts::default(), |sum, one| MoveCounts {
        buffered: sum.buffered + one.buffered,
        forwarded: sum.forwarded + one.forwarded,
        arrived: sum.arrived + one.arrived,
        lost: sum.lost + one.lost,
    })
}

pub(super) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_joined_by_half_the_round_trip() {
        let begun = Instant(1_000_000);
        let at = |ms| Some(begun + Duration::from_millis(ms));
        let mut times =
            Times { closed: at(100), stopped: at(103), given: at(150), taken: at(200), ..Times::new(begun) };
        let arrival = Arrival { opened_us: 8_000, answered_us: 10_000, ..Arrival::default() };
        assert_eq!(times.blackout(&arrival), Duration::from_millis(50 + 20 + 8));
        for (input, ms) in [(SourceInput::Stopped, 105), (SourceInput::Sent, 145), (SourceInput::Sent, 160)] {
            times.see(&input, begun + Duration::from_millis(ms));
        }
        assert_eq!(times.downtime(&arrival), Duration::from_millis(42));
        let fetched = Arrival { fetched_us: 3_000, ..arrival };
        assert_eq!(times.downtime(&fetched), Duration::from_millis(45));
        times.see(&SourceInput::Stopped, begun + Duration::from_millis(102));
        assert_eq!(times.downtime(&arrival), Duration::from_millis(43), "QEMU was faster than who told it");
    }

    #[test]
    fn frames_between_two_counts_are_neither_lost_nor_doubled() {
        let counts = |forwarded, arrived| MoveCounts { forwarded, arrived, ..MoveCounts::default() };
        let total = |before, after, arrived| {
            let (source, source_later, target) = (counts(before, 0), counts(after, 0), counts(0, arrived));
            let counts = Counts { source, source_later, target, ..Counts::default() };
            (counts.lost(), counts.duplicated())
        };
        assert_eq!(total(10, 12, 11), (0, 0));
        assert_eq!(total(10, 12, 9), (1, 0));
        assert_eq!(total(10, 12, 13), (0, 1));
    }
}

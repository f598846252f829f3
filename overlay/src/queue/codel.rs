//! CoDel (RFC 8289) for one queue: tells by the time that packets have waited whether the queue is a standing one.

use crate::time::Instant;
use std::time::Duration;

/// How long packets may wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delay {
    /// A wait that is always acceptable.
    pub target: Duration,
    /// A wait above the target is acceptable for so long: about a round trip of the flows, which need it to react.
    pub interval: Duration,
}

impl Delay {
    /// Within a site. Less than 3 ms costs a third of the throughput, because flows are told before they are fast.
    pub const SITE: Self = Self { target: Duration::from_millis(3), interval: Duration::from_millis(50) };
    /// Between sites: the values of RFC 8289.
    pub const WIDE: Self = Self { target: Duration::from_millis(5), interval: Duration::from_millis(100) };
}

/// The state of one queue, named as in RFC 8289.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Codel {
    first_above: Option<Instant>,
    dropping: bool,
    drop_next: Instant,
    count: u32,
    last_count: u32,
}

impl Codel {
    /// The queue is empty: nothing is standing.
    pub(super) fn on_empty(&mut self) {
        self.first_above = None;
        self.dropping = false;
    }

    /// Whether the packet that is about to leave, after waiting for `sojourn`, must tell its flow to slow down.
    /// `is_last` tells that it leaves an empty queue behind, which can't be a standing one.
    pub(super) fn must_signal(&mut self, now: Instant, sojourn: Duration, is_last: bool, delay: Delay) -> bool {
        let is_standing = self.is_standing(now, sojourn, is_last, delay);
        if !self.dropping {
            if is_standing {
                self.begin(now, delay);
            }
            return is_standing;
        }
        if !is_standing {
            self.dropping = false;
            return false;
        }
        if now < self.drop_next {
            return false;
        }
        self.count = self.count.saturating_add(1);
        self.drop_next = self.drop_next + self.pause(delay);
        true
    }

    /// Whether waits have been above the target for a whole interval.
    fn is_standing(&mut self, now: Instant, sojourn: Duration, is_last: bool, delay: Delay) -> bool {
        if sojourn < delay.target || is_last {
            self.first_above = None;
            return false;
        }
        match self.first_above {
            None => {
                self.first_above = Some(now + delay.interval);
                false
            }
            Some(at) => now >= at,
        }
    }

    /// The first signal of a row. A queue that stood a moment ago is told at the pace that emptied it.
    fn begin(&mut self, now: Instant, delay: Delay) {
        self.dropping = true;
        let since_last = self.count.saturating_sub(self.last_count);
        let is_recent = now.since(self.drop_next) < delay.interval * 16;
        self.count = if since_last > 1 && is_recent { since_last } else { 1 };
        self.last_count = self.count;
        self.drop_next = now + self.pause(delay);
    }

    /// Time until the next signal: shorter with each.
    fn pause(&self, delay: Delay) -> Duration {
        delay.interval.div_f64(f64::from(self.count.max(1)).sqrt())
    }
}

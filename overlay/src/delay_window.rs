//! A congestion window that grows until packets wait on the path, and shrinks when they wait too long. It keeps a path
//! that carries nothing else fast and its queues short; beside conversations that fill queues it gets little.

use crate::time::Instant;
use std::time::Duration;

/// Time that packets may wait on the path.
const WAIT_MAX: Duration = Duration::from_millis(5);

/// Time for which the shortest round trip is remembered, at least half of it and at most all of it: routes change.
const MEMORY: Duration = Duration::from_secs(60);

const WINDOW_MIN: u64 = 16 * 1200;
const WINDOW_MAX: u64 = 256 << 20;

/// The window of one connection.
#[derive(Clone, Copy, Debug)]
pub struct DelayWindow {
    bytes: u64,
    /// Whether it never had to shrink: until then it doubles with every round trip.
    is_starting: bool,
    /// The shortest round trips of this half of the memory and of the one before.
    shortest: [Duration; 2],
    half_since: Instant,
    round_until: Instant,
    round_shortest: Duration,
    was_limited: bool,
}

impl DelayWindow {
    /// A window of a few packets.
    pub fn new(now: Instant) -> Self {
        Self {
            bytes: WINDOW_MIN,
            is_starting: true,
            shortest: [Duration::MAX; 2],
            half_since: now,
            round_until: now,
            round_shortest: Duration::MAX,
            was_limited: false,
        }
    }

    /// Bytes that may be on their way.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A packet was acknowledged after `round_trip`. `is_limited` tells that more would have been sent if it had been
    /// allowed.
    pub fn acknowledge(&mut self, now: Instant, round_trip: Duration, is_limited: bool) {
        if now.since(self.half_since) > MEMORY / 2 {
            (self.shortest, self.half_since) = ([Duration::MAX, self.shortest[0]], now);
        }
        self.shortest[0] = self.shortest[0].min(round_trip);
        self.round_shortest = self.round_shortest.min(round_trip);
        self.was_limited |= is_limited;
        if now < self.round_until {
            return;
        }
        let base = self.shortest[0].min(self.shortest[1]);
        if self.round_shortest > base.saturating_add(WAIT_MAX) {
            self.is_starting = false;
            self.bytes = (self.bytes - self.bytes / 8).max(WINDOW_MIN);
        } else if self.was_limited {
            let step = if self.is_starting { self.bytes } else { self.bytes / 16 };
            self.bytes = (self.bytes + step).min(WINDOW_MAX);
        }
        (self.round_until, self.round_shortest, self.was_limited) = (now + round_trip, Duration::MAX, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs over a path of `bytes_per_ms` and 20 ms for some seconds; the mean of what passed and waited in the last
    /// one, in bytes per ms and ms.
    fn run(window: &mut DelayWindow, now: &mut Instant, bytes_per_ms: u64) -> (u64, u64) {
        let (mut passed, mut waited) = (0, 0);
        for ms in 0..5000 {
            let on_path = bytes_per_ms * 20;
            let queue = window.bytes().saturating_sub(on_path) / bytes_per_ms;
            *now = *now + Duration::from_millis(1);
            window.acknowledge(*now, Duration::from_millis(20 + queue), true);
            if ms >= 4000 {
                passed += (window.bytes() / (20 + queue)).min(bytes_per_ms);
                waited += queue;
            }
        }
        (passed / 1000, waited / 1000)
    }

    #[test]
    fn the_path_is_full_and_its_queue_short() {
        for bytes_per_ms in [1_250, 12_500, 125_000] {
            let (mut window, mut now) = (DelayWindow::new(Instant(0)), Instant(0));
            let (passed, waited) = run(&mut window, &mut now, bytes_per_ms);
            assert!(passed * 100 >= bytes_per_ms * 95, "{passed} of {bytes_per_ms}");
            assert!(waited <= 8, "{waited} ms");
        }
    }

    #[test]
    fn it_follows_a_path_that_becomes_narrow() {
        let (mut window, mut now) = (DelayWindow::new(Instant(0)), Instant(0));
        run(&mut window, &mut now, 125_000);
        let (passed, waited) = run(&mut window, &mut now, 12_500);
        assert!(passed >= 11_800 && waited <= 8, "{passed}, {waited} ms");
    }

    #[test]
    fn without_need_it_does_not_grow() {
        let mut window = DelayWindow::new(Instant(0));
        for ms in 0..1000 {
            window.acknowledge(Instant(ms * 1000), Duration::from_millis(10), false);
        }
        assert_eq!(window.bytes(), WINDOW_MIN);
    }
}

//! A congestion window for bulk that shares paths with guests' frames: it fills a path without keeping a queue in it,
//! because every packet in a queue is a pause of the guest that moves, and a full one loses guests' frames.
//!
//! What tells it of congestion is time: packets that wait. A loss counts only together with that, or when much gets
//! lost: lines lose packets by chance. Beside conversations that keep a queue filled whatever it does, it does as they
//! do, and looks now and then whether they are gone.

use crate::time::Instant;
use std::time::Duration;

/// Time that packets may wait on the path, besides a part of the shortest round trip. A host that is busy answers late,
/// too: less would be taken for a queue too often.
const WAIT_MAX: Duration = Duration::from_millis(5);
const WAIT_PART: u32 = 8;

/// A loss comes from a queue when packets wait for as long as this and a part of the shortest round trip.
const WAIT_OF_LOSS: Duration = Duration::from_millis(1);
const PART_OF_LOSS: u32 = 32;

/// Of so many bytes it is looked whether one in [`HEAVY_PART`] was lost: that is no chance any more.
const HEAVY_SAMPLE: u64 = 128 << 10;
const HEAVY_PART: u64 = 12;

/// Time for which the shortest round trip is remembered, at least half of it and at most all of it: routes change.
const MEMORY: Duration = Duration::from_secs(60);

/// At the start the window grows until so many acknowledgements in a row tell of a queue.
const START_SAMPLES: u32 = 8;

/// When the window has shrunk for so many round trips in a row and the queue is still there, others fill it.
const OTHERS_ROUNDS: u32 = 10;

/// How often is looked whether others are still there, and for how many round trips.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
const LOOK_ROUNDS: u32 = 2;

const PACKET: u64 = 1200;
const WINDOW_MIN: u64 = 16 * PACKET;
const WINDOW_MAX: u64 = 256 << 20;

/// The window of one connection.
#[derive(Clone, Copy, Debug)]
pub struct BulkWindow {
    bytes: u64,
    mode: Mode,
    /// The shortest round trips of this half of the memory and of the one before.
    shortest: [Duration; 2],
    half_since: Instant,
    round: Round,
    /// Bytes that came and that did not, since it was last looked whether many get lost.
    sample: (u64, u64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// It grows by half with every round trip: by twice it would fill a queue before the first packet that waited is
    /// acknowledged. `late` acknowledgements in a row have told of a queue.
    Starting { late: u32 },
    /// It keeps the path full and the queue short. `shrunk` counts round trips in a row that found a queue, and
    /// `bytes_before` is what it was before them.
    Alone { shrunk: u32, bytes_before: u64 },
    /// Others keep a queue.
    Sharing { look_at: Instant },
    /// For some round trips it sends so little that a queue of its own would vanish.
    Looking { rounds: u32, bytes_before: u64 },
}

const ALONE: Mode = Mode::Alone { shrunk: 0, bytes_before: 0 };

/// What one round trip has shown.
#[derive(Clone, Copy, Debug)]
struct Round {
    until: Instant,
    shortest: Duration,
    was_limited: bool,
    has_lost: bool,
}

impl BulkWindow {
    /// A window of a few packets.
    pub fn new(now: Instant) -> Self {
        Self {
            bytes: WINDOW_MIN,
            mode: Mode::Starting { late: 0 },
            shortest: [Duration::MAX; 2],
            half_since: now,
            round: Round::new(now),
            sample: (0, 0),
        }
    }

    /// Bytes that may be on their way.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A packet of `bytes` was acknowledged after `round_trip`. `is_limited` tells that more would have been sent if it
    /// had been allowed.
    pub fn acknowledge(&mut self, now: Instant, round_trip: Duration, bytes: u64, is_limited: bool) {
        self.remember(now, round_trip);
        self.sample.0 += bytes;
        self.round.shortest = self.round.shortest.min(round_trip);
        self.round.was_limited |= is_limited;
        if let Mode::Starting { late } = self.mode {
            self.start(round_trip, late, if is_limited { bytes } else { 0 });
        }
        if now >= self.round.until {
            self.end_round(now);
            self.round = Round::new(now + round_trip);
        }
    }

    /// Bytes were lost.
    pub fn lose(&mut self, bytes: u64) {
        self.sample.1 += bytes;
        self.round.has_lost = true;
    }

    fn remember(&mut self, now: Instant, round_trip: Duration) {
        if now.since(self.half_since) > MEMORY / 2 {
            (self.shortest, self.half_since) = ([Duration::MAX, self.shortest[0]], now);
        }
        self.shortest[0] = self.shortest[0].min(round_trip);
    }

    fn base(&self) -> Duration {
        self.shortest[0].min(self.shortest[1])
    }

    fn is_wait(&self, wait: Duration) -> bool {
        wait > WAIT_MAX + self.base() / WAIT_PART
    }

    fn start(&mut self, round_trip: Duration, late: u32, bytes: u64) {
        let is_late = self.is_wait(round_trip.saturating_sub(self.base()));
        let late = if is_late { late + 1 } else { 0 };
        if late >= START_SAMPLES {
            // What was sent since those packets left is in the queue already.
            self.set(self.bytes - self.bytes / 4);
            self.mode = ALONE;
        } else {
            self.set(self.bytes + bytes / 2);
            self.mode = Mode::Starting { late };
        }
    }

    fn end_round(&mut self, now: Instant) {
        let base = self.base();
        let wait = self.round.shortest.saturating_sub(base);
        let is_wait = self.is_wait(wait);
        let is_heavy = self.is_loss_heavy();
        let has_lost = self.round.has_lost && wait > WAIT_OF_LOSS + base / PART_OF_LOSS;
        match self.mode {
            Mode::Starting { .. } if is_heavy => {
                self.set(self.bytes / 2);
                self.mode = ALONE;
            }
            Mode::Starting { .. } => {}
            Mode::Alone { shrunk, bytes_before } if is_wait => {
                let bytes_before = if shrunk == 0 { self.bytes } else { bytes_before };
                self.set(self.bytes - self.bytes / 8);
                self.mode = Mode::Alone { shrunk: shrunk + 1, bytes_before };
                if shrunk + 1 >= OTHERS_ROUNDS {
                    // It was for nothing.
                    self.set(bytes_before);
                    self.mode = Mode::Sharing { look_at: now + LOOK_INTERVAL };
                }
            }
            Mode::Alone { .. } if has_lost || is_heavy => {
                self.set(self.bytes - self.bytes / 8);
                self.mode = ALONE;
            }
            Mode::Alone { .. } => {
                if self.round.was_limited {
                    self.set(self.bytes + self.bytes / 16);
                }
                self.mode = ALONE;
            }
            Mode::Sharing { .. } if !is_wait => self.mode = ALONE,
            Mode::Sharing { look_at } => self.share(now, look_at, base),
            Mode::Looking { .. } if !is_wait => self.mode = ALONE,
            Mode::Looking { rounds: 0, bytes_before } => {
                self.set(bytes_before);
                self.mode = Mode::Sharing { look_at: now + LOOK_INTERVAL };
            }
            Mode::Looking { rounds, bytes_before } => self.mode = Mode::Looking { rounds: rounds - 1, bytes_before },
        }
    }

    /// As TCP connections do that fill queues.
    fn share(&mut self, now: Instant, look_at: Instant, base: Duration) {
        if self.round.has_lost {
            self.set(self.bytes * 7 / 10);
        } else if self.round.was_limited {
            self.set(self.bytes + (self.bytes / 32).max(PACKET));
        }
        if now >= look_at {
            self.mode = Mode::Looking { rounds: LOOK_ROUNDS, bytes_before: self.bytes };
            let part = base.as_secs_f64() / self.round.shortest.as_secs_f64();
            self.set((self.bytes as f64 * part * 0.9) as u64);
        }
    }

    fn is_loss_heavy(&mut self) -> bool {
        let (came, lost) = self.sample;
        if came + lost < HEAVY_SAMPLE {
            return false;
        }
        self.sample = (0, 0);
        lost * HEAVY_PART > came
    }

    fn set(&mut self, bytes: u64) {
        self.bytes = bytes.clamp(WINDOW_MIN, WINDOW_MAX);
    }
}

impl Round {
    const fn new(until: Instant) -> Self {
        Self { until, shortest: Duration::MAX, was_limited: false, has_lost: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// A path with a queue, looked at each tenth of a millisecond.
    struct Path {
        now_us: u64,
        bytes_per_ms: u64,
        delay_us: u64,
        queue_us: u64,
        /// One packet in so many gets lost by chance.
        lossy: Option<u64>,
        /// What others keep in the queue.
        others_us: u64,
        /// When the line is free again.
        free_us: u64,
        sent: u64,
        /// When packets were sent and are acknowledged; nothing for a lost one, which is noticed by then.
        on_way: VecDeque<(u64, u64, bool)>,
    }

    /// What became of a run.
    #[derive(Debug)]
    struct Run {
        bytes_per_ms: u64,
        overflowed: u64,
        wait_max_us: u64,
    }

    const STEP_US: u64 = 100;

    impl Path {
        fn new(bytes_per_ms: u64, delay_ms: u64, queue_ms: u64) -> Self {
            let (delay_us, queue_us) = (delay_ms * 1000, queue_ms * 1000);
            let on_way = VecDeque::new();
            Self { now_us: 0, bytes_per_ms, delay_us, queue_us, lossy: None, others_us: 0, free_us: 0, sent: 0, on_way }
        }

        fn send(&mut self, run: &mut Run) {
            self.sent += 1;
            let wait = self.free_us.saturating_sub(self.now_us) + self.others_us;
            let is_full = wait + PACKET * 1000 / self.bytes_per_ms > self.queue_us;
            run.overflowed += u64::from(is_full);
            let is_lost = is_full || self.lossy.is_some_and(|part| self.sent.is_multiple_of(part));
            if !is_full {
                self.free_us = self.free_us.max(self.now_us) + PACKET * 1000 / self.bytes_per_ms;
                run.wait_max_us = run.wait_max_us.max(wait);
            }
            self.on_way.push_back((self.now_us, self.now_us + self.delay_us + wait.min(self.queue_us), is_lost));
        }

        /// For `ms`, as fast as the window and a pace above it allow.
        fn run(&mut self, window: &mut BulkWindow, ms: u64) -> Run {
            let mut run = Run { bytes_per_ms: 0, overflowed: 0, wait_max_us: 0 };
            let (end, mut credit, mut round_trip) = (self.now_us + ms * 1000, 0, self.delay_us);
            while self.now_us < end {
                self.now_us += STEP_US;
                let mut lost = 0;
                while self.on_way.front().is_some_and(|(_, back, _)| *back <= self.now_us) {
                    let Some((left, back, is_lost)) = self.on_way.pop_front() else { break };
                    if is_lost {
                        lost += PACKET;
                        continue;
                    }
                    round_trip = back - left;
                    run.bytes_per_ms += PACKET;
                    window.acknowledge(Instant(self.now_us), Duration::from_micros(round_trip), PACKET, true);
                }
                if lost > 0 {
                    window.lose(lost);
                }
                credit = (credit + window.bytes() * 5 / 4 * STEP_US / round_trip).min(20 * PACKET);
                while credit >= PACKET && (self.on_way.len() as u64 + 1) * PACKET <= window.bytes() {
                    credit -= PACKET;
                    self.send(&mut run);
                }
            }
            run.bytes_per_ms /= ms;
            run
        }
    }

    fn fresh() -> BulkWindow {
        BulkWindow::new(Instant(0))
    }

    #[test]
    fn a_path_is_full_and_its_queue_short_from_the_start() {
        for (bytes_per_ms, delay_ms) in [(6_250, 40), (12_500, 10), (1_250, 100), (125_000, 1), (125_000, 20)] {
            let (mut window, mut path) = (fresh(), Path::new(bytes_per_ms, delay_ms, 50));
            let start = path.run(&mut window, 3_000);
            assert_eq!(start.overflowed, 0, "{bytes_per_ms}, {delay_ms}: {start:?}");
            let run = path.run(&mut window, 3_000);
            assert!(run.bytes_per_ms * 100 >= bytes_per_ms * 95, "{bytes_per_ms}, {delay_ms}: {run:?}");
            assert!(run.wait_max_us < 20_000 + delay_ms * 250, "{bytes_per_ms}, {delay_ms}: {run:?}");
        }
    }

    #[test]
    fn chance_costs_little() {
        for (bytes_per_ms, delay_ms, lossy) in [(12_500, 10, 100), (6_250, 40, 100), (12_500, 10, 30)] {
            let (mut window, mut path) = (fresh(), Path::new(bytes_per_ms, delay_ms, 50));
            path.lossy = Some(lossy);
            path.run(&mut window, 3_000);
            let run = path.run(&mut window, 5_000);
            assert!(run.bytes_per_ms * 100 >= bytes_per_ms * 90, "{bytes_per_ms}, {delay_ms}, {lossy}: {run:?}");
        }
    }

    #[test]
    fn a_path_without_a_queue_is_not_flooded() {
        let (mut window, mut path) = (fresh(), Path::new(12_500, 20, 1));
        path.run(&mut window, 3_000);
        let run = path.run(&mut window, 5_000);
        let overflowed = run.overflowed * PACKET / 5_000;
        assert!(run.bytes_per_ms >= 9_000 && overflowed < 1_500, "{run:?}");
    }

    #[test]
    fn beside_others_it_does_not_starve_and_finds_out_when_they_are_gone() {
        let (mut window, mut path) = (fresh(), Path::new(6_250, 40, 100));
        path.run(&mut window, 3_000);
        path.others_us = 30_000;
        path.run(&mut window, 3_000);
        let run = path.run(&mut window, 10_000);
        assert!(matches!(window.mode, Mode::Sharing { .. } | Mode::Looking { .. }), "{window:?}");
        assert!(run.bytes_per_ms >= 2_000, "{run:?}");
        path.others_us = 0;
        path.run(&mut window, 8_000);
        let run = path.run(&mut window, 3_000);
        assert!(matches!(window.mode, Mode::Alone { .. }), "{window:?}");
        assert!(run.bytes_per_ms >= 5_800 && run.wait_max_us < 30_000, "{run:?}");
    }

    #[test]
    fn it_follows_a_path_that_becomes_narrow() {
        let (mut window, mut path) = (fresh(), Path::new(125_000, 20, 200));
        path.run(&mut window, 3_000);
        path.bytes_per_ms = 12_500;
        path.run(&mut window, 5_000);
        let run = path.run(&mut window, 10_000);
        assert!(run.bytes_per_ms >= 11_500, "{run:?}");
    }

    #[test]
    fn without_need_it_does_not_grow() {
        let mut window = fresh();
        for ms in 0..1000 {
            window.acknowledge(Instant(ms * 1000), Duration::from_millis(10), PACKET, false);
        }
        assert_eq!(window.bytes(), WINDOW_MIN);
    }
}

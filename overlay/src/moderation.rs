//! How long to let packets gather. To wake up costs as much as to carry some dozens of small packets that are there
//! already, and while the thread that carries them wakes up for each, nobody can send the next one. So when small
//! packets come fast, they are given a moment to gather, as network cards do.

use crate::time::Instant;
use std::time::Duration;

/// Time over which packets are counted.
const WINDOW: Duration = Duration::from_millis(1);

/// Packets in one window that are many: 32,000 in a second. A conversation of questions and answers has fewer.
const PACKETS_MANY: u64 = 32;

/// Mean size of packets for which it pays. Larger ones fill a send by themselves.
const BYTES_SMALL: u64 = 512;

/// Packets that should gather: they fill a send of the socket, or a super-frame.
const PACKETS_WANTED: u64 = 32;

/// The longest pause: what a packet waits at most.
const PAUSE_MAX: Duration = Duration::from_micros(100);

/// Counts packets and says when to pause.
#[derive(Debug)]
pub struct Moderation {
    since: Instant,
    packets: u64,
    bytes: u64,
    pause: Duration,
}

impl Moderation {
    /// Without a pause until there are many packets.
    pub fn new(now: Instant) -> Self {
        Self { since: now, packets: 0, bytes: 0, pause: Duration::ZERO }
    }

    /// The last turn brought so many packets with so many bytes. Returns how long to wait before the next look.
    pub fn pause(&mut self, now: Instant, packets: u64, bytes: u64) -> Duration {
        self.packets += packets;
        self.bytes += bytes;
        let passed = now.since(self.since);
        if passed >= WINDOW {
            let passed_us = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX).max(1);
            let is_many = self.packets * 1000 >= PACKETS_MANY.saturating_mul(passed_us);
            let is_small = self.bytes <= self.packets * BYTES_SMALL;
            self.pause = match is_many && is_small {
                true => Duration::from_micros(passed_us * PACKETS_WANTED / self.packets).min(PAUSE_MAX),
                false => Duration::ZERO,
            };
            (self.since, self.packets, self.bytes) = (now, 0, 0);
        }
        // What was brought is worth a pause only if there was something: an empty turn means that the rest waits.
        if packets == 0 { Duration::ZERO } else { self.pause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pause after a second of packets of `bytes` that come every `gap_us`, one in a turn.
    fn pause(gap_us: u64, bytes: u64) -> Duration {
        let mut moderation = Moderation::new(Instant(0));
        (1..=1_000_000 / gap_us).map(|turn| moderation.pause(Instant(turn * gap_us), 1, bytes)).last().unwrap()
    }

    #[test]
    fn fast_small_packets_gather() {
        assert_eq!(pause(10, 60), PAUSE_MAX);
        assert_eq!(pause(2, 60), Duration::from_micros(64));
    }

    #[test]
    fn slow_or_large_packets_do_not_wait() {
        assert_eq!(pause(50, 60), Duration::ZERO);
        assert_eq!(pause(10, 1500), Duration::ZERO);
        assert_eq!(pause(100, 65_000), Duration::ZERO);
    }

    #[test]
    fn it_ends_with_the_load() {
        let mut moderation = Moderation::new(Instant(0));
        for turn in 0..1000 {
            moderation.pause(Instant(turn * 10), 1, 60);
        }
        assert_eq!(moderation.pause(Instant(10_001), 0, 0), Duration::ZERO);
        assert_eq!(moderation.pause(Instant(50_000), 1, 60), Duration::ZERO);
    }
}

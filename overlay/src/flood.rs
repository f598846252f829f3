//! The limit on what one port may flood: broadcast, multicast and unknown destinations go to every host of a network,
//! so one guest's storm would be everybody's.

use crate::limits::{FLOOD_BURST, FLOOD_FRAMES_PER_S};
use crate::time::Instant;

/// A token bucket of frames.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FloodLimit {
    per_s: u64,
    burst: u64,
    /// Millionths of a frame.
    tokens: u64,
    filled: Instant,
}

const MILLION: u64 = 1_000_000;

impl Default for FloodLimit {
    fn default() -> Self {
        Self::new(FLOOD_FRAMES_PER_S, FLOOD_BURST)
    }
}

impl FloodLimit {
    /// So many frames a second, and at once.
    pub(crate) const fn new(per_s: u64, burst: u64) -> Self {
        Self { per_s, burst, tokens: burst * MILLION, filled: Instant(0) }
    }

    /// Takes one frame's token; false if there is none.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let micros = now.0.saturating_sub(self.filled.0);
        self.filled = self.filled.max(now);
        let refill = micros.saturating_mul(self.per_s);
        self.tokens = self.tokens.saturating_add(refill).min(self.burst * MILLION);
        let taken = self.tokens >= MILLION;
        if taken {
            self.tokens -= MILLION;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut limit = FloodLimit::default();
        let start = Instant(1_000_000);
        assert_eq!((0..FLOOD_BURST * 2).filter(|_| limit.take(start)).count() as u64, FLOOD_BURST);
        let later = start + Duration::from_millis(10);
        let passed = (0..FLOOD_BURST).filter(|_| limit.take(later)).count() as u64;
        assert_eq!(passed, FLOOD_FRAMES_PER_S / 100);
    }

    #[test]
    fn a_clock_that_stands_still_refills_nothing() {
        let mut limit = FloodLimit { tokens: 0, filled: Instant(5), ..FloodLimit::default() };
        assert!(!limit.take(Instant(5)));
        assert!(!limit.take(Instant(1)));
    }
}

//! A circuit breaker against floods. A link has no congestion window of its own, because conversations bring theirs; a
//! flood that brings none would fill a narrow path and push everybody else aside. Heavy loss for seconds tells such a
//! flood from conversations, which slow down. Then the link gets a window for a while.

use crate::time::Instant;
use std::time::Duration;

/// Loss above this is heavy: no conversation that reacts to loss causes so much of it.
const LOSS_MAX: f64 = 0.10;

/// Heavy loss for so long opens the breaker.
const PATIENCE: Duration = Duration::from_secs(3);

/// Packets in one sample below which their loss says nothing.
const PACKETS_MIN: u64 = 100;

/// How long the breaker stays open, at first and at most: twice as long when the flood was still there.
const OPEN_MIN: Duration = Duration::from_secs(10);
/// See [`OPEN_MIN`].
const OPEN_MAX: Duration = Duration::from_secs(160);

/// The breaker of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Breaker {
    sent: u64,
    lost: u64,
    heavy_since: Option<Instant>,
    open_until: Option<Instant>,
    closed_at: Instant,
    open_time: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { sent: 0, lost: 0, heavy_since: None, open_until: None, closed_at: Instant(0), open_time: OPEN_MIN }
    }
}

impl Breaker {
    /// Takes a connection's counters, which only grow, some times in a second. True while the breaker is open.
    pub fn sample(&mut self, now: Instant, sent: u64, lost: u64) -> bool {
        let (new_sent, new_lost) = (sent.saturating_sub(self.sent), lost.saturating_sub(self.lost));
        (self.sent, self.lost) = (sent, lost);
        if let Some(until) = self.open_until {
            if now < until {
                return true;
            }
            (self.open_until, self.closed_at) = (None, now);
        }
        let is_heavy = new_sent >= PACKETS_MIN && new_lost as f64 > new_sent as f64 * LOSS_MAX;
        if !is_heavy {
            self.heavy_since = None;
            return false;
        }
        let since = *self.heavy_since.get_or_insert(now);
        if now.since(since) < PATIENCE {
            return false;
        }
        let again = self.closed_at > Instant(0) && now.since(self.closed_at) < self.open_time;
        self.open_time = if again { (self.open_time * 2).min(OPEN_MAX) } else { OPEN_MIN };
        (self.heavy_since, self.open_until) = (None, Some(now + self.open_time));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `samples` half seconds with this loss in percent the breaker was open in.
    fn open(breaker: &mut Breaker, now: &mut Instant, packets: u64, percent: u64, samples: u32) -> u32 {
        (0..samples)
            .map(|_| {
                *now = *now + Duration::from_millis(500);
                let (sent, lost) = (breaker.sent + packets, breaker.lost + packets * percent / 100);
                u32::from(breaker.sample(*now, sent, lost))
            })
            .sum()
    }

    #[test]
    fn conversations_never_open_it() {
        let (mut breaker, mut now) = (Breaker::default(), Instant(0));
        assert_eq!(open(&mut breaker, &mut now, 5000, 5, 1000), 0);
        assert_eq!(open(&mut breaker, &mut now, 50, 60, 1000), 0, "few packets say nothing");
        for _ in 0..20 {
            assert_eq!(open(&mut breaker, &mut now, 5000, 40, 4), 0, "a burst is not a flood");
            open(&mut breaker, &mut now, 5000, 0, 1);
        }
    }

    #[test]
    fn a_flood_opens_it_for_ever_longer_times() {
        let (mut breaker, mut now) = (Breaker::default(), Instant(0));
        assert_eq!(open(&mut breaker, &mut now, 5000, 50, 6), 0);
        // While it is open there is a window, and little loss; then the flood is back.
        let mut share = 0;
        for _ in 0..2000 {
            let percent = if breaker.open_until.is_some_and(|until| until > now) { 1 } else { 50 };
            share += open(&mut breaker, &mut now, 5000, percent, 1);
        }
        assert!(share > 1850, "open in {share} of 2000 samples");
        open(&mut breaker, &mut now, 5000, 0, 400);
        assert_eq!(open(&mut breaker, &mut now, 5000, 0, 400), 0, "the flood is over");
    }
}

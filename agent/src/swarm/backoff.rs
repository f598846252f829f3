//! How long to wait before the next attempt: exponential, with jitter, from a seeded generator.

use std::time::Duration;

/// The bounds of a series of waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The wait after the first failure.
    pub min: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl Backoff {
    /// The wait after so many failures in a row: doubled each time, then spread by a quarter either way, so that
    /// hosts that lost the same peer don't all return in the same moment.
    pub fn delay(&self, failures: u32, random: &mut Random) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let wait = self.min.saturating_mul(1 << doublings).min(self.max);
        wait.mul_f64(0.75 + 0.5 * random.unit())
    }
}

/// A small generator (SplitMix64) for choices that need spread, not secrecy.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..1.
    pub fn unit(&mut self) -> f64 {
        // 53 bits are what a double holds.
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Takes `count` of `items` (or all), each with the same chance.
    pub fn choose<T>(&mut self, mut items: Vec<T>, count: usize) -> Vec<T> {
        let count = count.min(items.len());
        for i in 0..count {
            let span = items.len() - i;
            let pick = i + (self.unit() * span as f64) as usize;
            items.swap(i, pick);
        }
        items.truncate(count);
        items
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound_and_spread() {
        let backoff = Backoff { min: Duration::from_secs(1), max: Duration::from_secs(60) };
        let mut random = Random::new(1);
        for (failures, middle) in [(0, 1.0), (1, 1.0), (2, 2.0), (4, 8.0), (7, 60.0), (u32::MAX, 60.0)] {
            for _ in 0..100 {
                let wait = backoff.delay(failures, &mut random).as_secs_f64() / middle;
                assert!((0.75..=1.25).contains(&wait), "{failures}: {wait}");
            }
        }
    }

    #[test]
    fn choosing_is_fair_and_repeatable() {
        let items: Vec<_> = (0..10).collect();
        let mut counts = [0; 10];
        let mut random = Random::new(7);
        for _ in 0..10_000 {
            let chosen = random.choose(items.clone(), 3);
            assert_eq!(chosen.len(), 3);
            chosen.iter().for_each(|i| counts[*i] += 1);
        }
        assert!(counts.iter().all(|n| (2_700..3_300).contains(n)), "{counts:?}");
        assert_eq!(Random::new(3).choose(items.clone(), 4), Random::new(3).choose(items, 4));
        assert!(Random::new(3).choose(Vec::<u8>::new(), 4).is_empty());
    }
}

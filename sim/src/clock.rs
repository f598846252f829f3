//! Virtual time, and the clocks of hosts, which start anywhere, drift, and disagree about the date.

use crate::rng::Rng;
use std::ops::{Add, Sub};
use std::time::Duration;
use virtuoso_overlay::time::{Instant, Now, UnixTime};

/// The world's time in microseconds since its beginning. No host can see it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time(pub u64);

impl Time {
    /// So many seconds after the beginning.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs * SECOND)
    }

    /// The time since `earlier`, zero if that is later.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Time {
    type Output = Self;

    fn add(self, micros: u64) -> Self {
        Self(self.0.saturating_add(micros))
    }
}

impl Sub for Time {
    type Output = Duration;

    fn sub(self, other: Self) -> Duration {
        Duration::from_micros(self.since(other))
    }
}

/// Microseconds of a millisecond.
pub const MILLISECOND: u64 = 1_000;
/// Microseconds of a second.
pub const SECOND: u64 = 1_000_000;

/// What a host takes for the time.
#[derive(Clone, Copy, Debug)]
pub struct HostClock {
    origin: u64,
    drift_ppm: i64,
    wall_s: u64,
}

impl HostClock {
    /// A clock that drifts and lies as much as allowed at most.
    pub fn draw(rng: &mut Rng, drift_ppm_max: u32, skew_s_max: u32) -> Self {
        let signed = |rng: &mut Rng, max: u32| rng.below(2 * u64::from(max) + 1) as i64 - i64::from(max);
        Self {
            origin: rng.range(ORIGIN_MIN..ORIGIN_MAX),
            drift_ppm: signed(rng, drift_ppm_max),
            wall_s: EPOCH_S.saturating_add_signed(signed(rng, skew_s_max)),
        }
    }

    /// What the clock shows.
    pub fn now(&self, at: Time) -> Now {
        let elapsed = at.0.saturating_add_signed(at.0 as i64 * self.drift_ppm / MILLION);
        Now { mono: Instant(self.origin + elapsed), wall: UnixTime(self.wall_s + elapsed / SECOND) }
    }

    /// When the clock shows `local` or a little more.
    pub fn time_of(&self, local: Instant) -> Time {
        let elapsed = i128::from(local.0.saturating_sub(self.origin));
        let micros = elapsed * i128::from(MILLION) / i128::from(MILLION + self.drift_ppm) + 2;
        Time(u64::try_from(micros).unwrap_or(u64::MAX))
    }
}

/// The date on which every run begins. Any will do.
pub const EPOCH_S: u64 = 1_800_000_000;

/// Machines have been up for hours to weeks. Ages of rows are subtracted from the clock, so an origin must lie further
/// back than any age that counts.
const ORIGIN_MIN: u64 = 3_600 * SECOND;
const ORIGIN_MAX: u64 = 2_000_000 * SECOND;

const MILLION: i64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_never_fires_early() {
        let mut rng = Rng::new(1);
        for _ in 0..1_000 {
            let clock = HostClock::draw(&mut rng, 1_000, 60);
            let local = clock.now(Time(rng.below(1_000 * SECOND))).mono + Duration::from_micros(rng.below(SECOND));
            let at = clock.time_of(local);
            assert!(clock.now(at).mono >= local);
            assert!(clock.now(at).mono.since(local) < Duration::from_micros(10));
        }
    }
}

//! Time as an argument. The overlay never reads a clock: the agent passes the machine's, the simulator a virtual one.

use bincode::{Decode, Encode};
use std::ops::{Add, Sub};
use std::time::Duration;

/// A point of one host's monotonic clock, in microseconds since an origin of the caller's choice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Instant(pub u64);

/// Wall-clock time in seconds since 1970, as in certificates. Hosts' wall clocks may disagree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash, Encode, Decode)]
pub struct UnixTime(pub u64);

/// Both clocks, read at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// Monotonic: for every timer.
    pub mono: Instant,
    /// Wall clock: only for what hosts tell each other.
    pub wall: UnixTime,
}

impl Instant {
    /// The time since `earlier`, zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(by.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl Add<Duration> for UnixTime {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by.as_secs()))
    }
}

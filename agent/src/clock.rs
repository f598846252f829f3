//! The one place that reads the machine's clocks for the state machines.

use std::time::{SystemTime, UNIX_EPOCH};
use virtuoso_overlay::time::{Instant, Now, UnixTime};

/// Both clocks, with one origin of monotonic time for all threads of the agent.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: std::time::Instant,
}

impl Clock {
    /// A clock whose monotonic time begins now.
    pub fn start() -> Self {
        Self { origin: std::time::Instant::now() }
    }

    /// Both clocks.
    pub fn now(&self) -> Now {
        Now { mono: self.mono(), wall: wall() }
    }

    /// The monotonic clock.
    pub fn mono(&self) -> Instant {
        Instant::default() + self.origin.elapsed()
    }

    /// When the machine's clock will read `at`.
    pub fn deadline(&self, at: Instant) -> std::time::Instant {
        self.origin + at.since(Instant::default())
    }
}

/// The wall clock.
pub fn wall() -> UnixTime {
    UnixTime(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

//! The one place that reads the machine's clocks for the state machines.

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use virtuoso_overlay::time::{Instant, Now, UnixTime};

/// The monotonic time at the agent's start. Rows of other hosts are older than this agent, and a time before its start
/// must exist for them: some may be as old as ten refresh intervals of the largest swarm.
const START: Instant = Instant(3_600_000_000);

/// Both clocks, with one origin of monotonic time for all threads of the agent.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: std::time::Instant,
}

impl Clock {
    /// A clock that begins now.
    pub fn start() -> Self {
        Self { origin: std::time::Instant::now() }
    }

    /// Both clocks.
    pub fn now(&self) -> Now {
        Now { mono: self.mono(), wall: wall() }
    }

    /// The monotonic clock.
    pub fn mono(&self) -> Instant {
        START + self.origin.elapsed()
    }

    /// How long the agent has been running.
    pub fn uptime(&self) -> Duration {
        self.origin.elapsed()
    }

    /// When the machine's clock will read `at`.
    pub fn deadline(&self, at: Instant) -> std::time::Instant {
        self.origin + at.since(START)
    }
}

/// The wall clock.
pub fn wall() -> UnixTime {
    UnixTime(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

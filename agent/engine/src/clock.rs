//! The engine's clock: one reading serves a whole turn of the loop. It is the only place of the data plane that asks
//! the operating system for the time. It is not the control plane's clock: the two never compare instants.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use virtuoso_overlay::time::{self, Now, UnixTime};

/// Turns readings into the overlay's time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

/// One reading.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tick {
    /// For QUIC, which takes the standard library's instants.
    pub(crate) at: Instant,
    /// For the overlay.
    pub(crate) now: Now,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { origin: Instant::now() }
    }

    pub(crate) fn tick(&self) -> Tick {
        let at = Instant::now();
        let micros = u64::try_from(at.duration_since(self.origin).as_micros()).unwrap_or(u64::MAX);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Tick { at, now: Now { mono: time::Instant(micros), wall: UnixTime(wall) } }
    }

    /// The standard library's instant for one of the overlay.
    pub(crate) fn instant(&self, overlay: time::Instant) -> Instant {
        self.origin.checked_add(Duration::from_micros(overlay.0)).unwrap_or(self.origin + FAR)
    }
}

/// A year: what stands for "never" where an instant can't express the overlay's.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_convert_both_ways() {
        let clock = Clock::new();
        let tick = clock.tick();
        assert!(tick.at - clock.instant(tick.now.mono) < Duration::from_micros(1));
        assert!(clock.instant(time::Instant(u64::MAX)) > tick.at);
    }
}

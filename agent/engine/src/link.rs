//! The link to one peer: what outlives its connections. Addresses, when to dial again, and where its frames go.

use super::LinkLimits;
use super::links::Place;
use super::stats::{LinkState, TrafficCounters};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The first wait after a failed attempt, and the longest.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// A connection that was up for this long ends the row of failures.
const STABLE_TIME: Duration = Duration::from_secs(10);

/// Attempts in a row after which a link is left alone until someone asks for it again: about a quarter of an hour.
const ATTEMPTS_MAX: u32 = 36;

/// A link.
#[derive(Debug)]
pub(super) struct Link {
    /// Where the peer may be reached, best first.
    pub(super) addresses: Vec<SocketAddr>,
    /// The slot of the connection that is up.
    pub(super) active: Option<u16>,
    /// The slot of the connection that this host is making.
    pub(super) dialling: Option<u16>,
    /// What limits it, if that is not what limits all.
    pub(super) limits: Option<LinkLimits>,
    /// Whether this host wants the link: then it dials, and dials again.
    pub(super) is_wanted: bool,
    /// When the next attempt is due.
    pub(super) retry_at: Option<Instant>,
    /// The shard that has its frames.
    pub(super) place: Place,
    /// Frames that are not counted in the shard: those that a crew brought, or had no room for.
    pub(super) traffic: TrafficCounters,
    /// Why the last attempt or connection ended.
    pub(super) error: Option<String>,
    failures: u32,
    up_since: Option<Instant>,
}

impl Link {
    /// A link that nobody has asked for.
    pub(super) fn new(place: Place) -> Self {
        Self {
            addresses: Vec::new(),
            active: None,
            dialling: None,
            limits: None,
            is_wanted: false,
            retry_at: None,
            place,
            traffic: TrafficCounters::default(),
            error: None,
            failures: 0,
            up_since: None,
        }
    }

    /// The link is up by the connection in `slot`.
    pub(super) fn rise(&mut self, now: Instant, slot: u16) {
        self.active = Some(slot);
        self.dialling = None;
        self.retry_at = None;
        self.up_since = Some(now);
        self.error = None;
    }

    /// The active connection is gone.
    pub(super) fn fall(&mut self, now: Instant, reason: String) {
        self.active = None;
        self.error = Some(reason);
        if self.up_since.take().is_some_and(|since| now.duration_since(since) >= STABLE_TIME) {
            self.failures = 0;
        }
    }

    /// How long the link has been up.
    pub(super) fn age(&self, now: Instant) -> Duration {
        self.up_since.map_or(Duration::ZERO, |since| now.duration_since(since))
    }

    /// Plans the next attempt: the wait doubles with every failure. `noise` spreads hosts that failed together.
    pub(super) fn back_off(&mut self, now: Instant, at_least: Duration, noise: u16) {
        if !self.is_wanted || self.active.is_some() {
            return;
        }
        self.failures += 1;
        if self.failures > ATTEMPTS_MAX {
            self.is_wanted = false;
            return;
        }
        let wait = RETRY_MIN.saturating_mul(1 << self.failures.min(8).saturating_sub(1)).min(RETRY_MAX);
        // Between three quarters and five quarters.
        let wait = wait.mul_f32(0.75 + f32::from(noise) / f32::from(u16::MAX) / 2.0);
        self.retry_at = Some(now + wait.max(at_least));
    }

    /// Someone wants the link, now.
    pub(super) fn want(&mut self, now: Instant) {
        if !self.is_wanted {
            self.is_wanted = true;
            self.failures = 0;
        }
        if self.active.is_none() && self.dialling.is_none() && self.retry_at.is_none() {
            self.retry_at = Some(now);
        }
    }

    /// The peer's addresses changed: what failed before may work now.
    pub(super) fn readdress(&mut self, now: Instant, addresses: Vec<SocketAddr>) {
        if self.addresses == addresses {
            return;
        }
        self.addresses = addresses;
        self.failures = 0;
        if self.is_wanted && self.active.is_none() && self.dialling.is_none() {
            self.retry_at = Some(now);
        }
    }

    /// What the link is doing; `is_secured` tells whether the connection being made has finished its handshake.
    pub(super) fn state(&self, is_secured: bool) -> LinkState {
        match (self.active, self.dialling, self.retry_at) {
            (Some(_), _, _) => LinkState::Up,
            (None, Some(_), _) if is_secured => LinkState::Hello,
            (None, Some(_), _) => LinkState::Connecting,
            (None, None, Some(_)) => LinkState::Backoff,
            (None, None, None) => LinkState::Idle,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end() {
        let now = Instant::now();
        let mut link = Link::new(Place::Home);
        link.want(now);
        assert_eq!(link.retry_at, Some(now));
        let mut waits = Vec::new();
        while link.is_wanted {
            link.retry_at = None;
            link.back_off(now, Duration::ZERO, u16::MAX / 2);
            waits.extend(link.retry_at.map(|at| at - now));
        }
        assert_eq!(waits.len(), ATTEMPTS_MAX as usize);
        assert!(waits[0] < Duration::from_millis(300), "{waits:?}");
        assert!(waits.is_sorted(), "{waits:?}");
        assert!(*waits.last().unwrap() <= RETRY_MAX.mul_f32(1.25));
    }

    #[test]
    fn a_short_life_does_not_end_the_row_of_failures() {
        let now = Instant::now();
        let mut link = Link::new(Place::Home);
        link.want(now);
        for _ in 0..5 {
            link.back_off(now, Duration::ZERO, 0);
        }
        link.rise(now, 0);
        link.fall(now + Duration::from_secs(1), "gone".into());
        link.back_off(now, Duration::ZERO, 0);
        assert!(link.retry_at.unwrap() - now > Duration::from_secs(2));
        link.rise(now, 0);
        link.fall(now + STABLE_TIME, "gone".into());
        link.back_off(now, Duration::ZERO, 0);
        assert!(link.retry_at.unwrap() - now < Duration::from_secs(1));
    }
}

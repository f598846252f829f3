//! How much a link may have on its way: QUIC's congestion controllers, of which one has the word at a time.
//!
//! The word can pass from one to another on a connection that is up: when the operator's setting is known, and when a
//! flood opens the circuit breaker. One that does not have it may listen all the same, for networks that are limited by
//! its rule: what it would allow if it had the word is what they may send.

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, CubicConfig};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Instant;
use virtuoso_overlay::congestion::Congestion;
use virtuoso_overlay::delay_window::DelayWindow;
use virtuoso_overlay::time;

/// Makes controllers for connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Windows(pub(super) Congestion);

/// The controllers of one connection.
pub(super) struct Window {
    rule: Arc<Rule>,
    cubic: Box<dyn Controller>,
    delay: DelayWindow,
    origin: Instant,
}

impl ControllerFactory for Windows {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let rule = Rule::default();
        rule.set(self.0);
        let window = Window {
            rule: Arc::new(rule),
            cubic: Arc::new(CubicConfig::default()).build(now, mtu),
            delay: DelayWindow::new(time::Instant(0)),
            origin: now,
        };
        window.publish();
        Box::new(window)
    }
}

/// Which of a connection's controllers has the word: shared by QUIC, which owns the controllers, and the connection.
#[derive(Debug, Default)]
pub(super) struct Rule {
    setting: AtomicU8,
    /// Whether the circuit breaker is open.
    is_open: AtomicBool,
    /// Whether a network is limited by Cubic's window, or by the one that keeps delays short.
    cubic_listens: AtomicBool,
    delay_listens: AtomicBool,
    /// Whether such a limit holds something up.
    is_held: AtomicBool,
    /// What the two windows are, in bytes.
    cubic_bytes: AtomicU64,
    delay_bytes: AtomicU64,
}

impl Rule {
    /// Changes the operator's setting.
    pub(super) fn set(&self, setting: Congestion) {
        self.setting.store(setting as u8, Ordering::Relaxed);
    }

    /// Opens or closes the breaker, and says whether it was open.
    pub(super) fn open_breaker(&self, is_open: bool) -> bool {
        self.is_open.swap(is_open, Ordering::Relaxed)
    }

    /// Takes over what another rule says. Networks that are limited make themselves heard with their next packet.
    pub(super) fn follow(&self, other: &Self) {
        self.setting.store(other.setting.load(Ordering::Relaxed), Ordering::Relaxed);
        self.open_breaker(other.is_open.load(Ordering::Relaxed));
    }

    /// The window by which networks are limited that have this rule, in bytes. It follows the path from the first time
    /// on that it is asked for.
    pub(super) fn window_for_networks(&self, congestion: Congestion) -> Option<u64> {
        let (listens, bytes) = self.for_networks(congestion)?;
        listens.store(true, Ordering::Relaxed);
        Some(bytes.load(Ordering::Relaxed))
    }

    /// Notes whether the limit of a network holds something up.
    pub(super) fn hold_up(&self, is_held: bool) {
        self.is_held.store(is_held, Ordering::Relaxed);
    }

    /// Whether a controller with this rule, which has the word or not, must follow the path.
    fn is_heard(&self, congestion: Congestion, active: Congestion) -> bool {
        congestion == active
            || self.for_networks(congestion).is_some_and(|(listens, _)| listens.load(Ordering::Relaxed))
    }

    /// Whether a controller listens for networks, and its window.
    fn for_networks(&self, congestion: Congestion) -> Option<(&AtomicBool, &AtomicU64)> {
        match congestion {
            Congestion::None => None,
            Congestion::Cubic => Some((&self.cubic_listens, &self.cubic_bytes)),
            Congestion::Delay => Some((&self.delay_listens, &self.delay_bytes)),
        }
    }

    /// Which one has the word.
    pub(super) fn active(&self) -> Congestion {
        let setting = self.setting.load(Ordering::Relaxed);
        match [Congestion::Cubic, Congestion::Delay].into_iter().find(|known| *known as u8 == setting) {
            Some(congestion) => congestion,
            None if self.is_open.load(Ordering::Relaxed) => Congestion::Cubic,
            None => Congestion::None,
        }
    }
}

/// The rule of a connection.
pub(super) fn rule_of(quic: &quinn_proto::Connection) -> Arc<Rule> {
    let window = quic.congestion_state().clone_box().into_any().downcast::<Window>();
    window.map_or_else(|_| Arc::default(), |window| window.rule)
}

impl Window {
    /// Lets the connection see what the windows are.
    fn publish(&self) {
        self.rule.cubic_bytes.store(self.cubic.window(), Ordering::Relaxed);
        self.rule.delay_bytes.store(self.delay.bytes(), Ordering::Relaxed);
    }
}

impl Controller for Window {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        let active = self.rule.active();
        // Without the word, what is sent says nothing of the need for more; what the limit holds up does.
        let is_idle = |rule| if rule == active { app_limited } else { !self.rule.is_held.load(Ordering::Relaxed) };
        if self.rule.is_heard(Congestion::Cubic, active) {
            self.cubic.on_ack(now, sent, bytes, is_idle(Congestion::Cubic), rtt);
        }
        if self.rule.is_heard(Congestion::Delay, active) {
            let micros = u64::try_from(now.duration_since(self.origin).as_micros()).unwrap_or(u64::MAX);
            let round_trip = now.saturating_duration_since(sent);
            self.delay.acknowledge(time::Instant(micros), round_trip, !is_idle(Congestion::Delay));
        }
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest);
        self.publish();
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        if self.rule.is_heard(Congestion::Cubic, self.rule.active()) {
            self.cubic.on_congestion_event(now, sent, is_persistent, lost_bytes);
            self.publish();
        }
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.cubic.on_mtu_update(mtu);
    }

    /// A window above 4 GiB also switches pacing off.
    fn window(&self) -> u64 {
        match self.rule.active() {
            Congestion::None => u64::MAX / 4,
            Congestion::Cubic => self.cubic.window(),
            Congestion::Delay => self.delay.bytes(),
        }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            rule: Arc::clone(&self.rule),
            cubic: self.cubic.clone_box(),
            delay: self.delay,
            origin: self.origin,
        })
    }

    fn initial_window(&self) -> u64 {
        self.window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_window_follows_the_path_for_networks_while_the_link_has_none() {
        let begin = Instant::now();
        let mut window = Arc::new(Windows(Congestion::None)).build(begin, 1472);
        let rule = window.clone_box().into_any().downcast::<Window>().map(|window| window.rule).ok().unwrap();
        let initial = rule.cubic_bytes.load(Ordering::Relaxed);
        let mut lose = |seconds| {
            let now = begin + Duration::from_secs(seconds);
            window.on_congestion_event(now, now, false, 1400);
            window.window()
        };
        lose(1);
        assert_eq!(rule.window_for_networks(Congestion::Cubic), Some(initial), "nobody listened");
        assert_eq!(lose(2), u64::MAX / 4, "the link itself is not limited");
        assert!(rule.window_for_networks(Congestion::Cubic) < Some(initial));
        assert_eq!(rule.window_for_networks(Congestion::None), None);
    }

    #[test]
    fn settings_and_breaker_outlast_new_controllers() {
        let (old, new) = (Rule::default(), Rule::default());
        old.open_breaker(true);
        new.follow(&old);
        assert_eq!(new.active(), Congestion::Cubic);
        old.set(Congestion::Delay);
        new.follow(&old);
        assert_eq!(new.active(), Congestion::Delay);
    }
}

//! How much a link may have on its way: QUIC's congestion controllers, of which one has the word at a time.
//!
//! All of them listen all the time, so that the word can pass from one to another on a connection that is up: when the
//! operator's setting is known, and when a flood opens the circuit breaker.

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, CubicConfig};
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Instant;
use virtuoso_overlay::delay_window::DelayWindow;
use virtuoso_overlay::time;

/// What limits a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    /// Nothing: guests' conversations bring their own control, and a second loop around them costs an inner BBR most
    /// of its rate on a lossy path.
    #[default]
    None,
    /// As one TCP connection: for paths that others share.
    Cubic,
    /// As long as packets wait at most some milliseconds on the path: for paths that nobody else uses.
    Delay,
}

impl Congestion {
    /// The stable name, as the API shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Cubic => "cubic",
            Self::Delay => "delay",
        }
    }
}

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
        Box::new(Window {
            rule: Arc::new(Rule { setting: AtomicU8::new(self.0 as u8), is_open: AtomicBool::new(false) }),
            cubic: Arc::new(CubicConfig::default()).build(now, mtu),
            delay: DelayWindow::new(time::Instant(0)),
            origin: now,
        })
    }
}

/// Which of a connection's controllers has the word: shared by QUIC, which owns the controllers, and the connection.
#[derive(Debug, Default)]
pub(super) struct Rule {
    setting: AtomicU8,
    /// Whether the circuit breaker is open.
    is_open: AtomicBool,
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

    /// Takes over what another rule says.
    pub(super) fn follow(&self, other: &Self) {
        self.setting.store(other.setting.load(Ordering::Relaxed), Ordering::Relaxed);
        self.open_breaker(other.is_open.load(Ordering::Relaxed));
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

impl Controller for Window {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        match self.rule.active() {
            Congestion::None => {}
            Congestion::Cubic => self.cubic.on_ack(now, sent, bytes, app_limited, rtt),
            Congestion::Delay => {
                let micros = u64::try_from(now.duration_since(self.origin).as_micros()).unwrap_or(u64::MAX);
                let round_trip = now.saturating_duration_since(sent);
                self.delay.acknowledge(time::Instant(micros), round_trip, !app_limited);
            }
        }
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        if self.rule.active() == Congestion::Cubic {
            self.cubic.on_congestion_event(now, sent, is_persistent, lost_bytes);
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

//! How much a control connection may have on its way, and how much may wait before that.
//!
//! Bulk that waits inside the agent is bulk that its sender believes sent: QEMU would pause a guest too early. So
//! little more is taken than the path can have on its way.

use quinn::congestion::{Controller, ControllerFactory, CubicConfig};
use quinn_proto::RttEstimator;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use virtuoso_overlay::bulk_window::BulkWindow;
use virtuoso_overlay::time;

/// Bytes that may wait besides those on their way: what the path takes in this time, and so much at least. A task that
/// waits for room wakes up in less.
const AHEAD_TIME: Duration = Duration::from_millis(10);
const AHEAD_BYTES_MIN: u64 = 64 << 10;
/// While packets get lost, what came after them counts as on its way until they are repeated; for how many round trips
/// after a loss, and how many windows that takes.
const REPAIR_ROUND_TRIPS: u32 = 8;
const REPAIR_WINDOWS: u64 = 3;
/// Paths with a shorter round trip are LANs: there the processors are the limit and not the line, so that time tells
/// nothing of queues.
const LAN_ROUND_TRIP: Duration = Duration::from_millis(4);
/// Bytes that wait on a connection at most, whatever its window.
const OUTFLOW_BYTES_MAX: u64 = 10 << 20;

/// What may wait to be sent on one connection.
#[derive(Debug)]
pub(super) struct Outflow {
    connection: quinn::Connection,
    begun: Instant,
    /// Packets lost so far, and microseconds after `begun` until which the last of them are being repaired.
    lost: AtomicU64,
    repaired_us: AtomicU64,
}

impl Outflow {
    /// That of a connection.
    pub(super) fn new(connection: quinn::Connection) -> Self {
        Self { connection, begun: Instant::now(), lost: AtomicU64::new(0), repaired_us: AtomicU64::new(0) }
    }

    /// Adapts the room to the path; called before something is written.
    pub(super) fn adapt(&self) {
        let path = self.connection.stats().path;
        let now_us = micros(self.begun.elapsed());
        if self.lost.swap(path.lost_packets, Ordering::Relaxed) != path.lost_packets {
            self.repaired_us.store(now_us + micros(path.rtt * REPAIR_ROUND_TRIPS), Ordering::Relaxed);
        }
        let is_repairing = now_us < self.repaired_us.load(Ordering::Relaxed);
        self.connection.set_send_window(room(path.cwnd, path.rtt, is_repairing));
    }
}

/// Bytes that may be unacknowledged, with those that wait.
fn room(window: u64, round_trip: Duration, is_repairing: bool) -> u64 {
    if round_trip < LAN_ROUND_TRIP {
        return OUTFLOW_BYTES_MAX;
    }
    let windows = if is_repairing { REPAIR_WINDOWS } else { 1 };
    let ahead = window.saturating_mul(micros(AHEAD_TIME)) / micros(round_trip);
    window.saturating_mul(windows).saturating_add(ahead.max(AHEAD_BYTES_MIN)).min(OUTFLOW_BYTES_MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Makes the windows of connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct BulkWindows;

/// The window of one connection: Cubic's on a LAN, else [`BulkWindow`].
struct Window {
    begun: Instant,
    bulk: BulkWindow,
    cubic: Box<dyn Controller>,
    shortest: Duration,
}

impl Window {
    fn at(&self, now: Instant) -> time::Instant {
        time::Instant(micros(now.saturating_duration_since(self.begun)))
    }
}

impl ControllerFactory for BulkWindows {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let cubic = Arc::new(CubicConfig::default()).build(now, mtu);
        let bulk = BulkWindow::new(time::Instant(0));
        Box::new(Window { begun: now, bulk, cubic, shortest: Duration::MAX })
    }
}

impl Controller for Window {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        let round_trip = now.saturating_duration_since(sent);
        self.shortest = self.shortest.min(round_trip);
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
        self.bulk.acknowledge(self.at(now), round_trip, bytes, !app_limited);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        self.cubic.on_congestion_event(now, sent, is_persistent, lost_bytes);
        if is_persistent {
            // Nothing came through for long: it may be another path by now.
            self.bulk = BulkWindow::new(self.at(now));
            self.shortest = Duration::MAX;
        } else {
            self.bulk.lose(lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.cubic.on_mtu_update(mtu);
    }

    fn window(&self) -> u64 {
        if self.shortest < LAN_ROUND_TRIP { self.cubic.window() } else { self.bulk.bytes() }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        let (begun, bulk, cubic, shortest) = (self.begun, self.bulk, self.cubic.clone_box(), self.shortest);
        Box::new(Self { begun, bulk, cubic, shortest })
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

    #[test]
    fn little_more_waits_than_is_on_its_way() {
        let rtt = Duration::from_millis(40);
        assert_eq!(room(400 << 10, rtt, false), 500 << 10);
        assert_eq!(room(400 << 10, rtt, true), 1300 << 10);
        assert_eq!(room(20 << 10, rtt, false), 84 << 10, "a task must not wait for each packet");
        assert_eq!(room(u64::MAX, rtt, true), OUTFLOW_BYTES_MAX);
        assert_eq!(room(20 << 10, Duration::from_millis(1), false), OUTFLOW_BYTES_MAX);
    }
}

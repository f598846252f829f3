//! A stream of numbered UDP datagrams at a steady rate. Its report tells which were lost, doubled or late.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Serialize;

use crate::guest::Guest;
use crate::interrupt;
use crate::sys;
use crate::wait;

pub(crate) struct Stream {
    progress: Arc<Progress>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<Tally>>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct StreamReport {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    /// The longest time between two arrivals.
    pub(crate) gap_max_us: u64,
    /// The longest time from sending to arrival.
    pub(crate) delay_max_us: u64,
}

impl Stream {
    /// Begins to send `per_second` datagrams with `payload_bytes` each.
    pub(crate) fn start(from: &Guest, to: &Guest, per_second: u64, payload_bytes: usize) -> Result<Self> {
        ensure!((HEADER_BYTES..=65_000).contains(&payload_bytes), "A payload has {HEADER_BYTES} to 65000 bytes");
        let progress = Arc::new(Progress::default());
        let target = to.socket_address(PORT)?;
        let sink = to.namespace().enter(|| bind(&target.to_string()))?;
        let source = from.namespace().enter(|| bind("0.0.0.0:0"))?;
        source.connect(target).with_context(|| format!("Cannot send to {target}"))?;
        let shared = Arc::clone(&progress);
        let receiver =
            std::thread::Builder::new().name("stream-sink".into()).spawn(move || sink_loop(&sink, &shared))?;
        let shared = Arc::clone(&progress);
        let send = move || source_loop(&source, &shared, per_second, payload_bytes);
        let sender = std::thread::Builder::new().name("stream-source".into()).spawn(send)?;
        Ok(Self { progress, sender, receiver })
    }

    /// Waits until `count` more datagrams have arrived.
    pub(crate) fn await_arrivals(&self, count: u64, limit: Duration) -> Result<()> {
        let wanted = self.progress.received.load(Ordering::Relaxed) + count;
        wait::until_true(format!("{count} more datagrams of the stream"), limit, || {
            let received = self.progress.received.load(Ordering::Relaxed);
            Ok((received >= wanted, format!("{received} of {wanted}")))
        })
    }

    /// Stops sending, waits for what is still on its way, and counts.
    pub(crate) fn finish(self) -> Result<StreamReport> {
        interrupt::check()?;
        self.progress.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| anyhow!("The stream's sender panicked"))??;
        let tally = self.receiver.join().map_err(|_| anyhow!("The stream's receiver panicked"))??;
        Ok(tally.report(sent))
    }
}

#[derive(Default)]
struct Progress {
    stop: AtomicBool,
    sent: AtomicU64,
    sender_done: AtomicBool,
    received: AtomicU64,
}

#[derive(Default)]
struct Tally {
    /// How often each number came.
    seen: Vec<u8>,
    received: u64,
    duplicated: u64,
    reordered: u64,
    highest: Option<u64>,
    last_arrival_ns: Option<u64>,
    gap_max_ns: u64,
    delay_max_ns: u64,
}

impl Tally {
    fn count(&mut self, number: u64, sent_ns: u64, now_ns: u64) {
        let Some(index) = usize::try_from(number).ok().filter(|index| *index < NUMBERS_MAX) else { return };
        if self.seen.len() <= index {
            self.seen.resize(index + 1, 0);
        }
        self.received += 1;
        self.duplicated += u64::from(self.seen[index] > 0);
        self.seen[index] = self.seen[index].saturating_add(1);
        self.reordered += u64::from(self.highest.is_some_and(|highest| number < highest));
        self.highest = self.highest.max(Some(number));
        let gap_ns = self.last_arrival_ns.map_or(0, |last| now_ns.saturating_sub(last));
        self.gap_max_ns = self.gap_max_ns.max(gap_ns);
        self.last_arrival_ns = Some(now_ns);
        self.delay_max_ns = self.delay_max_ns.max(now_ns.saturating_sub(sent_ns));
    }

    fn report(&self, sent: u64) -> StreamReport {
        let distinct = self.seen.iter().filter(|count| **count > 0).count() as u64;
        StreamReport {
            sent,
            received: self.received,
            lost: sent.saturating_sub(distinct),
            duplicated: self.duplicated,
            reordered: self.reordered,
            gap_max_us: self.gap_max_ns / 1000,
            delay_max_us: self.delay_max_ns / 1000,
        }
    }
}

fn source_loop(socket: &UdpSocket, progress: &Progress, per_second: u64, payload_bytes: usize) -> Result<u64> {
    sys::exact_timers();
    let mut payload = vec![0xa5; payload_bytes];
    let begin_ns = sys::monotonic_ns();
    let mut sent = 0;
    while !progress.stop.load(Ordering::Relaxed) && interrupt::check().is_ok() && sent < NUMBERS_MAX as u64 {
        let now_ns = sys::monotonic_ns();
        let owed = (now_ns - begin_ns).saturating_mul(per_second) / 1_000_000_000;
        // After a pause of the machine the debt is paid in steps, not as one burst that no queue holds.
        let burst_end = owed.min(sent + BURST_MAX);
        while sent < burst_end {
            payload[..8].copy_from_slice(&sent.to_be_bytes());
            payload[8..16].copy_from_slice(&sys::monotonic_ns().to_be_bytes());
            if let Err(error) = socket.send(&payload) {
                // Nobody answers ARP for a moment: what the kernel did not take was not sent.
                ensure!(is_passing(&error), "The stream cannot send: {error}");
                break;
            }
            sent += 1;
        }
        progress.sent.store(sent, Ordering::Relaxed);
        sys::sleep_until(now_ns + TICK_NS);
    }
    progress.sender_done.store(true, Ordering::Relaxed);
    Ok(sent)
}

fn sink_loop(socket: &UdpSocket, progress: &Progress) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut buffer = vec![0; 65_536];
    let mut quiet = 0;
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) if length >= HEADER_BYTES => {
                quiet = 0;
                let number = u64::from_be_bytes(buffer[..8].try_into().context("Eight bytes are eight bytes")?);
                let sent_ns = u64::from_be_bytes(buffer[8..16].try_into().context("Eight bytes are eight bytes")?);
                tally.count(number, sent_ns, sys::monotonic_ns());
                progress.received.store(tally.received, Ordering::Relaxed);
            }
            Ok(_) => {}
            Err(error) if is_passing(&error) => quiet += 1,
            Err(error) => return Err(error).context("The stream cannot receive"),
        }
        let done = progress.sender_done.load(Ordering::Relaxed);
        if done && quiet >= QUIET_PERIODS || interrupt::check().is_err() {
            return Ok(tally);
        }
    }
}

fn bind(address: &str) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(address).with_context(|| format!("Cannot bind {address}"))?;
    socket.set_read_timeout(Some(QUIET_PERIOD))?;
    // The sink must never be what loses a datagram. Only real root may exceed the system's limit.
    if sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER_BYTES).is_err() {
        sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, BUFFER_BYTES)?;
    }
    Ok(socket)
}

fn is_passing(error: &std::io::Error) -> bool {
    use ErrorKind::{ConnectionRefused, HostUnreachable, Interrupted, NetworkUnreachable, TimedOut, WouldBlock};
    matches!(
        error.kind(),
        WouldBlock | TimedOut | Interrupted | ConnectionRefused | HostUnreachable | NetworkUnreachable
    )
}

/// Number and time of sending.
const HEADER_BYTES: usize = 16;
const PORT: u16 = 7001;
const TICK_NS: u64 = 500_000;
/// In one tick; 100,000 a second at most.
const BURST_MAX: u64 = 50;
/// Sixteen minutes of 10,000 a second.
const NUMBERS_MAX: usize = 10_000_000;
const BUFFER_BYTES: i32 = 16 << 20;
const QUIET_PERIOD: Duration = Duration::from_millis(100);
/// After the last datagram was sent: longer than anything in a lab is held back.
const QUIET_PERIODS: u32 = 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_loss_duplicates_and_order_apart() {
        let mut tally = Tally::default();
        for (number, now) in [(0, 1_000), (1, 2_000), (3, 3_000), (2, 9_000), (3, 9_500)] {
            tally.count(number, now - 500, now);
        }
        let report = tally.report(6);
        assert_eq!((report.lost, report.duplicated, report.reordered), (2, 1, 1));
        assert_eq!((report.received, report.gap_max_us, report.delay_max_us), (5, 6, 0));
    }

    #[test]
    fn a_number_out_of_range_is_not_counted() {
        let mut tally = Tally::default();
        tally.count(u64::MAX, 0, 0);
        assert_eq!(tally.report(1).lost, 1);
    }
}

//! As many minimal packets as one sender can make, with no help from segmentation: what a path carries per packet.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;

use crate::guest::Guest;
use crate::interrupt;
use crate::sys;

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct FloodReport {
    pub(crate) sent_per_second: f64,
    pub(crate) received_per_second: f64,
}

/// Sends for `duration`, and counts what arrives in that time.
pub(crate) fn run(from: &Guest, to: &Guest, duration: Duration) -> Result<FloodReport> {
    let target = to.socket_address(PORT)?;
    let sink = to.namespace().enter(|| UdpSocket::bind(target).with_context(|| format!("Cannot bind {target}")))?;
    sink.set_read_timeout(Some(Duration::from_millis(100)))?;
    let source = from.namespace().enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    source.connect(target)?;
    let stop = AtomicBool::new(false);
    let begin = Instant::now();
    let (sent, received) = std::thread::scope(|scope| {
        let counter = scope.spawn(|| count(&sink, &stop));
        let sent = send(&source, begin + duration);
        stop.store(true, Ordering::Relaxed);
        (sent, counter.join())
    });
    let received = received.map_err(|_| anyhow!("The flood's receiver panicked"))?;
    interrupt::check()?;
    let seconds = begin.elapsed().as_secs_f64();
    Ok(FloodReport { sent_per_second: sent as f64 / seconds, received_per_second: received as f64 / seconds })
}

fn send(socket: &UdpSocket, end: Instant) -> u64 {
    let mut sent = 0;
    while Instant::now() < end && interrupt::check().is_ok() {
        // A full queue drops or refuses; both are part of the measurement.
        sent += sys::send_many(socket, &[0; PAYLOAD_BYTES], BATCH).unwrap_or(0) as u64;
    }
    sent
}

fn count(socket: &UdpSocket, stop: &AtomicBool) -> u64 {
    let mut received = 0;
    while !stop.load(Ordering::Relaxed) {
        received += sys::receive_many(socket, BATCH).unwrap_or(0) as u64;
    }
    received
}

const PORT: u16 = 7004;
/// With UDP, IP and Ethernet headers and the frame check sequence: a frame of 64 bytes.
const PAYLOAD_BYTES: usize = 18;
const BATCH: usize = 64;

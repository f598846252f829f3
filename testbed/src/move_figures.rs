//! What a move costs the traffic of the guest that moves. Used by the scenario that judges it and the benchmark
//! that reports it.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::lab::Lab;
use crate::traffic::latency;
use crate::traffic::stream::{Stream, StreamReport};

#[derive(Debug, Serialize)]
pub(crate) struct MoveFigures {
    pub(crate) stream: StreamReport,
    pub(crate) round_trip_ms: f64,
    /// From the first straggler that the talker sent after the hand-over until the last one.
    pub(crate) redirect_ms: f64,
}

impl MoveFigures {
    /// Moves `vm2` from beta to gamma while `vm1` on alpha sends it so many frames a second, in a lab with link `wan`.
    pub(crate) fn measure(lab: &mut Lab, frames_per_second: u64) -> Result<Self> {
        let times = latency::measure(lab.guest("vm1")?, lab.guest("vm2")?.ipv4()?, 50)?;
        let stream = Stream::start(lab.guest("vm1")?, lab.guest("vm2")?, frames_per_second, PAYLOAD_BYTES)?;
        stream.await_arrivals(frames_per_second, Duration::from_secs(10))?;
        lab.emulator("wan")?.watch(WATCHED_BYTES_MIN);
        lab.move_guest("vm2", "blue", "gamma")?;
        stream.await_arrivals(frames_per_second, Duration::from_secs(30))?;
        let stream = stream.finish()?;
        lab.await_holder("vm2", "blue", "gamma")?;
        let emulator = lab.emulator("wan")?;
        let to_old = emulator.sightings("alpha", "beta");
        let forwarded = emulator.sightings("beta", "gamma");
        let handed_over = *forwarded.first().context("The old host forwarded nothing")?;
        let redirect_ms = redirect_time(&to_old, handed_over).as_secs_f64() * 1e3;
        Ok(Self { stream, round_trip_ms: times.p50_us / 1e3, redirect_ms })
    }
}

/// How long the talker went on sending to the old host after the hand-over there. The stream ends at the first gap;
/// what is seen later is other traffic.
fn redirect_time(to_old: &[u64], handed_over_ns: u64) -> Duration {
    let mut last_ns = handed_over_ns;
    for &sent_ns in to_old.iter().skip_while(|sent_ns| **sent_ns < handed_over_ns) {
        if sent_ns - last_ns > STREAM_GAP_NS {
            break;
        }
        last_ns = sent_ns;
    }
    Duration::from_nanos(last_ns - handed_over_ns)
}

/// What a stream to a guest that moves has, unless threads share processors.
pub(crate) const FRAMES_PER_SECOND: u64 = 10_000;
const PAYLOAD_BYTES: usize = 256;
/// Every packet that carries a frame of the stream is longer, and few others are.
const WATCHED_BYTES_MIN: usize = 256;
/// The stream sends each half millisecond; a pause of this length is its end. Longer, and a stray packet of the
/// control plane would count as part of it.
const STREAM_GAP_NS: u64 = 5_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_redirect_ends_where_the_stream_does() {
        const MS: u64 = 1_000_000;
        let sent: Vec<u64> = [92, 96, 100, 104, 108, 112, 118, 400].map(|ms| ms * MS).to_vec();
        assert_eq!(redirect_time(&sent, 98 * MS), Duration::from_millis(14));
        assert_eq!(redirect_time(&[], 98 * MS), Duration::ZERO);
    }
}

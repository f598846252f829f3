//! Two agents at full rate for minutes: does what they keep in memory grow?

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde::Serialize;

use super::peers::{self, Tunnel};
use crate::console;
use crate::interrupt;
use crate::lab::Settings;
use crate::process;
use crate::report;
use crate::traffic::{flood, iperf};

/// How long, and with what.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Seconds of load
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Streams of TCP at once; between two runs of them comes a flood of small packets
    #[arg(long, default_value_t = 4)]
    streams: u64,
}

#[derive(Debug, Default, Serialize)]
struct Soak {
    seconds: f64,
    bytes: u64,
    small_packets: f64,
    /// Of both agents together, every few seconds.
    resident_bytes: Vec<u64>,
    /// The most in the last half, beyond the most in the first.
    growth_bytes: i64,
}

pub(crate) fn run(settings: &Settings, options: &Options) -> Result<()> {
    ensure!(options.seconds >= ROUND.as_secs(), "A soak takes at least {} seconds", ROUND.as_secs());
    let tunnel = peers::own().start(settings)?;
    let mut soak = Soak::default();
    let begin = Instant::now();
    while begin.elapsed().as_secs() < options.seconds {
        soak.round(&tunnel, options.streams)?;
        let resident = soak.resident_bytes.last().copied().unwrap_or(0);
        let (seconds, mib) = (begin.elapsed().as_secs(), resident as f64 / f64::from(1 << 20));
        console::line(format!("{seconds} s: {:.1} GB, {mib:.1} MiB", soak.bytes as f64 / 1e9));
    }
    soak.seconds = begin.elapsed().as_secs_f64();
    let (first, last) = soak.resident_bytes.split_at(soak.resident_bytes.len() / 2);
    let most = |values: &[u64]| values.iter().max().map_or(0, |bytes| *bytes as i64);
    soak.growth_bytes = most(last) - most(first);
    report::write(&settings.report, "soak.json", &soak)?;
    console::line(format!(
        "{:.0} s at {:.2} Gbit/s, {:.0} million small packets; memory grew by {} KiB in the last half",
        soak.seconds,
        soak.bytes as f64 * 8e-9 / soak.seconds,
        soak.small_packets / 1e6,
        soak.growth_bytes / 1024
    ));
    ensure!(soak.growth_bytes <= GROWTH_BYTES_MAX, "The agents' memory grows");
    Ok(())
}

impl Soak {
    /// TCP, then small packets, while memory is read.
    fn round(&mut self, tunnel: &Tunnel, streams: u64) -> Result<()> {
        let (left, right) = (&tunnel.left, &tunnel.right);
        let options = format!("-t {} -P {streams}", ROUND.as_secs());
        let figures = std::thread::scope(|scope| {
            let load = scope.spawn(|| iperf::run(left, right, &options));
            while !load.is_finished() {
                interrupt::pause(SAMPLE_TIME)?;
                let pids = tunnel.pids()?.into_iter();
                self.resident_bytes.push(pids.map(process::resident_bytes).sum::<Result<u64>>()?);
            }
            load.join().map_err(|_| anyhow!("The load panicked"))?.context("The load failed")
        })?;
        self.bytes += figures.bytes;
        let flood = flood::run(left, right, FLOOD)?;
        self.small_packets += flood.received_per_second * FLOOD.as_secs_f64();
        interrupt::check()
    }
}

const ROUND: Duration = Duration::from_secs(20);
const FLOOD: Duration = Duration::from_secs(2);
const SAMPLE_TIME: Duration = Duration::from_secs(2);
/// Of both agents. Allocators keep a little more here and there; a leak at full rate is larger within a minute.
const GROWTH_BYTES_MAX: i64 = 4 << 20;

//! Round trip times by `ping`, and what to say about many of them.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use serde::Serialize;

use crate::command;
use crate::guest::Guest;
use crate::netns::Namespace;

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct RoundTrips {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

pub(crate) fn measure(from: &Guest, to: IpAddr, count: u32) -> Result<RoundTrips> {
    let output = from.ping(to, &format!("-c {count} -i 0.002 -W 1"))?;
    let mut times = parse(&output);
    ensure!(times.len() * 2 > count as usize, "Only {} of {count} echoes came back", times.len());
    Ok(RoundTrips { p50_us: percentile(&mut times, 50), p99_us: percentile(&mut times, 99) })
}

/// Round trips while `load` runs for `time`, and what the load returns.
pub(crate) fn beside<T: Send>(
    from: &Namespace,
    to: IpAddr,
    time: Duration,
    load: impl FnOnce() -> Result<T> + Send,
) -> Result<(RoundTrips, T)> {
    // At shorter intervals ping polls, and takes the processor from what is measured.
    let count = (time.as_millis() / 10).max(10);
    std::thread::scope(|scope| {
        let load = scope.spawn(load);
        let mut ping = from.command("ping");
        ping.args(["-n", "-c", &count.to_string(), "-i", "0.01", "-W", "1", &to.to_string()]);
        // It says by its exit code that an echo was lost, which is what lossy paths do.
        let output = command::output(&mut ping)?.stdout;
        let result = load.join().map_err(|_| anyhow!("The load beside the echoes panicked"))??;
        let mut times = parse(&String::from_utf8_lossy(&output));
        ensure!(!times.is_empty(), "No echo of {count} came back");
        Ok((RoundTrips { p50_us: percentile(&mut times, 50), p99_us: percentile(&mut times, 99) }, result))
    })
}

/// The `p`-th percentile (nearest rank) of at least one value.
pub(crate) fn percentile(values: &mut [f64], p: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * p).div_ceil(100).clamp(1, values.len());
    values[rank - 1]
}

pub(crate) fn median(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| percentile(&mut values.to_vec(), 50))
}

fn parse(output: &str) -> Vec<f64> {
    let time = |line: &str| line.split_once("time=")?.1.split_whitespace().next()?.parse::<f64>().ok();
    output.lines().filter_map(time).map(|ms| ms * 1000.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_ping_prints() {
        let output = "64 bytes from 10.9.0.2: icmp_seq=1 ttl=64 time=0.250 ms\n\
                      64 bytes from 10.9.0.2: icmp_seq=2 ttl=64 time=1.5 ms\n\n2 packets transmitted";
        assert_eq!(parse(output), [250.0, 1500.0]);
    }

    #[test]
    fn percentiles_by_nearest_rank() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&mut values, 50), 50.0);
        assert_eq!(percentile(&mut values, 99), 99.0);
        assert_eq!(percentile(&mut [7.0], 99), 7.0);
        assert_eq!(median(&[]), None);
    }
}

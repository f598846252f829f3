//! The same two guests on two hosts, joined by each way of carrying Ethernet there is on this machine, measured
//! in turn, round by round, so that a change of the machine's mood hits all alike.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::Options;
use super::peers::{self, Tunnel};
use crate::console;
use crate::interrupt;
use crate::lab::Settings;
use crate::process;
use crate::traffic::latency::median;
use crate::traffic::{flood, iperf, latency};

#[derive(Debug, Serialize)]
pub(super) struct Tunnels {
    seconds_per_measurement: u64,
    measured: Vec<Measured>,
    /// What could not be measured, with the reason.
    skipped: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Measured {
    name: &'static str,
    /// How it was set up.
    about: &'static str,
    guest_mtu: u16,
    rounds: Vec<Round>,
    median: Round,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Round {
    tcp_1_gbit_s: f64,
    tcp_4_gbit_s: f64,
    small_packets_per_s: f64,
    ping_p50_us: f64,
    ping_p99_us: f64,
    /// Echoes beside one TCP stream, and beside four.
    ping_beside_1_p50_us: f64,
    ping_beside_1_p99_us: f64,
    ping_beside_4_p50_us: f64,
    ping_beside_4_p99_us: f64,
    /// Of both daemons, for each 10^9 bytes of the TCP transfers; zero where the kernel does the work.
    daemon_cpu_s_per_gb: f64,
    /// Of the whole machine, the guests' own work included.
    machine_cpu_s_per_gb: f64,
}

pub(super) fn measure(settings: &Settings, options: &Options) -> Result<Tunnels> {
    let mut skipped = Vec::new();
    let mut running: Vec<(Tunnel, Vec<Round>)> = Vec::new();
    let mut peers = peers::all();
    if !options.tunnel.is_empty() {
        peers.extend(peers::special());
        peers.retain(|peer| options.tunnel.iter().any(|name| name == peer.name));
    }
    for peer in peers {
        match peer.start(settings) {
            Ok(tunnel) => running.push((tunnel, Vec::new())),
            Err(error) => skipped.push(format!("{}: {error:#}", peer.name)),
        }
        interrupt::check()?;
    }
    for round in 0..options.rounds {
        for (tunnel, rounds) in &mut running {
            console::line(format!("round {} of {}: {}", round + 1, options.rounds, tunnel.name));
            match measure_round(tunnel, options.seconds) {
                Ok(figures) => rounds.push(figures),
                Err(error) => skipped.push(format!("{} in round {}: {error:#}", tunnel.name, round + 1)),
            }
            interrupt::check()?;
        }
    }
    let measured = running.into_iter().filter(|(_, rounds)| !rounds.is_empty()).map(Measured::from).collect();
    let tunnels = Tunnels { seconds_per_measurement: options.seconds, measured, skipped };
    tunnels.print();
    Ok(tunnels)
}

fn measure_round(tunnel: &Tunnel, seconds: u64) -> Result<Round> {
    let (left, right) = (&tunnel.left, &tunnel.right);
    let times = latency::measure(left, right.ipv4()?, PINGS)?;
    let daemons_before = tunnel.cpu_seconds()?;
    let machine_before = process::machine_cpu_seconds()?;
    let beside = |streams: usize| {
        let load = || iperf::run(left, right, &format!("-t {seconds} -P {streams}"));
        latency::beside(left.namespace(), right.ipv4()?, Duration::from_secs(seconds), load)
    };
    let (beside_one, one) = beside(1)?;
    let (beside_four, four) = beside(4)?;
    let gigabytes = (one.bytes + four.bytes) as f64 / 1e9;
    let daemons = tunnel.cpu_seconds()? - daemons_before;
    let machine = process::machine_cpu_seconds()? - machine_before;
    let flood = flood::run(left, right, Duration::from_secs(seconds))?;
    Ok(Round {
        tcp_1_gbit_s: one.bits_per_second / 1e9,
        tcp_4_gbit_s: four.bits_per_second / 1e9,
        small_packets_per_s: flood.received_per_second,
        ping_p50_us: times.p50_us,
        ping_p99_us: times.p99_us,
        ping_beside_1_p50_us: beside_one.p50_us,
        ping_beside_1_p99_us: beside_one.p99_us,
        ping_beside_4_p50_us: beside_four.p50_us,
        ping_beside_4_p99_us: beside_four.p99_us,
        daemon_cpu_s_per_gb: daemons / gigabytes,
        machine_cpu_s_per_gb: machine / gigabytes,
    })
}

impl From<(Tunnel, Vec<Round>)> for Measured {
    fn from((tunnel, rounds): (Tunnel, Vec<Round>)) -> Self {
        let middle = |value: fn(&Round) -> f64| median(&rounds.iter().map(value).collect::<Vec<_>>()).unwrap_or(0.0);
        let median = Round {
            tcp_1_gbit_s: middle(|round| round.tcp_1_gbit_s),
            tcp_4_gbit_s: middle(|round| round.tcp_4_gbit_s),
            small_packets_per_s: middle(|round| round.small_packets_per_s),
            ping_p50_us: middle(|round| round.ping_p50_us),
            ping_p99_us: middle(|round| round.ping_p99_us),
            ping_beside_1_p50_us: middle(|round| round.ping_beside_1_p50_us),
            ping_beside_1_p99_us: middle(|round| round.ping_beside_1_p99_us),
            ping_beside_4_p50_us: middle(|round| round.ping_beside_4_p50_us),
            ping_beside_4_p99_us: middle(|round| round.ping_beside_4_p99_us),
            daemon_cpu_s_per_gb: middle(|round| round.daemon_cpu_s_per_gb),
            machine_cpu_s_per_gb: middle(|round| round.machine_cpu_s_per_gb),
        };
        Self { name: tunnel.name, about: tunnel.about, guest_mtu: tunnel.left.mtu(), rounds, median }
    }
}

impl Tunnels {
    fn print(&self) {
        console::line("\nBetween two guests on two hosts of this machine (medians):");
        let header = [
            "tunnel",
            "MTU",
            "TCP x1",
            "TCP x4",
            "64 B packets",
            "ping p50, p99",
            "beside TCP x1",
            "beside TCP x4",
            "daemons",
            "machine",
        ];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(self.measured.iter().map(Measured::row));
        console::table(&rows);
        for reason in &self.skipped {
            console::line(format!("skipped: {reason}"));
        }
    }
}

impl Measured {
    fn row(&self) -> Vec<String> {
        let figures = &self.median;
        vec![
            self.name.to_owned(),
            self.guest_mtu.to_string(),
            format!("{:.2} Gbit/s", figures.tcp_1_gbit_s),
            format!("{:.2} Gbit/s", figures.tcp_4_gbit_s),
            format!("{:.0} /s", figures.small_packets_per_s),
            format!("{:.0}, {:.0} us", figures.ping_p50_us, figures.ping_p99_us),
            format!("{:.1}, {:.1} ms", figures.ping_beside_1_p50_us / 1e3, figures.ping_beside_1_p99_us / 1e3),
            format!("{:.1}, {:.1} ms", figures.ping_beside_4_p50_us / 1e3, figures.ping_beside_4_p99_us / 1e3),
            format!("{:.2} CPU s/GB", figures.daemon_cpu_s_per_gb),
            format!("{:.2} CPU s/GB", figures.machine_cpu_s_per_gb),
        ]
    }
}

const PINGS: u32 = 500;

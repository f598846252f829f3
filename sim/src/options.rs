//! What one run is like. Drawn from the seed: each class of fault is in or out, with its own rates ("swarm testing"),
//! because runs that have everything at once never reach the states that a few faults alone lead to.

use crate::rng::Rng;
use serde::Serialize;

/// What one run is like. A mean of zero means: never.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Options {
    /// Everything follows from it.
    pub seed: u64,
    /// Hosts.
    pub hosts: usize,
    /// Networks.
    pub networks: usize,
    /// Guests in each network.
    pub guests: usize,
    /// Hosts that have a port in each network.
    pub ports: usize,
    /// Seconds with faults.
    pub fault_s: u64,
    /// Seconds in which everything must be in order after the faults.
    pub settle_s: u64,
    /// One-way latency across the whole plane in microseconds.
    pub latency_us_max: u64,
    /// Random part of each latency.
    pub jitter_us_max: u64,
    /// Lost packets in a million.
    pub loss_ppm: u32,
    /// Datagrams in a million that are late by up to `late_us_max`.
    pub late_ppm: u32,
    /// See `late_ppm`.
    pub late_us_max: u64,
    /// Gossip messages in a million that come twice.
    pub duplicate_ppm: u32,
    /// Hosts in a million that are slow: each of their packets waits up to `slow_us_max` more.
    pub slow_ppm: u32,
    /// See `slow_ppm`.
    pub slow_us_max: u64,
    /// Clock drift.
    pub drift_ppm_max: u32,
    /// Wall clocks' difference.
    pub skew_s_max: u32,
    /// Seconds between partitions.
    pub partition_mean_s: u64,
    /// How long they last.
    pub partition_length_s: u64,
    /// Seconds between kills of agents whose guests run on.
    pub kill_mean_s: u64,
    /// Seconds between crashes of machines.
    pub crash_mean_s: u64,
    /// Seconds between goodbyes.
    pub goodbye_mean_s: u64,
    /// Seconds until a host is back after any of these.
    pub downtime_s: u64,
    /// Seconds between moves that the former holder is told of.
    pub planned_move_mean_s: u64,
    /// Seconds between moves by which a port goes and appears elsewhere.
    pub foreign_move_mean_s: u64,
    /// Seconds between moves that no bridge tells of.
    pub silent_move_mean_s: u64,
    /// How long a guest is nowhere when it moves, in milliseconds.
    pub move_gap_ms_max: u64,
    /// Seconds between second appearances of an address.
    pub double_mean_s: u64,
    /// Milliseconds between two frames of one guest.
    pub talk_mean_ms: u64,
    /// Control connections that a host tries to have.
    pub connections: usize,
    /// Whom it dials beyond that.
    pub redial: Redial,
}

/// Which members a host dials although it has enough connections.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq, clap::ValueEnum)]
pub enum Redial {
    /// None: halves of a healed partition then stay apart.
    Never,
    /// Those to which a connection was lost, one every few seconds: what the agent's connection manager does.
    Lost,
    /// Any that is silent or unknown, one every few seconds.
    Silent,
}

impl Options {
    /// A small swarm with a random mix of faults.
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x0070_7469_6f6e_7321);
        let hosts = rng.range(2..13) as usize;
        let mut some = |min: u64, max: u64| if rng.below(2) == 0 { 0 } else { rng.range(min..max) };
        let faults = Self {
            loss_ppm: some(1_000, 80_000) as u32,
            late_ppm: some(1_000, 100_000) as u32,
            duplicate_ppm: some(1_000, 100_000) as u32,
            slow_ppm: some(50_000, 400_000) as u32,
            drift_ppm_max: some(1, 300) as u32,
            skew_s_max: some(1, 300) as u32,
            partition_mean_s: some(10, 60),
            kill_mean_s: some(10, 60),
            crash_mean_s: some(15, 60),
            goodbye_mean_s: some(15, 60),
            planned_move_mean_s: some(2, 20),
            foreign_move_mean_s: some(2, 20),
            silent_move_mean_s: some(2, 20),
            double_mean_s: some(10, 60),
            ..Self::calm(seed, hosts)
        };
        Self {
            networks: rng.range(1..4) as usize,
            guests: rng.range(1..7) as usize,
            ports: rng.range(2..hosts as u64 + 1) as usize,
            fault_s: rng.range(20..120),
            latency_us_max: rng.range(100..150_000),
            jitter_us_max: rng.range(1..20_000),
            late_us_max: rng.range(1_000..500_000),
            slow_us_max: rng.range(1_000..300_000),
            partition_length_s: rng.range(1..50),
            downtime_s: rng.range(1..60),
            move_gap_ms_max: rng.range(1..2_000),
            talk_mean_ms: rng.range(50..1_000),
            connections: rng.range(2..9) as usize,
            // With so few connections, hosts that never look for others may stay apart, which agents with ten do not
            // in swarms of this size.
            redial: Redial::Silent,
            ..faults
        }
    }

    /// A swarm in which nothing goes wrong.
    pub fn calm(seed: u64, hosts: usize) -> Self {
        Self {
            seed,
            hosts,
            networks: 1,
            guests: 4,
            ports: hosts.min(8),
            fault_s: 30,
            settle_s: 120,
            latency_us_max: 40_000,
            jitter_us_max: 2_000,
            loss_ppm: 0,
            late_ppm: 0,
            late_us_max: 0,
            duplicate_ppm: 0,
            slow_ppm: 0,
            slow_us_max: 0,
            drift_ppm_max: 0,
            skew_s_max: 0,
            partition_mean_s: 0,
            partition_length_s: 20,
            kill_mean_s: 0,
            crash_mean_s: 0,
            goodbye_mean_s: 0,
            downtime_s: 10,
            planned_move_mean_s: 0,
            foreign_move_mean_s: 0,
            silent_move_mean_s: 0,
            move_gap_ms_max: 500,
            double_mean_s: 0,
            talk_mean_ms: 200,
            connections: 10,
            redial: Redial::Lost,
        }
    }

    /// Whether hosts, connections and frames come through whole: then no frame may be lost by moves that are told of.
    pub const fn is_lossless(&self) -> bool {
        self.loss_ppm == 0
            && self.partition_mean_s == 0
            && self.kill_mean_s == 0
            && self.crash_mean_s == 0
            && self.goodbye_mean_s == 0
            && self.foreign_move_mean_s == 0
            && self.silent_move_mean_s == 0
            && self.double_mean_s == 0
    }
}

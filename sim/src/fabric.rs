//! What lies between hosts: how long a packet takes, and whether it arrives. No delivery happens here.

use crate::clock::{SECOND, Time};
use crate::options::Options;
use crate::rng::Rng;

/// The ways between all hosts.
pub struct Fabric {
    places: Vec<Place>,
    /// Which part of the world a host is in; packets do not leave it.
    parts: Vec<u8>,
    cut_since: Time,
    alive: Vec<bool>,
    down_since: Vec<Time>,
    options: FabricOptions,
}

#[derive(Clone, Copy)]
struct Place {
    x: f64,
    y: f64,
    /// Each packet waits up to this long here.
    slow_us: u64,
}

/// The rates of [`Options`] that matter here. Faults end when they are reset.
#[derive(Clone, Copy)]
struct FabricOptions {
    latency_us_max: u64,
    jitter_us_max: u64,
    loss_ppm: u32,
    late_ppm: u32,
    late_us_max: u64,
}

impl Fabric {
    /// Places hosts at random.
    pub fn new(options: &Options, rng: &mut Rng) -> Self {
        let unit = |rng: &mut Rng| rng.below(1 << 20) as f64 / f64::from(1 << 20);
        let places = (0..options.hosts)
            .map(|_| {
                let (x, y) = (unit(rng), unit(rng));
                let slow_us = if rng.chance(options.slow_ppm) { options.slow_us_max } else { 0 };
                Place { x, y, slow_us }
            })
            .collect();
        Self {
            places,
            parts: vec![0; options.hosts],
            cut_since: Time(0),
            alive: vec![false; options.hosts],
            down_since: vec![Time(0); options.hosts],
            options: FabricOptions {
                latency_us_max: options.latency_us_max,
                jitter_us_max: options.jitter_us_max,
                loss_ppm: options.loss_ppm,
                late_ppm: options.late_ppm,
                late_us_max: options.late_us_max,
            },
        }
    }

    /// The time a packet takes at least.
    pub fn latency_us(&self, a: usize, b: usize) -> u64 {
        let (a, b) = (self.places[a], self.places[b]);
        let distance = ((a.x - b.x).powi(2) + (a.y - b.y).powi(2)).sqrt() / std::f64::consts::SQRT_2;
        LATENCY_US_MIN + (distance * self.options.latency_us_max as f64) as u64
    }

    /// How long a datagram takes, if it arrives.
    pub fn datagram(&self, rng: &mut Rng, a: usize, b: usize) -> Option<u64> {
        if !self.is_open(a, b) || rng.chance(self.options.loss_ppm) {
            return None;
        }
        let late = if rng.chance(self.options.late_ppm) { rng.below(self.options.late_us_max) } else { 0 };
        Some(self.travel_us(rng, a, b) + late)
    }

    /// How long `bytes` take over a reliable stream: each loss costs a retransmission.
    pub fn stream(&self, rng: &mut Rng, a: usize, b: usize, bytes: usize) -> Option<u64> {
        if !self.is_open(a, b) {
            return None;
        }
        let mut micros = self.travel_us(rng, a, b) + bytes as u64 * SECOND / BYTES_PER_S;
        while rng.chance(self.options.loss_ppm) {
            micros += 2 * self.latency_us(a, b) + RETRANSMISSION_US_MIN;
        }
        Some(micros)
    }

    /// Whether packets get from one to the other.
    pub fn is_open(&self, a: usize, b: usize) -> bool {
        self.alive[a] && self.alive[b] && self.parts[a] == self.parts[b]
    }

    /// Since when the two can't reach each other, if they can't.
    pub fn closed_since(&self, a: usize, b: usize) -> Option<Time> {
        let cut = (self.parts[a] != self.parts[b]).then_some(self.cut_since);
        let down = [a, b].into_iter().filter(|host| !self.alive[*host]).map(|host| self.down_since[host]);
        down.chain(cut).min()
    }

    /// A host starts or stops.
    pub fn set_alive(&mut self, now: Time, host: usize, alive: bool) {
        self.alive[host] = alive;
        if !alive {
            self.down_since[host] = now;
        }
    }

    /// Cuts the world into parts.
    pub fn cut(&mut self, now: Time, parts: Vec<u8>) {
        self.cut_since = now;
        self.parts = parts;
    }

    /// Makes the world whole.
    pub fn heal(&mut self) {
        self.parts.fill(0);
    }

    /// Ends loss and lateness.
    pub const fn calm(&mut self) {
        self.options.loss_ppm = 0;
        self.options.late_ppm = 0;
    }

    fn travel_us(&self, rng: &mut Rng, a: usize, b: usize) -> u64 {
        let slow = rng.below(self.places[a].slow_us + self.places[b].slow_us + 1);
        self.latency_us(a, b) + slow + rng.below(self.options.jitter_us_max + 1)
    }
}

/// Two hosts in one rack.
const LATENCY_US_MIN: u64 = 50;
/// QUIC's probe timeout has a floor of a few milliseconds beyond the round trip.
const RETRANSMISSION_US_MIN: u64 = 5_000;
/// 100 Mbit/s.
const BYTES_PER_S: u64 = 12_500_000;

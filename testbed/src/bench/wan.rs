//! TCP through the tunnel over long, lossy and narrow paths, beside the same TCP without the tunnel, in turn.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::Serialize;

use super::Options;
use crate::console;
use crate::interrupt;
use crate::lab::{Lab, Settings};
use crate::topology::{BitRate, Fraction, Impairment, Span};
use crate::traffic::latency::median;
use crate::traffic::{iperf, latency};

#[derive(Debug, Serialize)]
pub(super) struct Wan {
    seconds_per_measurement: u64,
    cases: Vec<Case>,
}

/// One kind of path and load; the figures of each round.
#[derive(Debug, Serialize)]
struct Case {
    name: String,
    plain_mbit_s: Vec<f64>,
    tunnel_mbit_s: Vec<f64>,
    /// Echoes beside the load, on the same way as it.
    plain_ping_ms: Vec<f64>,
    tunnel_ping_ms: Vec<f64>,
}

/// What is run over which path.
struct Plan {
    name: String,
    path: Impairment,
    options: String,
    /// Whether another TCP stream takes the same path, without the tunnel. Then the figure is that of one of two.
    has_rival: bool,
}

pub(super) fn measure(settings: &Settings, options: &Options) -> Result<Wan> {
    let settings = Settings { report: settings.report.join("wan"), ..settings.clone() };
    let mut lab = Lab::build(&TOPOLOGY.parse()?, &settings)?;
    lab.start_swarm()?;
    lab.create_network("blue", &[])?;
    for (guest, host) in [("vm1", "alpha"), ("vm2", "beta")] {
        lab.place_guest(guest, host, "blue")?;
    }
    lab.await_contact("vm1", "vm2")?;
    let mut plans = plans();
    plans.retain(|plan| options.path.is_empty() || options.path.iter().any(|part| plan.name.contains(part)));
    let mut cases: Vec<Case> = plans.iter().map(|plan| Case::new(&plan.name)).collect();
    for round in 0..options.rounds {
        for (plan, case) in plans.iter().zip(&mut cases) {
            console::line(format!("round {} of {}: {}", round + 1, options.rounds, plan.name));
            lab.emulator("wan")?.impair(plan.path);
            case.measure(&lab, plan, options.seconds)?;
            interrupt::check()?;
        }
    }
    let wan = Wan { seconds_per_measurement: options.seconds, cases };
    wan.print();
    Ok(wan)
}

fn plans() -> Vec<Plan> {
    let way = |ms: u64| Span(Duration::from_millis(ms));
    let mut plans = Vec::new();
    for percent in [0.0, 0.05, 0.5, 2.0] {
        for control in ["cubic", "bbr"] {
            let path = Impairment {
                delay: way(5),
                loss: Fraction(percent / 100.0),
                rate: Some(BitRate(200_000_000)),
                queue: Some(way(20)),
                ..Impairment::default()
            };
            let name = format!("10 ms, 200 Mbit/s, {percent} % lost, {control}");
            plans.push(Plan { name, path, options: format!("-C {control}"), has_rival: false });
        }
    }
    let narrow =
        Impairment { delay: way(10), rate: Some(BitRate(100_000_000)), queue: Some(way(20)), ..Impairment::default() };
    for (streams, has_rival) in [(1, false), (4, false), (1, true)] {
        let beside = if has_rival { " beside a plain one" } else { "" };
        let name = format!("20 ms, 100 Mbit/s, queue of 20 ms, {streams} x cubic{beside}");
        plans.push(Plan { name, path: narrow, options: format!("-C cubic -P {streams}"), has_rival });
    }
    // A full packet takes 12 ms.
    let slow = Impairment { rate: Some(BitRate(1_000_000)), queue: Some(way(200)), ..narrow };
    let name = "20 ms, 1 Mbit/s, queue of 200 ms, 1 x cubic".to_owned();
    plans.push(Plan { name, path: slow, options: "-C cubic".to_owned(), has_rival: false });
    plans
}

impl Case {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            plain_mbit_s: Vec::new(),
            tunnel_mbit_s: Vec::new(),
            plain_ping_ms: Vec::new(),
            tunnel_ping_ms: Vec::new(),
        }
    }

    fn measure(&mut self, lab: &Lab, plan: &Plan, seconds: u64) -> Result<()> {
        let options = format!("{} -t {seconds}", plan.options);
        let (alpha, beta) = (lab.host("alpha")?, lab.host("beta")?);
        let (vm1, vm2) = (lab.guest("vm1")?, lab.guest("vm2")?);
        let time = Duration::from_secs(seconds);
        let streams = if plan.has_rival { 2.0 } else { 1.0 };
        let plain = |options: &str| iperf::between(alpha.namespace(), beta.namespace(), beta.address().ip(), options);
        let both = if plan.has_rival { format!("{options} -P 2") } else { options.clone() };
        let (echoes, load) = latency::beside(alpha.namespace(), beta.address().ip(), time, || plain(&both))
            .with_context(|| format!("Without the tunnel: {}", plan.name))?;
        self.plain_mbit_s.push(load.bits_per_second / streams / 1e6);
        self.plain_ping_ms.push(echoes.p50_us / 1e3);
        let tunnel = || {
            thread::scope(|scope| {
                let rival = plan.has_rival.then(|| scope.spawn(|| plain(&options)));
                let load = iperf::run(vm1, vm2, &options);
                rival.map_or(Ok(()), |rival| match rival.join() {
                    Ok(result) => result.map(drop),
                    Err(_) => Err(anyhow!("The rival panicked")),
                })?;
                load
            })
        };
        let (echoes, load) = latency::beside(vm1.namespace(), vm2.ipv4()?, time, tunnel)
            .with_context(|| format!("Through the tunnel: {}", plan.name))?;
        self.tunnel_mbit_s.push(load.bits_per_second / 1e6);
        self.tunnel_ping_ms.push(echoes.p50_us / 1e3);
        Ok(())
    }

    fn row(&self) -> Vec<String> {
        let middle = |values: &[f64]| median(values).unwrap_or(0.0);
        let (plain, tunnel) = (middle(&self.plain_mbit_s), middle(&self.tunnel_mbit_s));
        vec![
            self.name.clone(),
            format!("{plain:.1} Mbit/s"),
            format!("{tunnel:.1} Mbit/s"),
            format!("{:.2}", tunnel / plain.max(f64::EPSILON)),
            format!("{:.1} ms", middle(&self.plain_ping_ms)),
            format!("{:.1} ms", middle(&self.tunnel_ping_ms)),
        ]
    }
}

impl Wan {
    fn print(&self) {
        console::line("\nTCP over an emulated path, without and with the tunnel (medians):");
        let header = ["path and load", "plain", "tunnel", "share", "plain ping", "tunnel ping"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(self.cases.iter().map(Case::row));
        console::table(&rows);
    }
}

const TOPOLOGY: &str = r#"
    [hosts.alpha]
    [hosts.beta]
    [links.wan]
    delay = "5ms"
    [links.wan.members]
    alpha = ["10.77.0.1/24"]
    beta = ["10.77.0.2/24"]
"#;

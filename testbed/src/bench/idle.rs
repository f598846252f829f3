//! What an agent uses while nobody asks anything of it.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use super::figure;
use crate::console;
use crate::interrupt;
use crate::lab::{Lab, Settings};
use crate::process;

#[derive(Debug, Serialize)]
pub(super) struct Idle {
    seconds: f64,
    hosts: Vec<IdleHost>,
}

#[derive(Debug, Serialize)]
struct IdleHost {
    name: String,
    resident_bytes: u64,
    cpu_percent: f64,
    received_bytes_per_second: f64,
    sent_bytes_per_second: f64,
}

/// The counters of one host at one time.
struct Reading {
    cpu_seconds: f64,
    received_bytes: u64,
    sent_bytes: u64,
}

pub(super) fn measure(settings: &Settings) -> Result<Idle> {
    let settings = Settings { report: settings.report.join("idle"), ..settings.clone() };
    let mut lab = Lab::build(&include_str!("../../topologies/lan3.toml").parse()?, &settings)?;
    lab.start_swarm()?;
    interrupt::pause(SETTLE_TIME)?;
    let names = lab.host_names();
    let before = names.iter().map(|name| read(&lab, name)).collect::<Result<Vec<_>>>()?;
    let begin = Instant::now();
    interrupt::pause(MEASURED_TIME)?;
    let seconds = begin.elapsed().as_secs_f64();
    let hosts = names
        .iter()
        .zip(before)
        .map(|(name, before)| compare(&lab, name, &before, seconds))
        .collect::<Result<Vec<_>>>()?;
    let idle = Idle { seconds, hosts };
    idle.print();
    Ok(idle)
}

fn read(lab: &Lab, name: &str) -> Result<Reading> {
    let host = lab.host(name)?;
    let (received_bytes, sent_bytes) = host.namespace().interface_bytes("lan")?;
    Ok(Reading { cpu_seconds: process::cpu_seconds(host.pid()?)?, received_bytes, sent_bytes })
}

fn compare(lab: &Lab, name: &str, before: &Reading, seconds: f64) -> Result<IdleHost> {
    let now = read(lab, name)?;
    Ok(IdleHost {
        name: name.to_owned(),
        resident_bytes: process::resident_bytes(lab.host(name)?.pid()?)?,
        cpu_percent: (now.cpu_seconds - before.cpu_seconds) / seconds * 100.0,
        received_bytes_per_second: (now.received_bytes - before.received_bytes) as f64 / seconds,
        sent_bytes_per_second: (now.sent_bytes - before.sent_bytes) as f64 / seconds,
    })
}

impl Idle {
    fn print(&self) {
        let worst = |value: fn(&IdleHost) -> f64| self.hosts.iter().map(value).fold(0.0, f64::max);
        console::line(format!("\nIdle agent in a swarm of three, over {:.0} s, the worst of the three:", self.seconds));
        console::table(&[
            figure("memory", worst(|host| host.resident_bytes as f64) / f64::from(1 << 20), "MiB", 60.0),
            figure("CPU", worst(|host| host.cpu_percent), "% of a core", 0.5),
            figure("sent", worst(|host| host.sent_bytes_per_second) / 1e3, "kB/s", 2.0),
            figure("received", worst(|host| host.received_bytes_per_second) / 1e3, "kB/s", 2.0),
        ]);
    }
}

/// Joining, address discovery and MTU probing are over then.
const SETTLE_TIME: Duration = Duration::from_secs(20);
/// Several periods of everything that an idle agent does.
const MEASURED_TIME: Duration = Duration::from_secs(60);

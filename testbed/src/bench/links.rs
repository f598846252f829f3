//! One host with many links: what they cost while nothing passes, and the memory that some take under full load.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;

use super::{Options, figure};
use crate::console;
use crate::interrupt;
use crate::lab::{Lab, Settings};
use crate::process;
use crate::traffic::iperf;
use crate::wait;

#[derive(Debug, Serialize)]
pub(super) struct Links {
    idle: IdleLinks,
    loaded: LoadedLinks,
}

/// The host in the middle while nothing passes.
#[derive(Debug, Serialize)]
struct IdleLinks {
    links: usize,
    seconds: f64,
    /// Of all threads.
    cpu_percent: f64,
    /// By name of the thread.
    thread_percent: BTreeMap<String, f64>,
    resident_bytes: u64,
}

/// The host in the middle while its guest sends to one behind each of some links at once.
#[derive(Debug, Serialize)]
struct LoadedLinks {
    links: usize,
    gbit_s: f64,
    resident_bytes_max: u64,
}

pub(super) fn measure(settings: &Settings, options: &Options) -> Result<Links> {
    let settings = Settings { report: settings.report.join("links"), ..settings.clone() };
    let count = usize::from(options.links);
    let lab = build(&settings, count)?;
    interrupt::pause(SETTLE_TIME)?;
    let idle = measure_idle(&lab)?;
    let loaded = measure_load(&lab, count.min(LOADED_LINKS), options.seconds)?;
    let links = Links { idle, loaded };
    links.print();
    Ok(links)
}

/// A hub and hosts around it on one LAN, each with a guest; the hub has a link to each.
fn build(settings: &Settings, links: usize) -> Result<Lab> {
    let mut topology = format!("founder = \"{HUB}\"\n[links.lan.members]\n{HUB} = [\"10.77.0.1/24\"]\n");
    for number in 0..links {
        let _ = writeln!(topology, "{} = [\"10.77.0.{}/24\"]", host(number), number + 2);
    }
    let _ = writeln!(topology, "[hosts.{HUB}]");
    for number in 0..links {
        let _ = writeln!(topology, "[hosts.{}]", host(number));
    }
    let mut lab = Lab::build(&topology.parse()?, settings)?;
    lab.start_swarm()?;
    lab.create_network("blue", &[])?;
    lab.place_guest("g", HUB, "blue")?;
    for number in 0..links {
        lab.place_guest(&guest(number), &host(number), "blue")?;
    }
    for number in 0..links {
        lab.await_contact("g", &guest(number))?;
        interrupt::check()?;
    }
    let hub = lab.host(HUB)?;
    wait::until_true(format!("{links} links"), LINKS_TIME_MAX, || {
        let up = hub.list(&["links"])?.iter().filter(|link| link["state"] == "up").count();
        Ok((up >= links, format!("{up} are up")))
    })?;
    Ok(lab)
}

fn measure_idle(lab: &Lab) -> Result<IdleLinks> {
    let hub = lab.host(HUB)?;
    let links = hub.list(&["links"])?.iter().filter(|link| link["state"] == "up").count();
    let before = process::thread_cpu_seconds(hub.pid()?)?;
    let begin = Instant::now();
    interrupt::pause(IDLE_TIME)?;
    let seconds = begin.elapsed().as_secs_f64();
    let mut thread_percent = process::thread_cpu_seconds(hub.pid()?)?;
    for (name, used) in &mut thread_percent {
        *used = (*used - before.get(name).copied().unwrap_or(0.0)) / seconds * 100.0;
    }
    let cpu_percent = thread_percent.values().sum();
    Ok(IdleLinks { links, seconds, cpu_percent, thread_percent, resident_bytes: process::resident_bytes(hub.pid()?)? })
}

fn measure_load(lab: &Lab, links: usize, seconds: u64) -> Result<LoadedLinks> {
    let pid = lab.host(HUB)?.pid()?;
    let hub = lab.guest("g")?;
    let guests = (0..links).map(|number| lab.guest(&guest(number))).collect::<Result<Vec<_>>>()?;
    let options = format!("-t {seconds}");
    thread::scope(|scope| {
        let options = &options;
        let run = |guest| scope.spawn(move || iperf::run(hub, guest, options));
        let loads: Vec<_> = guests.into_iter().map(run).collect();
        let mut resident_bytes_max = 0;
        while !loads.iter().all(thread::ScopedJoinHandle::is_finished) {
            resident_bytes_max = process::resident_bytes(pid)?.max(resident_bytes_max);
            interrupt::pause(Duration::from_millis(200))?;
        }
        let mut gbit_s = 0.0;
        for load in loads {
            let figures = load.join().map_err(|_| anyhow!("A load panicked"))?.context("A load failed")?;
            gbit_s += figures.bits_per_second / 1e9;
        }
        Ok(LoadedLinks { links, gbit_s, resident_bytes_max })
    })
}

impl Links {
    fn print(&self) {
        let Self { idle, loaded } = self;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        console::line(format!("\nA host with {} links, idle over {:.0} s:", idle.links, idle.seconds));
        // What is asked is for a hundred.
        let limit = idle.links as f64 / 100.0;
        let engine = idle.thread_percent.get("engine").copied().unwrap_or(0.0);
        console::table(&[
            figure("CPU, data plane", engine, "% of a core", limit),
            figure("CPU, all", idle.cpu_percent, "% of a core", limit),
            figure("memory", mib(idle.resident_bytes), "MiB", 64.0),
        ]);
        let rate = format!("{:.2} Gbit/s", loaded.gbit_s);
        console::line(format!("\nThe same host while its guest sends over {} of them, {rate} together:", loaded.links));
        console::table(&[figure("memory, most", mib(loaded.resident_bytes_max), "MiB", 64.0)]);
    }
}

fn host(number: usize) -> String {
    format!("h{number}")
}

fn guest(number: usize) -> String {
    format!("g{number}")
}

const HUB: &str = "hub";
/// Links that carry a load at once.
const LOADED_LINKS: usize = 8;
/// Joining, address discovery and MTU probing are over then.
const SETTLE_TIME: Duration = Duration::from_secs(20);
/// Several periods of everything that an idle agent does.
const IDLE_TIME: Duration = Duration::from_secs(30);
const LINKS_TIME_MAX: Duration = Duration::from_secs(30);

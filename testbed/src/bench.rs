//! Measurements, reported and never judged by time: a table and a page for people, and a JSON file for comparisons.

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use crate::bench::idle::Idle;
use crate::bench::images::Images;
use crate::bench::join::Join;
use crate::bench::links::Links;
use crate::bench::migrations::Migrations;
use crate::bench::tunnels::Tunnels;
use crate::bench::vms::Vms;
use crate::bench::wan::Wan;
use crate::console;
use crate::interrupt;
use crate::lab::Settings;
use crate::move_figures::MoveFigures;
use crate::report::{self, Machine};

mod idle;
mod images;
mod join;
mod links;
mod migrations;
mod moves;
mod page;
mod peers;
pub(crate) mod profile;
pub(crate) mod soak;
mod tunnels;
mod vms;
mod wan;

/// What to measure, and how long.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Parts to run; all if none is given
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Repetitions of each figure; the median is reported
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each throughput measurement
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// MiB of the image that is measured with
    #[arg(long, default_value_t = 1024)]
    image_mib: u64,
    /// Moves of a running VM, there and back; a quarter of them over a long and narrow path
    #[arg(long, default_value_t = 20)]
    moves: usize,
    /// Links of the host that `links` measures; each needs an agent with some 30 MiB
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u8).range(1..=200))]
    links: u8,
    /// Only this tunnel (raw, vxlan, virtuoso, threads, tinc, fastd, openvpn, n2n, vpncloud, quincy); may be
    /// repeated; by default all that are installed but threads
    #[arg(long)]
    tunnel: Vec<String>,
    /// Only those paths and loads of `wan` whose name contains this, such as "2 % lost, cubic"; may be repeated
    #[arg(long)]
    path: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// From the start of the third agent to equal tables on all three
    Join,
    /// A move under 10,000 frames a second
    Move,
    /// Memory, CPU and traffic of an agent that has nothing to do
    Idle,
    /// Many links of one host: idle, and eight of them under full load
    Links,
    /// Throughput and round trips beside other tunnels
    Tunnels,
    /// TCP over long, lossy and narrow paths, with and without the tunnel
    Wan,
    /// Import, disks by NBD, VMs whose image is elsewhere, copies
    Images,
    /// From the question for a host to a reservation there, and the list of a thousand VMs
    Vms,
    /// A VM moves while it runs, under echoes and TCP
    Migrations,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    #[serde(skip_serializing_if = "Option::is_none")]
    join: Option<Join>,
    #[serde(skip_serializing_if = "Vec::is_empty", rename = "move")]
    moves: Vec<MoveFigures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle: Option<Idle>,
    #[serde(skip_serializing_if = "Option::is_none")]
    links: Option<Links>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tunnels: Option<Tunnels>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wan: Option<Wan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    images: Option<Images>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vms: Option<Vms>,
    #[serde(skip_serializing_if = "Option::is_none")]
    migrations: Option<Migrations>,
    /// Parts that failed, with the reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failed: Vec<String>,
}

pub(crate) fn run(settings: &Settings, options: &Options) -> Result<()> {
    ensure!(
        options.rounds > 0 && options.seconds > 0 && options.moves > 0,
        "A measurement takes at least one round of one second, and one move"
    );
    let mut report = Report::new();
    let machine = &report.machine;
    console::line(format!(
        "Machine: {} x {}, Linux {}, load {}",
        machine.cpus, machine.processor, machine.kernel, machine.load
    ));
    for &part in Part::value_variants() {
        if !options.parts.is_empty() && !options.parts.contains(&part) {
            continue;
        }
        if let Err(error) = report.measure(part, settings, options) {
            interrupt::check()?;
            console::line(format!("{part:?} failed: {error:#}"));
            report.failed.push(format!("{part:?}: {error:#}"));
        }
    }
    report::write(&settings.report, "bench.json", &report)?;
    let file = settings.report.join("bench.html");
    page::write(&file, &report)?;
    console::line(format!("\nWritten to {} and bench.json beside it", file.display()));
    ensure!(report.failed.is_empty(), "{} parts could not be measured", report.failed.len());
    Ok(())
}

/// Whether VMs run while it is measured.
pub(crate) fn want_vms(options: &Options) -> bool {
    options.parts.is_empty() || [Part::Images, Part::Migrations].iter().any(|part| options.parts.contains(part))
}

impl Report {
    fn new() -> Self {
        Self {
            machine: Machine::look(),
            join: None,
            moves: Vec::new(),
            idle: None,
            links: None,
            tunnels: None,
            wan: None,
            images: None,
            vms: None,
            migrations: None,
            failed: Vec::new(),
        }
    }

    fn measure(&mut self, part: Part, settings: &Settings, options: &Options) -> Result<()> {
        match part {
            Part::Join => self.join = Some(join::measure(settings, options.rounds)?),
            Part::Move => self.moves = moves::measure(settings, options.rounds)?,
            Part::Idle => self.idle = Some(idle::measure(settings)?),
            Part::Links => self.links = Some(links::measure(settings, options)?),
            Part::Images => self.images = Some(images::measure(settings, options.rounds, options.image_mib)?),
            Part::Vms => self.vms = Some(vms::measure(settings, options.rounds)?),
            Part::Migrations => self.migrations = Some(migrations::measure(settings, options)?),
            Part::Tunnels => self.tunnels = Some(tunnels::measure(settings, options)?),
            Part::Wan => self.wan = Some(wan::measure(settings, options)?),
        }
        Ok(())
    }
}

/// A figure beside what is wanted of it.
fn figure(name: &str, value: f64, unit: &str, limit: f64) -> Vec<String> {
    let verdict = if value <= limit { "met" } else { "MISSED" };
    vec![name.to_owned(), format!("{value:.2} {unit}"), format!("<= {limit} {unit}"), verdict.to_owned()]
}

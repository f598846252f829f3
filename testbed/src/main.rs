//! `testbed`: labs of network namespaces that run the real agent, scenarios that judge it, benchmarks that measure
//! it. The agent is a separate program and is spoken to only through its client verbs.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use crate::lab::Settings;

mod api;
mod bench;
mod command;
mod console;
mod demo;
mod guest;
mod host;
mod interrupt;
mod lab;
mod log_check;
mod losses;
mod move_figures;
mod netns;
mod notify;
mod process;
mod report;
mod rfb;
mod root_image;
mod sandbox;
mod scenario;
mod site;
mod small_disk;
mod sys;
mod terminal;
mod test_guest;
mod topology;
mod traffic;
mod travelling_vm;
mod wait;
mod wan;

/// Labs of network namespaces that run the real agent.
///
/// Needs root, or a kernel that lets users make namespaces. Everything happens in private namespaces and is gone
/// when the program ends, however it ends.
#[derive(Debug, Parser)]
#[command(name = "testbed", version)]
struct Arguments {
    /// The agent's binary; by default `virtuoso` beside this program
    #[arg(long, global = true, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// Where logs and results go; by default `testbed-report` beside this program
    #[arg(long, global = true, value_name = "DIR")]
    report: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the scenarios
    List,
    /// Run scenarios; each is judged by what it sees and by the agents' logs
    Run(scenario::Options),
    /// Bring up the lab of a topology file and keep it until Ctrl-C
    Lab { file: PathBuf },
    /// Show a swarm of three hosts and VMs at work
    Demo,
    /// Measure, and print and write the figures
    Bench(bench::Options),
    /// Draw where an agent's time goes while it carries TCP, as a flame graph
    Profile(bench::profile::Options),
    /// Keep two agents at full rate for minutes, and see whether their memory grows
    Soak(bench::soak::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            console::complain(format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    if matches!(arguments.verb, Verb::List) {
        list();
        return Ok(ExitCode::SUCCESS);
    }
    let settings = settings(arguments.agent, arguments.report)?;
    // Before the private mounts and namespaces hide it.
    let topology = match &arguments.verb {
        Verb::Lab { file } => Some(topology::Topology::load(file)?),
        _ => None,
    };
    let has_vms = match &arguments.verb {
        Verb::Run(options) => scenario::want_vms(options)?,
        Verb::Bench(options) => bench::want_vms(options),
        Verb::Demo => true,
        _ => false,
    };
    if has_vms && let Err(error) = test_guest::TestGuest::prepare(&settings.agent) {
        console::complain(format!("No guest for VMs: {error:#}"));
    }
    interrupt::install()?;
    let obstacle = sandbox::enter().err().map(|error| format!("{error:#}")).or_else(sandbox::obstacle);
    if let Verb::Run(options) = &arguments.verb {
        return scenario::run(options, &settings, obstacle.as_deref());
    }
    if let Some(reason) = obstacle {
        bail!("{reason}");
    }
    match arguments.verb {
        Verb::List | Verb::Run(_) => {}
        Verb::Lab { .. } => site::run(&topology.context("The topology was just read")?, &settings)?,
        Verb::Demo => demo::run(&settings)?,
        Verb::Bench(options) => bench::run(&settings, &options)?,
        Verb::Profile(options) => bench::profile::run(&settings, &options)?,
        Verb::Soak(options) => bench::soak::run(&settings, &options)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list() {
    let mut rows = vec![vec!["SCENARIO".to_owned(), "PROVES".to_owned()]];
    rows.extend(scenario::all().iter().map(|scenario| vec![scenario.name.to_owned(), scenario.about.to_owned()]));
    console::table(&rows);
}

fn settings(agent: Option<PathBuf>, report: Option<PathBuf>) -> Result<Settings> {
    let own = std::env::current_exe().context("Cannot find this program's own file")?;
    let agent = agent.unwrap_or_else(|| own.with_file_name("virtuoso"));
    let report = report.unwrap_or_else(|| own.with_file_name("testbed-report"));
    let absolute = |path: PathBuf| std::path::absolute(&path).with_context(|| format!("Odd path {}", path.display()));
    Ok(Settings { agent: absolute(agent)?, report: absolute(report)? })
}

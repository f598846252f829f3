//! `virtuoso-sim`: seeds in, verdicts out.

use clap::{Parser, Subcommand};
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::process::ExitCode;
use virtuoso_sim::migration;
use virtuoso_sim::options::{Options, Redial};
use virtuoso_sim::report::RunReport;
use virtuoso_sim::scenarios::{moves, scale, swarm};

/// Runs the overlay of many hosts in virtual time.
#[derive(Parser)]
#[command(name = "virtuoso-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Swarms under random mixes of faults, then peace.
    Run(RunArgs),
    /// The figures of a large swarm.
    Scale(ScaleArgs),
    /// Moves of guests in a very large swarm.
    Moves(MovesArgs),
    /// One migration under every fault that there is.
    Migrate(MigrateArgs),
}

#[derive(clap::Args)]
struct MigrateArgs {
    /// How many seeds, from 0 on.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// One seed alone.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
}

#[derive(clap::Args)]
struct RunArgs {
    /// One seed; the options follow from it.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// A range of seeds, such as 0..100.
    #[arg(long, value_parser = parse_range)]
    seeds: Option<Range<u64>>,
    /// Hosts, instead of the number that was drawn.
    #[arg(long)]
    hosts: Option<usize>,
    /// Seconds with faults, instead of what was drawn.
    #[arg(long)]
    seconds: Option<u64>,
    /// No faults, whatever was drawn.
    #[arg(long)]
    calm: bool,
    /// Prints JSON, one object for each run.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct ScaleArgs {
    /// Hosts.
    #[arg(long, default_value_t = 1_000)]
    hosts: usize,
    /// Everything follows from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Lost packets in a million.
    #[arg(long, default_value_t = 10_000)]
    loss_ppm: u32,
    /// Whom hosts dial although they have enough connections.
    #[arg(long, value_enum, default_value_t = Redial::Lost)]
    redial: Redial,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct MovesArgs {
    /// Hosts.
    #[arg(long, default_value_t = 10_000)]
    hosts: usize,
    /// Everything follows from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Moves in a second.
    #[arg(long, default_value_t = 100)]
    rate: u64,
    /// Seconds in which guests move.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run(&args),
        Command::Scale(args) => scale(&args),
        Command::Moves(args) => moves(&args),
        Command::Migrate(args) => migrate(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &RunArgs) -> anyhow::Result<bool> {
    let seeds = match (&args.seeds, args.seed) {
        (Some(seeds), _) => seeds.clone(),
        (None, seed) => seed.unwrap_or(0)..seed.unwrap_or(0) + 1,
    };
    let mut fine = true;
    for seed in seeds {
        let report = swarm::run(options(seed, args));
        fine &= report.failure.is_none();
        print(&report, args.json)?;
    }
    Ok(fine)
}

fn scale(args: &ScaleArgs) -> anyhow::Result<bool> {
    let report = scale::run(args.hosts, args.seed, args.loss_ppm, args.redial);
    let text = if args.json { serde_json::to_string(&report)? } else { report.text() };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(report.missed.is_empty())
}

fn moves(args: &MovesArgs) -> anyhow::Result<bool> {
    let report = moves::run(args.hosts, args.seed, args.rate, args.seconds);
    let text = if args.json { serde_json::to_string(&report)? } else { report.text() };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(report.missed.is_empty())
}

fn migrate(args: &MigrateArgs) -> anyhow::Result<bool> {
    let seeds = args.seed.map_or(0..args.seeds, |seed| seed..seed + 1);
    let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
    let mut failed = 0_u64;
    let mut out = std::io::stdout();
    for report in seeds.map(migration::run) {
        *ends.entry(report.end).or_default() += 1;
        if report.failure.is_some() {
            failed += 1;
            writeln!(out, "{}", report.text())?;
        }
        anyhow::ensure!(failed < FAILURES_MAX, "{failed} seeds failed: the others are left out");
    }
    let ends: Vec<String> = ends.iter().map(|(end, count)| format!("{end} {count}")).collect();
    writeln!(out, "{failed} failed; the VM ended at: {}", ends.join(", "))?;
    Ok(failed == 0)
}

/// Failures that are shown: each has a long trace.
const FAILURES_MAX: u64 = 3;

fn options(seed: u64, args: &RunArgs) -> Options {
    let mut options = Options::draw(seed);
    if args.calm {
        options = Options::calm(seed, options.hosts);
    }
    if let Some(hosts) = args.hosts {
        options.hosts = hosts;
        options.ports = options.ports.min(hosts);
    }
    options.fault_s = args.seconds.unwrap_or(options.fault_s);
    options
}

fn print(report: &RunReport, json: bool) -> anyhow::Result<()> {
    let text = if json { serde_json::to_string(report)? } else { report.text() };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let parts = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    parts.filter(|range| !range.is_empty()).ok_or_else(|| format!("'{text}' is no range such as 0..100"))
}

//! Where an agent's time goes while it carries TCP: a flame graph of one of two agents.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::peers;
use crate::command;
use crate::console;
use crate::lab::Settings;
use crate::traffic::iperf;

/// What to look at, and how long.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Seconds of load
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Streams of TCP at once
    #[arg(long, default_value_t = 1)]
    streams: u64,
}

/// Writes `profile.svg` of the agent that receives, and the samples beside it.
pub(crate) fn run(settings: &Settings, options: &Options) -> Result<()> {
    for (tool, source) in [
        ("perf", "apt-get install linux-perf"),
        ("inferno-collapse-perf", "cargo install inferno"),
        ("inferno-flamegraph", "cargo install inferno"),
    ] {
        ensure!(command::is_installed(tool), "{tool} is not installed: {source}");
    }
    let tunnel = peers::own().start(settings)?;
    let pid = *tunnel.pids()?.last().context("No agent runs")?;
    std::fs::create_dir_all(&settings.report).context("Cannot make the report's directory")?;
    let samples = settings.report.join("perf.data");
    let mut record = Command::new("perf");
    record.args(["record", "-q", "-F", SAMPLES_PER_S, "--call-graph", "dwarf,16384", "-p", &pid.to_string(), "-o"]);
    record.arg(&samples).args(["--", "sleep", &options.seconds.to_string()]).stdout(Stdio::null());
    let mut recorder = command::spawn(&mut record)?;
    // Longer than the recording, so that all of it sees the load.
    let load = format!("-t {} -P {}", options.seconds + 1, options.streams);
    let figures = iperf::run(&tunnel.left, &tunnel.right, &load)?;
    ensure!(recorder.wait()?.success(), "perf could not record");
    let svg = settings.report.join("profile.svg");
    draw(&samples, &svg)?;
    console::line(format!("{:.2} Gbit/s while sampled; see {}", figures.bits_per_second / 1e9, svg.display()));
    Ok(())
}

fn draw(samples: &Path, svg: &Path) -> Result<()> {
    let mut script = Command::new("perf");
    script.args(["script", "-i"]).arg(samples).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut script = command::spawn(&mut script)?;
    let mut collapse = Command::new("inferno-collapse-perf");
    collapse.stdin(script.stdout.take().context("perf has no output")?).stdout(Stdio::piped());
    let mut collapse = collapse.spawn().context("Cannot start inferno-collapse-perf")?;
    let mut paint = Command::new("inferno-flamegraph");
    paint.args(["--title", "virtuoso agent under TCP"]);
    paint.stdin(collapse.stdout.take().context("inferno-collapse-perf has no output")?);
    paint.stdout(File::create(svg).with_context(|| format!("Cannot write {}", svg.display()))?);
    let is_painted = paint.status().context("Cannot start inferno-flamegraph")?.success();
    let is_read = script.wait()?.success() && collapse.wait()?.success();
    ensure!(is_painted && is_read, "The samples of {} could not be drawn", samples.display());
    Ok(())
}

const SAMPLES_PER_S: &str = "499";

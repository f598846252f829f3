//! Scenarios: what must work between real agents, each with a lab of its own. This file runs them and judges:
//! a scenario fails by its own error, by an agent that died, or by a log line that it did not declare.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, anyhow};
use serde::Serialize;

use crate::command;
use crate::console;
use crate::interrupt;
use crate::lab::{self, Lab, Settings};
use crate::report;
use crate::test_guest::TestGuest;

mod admission;
mod bootstrap;
mod cdrom;
mod conflict;
mod crash;
mod emulator;
mod group;
mod images;
mod isolation;
mod join;
mod late_joiner;
mod limits;
mod migrate;
mod migrate_devices;
mod migrate_faults;
mod migrate_gone;
mod migrate_paths;
mod moves;
mod names;
mod network;
mod oversize;
mod partition;
mod startup;
mod vlan;
mod vm;
mod vm_clone;
mod vm_image;
mod vm_limits;
mod vm_names;

#[derive(Clone)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// One line: what it proves.
    pub(crate) about: &'static str,
    /// The lab, as TOML.
    topology: &'static str,
    /// Programs it calls; without them it is skipped.
    tools: &'static [&'static str],
    run: fn(&mut Lab) -> Result<()>,
}

#[derive(Debug, Serialize)]
struct Outcome {
    pub(crate) name: &'static str,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
    pub(crate) seconds: f64,
    /// What the scenario measured.
    pub(crate) notes: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", content = "why", rename_all = "lowercase")]
enum Verdict {
    Passed,
    Failed(Vec<String>),
    Skipped(String),
}

/// All scenarios, the simple ones first.
pub(crate) fn all() -> Vec<Scenario> {
    let groups: [&[Scenario]; 29] = [
        emulator::SCENARIOS,
        startup::SCENARIOS,
        join::SCENARIOS,
        admission::SCENARIOS,
        late_joiner::SCENARIOS,
        bootstrap::SCENARIOS,
        network::SCENARIOS,
        group::SCENARIOS,
        vlan::SCENARIOS,
        oversize::SCENARIOS,
        limits::SCENARIOS,
        isolation::SCENARIOS,
        moves::SCENARIOS,
        partition::SCENARIOS,
        crash::SCENARIOS,
        conflict::SCENARIOS,
        images::SCENARIOS,
        vm::SCENARIOS,
        vm_clone::SCENARIOS,
        migrate::SCENARIOS,
        migrate_faults::SCENARIOS,
        migrate_gone::SCENARIOS,
        migrate_devices::SCENARIOS,
        migrate_paths::SCENARIOS,
        vm_image::SCENARIOS,
        vm_limits::SCENARIOS,
        vm_names::SCENARIOS,
        cdrom::SCENARIOS,
        names::SCENARIOS,
    ];
    groups.into_iter().flatten().cloned().collect()
}

/// The scenarios that carry one of `names`; if there are none, all.
fn select(names: &[String]) -> Result<Vec<Scenario>> {
    let scenarios = all();
    if let Some(unknown) = names.iter().find(|name| scenarios.iter().all(|scenario| scenario.name != **name)) {
        return Err(anyhow!("There is no scenario {unknown}; see `testbed list`"));
    }
    let is_wanted = |scenario: &Scenario| names.is_empty() || names.iter().any(|name| name == scenario.name);
    Ok(scenarios.into_iter().filter(is_wanted).collect())
}

/// Whether a scenario that will run has VMs, and can have them here.
pub(crate) fn want_vms(options: &Options) -> Result<bool> {
    let qemu = TestGuest::QEMU;
    Ok(command::is_installed(qemu) && select(&options.names)?.iter().any(|scenario| scenario.tools.contains(&qemu)))
}

/// How to run scenarios.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Which; without any, all
    names: Vec<String>,
    /// Keep the lab of each scenario until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// A scenario that cannot run here counts as failed
    #[arg(long)]
    no_skip: bool,
}

/// Runs the named scenarios one after the other, tells the outcome of each, and writes `scenarios.json`.
/// `obstacle` is why none can run.
pub(crate) fn run(options: &Options, settings: &Settings, obstacle: Option<&str>) -> Result<ExitCode> {
    let selected = select(&options.names)?;
    if selected.iter().any(|scenario| !emulator::SCENARIOS.iter().any(|own| own.name == scenario.name)) {
        lab::ensure_agent(&settings.agent)?;
    }
    let mut outcomes = Vec::new();
    for scenario in selected {
        let outcome = match obstacle {
            Some(reason) => scenario.outcome(Verdict::Skipped(reason.to_owned()), 0.0, Vec::new()),
            None => scenario.run(settings, options.keep),
        };
        console::line(&outcome);
        outcomes.push(outcome);
        interrupt::check()?;
    }
    let failed = outcomes.iter().filter(|outcome| matches!(outcome.verdict, Verdict::Failed(_))).count();
    let skipped = outcomes.iter().filter(|outcome| matches!(outcome.verdict, Verdict::Skipped(_))).count();
    let passed = outcomes.len() - failed - skipped;
    console::line(format!(
        "{passed} passed, {failed} failed, {skipped} skipped; logs in {}",
        settings.report.display()
    ));
    report::write(&settings.report, "scenarios.json", &outcomes)?;
    let is_good = failed == 0 && !(options.no_skip && skipped > 0);
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Scenario {
    /// Runs it in `settings.report/NAME`. With `keep` the lab stays after the verdict until a signal comes.
    fn run(&self, settings: &Settings, keep: bool) -> Outcome {
        let begin = Instant::now();
        if let Some(tool) = self.tools.iter().find(|tool| !command::is_installed(tool)) {
            return self.outcome(Verdict::Skipped(format!("needs {tool}, which is not installed")), 0.0, Vec::new());
        }
        let settings = Settings { report: settings.report.join(self.name), ..settings.clone() };
        // The log of an earlier run would be judged again.
        let _ = std::fs::remove_dir_all(&settings.report);
        let (reasons, notes) = match self.topology.parse().and_then(|topology| Lab::build(&topology, &settings)) {
            Ok(mut lab) => self.run_in(&mut lab, begin, keep),
            Err(error) => (vec![format!("{error:#}")], Vec::new()),
        };
        let verdict = if reasons.is_empty() { Verdict::Passed } else { Verdict::Failed(reasons) };
        self.outcome(verdict, begin.elapsed().as_secs_f64(), notes)
    }

    fn run_in(&self, lab: &mut Lab, begin: Instant, keep: bool) -> (Vec<String>, Vec<String>) {
        let result = catch_unwind(AssertUnwindSafe(|| (self.run)(lab))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(anyhow!("The scenario panicked: {text}"))
        });
        let mut reasons: Vec<String> = result.err().map(|error| format!("{error:#}")).into_iter().collect();
        if interrupt::check().is_ok() {
            reasons.extend(lab.complaints());
            if !reasons.is_empty() {
                lab.losses().into_iter().for_each(|losses| lab.note(losses));
            }
            if keep {
                let state = if reasons.is_empty() { "passed" } else { "failed" };
                console::line(format!("{} {state} after {:.1?}: {reasons:#?}", self.name, begin.elapsed()));
                lab.tell_how_to_enter();
                interrupt::wait();
            }
        }
        (reasons, lab.take_notes())
    }

    fn outcome(&self, verdict: Verdict, seconds: f64, notes: Vec<String>) -> Outcome {
        Outcome { name: self.name, verdict, seconds, notes }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match &self.verdict {
            Verdict::Passed => "ok",
            Verdict::Failed(_) => "FAILED",
            Verdict::Skipped(_) => "skipped",
        };
        write!(f, "{word:<8}{:<24}{:>6.1} s", self.name, self.seconds)?;
        for note in &self.notes {
            write!(f, "\n          {note}")?;
        }
        match &self.verdict {
            Verdict::Passed => Ok(()),
            Verdict::Skipped(reason) => write!(f, "  {reason}"),
            Verdict::Failed(reasons) => reasons.iter().try_for_each(|reason| write!(f, "\n        ! {reason}")),
        }
    }
}

const ONE: &str = include_str!("../topologies/one.toml");
const LAN: &str = include_str!("../topologies/lan3.toml");
const JUMBO: &str = include_str!("../topologies/jumbo2.toml");
const WAN: &str = include_str!("../topologies/wan3.toml");
const FAR: &str = include_str!("../topologies/far3.toml");
const LOSSY: &str = include_str!("../topologies/lossy3.toml");
const SLOW: &str = include_str!("../topologies/slow3.toml");
const ROUGH: &str = include_str!("../topologies/rough3.toml");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::topology::Topology;

    #[test]
    fn names_are_unique_and_labs_parse() {
        let scenarios = all();
        let names: BTreeSet<_> = scenarios.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), scenarios.len());
        for scenario in scenarios {
            scenario.topology.parse::<Topology>().unwrap();
        }
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert!(select(&["no-such".to_owned()]).is_err());
        assert_eq!(select(&["join-ticket".to_owned()]).unwrap().len(), 1);
    }

    #[test]
    fn a_verdict_in_json() {
        let outcome =
            Outcome { name: "x", verdict: Verdict::Failed(vec!["No contact".into()]), seconds: 1.0, notes: vec![] };
        let json = serde_json::to_value(&outcome).unwrap();
        assert_eq!((&json["verdict"], &json["why"][0]), (&"failed".into(), &"No contact".into()));
    }
}

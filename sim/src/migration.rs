//! One migration under every fault that there is: messages lost, doubled and late, streams that break, agents and
//! hosts that die at any step, disks that refuse a write, operators who cancel. The two state machines are the real
//! ones; QEMU, disks and streams are modelled (`model`). An oracle watches (`Violation`).

mod fault;
mod model;

pub use fault::{Fault, Side};
pub use model::{Lab, Violation};

use crate::rng::Rng;
use serde::Serialize;

/// Steps with faults, and steps that a migration may take to come to its end afterwards.
const UNREST_STEPS: u64 = 400;
const PEACE_STEPS: u64 = 4_000;

/// How one run went.
#[derive(Clone, Debug, Serialize)]
pub struct MigrationReport {
    /// What everything was drawn from.
    pub seed: u64,
    /// Where the VM ended: `source`, `target`, `crashed`, or `doubt` while a host is gone for good.
    pub end: &'static str,
    /// Faults that struck.
    pub faults: usize,
    /// What went wrong, if anything.
    pub failure: Option<String>,
    /// What happened before it did.
    pub trace: Vec<String>,
}

/// One run with faults and an order of events drawn from `seed`.
pub fn run(seed: u64) -> MigrationReport {
    let mut rng = Rng::new(seed);
    let mut lab = Lab::new(rng.chance(600_000), rng.below(3));
    // Some runs are nearly calm, so that faults strike late as well.
    let fault_ppm = [0, 2_000, 10_000, 30_000, 100_000][rng.index(5)];
    for _ in 0..rng.below(UNREST_STEPS) {
        if rng.chance(fault_ppm) {
            let fault = Fault::draw(&mut rng);
            lab.strike(fault);
        }
        lab.step(&mut rng);
        if lab.failure().is_some() {
            break;
        }
    }
    finish(seed, lab, &mut rng)
}

/// A run in which events come in a fair order, and these faults at these steps.
pub fn run_planned(has_disk: bool, post_copy: u64, faults: &[(u64, Fault)]) -> MigrationReport {
    // The order is always the same: only the faults differ.
    let mut rng = Rng::new(1);
    let mut lab = Lab::new(has_disk, post_copy);
    let last = faults.iter().map(|(step, _)| *step).max().unwrap_or_default();
    for step in 0..=last {
        for (_, fault) in faults.iter().filter(|(at, _)| *at == step) {
            lab.strike(*fault);
        }
        lab.step_in_order();
        if lab.failure().is_some() {
            break;
        }
    }
    finish(0, lab, &mut rng)
}

/// How many steps a migration takes that nothing disturbs.
pub fn calm_steps(has_disk: bool, post_copy: u64) -> u64 {
    let mut lab = Lab::new(has_disk, post_copy);
    let mut steps = 0;
    while !lab.is_quiet() && steps < PEACE_STEPS {
        lab.step_in_order();
        steps += 1;
    }
    steps
}

fn finish(seed: u64, mut lab: Lab, rng: &mut Rng) -> MigrationReport {
    lab.heal();
    for _ in 0..PEACE_STEPS {
        if lab.failure().is_some() || lab.is_quiet() {
            break;
        }
        if rng.chance(500_000) {
            lab.step(rng);
        } else {
            lab.step_in_order();
        }
    }
    lab.judge();
    let failure = lab.failure().map(|violation| format!("{violation:?}"));
    let trace = if failure.is_some() { lab.trace().to_vec() } else { Vec::new() };
    MigrationReport { seed, end: lab.end(), faults: lab.faults(), failure, trace }
}

impl MigrationReport {
    /// One line, and everything about a failure.
    pub fn text(&self) -> String {
        let Self { seed, end, faults, .. } = self;
        let mut text = format!("seed {seed:<8} {end:<8} {faults} faults");
        if let Some(failure) = &self.failure {
            text = format!("{text}\nFAILED: {failure}\n{}", self.trace.join("\n"));
        }
        text
    }
}

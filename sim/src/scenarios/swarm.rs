//! A swarm under a random mix of faults; then peace, in which everything must come into order and stay so.

use crate::clock::{MILLISECOND, SECOND, Time};
use crate::options::Options;
use crate::report::RunReport;
use crate::world::World;

/// Runs one swarm.
pub fn run(options: Options) -> RunReport {
    let (fault_s, settle_s) = (options.fault_s, options.settle_s);
    let mut world = World::new(options);
    world.begin(1);
    let war_end = Time::from_secs(fault_s) + QUIET_START;
    world.run_until(war_end);
    world.make_peace();
    let settled = settle(&mut world, war_end + settle_s * SECOND);
    let mut failure = match &settled {
        Ok(_) => None,
        Err(disorder) => Some(format!("Not in order {settle_s} s after the last fault: {disorder}")),
    };
    if failure.is_none() {
        let peace = world.now();
        world.run_until(peace + PEACE);
        failure = world.disorder_for_long().or_else(|| lost(&world, peace));
    }
    world.check_bounds();
    let settled_s = settled.ok().map(|at| at.since(war_end) as f64 / 1e6);
    RunReport::new(&world, settled_s, failure)
}

/// Runs until everything is in order; tells what is not if that takes too long.
fn settle(world: &mut World, end: Time) -> Result<Time, String> {
    loop {
        let step = world.now() + 500 * MILLISECOND;
        world.run_until(step);
        match world.disorder() {
            None => return Ok(world.now()),
            Some(disorder) if world.now() >= end || !world.violations().is_empty() => return Err(disorder),
            Some(_) => {}
        }
    }
}

impl World {
    /// Disorder that is more than a row on its way.
    fn disorder_for_long(&mut self) -> Option<String> {
        let end = self.now() + DISORDER_MAX;
        settle(self, end).err()
    }
}

/// Frames that were lost in peace, or in a run in which nothing excuses it.
fn lost(world: &World, peace: Time) -> Option<String> {
    let from = if world.options.is_lossless() { QUIET_START_TIME } else { peace + LINKS_SETTLE };
    let lost = world.lost_frames(from, world.now());
    lost.first().map(|first| format!("{} frames lost without a reason, first {first}", lost.len()))
}

/// Until everybody has started and knows everybody.
const QUIET_START: u64 = 10 * SECOND;
const QUIET_START_TIME: Time = Time(QUIET_START);
/// How long order must last.
const PEACE: u64 = 40 * SECOND;
/// A link of which one side only noticed a cut lives this long on the other side, and loses frames.
const LINKS_SETTLE: u64 = 20 * SECOND;
/// What gossip misses is found by the next comparison.
const DISORDER_MAX: u64 = 15 * SECOND;

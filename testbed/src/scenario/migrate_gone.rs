//! A host is gone for good in the middle of a move, with what it had of the VM. Whoever is left knows whether it may
//! run the VM; where it can't, its operator is asked, and the verdict stands when the other host is back.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::{LAN, Scenario, WAN};
use crate::interrupt;
use crate::lab::Lab;
use crate::sys;
use crate::topology::{Impairment, Span};
use crate::travelling_vm::TravellingVm;
use crate::travelling_vm::moving::{Moving, SEVERED, STARVING};
use crate::travelling_vm::witness::{READ, SETTLE_TIME_MAX, Witness, again, bury};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "migrate-host-gone",
        about: "in post-copy one host of the two is gone for good: the operator hears what was lost, and has the VM again",
        topology: LAN,
        tools: TravellingVm::TOOLS,
        run: post_copy,
    },
    Scenario {
        name: "migrate-in-doubt",
        about: "a host is gone before the other knows who has the VM: the target runs it, the source asks its operator",
        topology: WAN,
        tools: TravellingVm::TOOLS,
        run: in_doubt,
    },
];

fn post_copy(lab: &mut Lab) -> Result<()> {
    expect_a_host_gone(lab);
    lab.expect_anywhere(STARVING);
    lab.expect_anywhere(SEVERED);
    lab.start_swarm()?;
    let vm = Witness::start(lab)?;
    let written = vm.inside(lab, READ)?;
    let slowly = ["--post-copy", "now", "--bandwidth", "4MiB"];

    // The target, with what the guest did there: it begins anew at the source.
    let moving = Moving::start(lab, &slowly)?;
    moving.await_phase("resume")?;
    bury(lab, "beta")?;
    vm.await_trouble(lab, "alpha", "migrating", "--resolve here")?;
    lab.host("alpha")?.verb(&["vm", "migrate", "one", "--resolve", "here"])?;
    moving.expect_stay("gone")?;
    wait::until_true("the VM to have crashed", SETTLE_TIME_MAX, || {
        let vm = lab.host("alpha")?.json(&["vm", "show", "one"])?;
        Ok((vm["state"] == "crashed", vm.to_string()))
    })?;
    lab.host("alpha")?.verb(&["vm", "start", "one"])?;
    vm.begin_anew(lab, &written).context("The VM was taken back from a target that is gone")?;
    // It was not: the copy that it had is put aside.
    again(lab, "beta")?;
    vm.expect_at(lab, "alpha").context("A target came back after a verdict")?;

    // The source, with memory that was nowhere else: the guest hangs, and can begin anew from its disk.
    let moving = Moving::start(lab, &slowly)?;
    moving.await_phase("resume")?;
    bury(lab, "alpha")?;
    moving.end()?.ok();
    vm.await_trouble(lab, "beta", "paused", "vm reset one")?;
    lab.host("beta")?.verb(&["vm", "reset", "one"])?;
    vm.begin_anew(lab, &written).context("The VM was reset when its source was gone")?;
    again(lab, "alpha")?;
    vm.expect_at(lab, "beta").context("A source came back whose VM was reset at the target")
}

fn in_doubt(lab: &mut Lab) -> Result<()> {
    expect_a_host_gone(lab);
    lab.expect_anywhere("nobody knows whether it runs there");
    lab.start_swarm()?;
    let vm = Witness::start(lab)?;

    // The source has let the VM go, and does not know whether it arrived.
    let moving = Moving::start(lab, PRE_COPY)?;
    cut_before_it_is_told(lab, &moving, "beta")?;
    bury(lab, "beta")?;
    vm.await_trouble(lab, "alpha", "migrating", "--resolve here")?;
    lab.host("alpha")?.verb(&["vm", "migrate", "one", "--resolve", "here"])?;
    moving.expect_stay("operator")?;
    vm.ensure_whole(lab).context("The VM was taken back from a target that is gone")?;
    lab.emulator("wan")?.heal();
    // It had begun to run the VM: that copy is put aside.
    again(lab, "beta")?;
    vm.expect_at(lab, "alpha").context("A target came back after a verdict")?;

    // The target has all of the VM, and needs nobody.
    let moving = Moving::start(lab, PRE_COPY)?;
    cut_before_it_is_told(lab, &moving, "alpha")?;
    bury(lab, "alpha")?;
    moving.end()?.ok();
    vm.ensure_whole(lab).context("The source was gone when the VM had arrived")?;
    lab.emulator("wan")?.heal();
    again(lab, "alpha")?;
    vm.expect_at(lab, "beta").context("A source came back that had let the VM go")
}

/// What agents may say of a host that is gone, and comes back.
fn expect_a_host_gone(lab: &mut Lab) {
    lab.expect_anywhere("unreachable");
    // Hosts notice one after the other that a host is gone, and who has not yet doubts a verdict.
    lab.expect_anywhere("Two hosts have this address");
    lab.expect_anywhere("A VM that stays does not go on");
    lab.expect_anywhere("The copy that ran here is kept");
    lab.expect_anywhere("A VM has ended on its way");
    lab.expect_anywhere("A VM crashed");
    lab.expect_anywhere("not a member of a swarm yet");
}

/// Cuts `host` off when beta runs the VM, and alpha does not know it.
fn cut_before_it_is_told(lab: &Lab, moving: &Moving, host: &str) -> Result<()> {
    moving.await_phase("memory")?;
    let record = record_on(lab, "beta")?;
    let before = fs::read(&record)?;
    moving.await_phase("switch-over")?;
    let line = lab.emulator("wan")?;
    // What beta says is on its way for long enough to be cut off, if this machine is not busy with other things then.
    line.impair(late(60));
    let cut = || {
        sys::real_time();
        await_change(&record, &before).map(|()| line.isolate(&[host]))
    };
    thread::scope(|scope| scope.spawn(cut).join()).map_err(|_| anyhow!("The cutting thread panicked"))??;
    line.impair(late(10));
    Ok(())
}

fn await_change(path: &Path, before: &[u8]) -> Result<()> {
    let deadline = Instant::now() + SETTLE_TIME_MAX;
    while fs::read(path)? == before {
        ensure!(Instant::now() < deadline, "The target did not take the VM");
        interrupt::pause(Duration::from_millis(1))?;
    }
    Ok(())
}

fn late(milliseconds: u64) -> Impairment {
    Impairment { delay: Span(Duration::from_millis(milliseconds)), ..Impairment::default() }
}

/// Where `host` has written down its only move, as it is in force.
fn record_on(lab: &Lab, host: &str) -> Result<PathBuf> {
    let dir = lab.host(host)?.state_dir().join("migrations");
    let mut files = fs::read_dir(&dir)?.flatten().map(|entry| entry.path());
    files.find(|path| path.extension().is_none()).with_context(|| format!("{host} knows of no move"))
}

/// What moves comes to its end before it is handed over.
const PRE_COPY: &[&str] = &["--post-copy", "never"];

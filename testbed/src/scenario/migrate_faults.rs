//! Moves of a VM that go wrong, with real agents and real QEMU. After each of them one copy of the VM runs, with the
//! memory and the disk that its guest has written, reached under its address, and nothing else is left of the move.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::{LAN, Scenario, WAN};
use crate::host::Start;
use crate::interrupt;
use crate::lab::{JOIN_TIME_MAX, Lab};
use crate::small_disk::SmallDisk;
use crate::sys;
use crate::travelling_vm::TravellingVm;
use crate::travelling_vm::moving::{Moving, SEVERED, STARVING};
use crate::travelling_vm::witness::{READ, Witness, again, kill_machine, qemus_of};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "migrate-refused",
        about: "what can't be moved is refused with the reason; a move that is given up leaves the VM alone",
        topology: LAN,
        tools: TravellingVm::TOOLS,
        run: refused,
    },
    Scenario {
        name: "migrate-crash",
        about: "agents and QEMU are killed in each phase of a move: one copy runs, and its disk is whole",
        topology: LAN,
        tools: TravellingVm::TOOLS,
        run: crash,
    },
    Scenario {
        name: "migrate-crash-early",
        about: "agents are killed before memory is sent: the VM stays, and nothing is left of the move",
        topology: LAN,
        tools: TravellingVm::TOOLS,
        run: crash_early,
    },
    Scenario {
        name: "migrate-cut",
        about: "the line is dead for half a minute in the middle of a move: one copy runs, and its disk is whole",
        topology: WAN,
        tools: TravellingVm::TOOLS,
        run: cut,
    },
    Scenario {
        name: "migrate-post-copy",
        about: "a guest that changes memory faster than it can be sent moves all the same",
        topology: WAN,
        tools: TravellingVm::TOOLS,
        run: post_copy,
    },
    Scenario {
        name: "migrate-post-copy-cut",
        about: "the line breaks while a guest fetches its memory: it goes on over another connection",
        topology: WAN,
        tools: TravellingVm::TOOLS,
        run: post_copy_cut,
    },
    Scenario {
        name: "migrate-source-dies",
        about: "the QEMU that a VM moves away from is killed: no copy is left of it, and it starts anew from its whole disk",
        topology: LAN,
        tools: TravellingVm::TOOLS,
        run: source_dies,
    },
    Scenario {
        name: "migrate-post-copy-agents",
        about: "agents are killed while a guest fetches its memory: it goes on when they are back",
        topology: LAN,
        tools: TravellingVm::TOOLS,
        run: post_copy_agents,
    },
];

fn refused(lab: &mut Lab) -> Result<()> {
    let state_dir = lab.host("beta")?.state_dir().to_owned();
    fs::create_dir_all(&state_dir)?;
    let _disk = SmallDisk::mount(&state_dir, 96)?;
    start_with(lab, "gamma", "[limits]\nmemory = \"64MiB\"\n")?;
    let vm = Witness::start(lab)?;
    for (to, code, part) in [("alpha", 1, "already"), ("nowhere", 4, "no host"), ("gamma", 1, "memory")] {
        let refusal = lab.host("beta")?.refused(&["vm", "migrate", "one", "--to", to], code)?;
        ensure!(refusal.contains(part), "Unclear: {refusal}");
    }
    lab.host("beta")?.json(&["host", "drain"])?;
    let refusal = lab.host("gamma")?.refused(&["vm", "migrate", "one", "--to", "beta"], 1)?;
    ensure!(refusal.contains("drained"), "Unclear: {refusal}");
    let refusal = lab.host("gamma")?.refused(&["vm", "migrate", "one", "--best"], 1)?;
    ensure!(refusal.contains("gamma") && refusal.contains("beta"), "Unclear: {refusal}");
    lab.host("beta")?.json(&["host", "undrain"])?;

    // Two at once, and a race with a delete: the first wins.
    let moving = Moving::start(lab, SLOWLY)?;
    moving.await_phase("memory")?;
    for words in [&["vm", "migrate", "one", "--to", "beta"][..], &["vm", "delete", "one", "--force"]] {
        let refusal = lab.host("gamma")?.refused(words, 1)?;
        ensure!(refusal.contains("on its way"), "Unclear: {refusal}");
    }
    lab.host("gamma")?.verb(&["vm", "migrate", "one", "--cancel"])?;
    moving.expect_stay("cancelled")?;
    vm.expect_at(lab, "alpha").context("After a cancelled move")?;

    // What is written does not fit the target's disk.
    vm.inside(lab, "dd if=/dev/urandom of=/dev/vda bs=1M seek=16 count=40 conv=notrunc 2>/dev/null; sync")?;
    let filler = lab.host("beta")?.state_dir().join("filler");
    fs::write(&filler, vec![1; FILLER_BYTES])?;
    let moving = Moving::start(lab, &[])?;
    moving.expect_stay("")?;
    vm.expect_at(lab, "alpha").context("After the target's disk was full")?;
    fs::remove_file(&filler)?;
    moves_to(lab, &vm, "beta")?;
    // Nothing may run on a disk that goes away now.
    lab.host("gamma")?.json(&["vm", "delete", "one", "--force"])?;
    lab.host_mut("beta")?.terminate().map(drop)
}

fn crash(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    let vm = Witness::start(lab)?;
    // A host that is back at once is heard before it has read who it is.
    lab.expect_anywhere("not a member of a swarm yet");
    // One that is killed while it ends the copy that it gave away finds that copy's QEMU on its way out.
    lab.expect_anywhere("Can't take over the copy of a VM");
    for (phase, victim) in [("disk", "beta"), ("memory", "beta"), ("memory", "alpha")] {
        stays_when_killed(lab, &vm, phase, victim)?;
    }
    let moving = Moving::start(lab, SLOWLY)?;
    moving.await_phase("memory")?;
    let copies = qemus_of(lab.host("beta")?.state_dir())?;
    ensure!(copies.len() == 1, "The target should have one machine: {copies:?}");
    sys::kill(copies[0], libc::SIGKILL)?;
    moving.expect_stay("")?;
    vm.expect_at(lab, "alpha").context("The target's QEMU was killed")?;
    // What follows takes milliseconds: wherever it strikes, one copy runs.
    let mut from = "alpha";
    for (phase, victim) in [("switch-over", "alpha"), ("switch-over", "beta"), ("resume", "alpha"), ("resume", "beta")]
    {
        let to = if from == "alpha" { "beta" } else { "alpha" };
        let moving = Moving::between(lab, from, to, &[])?;
        moving.await_phase(phase)?;
        lab.host_mut(victim)?.kill()?;
        moving.end()?.ok();
        again(lab, victim)?;
        from = vm.expect_somewhere(lab).with_context(|| format!("{victim}'s agent was killed in {phase} to {to}"))?;
        lab.note(format!("{victim} killed at {phase} of a move to {to}: the VM runs on {from}"));
    }
    Ok(())
}

fn crash_early(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    let vm = Witness::start(lab)?;
    // A host that is back at once is heard before it has read who it is.
    lab.expect_anywhere("not a member of a swarm yet");
    for (phase, victim) in [("reserve", "alpha"), ("reserve", "beta"), ("prepare", "beta"), ("disk", "alpha")] {
        stays_when_killed(lab, &vm, phase, victim)?;
    }
    Ok(())
}

/// The agent of `victim` is killed in a phase of a move of alpha's VM, which has to stay.
fn stays_when_killed(lab: &mut Lab, vm: &Witness, phase: &str, victim: &str) -> Result<()> {
    let moving = Moving::start(lab, SLOWLY)?;
    moving.await_phase(phase)?;
    lab.host_mut(victim)?.kill()?;
    moving.expect_stay("")?;
    again(lab, victim)?;
    vm.expect_at(lab, "alpha").with_context(|| format!("{victim}'s agent was killed in phase {phase}"))
}

fn cut(lab: &mut Lab) -> Result<()> {
    lab.expect_anywhere("unreachable");
    lab.start_swarm()?;
    let vm = Witness::start(lab)?;
    for phase in ["memory", "switch-over"] {
        let options = if phase == "memory" { SLOWLY } else { &[] };
        let moving = Moving::start(lab, options)?;
        moving.await_phase(phase)?;
        lab.emulator("wan")?.isolate(&["beta"]);
        // The length of the cut is what is tested; nothing tells its end.
        interrupt::pause(CUT)?;
        lab.emulator("wan")?.heal();
        moving.end()?.ok();
        let at = vm.expect_somewhere(lab).with_context(|| format!("The line was cut in phase {phase}"))?;
        lab.note(format!("cut for {} s in phase {phase}: the VM runs on {at}", CUT.as_secs()));
        if at == "beta" {
            return Ok(());
        }
    }
    Ok(())
}

fn post_copy(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    let vm = Witness::start(lab)?;
    let bandwidth = bandwidth_too_small(lab, &vm)?;
    vm.inside(lab, DIRTY)?;
    let report = lab.host("alpha")?.json(&["vm", "migrate", "one", "--to", "beta", "--bandwidth", &bandwidth])?;
    ensure!(report["post_copy"] == true, "It was moved without post-copy: {report}");
    let (total, blackout) = (&report["total_ms"], &report["blackout_ms"]);
    lab.note(format!("auto at {bandwidth}/s: {total} ms, blackout {blackout} ms"));
    vm.expect_at(lab, "beta").context("After post-copy that began by itself")?;

    // Nothing is copied before the guest runs at the target.
    let options = ["--post-copy", "now", "--bandwidth", "16MiB"];
    let report = lab.host("beta")?.json(&[&["vm", "migrate", "one", "--to", "alpha"], &options[..]].concat())?;
    ensure!(report["post_copy"] == true, "It was moved without post-copy: {report}");
    lab.note(format!("now: {} ms, blackout {} ms", report["total_ms"], report["blackout_ms"]));
    vm.expect_at(lab, "alpha").context("After post-copy that was asked for")
}

/// What the guest changes faster, also when the move and others take processors from it.
fn bandwidth_too_small(lab: &Lab, vm: &Witness) -> Result<String> {
    let seconds = vm.inside(lab, SECONDS_FOR_JUNK)?;
    let (begin, end) = seconds.trim().split_once(' ').with_context(|| format!("Not two times: {seconds:?}"))?;
    let mib_per_second = JUNK_MIB / (end.parse::<f64>()? - begin.parse::<f64>()?).max(0.1);
    Ok(format!("{:.0}MiB", (mib_per_second / 2.0).clamp(4.0, 32.0)))
}

fn post_copy_cut(lab: &mut Lab) -> Result<()> {
    lab.expect_anywhere("unreachable");
    lab.expect_anywhere(SEVERED);
    lab.expect_anywhere(STARVING);
    lab.start_swarm()?;
    let vm = Witness::start(lab)?;
    vm.inside(lab, DIRTY)?;
    // For longer than a connection lives without a sign.
    let options = ["--post-copy", "now", "--bandwidth", "16MiB"];
    let moving = Moving::start(lab, &options)?;
    moving.await_phase("resume")?;
    lab.emulator("wan")?.isolate(&["beta"]);
    interrupt::pause(CUT_OF_CONNECTIONS)?;
    lab.emulator("wan")?.heal();
    moving.end()?.map_err(|words| anyhow!("The move did not go on after the line broke in post-copy: {words}"))?;
    vm.expect_at(lab, "beta").context("After the line broke in post-copy")
}

fn source_dies(lab: &mut Lab) -> Result<()> {
    lab.expect_anywhere("A VM crashed");
    lab.expect_anywhere("A VM has ended on its way");
    lab.start_swarm()?;
    let vm = Witness::start(lab)?;
    let written = vm.inside(lab, READ)?;
    for (phase, options) in [("disk", SLOWLY), ("memory", SLOWLY), ("switch-over", &[][..])] {
        let moving = Moving::start(lab, options)?;
        moving.await_phase(phase)?;
        kill_machine(lab, "alpha")?;
        if moving.end()?.is_ok() {
            // All of it was on its way already.
            ensure!(phase == "switch-over", "The move did not end when its source died in phase {phase}");
            vm.expect_at(lab, "beta").context("The source's QEMU was killed at the very end")?;
            moves_to(lab, &vm, "alpha")?;
            continue;
        }
        vm.start_anew(lab, "alpha", &written).with_context(|| format!("The source's QEMU was killed in {phase}"))?;
    }
    let moving = Moving::start(lab, &["--post-copy", "now", "--bandwidth", "4MiB"])?;
    moving.await_phase("resume")?;
    kill_machine(lab, "alpha")?;
    // It has left, and does not run: neither "moved" nor "stays" is true.
    moving.expect_stay("does not run")?;
    vm.start_anew(lab, "beta", &written).context("The source's QEMU was killed in post-copy")
}

fn post_copy_agents(lab: &mut Lab) -> Result<()> {
    lab.expect_anywhere("not a member of a swarm yet");
    // Two agents that begin at once may find each other only at the second try, some seconds later.
    lab.expect_anywhere(STARVING);
    lab.start_swarm()?;
    let vm = Witness::start(lab)?;
    let mut from = "alpha";
    for victims in [&["alpha"][..], &["alpha"], &["alpha", "beta"], &["alpha", "beta"]] {
        let to = if from == "alpha" { "beta" } else { "alpha" };
        let of_move = || format!("{victims:?} killed in post-copy from {from} to {to}");
        let resumed = lab.host(from)?.log_text().matches(OVER_NEW_STREAM).count();
        let moving = Moving::between(lab, from, to, &["--post-copy", "now", "--bandwidth", "64MiB"])?;
        moving.await_phase("resume")?;
        for victim in victims {
            lab.host_mut(victim)?.kill()?;
        }
        let begin = Instant::now();
        victims.iter().try_for_each(|victim| lab.host_mut(victim)?.start(&Start::alone()))?;
        lab.await_members(&["alpha", "beta", "gamma"], JOIN_TIME_MAX)?;
        moving.end()?.ok();
        vm.expect_at(lab, to).with_context(of_move)?;
        let is_resumed = lab.host(from)?.log_text().matches(OVER_NEW_STREAM).count() > resumed;
        ensure!(is_resumed, "All memory was there before: {}", of_move());
        lab.note(format!("{}: whole after {:.1?}", of_move(), begin.elapsed()));
        from = to;
    }
    Ok(())
}

fn moves_to(lab: &Lab, vm: &Witness, to: &str) -> Result<()> {
    let report = lab.host("gamma")?.json(&["vm", "migrate", "one", "--to", to])?;
    ensure!(report["frames_lost"] == 0, "Frames were lost: {report}");
    vm.expect_at(lab, to)
}

/// Starts the agent of `host` with these lines in its configuration; the others without.
fn start_with(lab: &mut Lab, host: &str, lines: &str) -> Result<()> {
    lab.host_mut("alpha")?.start(&Start::alone())?;
    for name in ["beta", "gamma"] {
        let mut start = Start::by(lab.host("alpha")?.ticket()?);
        if name == host {
            start.config = Some(format!("mdns = false\n{lines}"));
        }
        lab.host_mut(name)?.start(&start)?;
    }
    lab.await_members(&["alpha", "beta", "gamma"], JOIN_TIME_MAX)
}

const SLOWLY: &[&str] = &["--bandwidth", "4MiB"];
/// Leaves less than a quarter of what the VM has written.
const FILLER_BYTES: usize = 84 << 20;
/// What a source says when memory is fetched again.
const OVER_NEW_STREAM: &str = "goes on fetching memory over a new stream";
const CUT: Duration = Duration::from_secs(30);
/// Connections between agents live for 20 s without a sign.
const CUT_OF_CONNECTIONS: Duration = Duration::from_secs(25);
/// Writes 16 MiB to memory some times and tells when that began and ended.
const SECONDS_FOR_JUNK: &str = "head -c 16777216 /dev/zero >/run/junk; read begin rest </proc/uptime; \
    for n in 1 2 3 4; do dd if=/run/junk of=/run/more bs=1M conv=notrunc 2>/dev/null; done; read end rest </proc/uptime; echo $begin $end";
const JUNK_MIB: f64 = 64.0;
/// Changes 16 MiB of memory again and again.
const DIRTY: &str = "head -c 16777216 /dev/urandom >/run/junk; \
    (while :; do dd if=/run/junk of=/run/more bs=1M conv=notrunc 2>/dev/null; done) </dev/null >/dev/null 2>&1 &";

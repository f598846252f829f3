//! Moves of a VM that go wrong, with real agents and real QEMU. After each of them one copy of the VM runs, with the
//! memory and the disk that its guest has written, reached under its address, and nothing else is left of the move.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{LAN, Scenario, WAN};
use crate::command;
use crate::host::Start;
use crate::interrupt;
use crate::lab::{self, JOIN_TIME_MAX, Lab};
use crate::small_disk::SmallDisk;
use crate::sys;
use crate::travelling_vm::{BOOT_TIME_MAX, TravellingVm};
use crate::wait;

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
        name: "migrate-host-gone",
        about: "in post-copy one host of the two is gone for good: the operator hears what was lost, and has the VM again",
        topology: LAN,
        tools: TravellingVm::TOOLS,
        run: host_gone,
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
    vm.inside(lab, DIRTY)?;
    let report = lab.host("alpha")?.json(&["vm", "migrate", "one", "--to", "beta", "--bandwidth", "32MiB"])?;
    ensure!(report["post_copy"] == true, "It was moved without post-copy: {report}");
    lab.note(format!("auto: {} ms, blackout {} ms", report["total_ms"], report["blackout_ms"]));
    vm.expect_at(lab, "beta").context("After post-copy that began by itself")?;

    // Nothing is copied before the guest runs at the target.
    let options = ["--post-copy", "now", "--bandwidth", "16MiB"];
    let report = lab.host("beta")?.json(&[&["vm", "migrate", "one", "--to", "alpha"], &options[..]].concat())?;
    ensure!(report["post_copy"] == true, "It was moved without post-copy: {report}");
    lab.note(format!("now: {} ms, blackout {} ms", report["total_ms"], report["blackout_ms"]));
    vm.expect_at(lab, "alpha").context("After post-copy that was asked for")
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

fn host_gone(lab: &mut Lab) -> Result<()> {
    lab.expect_anywhere("unreachable");
    lab.expect_anywhere(STARVING);
    lab.expect_anywhere(SEVERED);
    // Hosts notice one after the other that a host is gone, and who has not yet doubts a verdict.
    lab.expect_anywhere("Two hosts have this address");
    lab.expect_anywhere("A VM that stays does not go on");
    lab.expect_anywhere("The copy that ran here is kept");
    lab.expect_anywhere("A VM has ended on its way");
    lab.expect_anywhere("A VM crashed");
    lab.expect_anywhere("not a member of a swarm yet");
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

/// The one machine of `host` is killed.
fn kill_machine(lab: &Lab, host: &str) -> Result<()> {
    let machines = qemus_of(lab.host(host)?.state_dir())?;
    ensure!(machines.len() == 1, "{host} should have one machine: {machines:?}");
    Ok(sys::kill(machines[0], libc::SIGKILL)?)
}

/// `host` is gone with all that ran there.
fn bury(lab: &mut Lab, host: &str) -> Result<()> {
    lab.host_mut(host)?.kill()?;
    kill_machine(lab, host)
}

/// A VM whose guest goes on writing to its disk, and knows what must be there.
struct Witness(TravellingVm);

impl Witness {
    fn start(lab: &mut Lab) -> Result<Self> {
        let vm = Self(TravellingVm::start(lab, &["--disk", "64MiB"], "", 1 << 20)?);
        vm.inside(lab, "dd if=/dev/urandom of=/dev/vda bs=64k count=128 conv=notrunc 2>/dev/null; sync")?;
        vm.begin_to_write(lab)?;
        Ok(vm)
    }

    /// The sum of what is never written again is kept in memory.
    fn begin_to_write(&self, lab: &Lab) -> Result<()> {
        self.inside(lab, &format!("{READ} >/run/sum; {WRITE}")).map(drop)
    }

    /// Its machine must have ended on `host`, with nothing left elsewhere; it begins anew there, with the disk that has
    /// the sum `written`.
    fn start_anew(&self, lab: &Lab, host: &str, written: &str) -> Result<()> {
        let other = if host == "alpha" { "beta" } else { "alpha" };
        wait::until_true(format!("the VM to have crashed on {host}"), SETTLE_TIME_MAX, || {
            let vm = lab.host("gamma")?.json(&["vm", "show", "one"])?;
            let left = [host, other].map(|host| left_on(lab, host));
            let wanted = [Left { qemus: 0, vms: 1, moves: 0 }, Left::default()];
            let is_so = vm["state"] == "crashed" && vm["host_name"] == host && left == wanted;
            Ok((is_so, format!("{} on {}, {left:?}", vm["state"], vm["host_name"])))
        })?;
        lab.host("gamma")?.json(&["vm", "start", "one"])?;
        self.begin_anew(lab, written)
    }

    /// It starts, with the disk that has the sum `written`.
    fn begin_anew(&self, lab: &Lab, written: &str) -> Result<()> {
        lab.guest("user")?.await_reach(self.0.ip.into(), BOOT_TIME_MAX)?;
        let found = self.inside(lab, READ)?;
        ensure!(found == written, "The disk has changed: {found} instead of {written}");
        self.begin_to_write(lab)
    }

    /// `host` must say of the VM that it is in `state` and waits, in words that contain `part`.
    fn await_trouble(&self, lab: &Lab, host: &str, state: &str, part: &str) -> Result<()> {
        wait::until_true(format!("{host} to say {part:?} of the VM"), SETTLE_TIME_MAX, || {
            let vm = lab.host(host)?.json(&["vm", "show", "one"])?;
            let trouble = &vm["details"]["trouble"];
            let is_told = trouble.as_str().is_some_and(|trouble| trouble.contains(part));
            Ok((is_told && vm["state"] == state, format!("{} on {}, {trouble}", vm["state"], vm["host_name"])))
        })
    }

    fn inside(&self, lab: &Lab, words: &str) -> Result<String> {
        self.0.ssh(lab, words)
    }

    /// The VM must come to rest on `host`, whole, and nowhere else.
    fn expect_at(&self, lab: &Lab, host: &str) -> Result<()> {
        let at = self.expect_somewhere(lab)?;
        ensure!(at == host, "The VM is on {at} and not on {host}");
        Ok(())
    }

    /// The VM must come to rest, whole, on one of the two hosts; which one.
    fn expect_somewhere(&self, lab: &Lab) -> Result<&'static str> {
        let at = wait::until("one copy to run, and nothing else to be left", SETTLE_TIME_MAX, || {
            let vm = lab.host("gamma")?.json(&["vm", "show", "one"])?;
            let found = ["alpha", "beta"].into_iter().find(|host| vm["host_name"] == *host);
            let left = ["alpha", "beta"].map(|host| left_on(lab, host));
            let seen = format!("{} on {}, {left:?}", vm["state"], vm["host_name"]);
            let wanted = ["alpha", "beta"].map(|host| Left { qemus: 1, vms: 1, moves: 0 }.only_if(found == Some(host)));
            Ok(match found {
                Some(host) if vm["state"] == "running" && left == wanted => wait::Seen::Done(host),
                _ => wait::Seen::NotYet(seen),
            })
        })?;
        self.ensure_whole(lab)?;
        let vm = lab.host("gamma")?.json(&["vm", "show", "one"])?;
        let mac = vm["networks"][0]["mac"].as_str().context("The VM has no address")?;
        lab::await_claim(lab.host("gamma")?, "blue", mac, &lab.host(at)?.id()?, lab::CONTACT_TIME_MAX)?;
        Ok(at)
    }

    /// The guest is the one that was started, and its disk is what it wrote, also while the move went on.
    fn ensure_whole(&self, lab: &Lab) -> Result<()> {
        lab.guest("user")?.await_reach(self.0.ip.into(), BOOT_TIME_MAX)?;
        let told = self.inside(lab, CHECK)?;
        ensure!(told.lines().last() == Some("WHOLE"), "The disk or the memory has changed: {told}");
        self.inside(lab, WRITE).map(drop)
    }
}

/// What a host has of the VM and of its moves.
#[derive(Debug, Default, PartialEq, Eq)]
struct Left {
    qemus: usize,
    vms: usize,
    moves: usize,
}

impl Left {
    fn only_if(self, has: bool) -> Self {
        if has { self } else { Self::default() }
    }
}

fn left_on(lab: &Lab, host: &str) -> Left {
    let Ok(state) = lab.host(host).map(|host| host.state_dir().to_owned()) else { return Left::default() };
    let count = |name: &str| fs::read_dir(state.join(name)).map(Iterator::count).unwrap_or_default();
    let qemus = qemus_of(&state).map(|pids| pids.len()).unwrap_or_default();
    Left { qemus, vms: count("vms"), moves: count("migrations") }
}

/// The processes of VMs whose files are below `state`, in this run: another one has the same paths.
fn qemus_of(state: &Path) -> Result<Vec<u32>> {
    let mark = state.join("vms");
    let is_one = |line: &[u8]| {
        let line = String::from_utf8_lossy(line);
        line.contains("qemu-system") && mark.to_str().is_some_and(|mark| line.contains(mark))
    };
    let entries = fs::read_dir("/proc").context("Cannot list /proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_ours = |pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| is_one(&line)) && sees_the_same(*pid, state)
    };
    Ok(pids.filter(is_ours).collect())
}

/// Whether a path is the same directory for another process.
fn sees_the_same(pid: u32, path: &Path) -> bool {
    let theirs = fs::metadata(format!("/proc/{pid}/root{}", path.display()));
    let ours = fs::metadata(path);
    theirs.ok().zip(ours.ok()).is_some_and(|(a, b)| (a.dev(), a.ino()) == (b.dev(), b.ino()))
}

/// A move that is under way.
struct Moving {
    client: JoinHandle<Result<Output>>,
    /// Where the log of the source is written, and how long it was.
    log: PathBuf,
    begin: usize,
}

impl Moving {
    /// From alpha to beta.
    fn start(lab: &Lab, options: &[&str]) -> Result<Self> {
        Self::between(lab, "alpha", "beta", options)
    }

    fn between(lab: &Lab, from: &str, to: &str, options: &[&str]) -> Result<Self> {
        let from = lab.host(from)?;
        let mut command = Command::new(from.binary());
        command.args(["vm", "migrate", "one", "--to", to]).args(options).arg("--socket").arg(from.socket());
        let begin = from.log_text().len();
        let client = std::thread::spawn(move || command::output(&mut command));
        Ok(Self { client, log: from.log_path().to_owned(), begin })
    }

    /// Waits until the source says that it has come to a phase. Looks often: some phases last milliseconds.
    fn await_phase(&self, phase: &str) -> Result<()> {
        let wanted = format!("Migration: {phase}");
        let deadline = Instant::now() + BOOT_TIME_MAX;
        loop {
            let log = fs::read(&self.log).unwrap_or_default();
            let news = String::from_utf8_lossy(log.get(self.begin..).unwrap_or_default()).into_owned();
            if news.contains(&wanted) {
                return Ok(());
            }
            if self.client.is_finished() || Instant::now() > deadline {
                bail!("The move did not come to phase {phase}; the source said: {news}");
            }
            interrupt::pause(Duration::from_millis(2))?;
        }
    }

    /// How it ended: well, or with these words.
    fn end(self) -> Result<Result<(), String>> {
        let output = self.client.join().map_err(|_| anyhow!("The moving thread panicked"))??;
        let words = || String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(if output.status.success() { Ok(()) } else { Err(words()) })
    }

    /// It must have been given up, for a reason with `part` in it.
    fn expect_stay(self, part: &str) -> Result<()> {
        match self.end()? {
            Err(words) if words.contains(part) && !words.trim().is_empty() => Ok(()),
            other => bail!("The move was not given up as it should: {other:?}"),
        }
    }
}

fn moves_to(lab: &Lab, vm: &Witness, to: &str) -> Result<()> {
    let report = lab.host("gamma")?.json(&["vm", "migrate", "one", "--to", to])?;
    ensure!(report["frames_lost"] == 0, "Frames were lost: {report}");
    vm.expect_at(lab, to)
}

/// Starts the agent of `host` again, and waits until it is back in the swarm.
fn again(lab: &mut Lab, host: &str) -> Result<()> {
    lab.host_mut(host)?.start(&Start::alone())?;
    lab.await_members(&["alpha", "beta", "gamma"], JOIN_TIME_MAX)
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
/// What the operator is told while memory can't be fetched.
const SEVERED: &str = "does not answer, before it has all of the VM's memory";
const STARVING: &str = "A VM hangs";
/// What a source says when memory is fetched again.
const OVER_NEW_STREAM: &str = "goes on fetching memory over a new stream";
const CUT: Duration = Duration::from_secs(30);
/// Connections between agents live for 20 s without a sign.
const CUT_OF_CONNECTIONS: Duration = Duration::from_secs(25);
/// Hosts ask each other every second; the rest is for a loaded machine.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(60);

/// Changes 16 MiB of memory again and again.
const DIRTY: &str = "head -c 16777216 /dev/urandom >/run/junk; \
    (while :; do cat /run/junk >/run/more; done) </dev/null >/dev/null 2>&1 &";
/// The sum of what is never written again.
const READ: &str = "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=64k count=128 2>/dev/null | md5sum";
/// Writes numbers to sixteen blocks of the disk in turn, each time until they are there, and counts them in memory.
const WRITE: &str = "rm -f /run/stop; (i=$(cat /run/i 2>/dev/null || echo 0); while [ ! -e /run/stop ]; do i=$((i+1)); \
    yes $i | head -c 4096 | dd of=/dev/vda bs=4096 seek=$((2048 + i % 16)) conv=notrunc,fsync 2>/dev/null; \
    echo $i >/run/i; done; touch /run/stopped) </dev/null >/dev/null 2>&1 &";
/// Ends that, and compares the disk with what memory knows of it.
const CHECK: &str = "rm -f /run/stopped; touch /run/stop; while [ ! -e /run/stopped ]; do sleep 0.1; done; \
    echo 3 >/proc/sys/vm/drop_caches; \
    dd if=/dev/vda bs=64k count=128 2>/dev/null | md5sum | cmp - /run/sum || exit 1; \
    last=$(cat /run/i); i=$((last - 15)); [ $i -gt 0 ] || exit 1; \
    while [ $i -le $last ]; do \
    [ \"$(dd if=/dev/vda bs=4096 skip=$((2048 + i % 16)) count=1 2>/dev/null | head -n 1)\" = $i ] || exit 1; \
    i=$((i+1)); done; echo WHOLE";

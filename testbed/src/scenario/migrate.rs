//! A VM moves to another host while it runs, and the network follows it.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{LAN, Scenario};
use crate::command;
use crate::host::Start;
use crate::lab::{JOIN_TIME_MAX, Lab};
use crate::test_guest::TestGuest;
use crate::travelling_vm::{BOOT_TIME_MAX, TravellingVm};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "migrate",
        about: "a VM moves there and back under ping, TCP and ssh: no frame is lost, no connection breaks, its disk is whole",
        topology: LAN,
        tools: TOOLS,
        run: there_and_back,
    },
    Scenario {
        name: "migrate-faults",
        about: "a move that is cancelled, whose target or source agent dies: the VM stays and runs, nothing is left behind",
        topology: LAN,
        tools: TOOLS,
        run: faults,
    },
];

const TOOLS: &[&str] = TravellingVm::TOOLS;
const IP: &str = "10.9.0.101";
/// Its disk, as far as it is compared.
const READ: &str = "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=64k count=64 2>/dev/null | md5sum";

fn there_and_back(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    let vm = TravellingVm::start(lab, &["--disk", "64MiB"], "", 1 << 20)?;
    let written = vm.ssh(lab, &format!("dd if=/dev/urandom of=/dev/vda bs=64k count=64 2>/dev/null; sync; {READ}"))?;
    for to in ["beta", "alpha", "beta"] {
        let journey = vm.travel(lab, to)?;
        lab.note(journey.to_string());
        journey.ensure_whole()?;
        ensure!(vm.ssh(lab, READ)? == written, "The disk has changed on its way to {to}");
    }
    Ok(())
}

fn faults(lab: &mut Lab) -> Result<()> {
    let guest = vm_on_alpha(lab)?;
    let pid = pid(lab)?;
    refusals(lab)?;

    let moving = Slow::start(lab)?;
    moving.await_memory(lab)?;
    let refusal = lab.host("beta")?.refused(&["vm", "delete", "one", "--force"], 1)?;
    ensure!(refusal.contains("on its way"), "Unclear: {refusal}");
    lab.host("gamma")?.verb(&["vm", "migrate", "one", "--cancel"])?;
    moving.expect_stay("cancelled")?;
    runs_on_alpha(lab, &guest, pid).context("After a cancelled move")?;

    let moving = Slow::start(lab)?;
    moving.await_memory(lab)?;
    lab.host_mut("beta")?.kill()?;
    moving.expect_stay("")?;
    runs_on_alpha(lab, &guest, pid).context("After the target's agent died")?;
    lab.host_mut("beta")?.start(&Start::alone())?;
    lab.await_members(&["alpha", "beta", "gamma"], JOIN_TIME_MAX)?;
    nothing_is_left(lab, "beta", "")?;

    let moving = Slow::start(lab)?;
    moving.await_memory(lab)?;
    lab.host_mut("alpha")?.kill()?;
    moving.expect_stay("")?;
    lab.host_mut("alpha")?.start(&Start::alone())?;
    lab.await_members(&["alpha", "beta", "gamma"], JOIN_TIME_MAX)?;
    runs_on_alpha(lab, &guest, pid).context("After the source's agent died")?;
    nothing_is_left(lab, "beta", "")?;
    nothing_is_left(lab, "alpha", "one")?;
    let report = lab.host("gamma")?.json(&["vm", "migrate", "one", "--best"])?;
    ensure!(report["frames_lost"] == 0, "Frames were lost: {report}");
    Ok(())
}

fn refusals(lab: &Lab) -> Result<()> {
    let gamma = lab.host("gamma")?;
    for (to, code, part) in [("alpha", 1, "already"), ("nowhere", 4, "no host")] {
        let refusal = gamma.refused(&["vm", "migrate", "one", "--to", to], code)?;
        ensure!(refusal.contains(part), "Unclear: {refusal}");
    }
    lab.host("beta")?.json(&["host", "drain"])?;
    let refusal = gamma.refused(&["vm", "migrate", "one", "--to", "beta"], 1)?;
    ensure!(refusal.contains("drained"), "Unclear: {refusal}");
    lab.host("beta")?.json(&["host", "undrain"]).map(drop)
}

/// A move that takes long enough to be disturbed.
struct Slow(std::thread::JoinHandle<Result<std::process::Output>>);

impl Slow {
    fn start(lab: &Lab) -> Result<Self> {
        let alpha = lab.host("alpha")?;
        let mut command = Command::new(alpha.binary());
        command.args(["vm", "migrate", "one", "--to", "beta", "--bandwidth", "4MiB", "--socket"]).arg(alpha.socket());
        Ok(Self(std::thread::spawn(move || command::output(&mut command))))
    }

    /// Waits until memory is on its way.
    fn await_memory(&self, lab: &Lab) -> Result<()> {
        wait::until_true("the copy of the memory".to_owned(), BOOT_TIME_MAX, || {
            let events = lab.host("alpha")?.log_text();
            let begun = events.matches("Migration: memory").count();
            let ended = events.matches("A VM stays").count() + events.matches("Took over a running VM").count();
            Ok((begun > ended, format!("{begun} begun, {ended} ended")))
        })
    }

    /// The move must have been given up, for a reason with `part` in it.
    fn expect_stay(self, part: &str) -> Result<()> {
        let output = self.0.join().map_err(|_| anyhow::anyhow!("The moving thread panicked"))??;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && words.contains(part), "The move was not given up: {words}");
        Ok(())
    }
}

fn pid(lab: &Lab) -> Result<u64> {
    let shown = lab.host("alpha")?.json(&["vm", "show", "one"])?;
    shown["details"]["pid"].as_u64().with_context(|| format!("VM one has no process: {shown}"))
}

fn runs_on_alpha(lab: &Lab, guest: &TestGuest, wanted: u64) -> Result<()> {
    wait::until_true("VM one to run on alpha".to_owned(), BOOT_TIME_MAX, || {
        let vm = lab.host("gamma")?.json(&["vm", "show", "one"])?;
        Ok((vm["host_name"] == "alpha" && vm["state"] == "running", vm.to_string()))
    })?;
    ensure!(pid(lab)? == wanted, "The VM has another process");
    lab.guest("user")?.await_reach(IP.parse()?, BOOT_TIME_MAX)?;
    ssh(lab, guest, "echo written >/dev/vda; sync").map(drop)
}

/// No record of a migration and no other VM than `but` may be left.
fn nothing_is_left(lab: &Lab, host: &str, but: &str) -> Result<()> {
    let state = lab.host(host)?.state_dir().to_owned();
    wait::until_true(format!("{host} to forget the migration"), BOOT_TIME_MAX, || {
        let count = |name: &str| std::fs::read_dir(state.join(name)).map(Iterator::count).unwrap_or_default();
        let left = (count("migrations"), count("vms"));
        Ok((left == (0, usize::from(!but.is_empty())), format!("{left:?}")))
    })
}

fn vm_on_alpha(lab: &mut Lab) -> Result<TestGuest> {
    lab.start_swarm()?;
    lab.create_network("blue", &[])?;
    lab.place_guest("user", "gamma", "blue")?;
    let guest = TestGuest::beside(lab.host("alpha")?.binary())?;
    let append = guest.append("one", IP);
    let words = ["vm", "create", "one", "--kernel", guest.kernel(), "--initrd", guest.initrd(), "--append", &append];
    let size = ["--memory", "128MiB", "--net", "blue", "--disk", "64MiB"];
    lab.host("alpha")?.json(&[&words[..], &size[..]].concat())?;
    lab.guest("user")?.await_reach(IP.parse()?, BOOT_TIME_MAX)?;
    ssh(lab, &guest, "hostname")?;
    Ok(guest)
}

/// Runs `words` in the VM as soon as its ssh server answers.
fn ssh(lab: &Lab, guest: &TestGuest, words: &str) -> Result<String> {
    let user = lab.guest("user")?.namespace();
    wait::until(format!("ssh to {IP}"), BOOT_TIME_MAX, || {
        let mut command: Command = user.command("/usr/bin/ssh");
        command.args(guest.ssh_options()).arg(format!("root@{IP}")).arg(words);
        command::run(&mut command).map(wait::Seen::Done)
    })
}

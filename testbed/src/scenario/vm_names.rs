//! Two VMs of one name: asked for at once on two hosts, and made on both sides of a broken line.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{LAN, Scenario, WAN};
use crate::host::{Answer, Host};
use crate::lab::{CONTACT_TIME_MAX, JOIN_TIME_MAX, Lab};
use crate::test_guest::TestGuest;
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "vm-names",
        about: "of two VMs that are made with one name at once one is made, and nothing of the other stays",
        topology: LAN,
        tools: &[TestGuest::QEMU],
        run: at_once,
    },
    Scenario {
        name: "vm-names-partition",
        about: "two VMs that got one name while their hosts were apart both run on, one of them under another name",
        topology: WAN,
        tools: &[TestGuest::QEMU],
        run: apart,
    },
];

const ROUNDS: usize = 12;
/// Rounds in which the VMs really run: QEMU starts.
const RUNNING_ROUNDS: usize = 2;
const HOSTS: [&str; 2] = ["alpha", "beta"];

fn at_once(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    let guest = TestGuest::beside(lab.host("alpha")?.binary())?;
    let mut wins = [0; 2];
    for round in 0..ROUNDS + RUNNING_ROUNDS {
        let name = format!("web-{round}");
        let winner = race(lab, &guest, &name, round < ROUNDS).with_context(|| format!("Round {round}"))?;
        wins[winner] += 1;
        let delete = ["vm", "delete", &*name, "--force"];
        lab.host(HOSTS[1 - winner])?.json(&delete)?;
    }
    lab.note(format!("of {} names alpha got {}, beta {}", ROUNDS + RUNNING_ROUNDS, wins[0], wins[1]));
    Ok(())
}

/// Both hosts make a VM of this name at once; tells which did.
fn race(lab: &Lab, guest: &TestGuest, name: &str, stopped: bool) -> Result<usize> {
    let hosts = [lab.host(HOSTS[0])?, lab.host(HOSTS[1])?];
    let answers: Vec<Result<Answer>> = thread::scope(|scope| {
        let make = |host| scope.spawn(move || host_makes(host, guest, name, stopped));
        let threads = hosts.map(make);
        threads.into_iter().map(|thread| thread.join().expect("a verb does not panic")).collect()
    });
    let answers = answers.into_iter().collect::<Result<Vec<_>>>()?;
    let codes: Vec<_> = answers.iter().map(|answer| answer.code).collect();
    let winner = codes.iter().position(|code| *code == 0).with_context(|| format!("Nobody: {codes:?}"))?;
    let (loser, words) = (hosts[1 - winner], &answers[1 - winner].stderr);
    ensure!(codes[1 - winner] == 1, "Both got the name: {codes:?}");
    ensure!(words.contains(&format!("on host {}", HOSTS[winner])), "The loser is not told who won: {words}");
    let left = fs::read_dir(loser.state_dir().join("vms"))?.count();
    ensure!(left == 0, "{left} directories stay on the loser");
    for host in hosts {
        await_names(host, &[name])?;
    }
    let rows = loser.list(&["host", "list"])?;
    let own = rows.iter().find(|row| row["name"] == loser.name()).context("The loser is not in its own list")?;
    ensure!(own["vcpus_free"] == own["vcpus_total"], "The loser still holds a share: {own}");
    Ok(winner)
}

fn host_makes(host: &Host, guest: &TestGuest, name: &str, stopped: bool) -> Result<Answer> {
    let append = guest.append(name, "10.9.0.101");
    let mut words = vec!["vm", "create", name, "--memory", "96MiB", "--kernel", guest.kernel()];
    words.extend(["--initrd", guest.initrd(), "--append", &append]);
    words.extend(stopped.then_some("--stopped"));
    host.verb(&words)
}

/// Waits until a host lists VMs of exactly these names.
fn await_names(host: &Host, names: &[&str]) -> Result<Vec<Value>> {
    wait::until(format!("{} to list {names:?}", host.name()), HEAL_TIME_MAX, || {
        let mut vms = host.list(&["vm", "list"])?;
        vms.retain(|vm| vm["state"] != "creating");
        let listed: Vec<_> = vms.iter().filter_map(|vm| vm["name"].as_str()).collect();
        let seen = format!("{listed:?}");
        Ok(if listed == names { wait::Seen::Done(vms) } else { wait::Seen::NotYet(seen) })
    })
}

fn apart(lab: &mut Lab) -> Result<()> {
    lab.expect_anywhere("unreachable");
    lab.expect_anywhere("Two VMs had one name");
    lab.start_swarm()?;
    let guest = TestGuest::beside(lab.host("alpha")?.binary())?;
    let monitors = [lab.host("alpha")?.monitor()?, lab.host("gamma")?.monitor()?];
    lab.emulator("wan")?.isolate(&["gamma"]);
    for name in ["alpha", "gamma"] {
        let made = host_makes(lab.host(name)?, &guest, "web", false)?;
        ensure!(made.code == 0, "{name} alone should make it: {}", made.stderr);
    }
    let id = |host: &Host| -> Result<String> {
        let vm = host.json(&["vm", "show", "web"])?;
        Ok(vm["id"].as_str().context("A VM without an id")?.to_owned())
    };
    let ids = [id(lab.host("alpha")?)?, id(lab.host("gamma")?)?];
    lab.emulator("wan")?.heal();
    lab.await_members(&["alpha", "beta", "gamma"], HEAL_TIME_MAX)?;
    let new_names = ids.each_ref().map(|id| format!("web-{}", &id[..4]));
    let vms = wait::until("one of them to have another name", HEAL_TIME_MAX, || {
        let vms = lab.host("beta")?.list(&["vm", "list"])?;
        let is_new = |vm: &Value| new_names.iter().any(|name| vm["name"] == **name);
        let settled = vms.len() == 2 && vms.iter().filter(|vm| is_new(vm)).count() == 1;
        Ok(if settled { wait::Seen::Done(vms) } else { wait::Seen::NotYet(format!("{vms:?}")) })
    })?;
    ensure!(vms.iter().all(|vm| vm["state"] == "running"), "Both should run on: {vms:?}");
    ensure!(vms.iter().any(|vm| vm["name"] == "web"), "One should keep its name: {vms:?}");
    let listed: Vec<_> = vms.iter().filter_map(|vm| vm["name"].as_str()).collect();
    for host in ["alpha", "gamma"] {
        await_names(lab.host(host)?, &listed)?;
    }
    wait::until_true("an event about it", CONTACT_TIME_MAX, || {
        let mut events = monitors[0].events()?;
        events.extend(monitors[1].events()?);
        let renamed: Vec<_> = events.iter().filter(|event| event["kind"] == "vm_renamed").collect();
        Ok((renamed.len() == 1 && renamed[0]["from"] == "web", format!("{renamed:?}")))
    })?;
    for name in listed {
        lab.host("beta")?.json(&["vm", "delete", name, "--force"])?;
    }
    Ok(())
}

const HEAL_TIME_MAX: Duration = JOIN_TIME_MAX.saturating_mul(2);

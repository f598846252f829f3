//! Virtual machines on two hosts, made from one of them.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{LAN, Scenario};
use crate::command;
use crate::host::{Host, Start};
use crate::lab::{self, JOIN_TIME_MAX, Lab};
use crate::test_guest::TestGuest;
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "vm",
    about: "VMs on two hosts are made from one, reach each other, outlive their agent, stop, start and go",
    topology: LAN,
    tools: &["ping", "ssh", TestGuest::QEMU],
    run: vms,
}];

const ONE: &str = "10.9.0.101";
const TWO: &str = "10.9.0.102";

/// A guest boots in six seconds without KVM; the rest is for a loaded machine.
pub(super) const BOOT_TIME_MAX: Duration = Duration::from_secs(90);

fn vms(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    lab.create_network("blue", &[])?;
    lab.place_guest("user", "gamma", "blue")?;
    let guest = TestGuest::beside(lab.host("alpha")?.binary())?;
    create(lab, &guest, "one", ONE, &[])?;
    create(lab, &guest, "two", TWO, &["--host", "beta", "--wait=90"])?;
    for ip in [ONE, TWO] {
        lab.guest("user")?.await_reach(ip.parse()?, BOOT_TIME_MAX)?;
    }
    await_ssh(lab, &guest, ONE, "ping -c 3 10.9.0.102").context("VM one should reach VM two")?;
    await_ssh(lab, &guest, TWO, "hostname")?;
    let log = lab.host("gamma")?.verb(&["vm", "console", "two", "--log"])?.stdout;
    ensure!(log.contains("VM-READY name=two"), "The console of two lacks its first words: {log}");

    is_waited_for_in_vain(lab, &guest)?;
    outlives_its_agent(lab, &guest)?;
    stops_and_goes(lab)
}

pub(super) fn create(lab: &Lab, guest: &TestGuest, name: &str, ip: &str, more: &[&str]) -> Result<()> {
    let append = guest.append(name, ip);
    let words = ["vm", "create", name, "--kernel", guest.kernel(), "--initrd", guest.initrd(), "--append", &append];
    let size = ["--memory", "128MiB", "--net", "blue"];
    let vm = lab.host("alpha")?.json(&[&words, &size[..], more].concat())?;
    ensure!(vm["state"] == "running", "VM {name} does not run: {vm}");
    Ok(())
}

/// A guest that has nothing to run, and stays in that.
fn is_waited_for_in_vain(lab: &Lab, guest: &TestGuest) -> Result<()> {
    let words = ["vm", "create", "mute", "--kernel", guest.kernel(), "--initrd", guest.initrd(), "--memory", "128MiB"];
    let append = "console=ttyS0 panic=0 mitigations=off no_timer_check rdinit=/bin/false";
    let more = ["--append", append, "--net", "blue", "--host", "beta", "--wait=30"];
    let refusal = lab.host("alpha")?.refused(&[&words[..], &more].concat(), 1)?;
    ensure!(refusal.contains("has sent nothing") && refusal.contains("Kernel panic"), "Unclear: {refusal}");
    lab.host("alpha")?.json(&["vm", "delete", "mute", "--force"]).map(drop)
}

fn outlives_its_agent(lab: &mut Lab, guest: &TestGuest) -> Result<()> {
    let pid = pid(lab.host("alpha")?, "one")?;
    lab.host_mut("alpha")?.kill()?;
    ensure!(std::path::Path::new(&format!("/proc/{pid}")).exists(), "The VM died with its agent");
    lab.host_mut("alpha")?.start(&Start::alone())?;
    lab.await_members(&["alpha", "beta", "gamma"], JOIN_TIME_MAX)?;
    ensure!(self::pid(lab.host("alpha")?, "one")? == pid, "The VM has another process");
    lab.guest("user")?.await_reach(ONE.parse()?, lab::CONTACT_TIME_MAX)?;
    await_ssh(lab, guest, ONE, "ping -c 3 10.9.0.102").map(drop)
}

fn stops_and_goes(lab: &Lab) -> Result<()> {
    let (alpha, beta) = (lab.host("alpha")?, lab.host("beta")?);
    let stopped = alpha.json(&["vm", "stop", "two", "--timeout", "30"])?;
    ensure!(stopped["state"] == "stopped" && stopped["details"]["crash"].is_null(), "Not in order: {stopped}");
    alpha.json(&["vm", "start", "two"])?;
    lab.guest("user")?.await_reach(TWO.parse()?, BOOT_TIME_MAX)?;
    let refusal = alpha.refused(&["vm", "delete", "two"], 1)?;
    ensure!(refusal.contains("running"), "Unclear: {refusal}");
    for name in ["one", "two"] {
        beta.json(&["vm", "delete", name, "--force"])?;
    }
    for host in [alpha, beta] {
        wait::until_true(format!("{} to list no VM", host.name()), lab::CONTACT_TIME_MAX, || {
            let vms = host.list(&["vm", "list"])?;
            Ok((vms.is_empty(), format!("{vms:?}")))
        })?;
    }
    alpha.refused(&["vm", "show", "one"], 4).map(drop)
}

pub(super) fn pid(host: &Host, vm: &str) -> Result<u64> {
    let shown: Value = host.json(&["vm", "show", vm])?;
    shown["details"]["pid"].as_u64().with_context(|| format!("VM {vm} has no process: {shown}"))
}

/// Runs `words` in a VM as soon as its ssh server answers.
pub(super) fn await_ssh(lab: &Lab, guest: &TestGuest, ip: &str, words: &str) -> Result<String> {
    let user = lab.guest("user")?.namespace();
    wait::until(format!("ssh to {ip}"), BOOT_TIME_MAX, || {
        let mut command: Command = user.command("/usr/bin/ssh");
        command.args(guest.ssh_options()).arg(format!("root@{ip}")).arg(words);
        command::run(&mut command).map(wait::Seen::Done)
    })
}

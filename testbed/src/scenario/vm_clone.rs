//! VMs with a disk are copied, at rest and while they run, to their own host and to another one.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::vm::{BOOT_TIME_MAX, await_ssh, create};
use super::{LAN, Scenario};
use crate::host::Host;
use crate::lab::{CONTACT_TIME_MAX, Lab};
use crate::test_guest::TestGuest;
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "vm-clone",
    about: "clones of a VM, at rest or running, have its disk and a life of their own, on any host",
    topology: LAN,
    tools: &["ping", "ssh", TestGuest::QEMU, "qemu-img"],
    run: clones,
}];

const IP: &str = "10.9.0.101";
/// What the VM writes to its disk: 24 MiB that no two VMs have by chance.
const WRITE: &str = "dd if=/dev/urandom of=/tmp/x bs=64k count=64 2>/dev/null; \
                     for i in 0 1 2 3 4 5; do dd if=/tmp/x of=/dev/vda bs=64k seek=$((i*64)) 2>/dev/null; done; sync";
const SUM: &str = "dd if=/dev/vda bs=64k count=384 2>/dev/null | md5sum";

fn clones(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    lab.create_network("blue", &[])?;
    lab.place_guest("user", "gamma", "blue")?;
    let guest = TestGuest::beside(lab.host("alpha")?.binary())?;
    create(lab, &guest, "web", IP, &["--disk", "64MiB"])?;
    lab.guest("user")?.await_reach(IP.parse()?, BOOT_TIME_MAX)?;
    await_ssh(lab, &guest, IP, WRITE)?;
    let sum = await_ssh(lab, &guest, IP, SUM)?;

    // Both while it runs: its guest's kernel gave all that it wrote to the disk.
    let beta = lab.host("beta")?;
    let far = beta.json(&["vm", "clone", "web", "web-far", "--host", "beta", "--stopped"])?;
    ensure!(far["host_name"] == "beta" && far["state"] == "stopped", "Not as asked for: {far}");
    let near = beta.json(&["vm", "clone", "web", "web-near", "--stopped"])?;
    ensure!(near["host_name"] == "alpha", "A clone is beside its original: {near}");
    ensure!(lab.host("alpha")?.json(&["vm", "show", "web"])?["state"] == "running", "The original stands still");
    differ(&[lab.host("alpha")?.json(&["vm", "show", "web"])?, far, near])?;
    await_ssh(lab, &guest, IP, "dd if=/dev/zero of=/dev/vda bs=64k count=1 2>/dev/null; sync")?;
    beta.json(&["vm", "stop", "web", "--force"])?;
    for (clone, host) in [("web-far", "beta"), ("web-near", "alpha")] {
        // It has the address of its original in its kernel's command line, so only one of them runs at a time.
        forget(lab)?;
        beta.json(&["vm", "start", clone])?;
        lab.guest("user")?.await_reach(IP.parse()?, BOOT_TIME_MAX)?;
        let copied = await_ssh(lab, &guest, IP, SUM).with_context(|| format!("{clone} on {host}"))?;
        ensure!(copied == sum, "{clone} has another disk: {copied} instead of {sum}");
        beta.json(&["vm", "stop", clone, "--force"])?;
    }
    let rest = beta.json(&["vm", "clone", "web", "web-rest", "--host", "gamma", "--stopped"])?;
    ensure!(rest["host_name"] == "gamma", "Not as asked for: {rest}");
    leaves_nothing(lab)?;
    for name in ["web", "web-far", "web-near", "web-rest"] {
        beta.json(&["vm", "delete", name, "--force"])?;
    }
    Ok(())
}

/// Nobody remembers who had the address: for half a minute a guest would send to the MAC address that it knew.
fn forget(lab: &Lab) -> Result<()> {
    wait::until_true(format!("{IP} to be free"), CONTACT_TIME_MAX, || {
        let entries = lab.host("gamma")?.list(&["fdb", "blue"])?;
        Ok((entries.iter().all(|entry| !entry.to_string().contains(IP)), format!("{entries:?}")))
    })?;
    lab.guest("user")?.namespace().ip("neigh flush all").map(drop)
}

/// VMs have ids and addresses of their own.
fn differ(vms: &[Value]) -> Result<()> {
    for key in ["/id", "/networks/0/mac", "/name"] {
        let mut values: Vec<String> = vms.iter().filter_map(|vm| vm.pointer(key)).map(Value::to_string).collect();
        values.sort();
        values.dedup();
        ensure!(values.len() == vms.len(), "Not all VMs have a {key} of their own: {values:?}");
    }
    Ok(())
}

/// A clone that can't be made, and no copy that outlives its clone.
fn leaves_nothing(lab: &Lab) -> Result<()> {
    let (alpha, beta) = (lab.host("alpha")?, lab.host("beta")?);
    let refusal = beta.refused(&["vm", "clone", "web", "web-far", "--host", "gamma"], 1)?;
    ensure!(refusal.contains("on host beta"), "Unclear: {refusal}");
    beta.refused(&["vm", "clone", "nobody", "web-2"], 4)?;
    beta.refused(&["vm", "clone", "web", "web-2", "--host", "nowhere"], 4)?;
    let directories = |host: &Host, name: &str| -> Result<usize> {
        Ok(fs::read_dir(host.state_dir().join(name)).with_context(|| format!("No {name}"))?.count())
    };
    wait::until_true("the copies to be gone", CONTACT_TIME_MAX, || {
        let copies = directories(alpha, "copies")? + directories(beta, "copies")?;
        Ok((copies == 0, format!("{copies} copies")))
    })?;
    let kept = directories(lab.host("gamma")?, "vms")?;
    ensure!(kept == 1, "{kept} VMs on gamma, which has made one");
    Ok(())
}

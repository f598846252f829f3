//! A VM that wants more than it may have.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::vm::{BOOT_TIME_MAX, await_ssh, create};
use super::{ONE, Scenario};
use crate::host::Host;
use crate::interrupt;
use crate::lab::{CONTACT_TIME_MAX, Lab};
use crate::test_guest::TestGuest;
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "vm-limits",
    about: "a busy VM keeps its limits of processor time and disk traffic, which change while it runs",
    topology: ONE,
    tools: &["ping", "ssh", TestGuest::QEMU, "qemu-img"],
    run: limits,
}];

const IP: &str = "10.9.0.101";
const CPU_PERCENT: f64 = 20.0;
/// The kernel gives what was left over of a period, and takes it back later.
const CPU_TOLERANCE: f64 = 1.15;
/// What is measured is a mean.
const MEASURE_TIME: Duration = Duration::from_secs(5);

const READ_MIB: u64 = 6;
const IO_MIB_PER_S: u64 = 2;

fn limits(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    lab.create_network("blue", &[])?;
    lab.place_guest("user", "alpha", "blue")?;
    let guest = TestGuest::beside(lab.host("alpha")?.binary())?;
    let io_limit = format!("{IO_MIB_PER_S}MiB");
    create(lab, &guest, "busy", IP, &["--disk", "64MiB", "--cpu-limit", "180", "--io-limit", &io_limit])?;
    lab.guest("user")?.await_reach(IP.parse()?, BOOT_TIME_MAX)?;
    let read = format!("dd if=/dev/vda of=/dev/null bs=64k count={} 2>/dev/null; echo read", READ_MIB * 16);
    await_ssh(lab, &guest, IP, "true")?;

    let begin = Instant::now();
    await_ssh(lab, &guest, IP, &read)?;
    let seconds = begin.elapsed().as_secs_f64();
    let at_least = READ_MIB as f64 / IO_MIB_PER_S as f64 * 0.8;
    ensure!(seconds >= at_least, "{READ_MIB} MiB came in {seconds:.2} s, at {IO_MIB_PER_S} MiB/s at most");
    let alpha = lab.host("alpha")?;
    let shown = alpha.json(&["vm", "show", "busy"])?;
    let read_bytes = shown["details"]["io_read_bytes"].as_u64().context("No count of bytes")?;
    ensure!(read_bytes >= READ_MIB << 20, "The VM shows {read_bytes} bytes read: {shown}");
    ensure!(shown["details"]["net_rx_bytes"].as_u64() > Some(0), "No bytes received: {shown}");

    await_ssh(lab, &guest, IP, "setsid sh -c 'while :; do :; done' </dev/null >/dev/null 2>&1 & echo busy")?;
    let free = percent(alpha, "busy")?;
    alpha.json(&["vm", "set", "busy", "--cpu-limit", "20", "--io-limit", "0"])?;
    let limited = percent(alpha, "busy")?;
    ensure!(limited <= CPU_PERCENT * CPU_TOLERANCE, "It takes {limited:.1} % of a processor, of {CPU_PERCENT} at most");
    ensure!(limited >= CPU_PERCENT / 2.0 && free > CPU_PERCENT * 1.3, "It is not busy: {free:.1}, {limited:.1} %");
    wait::until_true("the host to show what its VMs use", CONTACT_TIME_MAX, || {
        let hosts = alpha.list(&["host", "list"])?;
        let used = hosts[0]["vms_cpu_percent"].as_u64().unwrap_or_default();
        let is_told = hosts[0]["vms"] == 1 && (10..=30).contains(&used) && hosts[0]["vms_memory_bytes"] != 0;
        Ok((is_told, hosts[0].to_string()))
    })?;
    let begin = Instant::now();
    await_ssh(lab, &guest, IP, &read.replace("dd if", "echo 3 >/proc/sys/vm/drop_caches; dd if"))?;
    let unlimited = begin.elapsed().as_secs_f64();
    cleans_up(lab.host("alpha")?)?;
    lab.note(format!("busy: {free:.1} % of a processor, limited to 20: {limited:.1} %"));
    lab.note(format!(
        "{READ_MIB} MiB from its disk at {IO_MIB_PER_S} MiB/s: {seconds:.1} s; without: {unlimited:.1} s"
    ));
    Ok(())
}

/// What a VM takes of a processor, over some seconds.
fn percent(host: &Host, name: &str) -> Result<f64> {
    let cpu_s = || -> Result<(Instant, f64)> {
        let shown = host.json(&["vm", "show", name])?;
        Ok((Instant::now(), shown["details"]["cpu_s"].as_f64().context("No processor time")?))
    };
    let (begin, before) = cpu_s()?;
    // The time over which the mean is taken.
    interrupt::pause(MEASURE_TIME)?;
    let (end, after) = cpu_s()?;
    Ok((after - before) / (end - begin).as_secs_f64() * 100.0)
}

fn cleans_up(host: &Host) -> Result<()> {
    let shown = host.json(&["vm", "show", "busy"])?;
    let id = shown["id"].as_str().context("A VM without an id")?;
    let groups = ["", "cpu", "memory"].map(|root| Path::new("/sys/fs/cgroup").join(root).join("virtuoso").join(id));
    ensure!(groups.iter().any(|group| group.is_dir()), "The VM has no control group");
    host.json(&["vm", "delete", "busy", "--force"])?;
    ensure!(!groups.iter().any(|group| group.exists()), "A control group stays");
    Ok(())
}

//! A VM whose disk is an image that another host has.

use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::{SLOW, Scenario};
use crate::command;
use crate::host::{Host, Monitor, Start};
use crate::lab::{self, JOIN_TIME_MAX, Lab};
use crate::root_image::{PAYLOAD, RootImage};
use crate::test_guest::TestGuest;
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "vm-image",
    about: "A VM runs from an image of another host, waits while that one is away, and outlives its own agent",
    topology: SLOW,
    tools: &["ping", "ssh", "cpio", "mke2fs", TestGuest::QEMU],
    run: vm_from_afar,
}];

const IP: &str = "10.9.0.101";
/// A guest boots in six seconds without KVM; the rest is for a loaded machine.
const BOOT_TIME_MAX: Duration = Duration::from_secs(90);
/// Twelve seconds on the link; three times as long as it takes to notice that a provider is gone.
const PAYLOAD_MIB: u64 = 60;
/// From the loss of the only provider to the event, and from its return to the other one.
const NOTICE_TIME_MAX: Duration = Duration::from_secs(60);

fn vm_from_afar(lab: &mut Lab) -> Result<()> {
    let guest = TestGuest::beside(lab.host("alpha")?.binary())?;
    let image = RootImage::make(&guest, "root-image", PAYLOAD_MIB, 1)?;
    lab.expect("alpha", "A VM is paused");
    lab.start_swarm()?;
    lab.create_network("blue", &[])?;
    lab.place_guest("user", "beta", "blue")?;
    let path = image.path().to_str().context("An odd path")?;
    lab.host("gamma")?.json(&["image", "import", path, "--name", "root"])?;
    await_image(lab.host("alpha")?)?;

    let alpha = lab.host("alpha")?;
    let events = alpha.monitor()?;
    create(alpha, &guest)?;
    // Checked by who reads it: the guest booted from the disk.
    let mounts = ssh(lab, &guest, "cat /proc/mounts")?;
    ensure!(mounts.contains("/dev/vda / ext4"), "The guest does not run from its disk: {mounts}");
    let used = alpha.refused(&["image", "remove", "root"], 4)?;
    ensure!(used.contains("No image"), "Unclear: {used}");
    waits_for_its_provider(lab, &guest, &image, &events)?;
    outlives_its_agent(lab, &guest, &image)?;
    keeps_its_image(lab)
}

fn create(alpha: &Host, guest: &TestGuest) -> Result<()> {
    let append = format!("{} vm.root=/dev/vda", guest.append("one", IP));
    let words = ["vm", "create", "one", "--kernel", guest.kernel(), "--initrd", guest.initrd(), "--append", &append];
    let vm = alpha.json(&[&words, &["--image", "root", "--memory", "128MiB", "--net", "blue"][..]].concat())?;
    ensure!(vm["state"] == "running", "The VM does not run: {vm}");
    Ok(())
}

/// The only host with the image is killed while the guest reads it.
fn waits_for_its_provider(lab: &mut Lab, guest: &TestGuest, image: &RootImage, events: &Monitor) -> Result<()> {
    let reading = start_reading(lab, guest)?;
    lab.host_mut("gamma")?.kill()?;
    await_event(events, "vm_paused", "nobody provides image root")?;
    await_state(lab.host("alpha")?, "paused")?;
    lab.host_mut("gamma")?.start(&Start::alone())?;
    await_event(events, "vm_resumed", "")?;
    await_state(lab.host("alpha")?, "running")?;
    check_read(reading, image)?;
    check_log(lab, guest)
}

/// The agent of the VM's host is killed while the guest reads.
fn outlives_its_agent(lab: &mut Lab, guest: &TestGuest, image: &RootImage) -> Result<()> {
    let pid = pid(lab.host("alpha")?)?;
    ssh(lab, guest, "echo 3 >/proc/sys/vm/drop_caches")?;
    let reading = start_reading(lab, guest)?;
    lab.host_mut("alpha")?.kill()?;
    lab.host_mut("alpha")?.start(&Start::alone())?;
    lab.await_members(&["alpha", "beta", "gamma"], JOIN_TIME_MAX)?;
    check_read(reading, image)?;
    ensure!(self::pid(lab.host("alpha")?)? == pid, "The VM has another process");
    check_log(lab, guest)
}

/// Nothing takes the image away from the VM, also when it is stopped.
fn keeps_its_image(lab: &Lab) -> Result<()> {
    let alpha = lab.host("alpha")?;
    wait::until_true("alpha to have all of the image", BOOT_TIME_MAX, || {
        let image = alpha.json(&["image", "show", "root"])?;
        Ok((image["local"] == true, image.to_string()))
    })?;
    alpha.json(&["vm", "stop", "one", "--force"])?;
    let used = alpha.refused(&["image", "remove", "root"], 1)?;
    ensure!(used.contains("delete them first"), "Unclear: {used}");
    alpha.json(&["vm", "start", "one"])?;
    alpha.json(&["vm", "delete", "one", "--force"])?;
    alpha.json(&["image", "remove", "root"]).map(drop)
}

type Reading = thread::JoinHandle<Result<String>>;

/// Has the guest read the large file; returns when it has begun.
fn start_reading(lab: &Lab, guest: &TestGuest) -> Result<Reading> {
    let words = format!("sha256sum {PAYLOAD}");
    let mut command = ssh_command(lab, guest, &words)?;
    let before = read_bytes(lab, guest)?;
    let reading = thread::spawn(move || command::run(&mut command));
    wait::until_true("the guest to read", BOOT_TIME_MAX, || {
        ensure!(!reading.is_finished(), "It has read all at once");
        let now = read_bytes(lab, guest)?;
        Ok((now > before + (2 << 20), format!("{now} bytes after {before}")))
    })?;
    Ok(reading)
}

/// What the guest has read of its disk.
fn read_bytes(lab: &Lab, guest: &TestGuest) -> Result<u64> {
    let stat = ssh(lab, guest, "cat /sys/block/vda/stat")?;
    let sectors: u64 = stat.split_whitespace().nth(2).context("No figure")?.parse()?;
    Ok(sectors * 512)
}

fn check_read(reading: Reading, image: &RootImage) -> Result<()> {
    let sum = reading.join().map_err(|_| anyhow!("The reader panicked"))??;
    ensure!(sum.starts_with(image.payload_sha256()), "The guest read something else: {sum}");
    Ok(())
}

/// The guest saw no error of its disk.
fn check_log(lab: &Lab, guest: &TestGuest) -> Result<()> {
    let log = ssh(lab, guest, "dmesg")?;
    ensure!(!log.contains("I/O error") && !log.contains("EXT4-fs error"), "The guest saw errors: {log}");
    Ok(())
}

fn await_image(host: &Host) -> Result<()> {
    wait::until_true("alpha to know the image", lab::CONTACT_TIME_MAX, || {
        let images = host.list(&["image", "list"])?;
        Ok((images.iter().any(|image| image["name"] == "root"), format!("{images:?}")))
    })
}

fn await_event(events: &Monitor, kind: &str, part: &str) -> Result<()> {
    wait::until_true(format!("the event {kind}"), NOTICE_TIME_MAX, || {
        let seen = events.events()?;
        let is_wanted = seen.iter().any(|event| event["kind"] == kind && event.to_string().contains(part));
        Ok((is_wanted, format!("{:?}", seen.last())))
    })
}

fn await_state(host: &Host, state: &str) -> Result<()> {
    wait::until_true(format!("the VM to be {state}"), lab::CONTACT_TIME_MAX, || {
        let vm = host.json(&["vm", "show", "one"])?;
        Ok((vm["state"] == state, vm.to_string()))
    })
}

fn pid(host: &Host) -> Result<u64> {
    let vm = host.json(&["vm", "show", "one"])?;
    vm["details"]["pid"].as_u64().with_context(|| format!("The VM has no process: {vm}"))
}

fn ssh_command(lab: &Lab, guest: &TestGuest, words: &str) -> Result<Command> {
    let mut command = lab.guest("user")?.namespace().command("/usr/bin/ssh");
    command.args(guest.ssh_options()).arg(format!("root@{IP}")).arg(words);
    Ok(command)
}

/// Runs `words` in the VM as soon as its ssh server answers.
fn ssh(lab: &Lab, guest: &TestGuest, words: &str) -> Result<String> {
    wait::until(format!("ssh to {IP}"), BOOT_TIME_MAX, || {
        command::run(&mut ssh_command(lab, guest, words)?).map(wait::Seen::Done)
    })
}

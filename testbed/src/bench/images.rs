//! Images: import, a disk by NBD, a VM whose image is elsewhere, copies to several hosts at once, a second version.
//! One host has the images, behind a line of 100 Mbit/s; the others have no bound.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::figure;
use crate::command;
use crate::console;
use crate::host::Host;
use crate::lab::{self, Lab, Settings};
use crate::process;
use crate::root_image::RootImage;
use crate::test_guest::TestGuest;
use crate::traffic::latency::percentile;
use crate::wait;

#[derive(Debug, Serialize)]
pub(super) struct Images {
    image_bytes: u64,
    import: Rate,
    verify: Rate,
    /// Sequential, by nbdcopy, from a disk that nothing was read of.
    nbd_first_read: Option<Rate>,
    /// The same once more.
    nbd_read: Option<Rate>,
    /// From `vm create` to the first answer by ssh, with the image on the same host.
    local_start_s: f64,
    /// The same with the image on another host.
    remote_start_s: f64,
    /// Of the image, by then.
    remote_start_moved_percent: f64,
    one_copy_s: f64,
    three_copies_s: f64,
    /// Of the second version, of which 2 % have changed.
    second_version_moved_percent: f64,
}

/// How fast something went.
#[derive(Debug, Clone, Copy, Serialize)]
struct Rate {
    mb_per_s: f64,
    /// For each second of CPU time that the agent took.
    per_core_mb_per_s: f64,
}

/// The one with the images.
const SEED: &str = "delta";
const OTHERS: [&str; 3] = ["alpha", "beta", "gamma"];
const LINE: &str = "root tbf rate 100mbit burst 64kb latency 50ms";
const BOOT_TIME_MAX: Duration = Duration::from_secs(120);
/// Of the second version, one piece of this length differs in each fifty.
const CHANGE_BYTES: u64 = 1 << 20;

pub(super) fn measure(settings: &Settings, rounds: usize, image_mib: u64) -> Result<Images> {
    let settings = Settings { report: settings.report.join("images"), ..settings.clone() };
    let mut lab = Lab::build(&include_str!("../../topologies/lan4.toml").parse()?, &settings)?;
    let guest = TestGuest::beside(&settings.agent)?;
    let image = RootImage::make(&guest, "bench-image", image_mib, 1)?;
    let image_bytes = fs::metadata(image.path())?.len();
    lab.start_swarm()?;
    lab.create_network("blue", &[])?;
    lab.place_guest("user", "beta", "blue")?;

    let seed = lab.host(SEED)?;
    let import = rate(seed, image_bytes, || import(seed, image.path(), "root"))?;
    let verify = rate(seed, image_bytes, || seed.json(&["image", "verify", "root"]).map(drop))?;
    line(&lab, "add")?;
    OTHERS.iter().try_for_each(|name| await_image(lab.host(name)?, "root"))?;
    let one_copy_s = pull_all(&lab, &OTHERS[..1], "root")?;
    lab.host(OTHERS[0])?.json(&["image", "remove", "root"])?;
    let three_copies_s = pull_all(&lab, &OTHERS, "root")?;
    let second_version_moved_percent = second_version(&lab, image.path(), image_bytes)?;
    let starts = starts(&lab, &guest, rounds, image_bytes)?;
    let images = Images {
        image_bytes,
        import,
        verify,
        nbd_first_read: starts.reads.map(|(first, _)| first),
        nbd_read: starts.reads.map(|(_, again)| again),
        local_start_s: starts.local_s,
        remote_start_s: starts.remote_s,
        remote_start_moved_percent: starts.moved_percent,
        one_copy_s,
        three_copies_s,
        second_version_moved_percent,
    };
    images.print();
    Ok(images)
}

impl Images {
    fn print(&self) {
        console::line(format!("\nAn image of {} MiB, behind a line of 100 Mbit/s:", self.image_bytes >> 20));
        let mut rows = vec![
            at_least("import", self.import.per_core_mb_per_s, "MB/s per core", 400.0),
            at_least("verify", self.verify.per_core_mb_per_s, "MB/s per core", 400.0),
        ];
        for (name, rate) in [("NBD, local, first read", self.nbd_first_read), ("NBD, local, again", self.nbd_read)] {
            rows.extend(rate.map(|rate| at_least(name, rate.mb_per_s, "MB/s", 1000.0)));
            let per_core = |rate: Rate| format!("{:.0} MB/s per core of the agent", rate.per_core_mb_per_s);
            rows.extend(rate.map(|rate| vec!["of it".to_owned(), per_core(rate), String::new(), String::new()]));
        }
        rows.extend([
            figure("VM to ssh, local image", self.local_start_s, "s", f64::INFINITY),
            figure("VM to ssh, image elsewhere", self.remote_start_s / self.local_start_s, "times", 1.3),
            figure("moved by then", self.remote_start_moved_percent, "%", 5.0),
            figure("one copy", self.one_copy_s, "s", f64::INFINITY),
            figure("three copies at once", self.three_copies_s / self.one_copy_s, "times", 1.25),
            figure("second version, 2 % changed", self.second_version_moved_percent, "% moved", 4.0),
        ]);
        console::table(&rows);
    }
}

fn at_least(name: &str, value: f64, unit: &str, limit: f64) -> Vec<String> {
    let verdict = if value >= limit { "met" } else { "MISSED" };
    vec![name.to_owned(), format!("{value:.0} {unit}"), format!(">= {limit} {unit}"), verdict.to_owned()]
}

/// Puts the bound on the line of the host with the images, or takes it away (`add`, `del`).
fn line(lab: &Lab, verb: &str) -> Result<()> {
    let mut tc = lab.host(SEED)?.namespace().command("/sbin/tc");
    tc.args(["qdisc", verb, "dev", "lan"]).args(LINE.split(' '));
    command::run(&mut tc).map(drop)
}

fn import(host: &Host, path: &Path, name: &str) -> Result<()> {
    let path = path.to_str().context("An odd path")?;
    host.json(&["image", "import", path, "--name", name]).map(drop)
}

/// How fast the agent of `host` does a work of so many bytes.
fn rate(host: &Host, bytes: u64, work: impl FnOnce() -> Result<()>) -> Result<Rate> {
    let before = process::whole_cpu_seconds(host.pid()?)?;
    let seconds = timed(work)?;
    let cpu_seconds = process::whole_cpu_seconds(host.pid()?)? - before;
    let megabytes = bytes as f64 / 1e6;
    // Of a small image, less than what is counted.
    Ok(Rate { mb_per_s: megabytes / seconds, per_core_mb_per_s: megabytes / cpu_seconds.max(0.01) })
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    work()?;
    Ok(begin.elapsed().as_secs_f64())
}

fn await_image(host: &Host, name: &str) -> Result<()> {
    wait::until_true(format!("{} to know image {name}", host.name()), lab::CONTACT_TIME_MAX, || {
        let images = host.list(&["image", "list"])?;
        Ok((images.iter().any(|image| image["name"] == name), format!("{images:?}")))
    })
}

/// Seconds until all of `hosts` have the image.
fn pull_all(lab: &Lab, hosts: &[&str], image: &str) -> Result<f64> {
    let begin = Instant::now();
    let mut pulls = Vec::new();
    for name in hosts {
        let host = lab.host(name)?;
        let mut command = Command::new(host.binary());
        command.args(["image", "pull", image, "--json", "--socket"]).arg(host.socket());
        pulls.push(command::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()))?);
    }
    for mut pull in pulls {
        let status = pull.wait()?;
        ensure!(status.success(), "A pull ended with {status}");
    }
    Ok(begin.elapsed().as_secs_f64())
}

/// What part of a second version moves to a host that has the first, in percent.
fn second_version(lab: &Lab, path: &Path, image_bytes: u64) -> Result<f64> {
    let file = fs::File::options().write(true).open(path)?;
    for n in 0..image_bytes / CHANGE_BYTES / 50 {
        // Not where chunks begin.
        let at = 50 * CHANGE_BYTES * n + 4096 * (n + 1);
        let new: Vec<u8> = (0..CHANGE_BYTES).map(|byte| (byte * (n + 3) % 251) as u8).collect();
        file.write_all_at(&new, at)?;
    }
    drop(file);
    import(lab.host(SEED)?, path, "second")?;
    let host = lab.host(OTHERS[0])?;
    await_image(host, "second")?;
    let (before, _) = host.namespace().interface_bytes("lan")?;
    host.json(&["image", "pull", "second"])?;
    let (after, _) = host.namespace().interface_bytes("lan")?;
    Ok((after - before) as f64 * 100.0 / image_bytes as f64)
}

struct Starts {
    local_s: f64,
    remote_s: f64,
    moved_percent: f64,
    /// The first of a disk, and one more.
    reads: Option<(Rate, Rate)>,
}

fn starts(lab: &Lab, guest: &TestGuest, rounds: usize, image_bytes: u64) -> Result<Starts> {
    let host = lab.host(OTHERS[0])?;
    for name in OTHERS {
        lab.host(name)?.json(&["image", "remove", "root"])?;
    }
    host.json(&["image", "remove", "second"])?;
    let (mut local, mut remote, mut moved) = (Vec::new(), Vec::new(), Vec::new());
    let mut reads = None;
    // Each VM has one of its own: whoever talks to the next would look for it at the last one's MAC for a while.
    let mut ips = (101..=250).cycle().map(|number| format!("10.9.0.{number}"));
    let mut next_start = || start(lab, guest, host, &ips.next().context("No address is left")?);
    for _ in 0..rounds {
        let (before, _) = host.namespace().interface_bytes("lan")?;
        remote.push(next_start()?);
        let (after, _) = host.namespace().interface_bytes("lan")?;
        moved.push((after - before) as f64 * 100.0 / image_bytes as f64);
        host.json(&["vm", "delete", "one", "--force"])?;
        line(lab, "del")?;
        host.json(&["image", "pull", "root"])?;
        line(lab, "add")?;
        local.push(next_start()?);
        reads = read_disk(host, image_bytes)?;
        host.json(&["vm", "delete", "one", "--force"])?;
        host.json(&["image", "remove", "root"])?;
    }
    let median = |values: &mut Vec<f64>| percentile(values, 50);
    Ok(Starts { local_s: median(&mut local), remote_s: median(&mut remote), moved_percent: median(&mut moved), reads })
}

/// Seconds from `vm create` to the first answer by ssh.
fn start(lab: &Lab, guest: &TestGuest, host: &Host, ip: &str) -> Result<f64> {
    let append = format!("{} vm.root=/dev/vda", guest.append("one", ip));
    let words = ["vm", "create", "one", "--kernel", guest.kernel(), "--initrd", guest.initrd(), "--append", &append];
    let more = ["--image", "root", "--memory", "128MiB", "--net", "blue"];
    timed(|| {
        host.json(&[&words, &more[..]].concat())?;
        let user = lab.guest("user")?.namespace();
        wait::until(format!("ssh to {ip}"), BOOT_TIME_MAX, || {
            let mut ssh = user.command("/usr/bin/ssh");
            ssh.args(guest.ssh_options()).arg(format!("root@{ip}")).arg("true");
            command::run(&mut ssh).map(|_| wait::Seen::Done(()))
        })
    })
}

/// Reads a whole disk twice, while the VM is there and quiet; nothing without nbdcopy.
fn read_disk(host: &Host, bytes: u64) -> Result<Option<(Rate, Rate)>> {
    if !command::is_installed("nbdcopy") {
        return Ok(None);
    }
    let sockets = fs::read_dir(host.state_dir().join("images/nbd"))?;
    let path = sockets.flatten().next().context("No disk is served")?.path();
    let uri = format!("nbd+unix:///?socket={}", path.display());
    let read = || rate(host, bytes, || command::run(Command::new("nbdcopy").args([&uri, "null:"])).map(drop));
    Ok(Some((read()?, read()?)))
}

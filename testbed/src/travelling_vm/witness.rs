//! A VM whose guest writes to its disk while it is moved and its hosts are killed, and knows what must be there.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{BOOT_TIME_MAX, TravellingVm};
use crate::host::Start;
use crate::lab::{self, JOIN_TIME_MAX, Lab};
use crate::sys;
use crate::wait;

/// A VM whose guest goes on writing to its disk, and knows what must be there.
pub(crate) struct Witness(TravellingVm);

impl Witness {
    pub(crate) fn start(lab: &mut Lab) -> Result<Self> {
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
    pub(crate) fn start_anew(&self, lab: &Lab, host: &str, written: &str) -> Result<()> {
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
    pub(crate) fn begin_anew(&self, lab: &Lab, written: &str) -> Result<()> {
        lab.guest("user")?.await_reach(self.0.ip.into(), BOOT_TIME_MAX)?;
        let found = self.inside(lab, READ)?;
        ensure!(found == written, "The disk has changed: {found} instead of {written}");
        self.begin_to_write(lab)
    }

    /// `host` must say of the VM that it is in `state` and waits, in words that contain `part`.
    pub(crate) fn await_trouble(&self, lab: &Lab, host: &str, state: &str, part: &str) -> Result<()> {
        wait::until_true(format!("{host} to say {part:?} of the VM"), SETTLE_TIME_MAX, || {
            let vm = lab.host(host)?.json(&["vm", "show", "one"])?;
            let trouble = &vm["details"]["trouble"];
            let is_told = trouble.as_str().is_some_and(|trouble| trouble.contains(part));
            Ok((is_told && vm["state"] == state, format!("{} on {}, {trouble}", vm["state"], vm["host_name"])))
        })
    }

    pub(crate) fn inside(&self, lab: &Lab, words: &str) -> Result<String> {
        self.0.ssh(lab, words)
    }

    /// The VM must come to rest on `host`, whole, and nowhere else.
    pub(crate) fn expect_at(&self, lab: &Lab, host: &str) -> Result<()> {
        let at = self.expect_somewhere(lab)?;
        ensure!(at == host, "The VM is on {at} and not on {host}");
        Ok(())
    }

    /// The VM must come to rest, whole, on one of the two hosts; which one.
    pub(crate) fn expect_somewhere(&self, lab: &Lab) -> Result<&'static str> {
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
    pub(crate) fn ensure_whole(&self, lab: &Lab) -> Result<()> {
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
pub(crate) fn qemus_of(state: &Path) -> Result<Vec<u32>> {
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

/// The one machine of `host` is killed.
pub(crate) fn kill_machine(lab: &Lab, host: &str) -> Result<()> {
    let machines = qemus_of(lab.host(host)?.state_dir())?;
    ensure!(machines.len() == 1, "{host} should have one machine: {machines:?}");
    Ok(sys::kill(machines[0], libc::SIGKILL)?)
}

/// `host` is gone with all that ran there, if anything still did.
pub(crate) fn bury(lab: &mut Lab, host: &str) -> Result<()> {
    lab.host_mut(host)?.kill()?;
    let machines = qemus_of(lab.host(host)?.state_dir())?;
    machines.into_iter().try_for_each(|machine| Ok(sys::kill(machine, libc::SIGKILL)?))
}

/// Starts the agent of `host` again, and waits until it is back in the swarm, with its VMs.
pub(crate) fn again(lab: &mut Lab, host: &str) -> Result<()> {
    lab.host_mut(host)?.start(&Start::alone())?;
    lab.await_members(&["alpha", "beta", "gamma"], JOIN_TIME_MAX)?;
    lab.await_vm("one")
}

/// Hosts ask each other every second; the rest is for a loaded machine.
pub(crate) const SETTLE_TIME_MAX: Duration = Duration::from_secs(60);

/// The sum of what is never written again.
pub(crate) const READ: &str = "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=64k count=128 2>/dev/null | md5sum";
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

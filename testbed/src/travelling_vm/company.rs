//! All that goes on with a VM at once, for as long as it takes: whoever moves it meanwhile must disturb none of it.

use std::fmt;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};

use super::{ALL_HOSTS, BOOT_TIME_MAX, ECHO_INTERVAL, ECHO_PORT, GROUP_INTERVAL, TRANSFER_TIME_MAX, TravellingVm};
use crate::command;
use crate::lab::Lab;
use crate::sandbox;
use crate::traffic::echoes::{EchoReport, Echoes};
use crate::traffic::questions::{Answers, Questions};
use crate::traffic::transfer::{Transfer, TransferReport};
use crate::wait;

/// Echoes, a TCP transfer, a session by ssh that counts, a multicast stream that the VM answers, questions for its
/// name, and what it writes to its disk.
pub(crate) struct Company {
    echoes: Echoes,
    transfer: Transfer,
    session: Session,
    group: Echoes,
    questions: Questions,
}

/// What became of it; what is certain to be a fault is an error already.
pub(crate) struct Experience {
    pub(crate) echoes: EchoReport,
    pub(crate) transfer: TransferReport,
    pub(crate) group: EchoReport,
    pub(crate) answers: Answers,
    /// Lines that the session said.
    lines: u64,
    written_bytes: u64,
    /// Frames that the VM's own kernel had no memory or no room for.
    guest_drops: u64,
}

impl Company {
    /// Begins all of it.
    pub(crate) fn start(lab: &Lab, vm: &TravellingVm) -> Result<Self> {
        let user = lab.guest("user")?;
        vm.ssh(lab, WRITE)?;
        let session = Session::start(lab, vm)?;
        let transfer = Transfer::through_echo(user, (vm.ip, ECHO_PORT).into(), vm.bytes_per_second)?;
        transfer.await_bytes(vm.bytes_per_second / 2, TRANSFER_TIME_MAX)?;
        let echoes = Echoes::start(user, vm.ip, ECHO_INTERVAL)?;
        let group = Echoes::start(user, ALL_HOSTS, GROUP_INTERVAL)?;
        let questions = Questions::start(user, RESOLVER, "one.virtuoso", vm.ip)?;
        Ok(Self { echoes, transfer, session, group, questions })
    }

    /// Ends all of it and looks at the disk. An error if the transfer or the session broke, a name was wrong, or the
    /// disk is not what was written.
    pub(crate) fn finish(self, lab: &Lab, vm: &TravellingVm) -> Result<Experience> {
        self.transfer.await_bytes(vm.bytes_per_second, TRANSFER_TIME_MAX)?;
        let lines = self.session.finish()?;
        let (echoes, group) = (self.echoes.finish()?, self.group.finish()?);
        let answers = self.questions.finish()?;
        ensure!(answers.right > 0 && answers.wrong == 0, "The VM's name was wrong: {answers}");
        let transfer = self.transfer.finish()?;
        let written_bytes = compare_disk(lab, vm)?;
        let guest_drops = vm.ssh(lab, GUEST_DROPS)?.trim().parse().context("The VM does not say what it dropped")?;
        Ok(Experience { echoes, transfer, group, answers, lines, written_bytes, guest_drops })
    }
}

impl Experience {
    /// An error if anything was lost or came twice, of what is sent once only.
    pub(crate) fn ensure_whole(&self) -> Result<()> {
        for (what, report) in [("echoes", &self.echoes), ("echoes to the group", &self.group)] {
            ensure!(report.lost.is_empty(), "Of the {what} these were lost: {:?}", report.lost);
            ensure!(report.duplicated == 0, "Of the {what} {} came twice", report.duplicated);
        }
        ensure!(self.answers.none == 0, "Nobody knew the VM's name for a while: {}", self.answers);
        Ok(())
    }
}

impl fmt::Display for Experience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { echoes, transfer, group, answers, lines, written_bytes, guest_drops } = self;
        write!(
            f,
            "{echoes} | TCP {} bytes, stalled {} ms | to the group {group} | {answers} | {lines} lines by ssh | {} MiB on \
             disk | {guest_drops} frames dropped by the VM's kernel",
            transfer.bytes,
            transfer.stall_max_ms,
            written_bytes >> 20,
        )
    }
}

/// A login that says a number each tenth of a second.
struct Session {
    client: Child,
    said: PathBuf,
}

impl Session {
    fn start(lab: &Lab, vm: &TravellingVm) -> Result<Self> {
        let said = sandbox::fresh_dir("session")?.join("said");
        let file = File::create(&said).with_context(|| format!("Cannot make {}", said.display()))?;
        let mut command = vm.ssh_command(lab, "n=0; while :; do echo $n; n=$((n+1)); sleep 0.1; done")?;
        let client = command::spawn(command.stdout(file).stderr(Stdio::null()))?;
        let session = Self { client, said };
        session.await_line(1)?;
        Ok(session)
    }

    /// Lines so far, which must be numbers without a gap.
    fn lines(&self) -> Result<u64> {
        let text = fs::read_to_string(&self.said)?;
        let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        let mut count = 0;
        for line in whole.lines() {
            ensure!(line == count.to_string(), "The session said {line} after {count} lines");
            count += 1;
        }
        Ok(count)
    }

    fn await_line(&self, wanted: u64) -> Result<()> {
        wait::until_true(format!("line {wanted} of the session"), BOOT_TIME_MAX, || {
            let lines = self.lines()?;
            Ok((lines >= wanted, format!("{lines} lines")))
        })
    }

    /// It must still go on.
    fn finish(mut self) -> Result<u64> {
        self.await_line(self.lines()? + 3)?;
        let ended = self.client.try_wait()?;
        ensure!(ended.is_none(), "The session ended: {ended:?}");
        self.lines()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// Ends the writing and compares what the disk has with what was written; how many bytes that is.
fn compare_disk(lab: &Lab, vm: &TravellingVm) -> Result<u64> {
    let written =
        vm.ssh(lab, "touch /tmp/stop; while [ ! -e /tmp/sum ]; do sleep 0.1; done; cat /tmp/blocks /tmp/sum")?;
    let (blocks, wanted) = written.split_once('\n').context("The VM does not say what it wrote")?;
    let blocks: u64 = blocks.trim().parse().with_context(|| format!("Not a number of blocks: {blocks}"))?;
    ensure!((1..DISK_BLOCKS).contains(&blocks), "The VM wrote {blocks} blocks to its disk");
    let read = format!("echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=64k count={blocks} 2>/dev/null | md5sum");
    let found = vm.ssh(lab, &read)?;
    ensure!(found == wanted, "The disk is not what was written in {blocks} blocks: {found} instead of {wanted}");
    Ok(blocks * (64 << 10))
}

/// Says how many frames its interfaces have dropped.
const GUEST_DROPS: &str =
    "cat /sys/class/net/*/statistics/rx_dropped | { n=0; while read d; do n=$((n+d)); done; echo $n; }";
/// Who answers in the network for all names.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// Of 64 KiB, on a disk of 64 MiB.
const DISK_BLOCKS: u64 = 1024;
/// Writes random blocks to the disk until `/tmp/stop` is there, then says in `/tmp/sum` what it wrote.
const WRITE: &str = "(n=0; while [ ! -e /tmp/stop ]; do dd if=/dev/urandom bs=64k count=1 2>/dev/null; n=$((n+1)); \
     echo $n >/tmp/blocks; [ $((n%4)) != 0 ] || sync; sleep 0.2; done | tee /dev/vda | md5sum >/tmp/sum.new; sync; \
     mv /tmp/sum.new /tmp/sum) >/dev/null 2>&1 </dev/null &";

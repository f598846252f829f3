//! What VMs use of their host: read from the kernel every few seconds for the rate and the host's row, and from QEMU
//! and the kernel whenever a VM is shown.

use super::machine::Machine;
use super::qmp::Qmp;
use super::vms::Vms;
use crate::clock::Clock;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, timeout};
use virtuoso_overlay::ids::VmId;
use virtuoso_overlay::time::Instant;

/// Time between two readings: what a rate is averaged over.
const READ_INTERVAL: Duration = Duration::from_secs(2);
/// How long QEMU may take to say what its disk did; a VM is shown without it otherwise.
const QMP_TIME_MAX: Duration = Duration::from_secs(1);
/// Units of `st_blocks`, on every file system.
const BLOCK_BYTES: u64 = 512;

/// What a VM that runs uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Processor time since its start, in seconds.
    pub cpu_s: f64,
    /// Processor time within the last seconds; 100 is one whole processor.
    pub cpu_percent: Option<f64>,
    /// Bytes of memory of its process.
    pub memory_bytes: u64,
    /// Bytes that its network interfaces received.
    pub net_rx_bytes: u64,
    /// Bytes that they sent.
    pub net_tx_bytes: u64,
    /// Bytes that it read from its disk since its start.
    pub io_read_bytes: u64,
    /// Bytes that it wrote to it.
    pub io_written_bytes: u64,
}

/// What all VMs of a host use together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TotalUsage {
    /// How many run.
    pub vms: u32,
    /// Processor time; 100 is one whole processor.
    pub cpu_percent: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

/// Processor times at the last reading.
#[derive(Debug, Default)]
pub(super) struct Meters(Mutex<BTreeMap<VmId, Reading>>);

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    cpu_s: f64,
    percent: Option<f64>,
}

impl Meters {
    /// Reads a VM's processor time again.
    fn read(&self, vm: VmId, now: Instant, cpu_s: f64) -> Option<f64> {
        let mut readings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let percent = readings.get(&vm).and_then(|last| {
            let time = now.since(last.at).as_secs_f64();
            // A process that began again counts from zero.
            (time > 0.0 && cpu_s >= last.cpu_s).then(|| (cpu_s - last.cpu_s) / time * 100.0)
        });
        readings.insert(vm, Reading { at: now, cpu_s, percent });
        percent
    }

    /// The rate at the last reading.
    fn percent(&self, vm: VmId) -> Option<f64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&vm)?.percent
    }

    fn retain(&self, is_there: impl Fn(VmId) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|vm, _| is_there(*vm));
    }
}

/// Reads what VMs use until the agent stops, and tells the core.
pub(super) async fn follow(vms: Weak<Vms>, clock: Clock) {
    let mut tick = interval(READ_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(vms) = vms.upgrade() else { return };
        let mut total = TotalUsage::default();
        let mut cpu_percent = 0.0;
        let machines = vms.all();
        for machine in &machines {
            let Some((cpu_s, memory_bytes)) = machine.live().and_then(|live| live.process.usage()) else { continue };
            cpu_percent += vms.meters().read(machine.spec().id.0, clock.mono(), cpu_s).unwrap_or_default();
            total.vms += 1;
            total.memory_bytes = total.memory_bytes.saturating_add(memory_bytes);
        }
        total.cpu_percent = cpu_percent as u32;
        vms.meters().retain(|id| machines.iter().any(|machine| machine.spec().id.0 == id));
        if vms.tell_usage(total).await.is_err() {
            // The agent is stopping.
            return;
        }
    }
}

/// What a VM uses now, if it runs.
pub(super) async fn usage(meters: &Meters, machine: &Machine) -> Option<Usage> {
    let live = machine.live()?;
    let (cpu_s, memory_bytes) = live.process.usage()?;
    let spec = machine.spec();
    let devices = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    let taps = spec.nics.iter().filter_map(|nic| counters(&devices, &nic.tap));
    // What the host's end sends, the guest receives.
    let (net_tx_bytes, net_rx_bytes) = taps.fold((0, 0), |sum, (rx, tx)| (sum.0 + rx, sum.1 + tx));
    let (io_read_bytes, io_written_bytes) = disk_counters(&live.qmp).await.unwrap_or_default();
    let cpu_percent = meters.percent(spec.id.0);
    Some(Usage { cpu_s, cpu_percent, memory_bytes, net_rx_bytes, net_tx_bytes, io_read_bytes, io_written_bytes })
}

/// Bytes that a VM's disk takes on its host's.
pub(super) fn disk_bytes(machine: &Machine) -> u64 {
    fs::metadata(machine.files.disk()).map_or(0, |disk| disk.blocks() * BLOCK_BYTES)
}

async fn disk_counters(qmp: &Qmp) -> Option<(u64, u64)> {
    let stats = timeout(QMP_TIME_MAX, qmp.run("query-blockstats")).await.ok()?.ok()?;
    Some(sum_of_disks(&stats))
}

/// Bytes read and written by virtio disks: other drives hold what nobody writes.
fn sum_of_disks(stats: &Value) -> (u64, u64) {
    let disks = stats.as_array().into_iter().flatten().filter(|disk| {
        disk["qdev"].as_str().is_some_and(|device| device.split('/').any(|part| part == super::qemu::DISK_DEVICE))
    });
    let number = |disk: &Value, key: &str| disk["stats"][key].as_u64().unwrap_or_default();
    disks.fold((0, 0), |sum, disk| (sum.0 + number(disk, "rd_bytes"), sum.1 + number(disk, "wr_bytes")))
}

/// Bytes received and sent by an interface, of the kernel's table.
fn counters(table: &str, interface: &str) -> Option<(u64, u64)> {
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))?;
    let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.nth(7)??))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn interfaces_are_counted() {
        let table = "Inter-|   Receive\n face |bytes\n  vm-1:  100 2 0 0 0 0 0 0  2000 3 0 0 0 0 0 0\n vm-12: 5 0 0 0 0 0 0 0 6 0\n";
        assert_eq!(counters(table, "vm-1"), Some((100, 2000)));
        assert_eq!(counters(table, "vm-12"), Some((5, 6)));
        assert_eq!(counters(table, "vm-2"), None);
        assert_eq!(counters("vm-1: 1 2", "vm-1"), None);
    }

    #[test]
    fn only_the_own_disk_counts() {
        let disk = |qdev: &str| json!({"qdev": qdev, "stats": {"rd_bytes": 7, "wr_bytes": 9}});
        let stats = json!([disk("/machine/peripheral/vd0/virtio-backend"), disk("/machine/peripheral/cd0")]);
        assert_eq!(sum_of_disks(&stats), (7, 9));
        assert_eq!(sum_of_disks(&json!({"odd": 1})), (0, 0));
    }

    #[test]
    fn rates_need_two_readings_of_one_process() {
        let (meters, vm) = (Meters::default(), VmId([1; 16]));
        let at = |seconds: u64| Instant(seconds * 1_000_000);
        assert_eq!(meters.read(vm, at(10), 1.0), None);
        assert_eq!(meters.read(vm, at(12), 2.0), Some(50.0));
        assert_eq!(meters.percent(vm), Some(50.0));
        assert_eq!(meters.read(vm, at(14), 0.5), None);
        meters.retain(|_| false);
        assert_eq!(meters.percent(vm), None);
    }
}

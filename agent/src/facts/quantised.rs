//! Facts in steps: whether a change is worth telling the swarm.
//!
//! Every published row goes to every member, and free memory and load change all the time. Whoever places a VM ranks
//! hosts by them and asks the chosen one, which knows exactly; so a sixteenth of the whole is as fine as it matters. A
//! value on the border of two steps must not publish at every flutter: a step changes only when the value is half a
//! step beyond its border.

use super::HostFacts;
use crate::vm::TotalUsage;

/// Steps of a whole. A host that fills up evenly within an hour publishes every four minutes.
const STEPS: u8 = 16;

/// The load per usable core at the last step. Beyond twice as many runnable processes as cores, more is no news.
const LOAD_PER_CORE_MAX: f32 = 2.0;

/// How far beyond a step's border a value must be to change it, in steps.
const HYSTERESIS_STEPS: f32 = 0.5;

/// Facts in steps. Two that are equal are not worth telling apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantised {
    memory_free: u8,
    disk_free: u8,
    load: u8,
    vms: u32,
    vms_cpu: u8,
    vms_memory: u8,
    memory_total_bytes: u64,
    disk_total_bytes: u64,
    cores: (u32, u32),
    kvm: bool,
    qemu: Option<super::QemuVersion>,
}

impl Quantised {
    /// Puts facts into steps. `published` is what was told last.
    pub fn of(facts: &HostFacts, vms: &TotalUsage, published: Option<&Self>) -> Self {
        let room = &facts.room;
        let memory_free = share(room.memory_free_bytes, room.memory_total_bytes);
        let disk_free = share(room.disk_free_bytes, room.disk_total_bytes);
        let cores = facts.cores_usable.max(1) as f32;
        let load = room.load.one_minute / cores / LOAD_PER_CORE_MAX;
        Self {
            memory_free: step(memory_free, published.map(|last| last.memory_free)),
            disk_free: step(disk_free, published.map(|last| last.disk_free)),
            load: step(load, published.map(|last| last.load)),
            vms: vms.vms,
            vms_cpu: step(vms.cpu_percent as f32 / 100.0 / cores, published.map(|last| last.vms_cpu)),
            vms_memory: step(share(vms.memory_bytes, room.memory_total_bytes), published.map(|last| last.vms_memory)),
            memory_total_bytes: room.memory_total_bytes,
            disk_total_bytes: room.disk_total_bytes,
            cores: (facts.cores_total, facts.cores_usable),
            kvm: facts.kvm.usable,
            qemu: facts.qemu.version,
        }
    }
}

fn share(part: u64, whole: u64) -> f32 {
    if whole == 0 { 0.0 } else { part as f32 / whole as f32 }
}

/// The step of `share`, which stays at `last` within the hysteresis.
fn step(share: f32, last: Option<u8>) -> u8 {
    let exact = share.clamp(0.0, 1.0) * f32::from(STEPS);
    if let Some(last) = last {
        let lower = f32::from(last) - HYSTERESIS_STEPS;
        let upper = f32::from(last) + 1.0 + HYSTERESIS_STEPS;
        if (lower..upper).contains(&exact) {
            return last;
        }
    }
    // Between 0 and STEPS: cut to whole steps.
    (exact as u8).min(STEPS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{CgroupVersion, KvmState, LoadAverage, QemuState, Room};
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    fn quantised(facts: &HostFacts, published: Option<&Quantised>) -> Quantised {
        Quantised::of(facts, &TotalUsage::default(), published)
    }

    fn facts(memory_free_bytes: u64, load: f32) -> HostFacts {
        HostFacts {
            cores_total: 4,
            cores_usable: 4,
            room: Room {
                memory_total_bytes: 16 * GIB,
                memory_free_bytes,
                disk_total_bytes: 100 * GIB,
                disk_free_bytes: 50 * GIB,
                load: LoadAverage { one_minute: load, five_minutes: 0.0, fifteen_minutes: 0.0 },
            },
            arch: "x86_64",
            kernel: "6.1.0".to_owned(),
            kvm: KvmState { usable: true, why: String::new() },
            qemu: QemuState { usable: false, path: None, version: None, why: String::new() },
            cgroup: CgroupVersion::V2,
        }
    }

    #[test]
    fn flutter_on_a_border_is_no_news() {
        let published = quantised(&facts(8 * GIB, 0.0), None);
        for memory in [8 * GIB - 1, 8 * GIB + 1, 9 * GIB + GIB / 4, 8 * GIB - GIB / 4] {
            assert_eq!(quantised(&facts(memory, 0.2), Some(&published)), published, "{memory}");
        }
    }

    #[test]
    fn what_matters_is_news() {
        let published = quantised(&facts(8 * GIB, 0.0), None);
        assert_ne!(quantised(&facts(6 * GIB, 0.0), Some(&published)), published);
        assert_ne!(quantised(&facts(8 * GIB, 4.0), Some(&published)), published);
        let without_kvm = HostFacts { kvm: KvmState { usable: false, why: String::new() }, ..facts(8 * GIB, 0.0) };
        assert_ne!(quantised(&without_kvm, Some(&published)), published);
    }

    proptest! {
        #[test]
        fn a_step_is_stable_and_close(first in -1.0f32..3.0, second in -1.0f32..3.0) {
            let told = step(first, None);
            prop_assert!(told < STEPS);
            prop_assert_eq!(step(first, Some(told)), told);
            let now = step(second, Some(told));
            prop_assert_eq!(step(second, Some(now)), now);
            let exact = second.clamp(0.0, 1.0) * f32::from(STEPS);
            prop_assert!((exact - f32::from(now) - 0.5).abs() <= 1.0 + f32::EPSILON, "{} is told as {}", exact, now);
        }
    }
}

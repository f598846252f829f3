//! Control groups: each VM has one of its own, with a share of the processors and a bound on its memory. The unified
//! hierarchy is used if it has the controllers, else those of version 1; without either a VM runs unbounded.

use super::error::VmError;
use super::spec::Spec;
use anyhow::Context;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

const ROOT: &str = "/sys/fs/cgroup";
/// All VMs' groups are below this one.
const PARENT: &str = "virtuoso";

/// What QEMU needs beside the guest's memory: translated code, devices, the display.
const OVERHEAD_BYTES: u64 = 640 << 20;

/// Weight of one virtual CPU, as the kernel counts that of one ordinary process.
const WEIGHT_V1: u64 = 1024;
const WEIGHT_V2: u64 = 100;
/// The kernel's largest weight.
const WEIGHT_V2_MAX: u64 = 10_000;

/// No quota, as version 1 says it.
const NO_QUOTA: &str = "-1";
/// A guest under a quota stands still until the period ends, so its answers take up to that much longer: 5 ms with this
/// period, 27 ms with the kernel's own of 100 ms, at the same rate.
const PERIOD_US: u64 = 10_000;
/// The period of limits of which that one has less than the millisecond that the kernel takes at least.
const PERIOD_LONG_US: u64 = 100_000;
const SHORT_PERIOD_PERCENT_MIN: u32 = 10;

/// Processor time in every period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Quota {
    time_us: Option<u64>,
    period_us: u64,
}

/// The groups of one VM: one, or one for each controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cgroup {
    groups: Vec<Group>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    dir: PathBuf,
    /// What all VMs together weigh, where there is such a thing: as much as the machine's processors can carry. Else
    /// they would have to share what one process gets.
    all_vms: Option<(&'static str, String)>,
    /// Files and what is written into them.
    limits: Vec<(&'static str, String)>,
}

/// Puts a VM's process into control groups of its own, as far as this machine has them. Only a limit that somebody
/// asked for must be kept.
pub(super) fn confine(spec: &Spec, pid: u32) -> anyhow::Result<()> {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let group = Cgroup::of(spec);
    let entered = group.enter(pid);
    if !group.is_empty() && entered.is_ok() {
        return Ok(());
    }
    let why = entered.err().map_or_else(|| "none are mounted".to_owned(), |error| format!("{error:#}"));
    if spec.limits.cpu_percent > 0 {
        return Err(VmError::Missing(format!("A limit of processor time needs control groups: {why}")).into());
    }
    if !TOLD.swap(true, Ordering::Relaxed) {
        tracing::info!("VMs run without control groups: {why}");
    }
    Ok(())
}

impl Cgroup {
    /// The groups of a VM on this machine.
    pub(super) fn of(spec: &Spec) -> Self {
        Self::below(Path::new(ROOT), spec)
    }

    fn below(root: &Path, spec: &Spec) -> Self {
        let place = Path::new(PARENT).join(spec.id.to_string());
        let memory = spec.memory_bytes;
        let memory = (memory.saturating_add(memory / 16).saturating_add(OVERHEAD_BYTES)).to_string();
        let quota = Quota::of(spec.limits.cpu_percent);
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        if controllers.split_whitespace().any(|controller| controller == "cpu") {
            let weight = (u64::from(spec.vcpus) * WEIGHT_V2).min(WEIGHT_V2_MAX).to_string();
            let time = quota.time_us.map_or_else(|| "max".to_owned(), |time| time.to_string());
            let time = format!("{time} {}", quota.period_us);
            let limits = vec![("cpu.weight", weight), ("cpu.max", time), ("memory.max", memory)];
            let all_vms = Some(("cpu.weight", (processors * WEIGHT_V2).min(WEIGHT_V2_MAX).to_string()));
            return Self { groups: vec![Group { dir: root.join(place), all_vms, limits }] };
        }
        let time = quota.time_us.map_or_else(|| NO_QUOTA.to_owned(), |time| time.to_string());
        let processor = vec![
            ("cpu.shares", (u64::from(spec.vcpus) * WEIGHT_V1).to_string()),
            // A period shorter than the time of a former limit would be refused.
            ("cpu.cfs_quota_us", NO_QUOTA.to_owned()),
            ("cpu.cfs_period_us", quota.period_us.to_string()),
            ("cpu.cfs_quota_us", time),
        ];
        let mut groups = Vec::new();
        let all_vms = Some(("cpu.shares", (processors * WEIGHT_V1).to_string()));
        let memory = vec![("memory.limit_in_bytes", memory)];
        for (controller, all_vms, limits) in [("cpu", all_vms, processor), ("memory", None, memory)] {
            if root.join(controller).join(limits[0].0).exists() || root.join(controller).join("tasks").exists() {
                groups.push(Group { dir: root.join(controller).join(&place), all_vms, limits });
            }
        }
        Self { groups }
    }

    /// Whether there are any.
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Makes the groups and puts a process into them.
    pub(super) fn enter(&self, pid: u32) -> anyhow::Result<()> {
        for group in &self.groups {
            let parent = group.dir.parent().context("A group has a parent")?;
            fs::create_dir_all(&group.dir).with_context(|| format!("Can't make {}", group.dir.display()))?;
            if parent.join("cgroup.subtree_control").exists() {
                let root = parent.parent().context("A group has a root")?;
                for dir in [root, parent] {
                    write(&dir.join("cgroup.subtree_control"), "+cpu +memory")?;
                }
            }
            if let Some((file, weight)) = &group.all_vms {
                write(&parent.join(file), weight)?;
            }
            group.limit()?;
            write(&group.dir.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Sets the limits of groups that are there.
    pub(super) fn limit(&self) -> anyhow::Result<()> {
        self.groups.iter().try_for_each(Group::limit)
    }

    /// Removes the groups of a process that has ended, and the one above after the last VM.
    pub(super) fn remove(&self) {
        for dir in self.groups.iter().flat_map(|group| [Some(group.dir.as_path()), group.dir.parent()]) {
            match dir.map(fs::remove_dir) {
                Some(Err(error)) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy) => {
                    tracing::debug!("Can't remove a control group: {error}");
                }
                _ => {}
            }
        }
    }
}

impl Group {
    fn limit(&self) -> anyhow::Result<()> {
        self.limits.iter().try_for_each(|(file, value)| write(&self.dir.join(file), value))
    }
}

impl Quota {
    fn of(percent: u32) -> Self {
        let period_us = if percent < SHORT_PERIOD_PERCENT_MIN { PERIOD_LONG_US } else { PERIOD_US };
        Self { time_us: (percent > 0).then(|| u64::from(percent) * period_us / 100), period_us }
    }
}

fn write(path: &Path, value: &str) -> anyhow::Result<()> {
    fs::write(path, value).with_context(|| format!("Can't write {value} to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::limits::VmLimits;
    use super::super::spec::tests::spec;
    use super::*;

    fn values<'a>(group: &'a Group, file: &str) -> Vec<&'a str> {
        group.limits.iter().filter(|(name, _)| *name == file).map(|(_, value)| &**value).collect()
    }

    #[test]
    fn the_unified_hierarchy_is_used_if_it_has_the_controllers() {
        let root = tempfile::tempdir().unwrap();
        let spec = Spec { limits: VmLimits { cpu_percent: 150, ..VmLimits::default() }, ..spec() };
        assert!(Cgroup::below(root.path(), &spec).is_empty());
        for controller in ["cpu", "memory"] {
            fs::create_dir(root.path().join(controller)).unwrap();
            fs::write(root.path().join(controller).join("tasks"), "").unwrap();
        }
        let old = Cgroup::below(root.path(), &spec);
        assert_eq!(values(&old.groups[0], "cpu.shares"), ["2048"]);
        assert_eq!(values(&old.groups[0], "cpu.cfs_quota_us"), ["-1", "15000"]);
        assert!(old.groups[1].dir.starts_with(root.path().join("memory/virtuoso")));
        fs::write(root.path().join("cgroup.controllers"), "cpuset cpu memory\n").unwrap();
        let new = Cgroup::below(root.path(), &spec);
        assert_eq!((new.groups.len(), values(&new.groups[0], "cpu.max")), (1, vec!["15000 10000"]));
        let free = Cgroup::below(root.path(), &self::spec());
        assert_eq!(values(&free.groups[0], "cpu.max"), ["max 100000"]);
    }

    #[test]
    fn the_kernel_takes_every_quota() {
        assert_eq!(Quota::of(0).time_us, None);
        for percent in 1..=6400 {
            let quota = Quota::of(percent);
            let time = quota.time_us.unwrap();
            assert!(time >= 1000 && time * 100 == u64::from(percent) * quota.period_us, "{percent}: {quota:?}");
        }
    }

    #[test]
    fn a_process_enters_and_leaves() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpu memory").unwrap();
        let group = Cgroup::below(root.path(), &spec());
        group.enter(42).unwrap();
        let dir = root.path().join("virtuoso").join(spec().id.to_string());
        assert_eq!(fs::read_to_string(dir.join("cgroup.procs")).unwrap(), "42");
        for file in ["cgroup.procs", "cpu.weight", "cpu.max", "memory.max"] {
            fs::remove_file(dir.join(file)).unwrap();
        }
        let all_vms = root.path().join("virtuoso/cpu.weight");
        assert!(fs::read_to_string(&all_vms).unwrap().parse::<u64>().unwrap() >= WEIGHT_V2);
        fs::remove_file(all_vms).unwrap();
        group.remove();
        assert!(!dir.exists() && !root.path().join("virtuoso").exists());
    }
}

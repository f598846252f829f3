//! Control groups: each VM has one of its own, with a share of the processors and a bound on its memory. The unified
//! hierarchy is used if it has the controllers, else those of version 1; without either a VM runs unbounded.

use super::spec::Spec;
use anyhow::Context;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use virtuoso_overlay::ids::VmId;

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

/// The groups of one VM: one, or one for each controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cgroup {
    groups: Vec<Group>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    dir: PathBuf,
    /// Files and what is written into them.
    limits: Vec<(&'static str, String)>,
}

/// Puts a VM's process into control groups of its own, as far as this machine has them.
pub(super) fn confine(spec: &Spec, pid: u32) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let group = Cgroup::of(spec.id.0, spec.vcpus, spec.memory_bytes);
    let entered = group.enter(pid);
    if (group.is_empty() || entered.is_err()) && !TOLD.swap(true, Ordering::Relaxed) {
        let why = entered.err().map_or_else(|| "none are mounted".to_owned(), |error| format!("{error:#}"));
        tracing::info!("VMs run without control groups: {why}");
    }
}

impl Cgroup {
    /// The groups of a VM on this machine.
    pub(super) fn of(id: VmId, vcpus: u32, memory_bytes: u64) -> Self {
        Self::below(Path::new(ROOT), id, vcpus, memory_bytes)
    }

    fn below(root: &Path, id: VmId, vcpus: u32, memory_bytes: u64) -> Self {
        let place = Path::new(PARENT).join(id.to_string());
        let memory = (memory_bytes.saturating_add(memory_bytes / 16).saturating_add(OVERHEAD_BYTES)).to_string();
        let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        if controllers.split_whitespace().any(|controller| controller == "cpu") {
            let weight = (u64::from(vcpus) * WEIGHT_V2).min(WEIGHT_V2_MAX).to_string();
            let limits = vec![("cpu.weight", weight), ("memory.max", memory)];
            return Self { groups: vec![Group { dir: root.join(place), limits }] };
        }
        let shares = (u64::from(vcpus) * WEIGHT_V1).to_string();
        let mut groups = Vec::new();
        for (controller, file, value) in [("cpu", "cpu.shares", shares), ("memory", "memory.limit_in_bytes", memory)] {
            if root.join(controller).join(file).exists() || root.join(controller).join("tasks").exists() {
                groups.push(Group { dir: root.join(controller).join(&place), limits: vec![(file, value)] });
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
            for (file, value) in &group.limits {
                write(&group.dir.join(file), value)?;
            }
            write(&group.dir.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
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

fn write(path: &Path, value: &str) -> anyhow::Result<()> {
    fs::write(path, value).with_context(|| format!("Can't write {value} to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_used_if_it_has_the_controllers() {
        let root = tempfile::tempdir().unwrap();
        let id = VmId([1; 16]);
        assert!(Cgroup::below(root.path(), id, 2, 1 << 30).is_empty());
        for controller in ["cpu", "memory"] {
            fs::create_dir(root.path().join(controller)).unwrap();
            fs::write(root.path().join(controller).join("tasks"), "").unwrap();
        }
        let old = Cgroup::below(root.path(), id, 2, 1 << 30);
        assert_eq!(old.groups[0].limits, [("cpu.shares", "2048".to_owned())]);
        assert!(old.groups[1].dir.starts_with(root.path().join("memory/virtuoso")));
        fs::write(root.path().join("cgroup.controllers"), "cpuset cpu memory\n").unwrap();
        let new = Cgroup::below(root.path(), id, 2, 1 << 30);
        assert_eq!((new.groups.len(), &*new.groups[0].limits[0].1), (1, "200"));
    }

    #[test]
    fn a_process_enters_and_leaves() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpu memory").unwrap();
        let group = Cgroup::below(root.path(), VmId([1; 16]), 1, 0);
        group.enter(42).unwrap();
        let dir = root.path().join("virtuoso").join(VmId([1; 16]).to_string());
        assert_eq!(fs::read_to_string(dir.join("cgroup.procs")).unwrap(), "42");
        for file in ["cgroup.procs", "cpu.weight", "memory.max"] {
            fs::remove_file(dir.join(file)).unwrap();
        }
        group.remove();
        assert!(!dir.exists() && !root.path().join("virtuoso").exists());
    }
}

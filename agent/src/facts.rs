//! What this machine is and has: read from the kernel, never assumed.
//!
//! Plain facts. What its owner lets the swarm use of them, and how they are told to others, is decided elsewhere.

mod kvm;
mod procfs;
mod qemu;
mod quantised;

pub use kvm::KvmState;
pub use procfs::{CgroupVersion, LoadAverage};
pub use qemu::{QemuState, QemuVersion};
pub use quantised::Quantised;

use anyhow::Context;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Facts about the host.
#[derive(Clone, Debug, PartialEq)]
pub struct HostFacts {
    /// Processors that are switched on.
    pub cores_total: u32,
    /// Processors that this process may use: less under an affinity mask or a CPU quota.
    pub cores_usable: u32,
    /// Memory and disk, total and free, and load: what changes while the host runs.
    pub room: Room,
    /// The processor architecture, as Rust and the kernel name it (`x86_64`, `aarch64`).
    pub arch: &'static str,
    /// The kernel's release.
    pub kernel: String,
    /// Whether guests can run on the processor's own virtualisation.
    pub kvm: KvmState,
    /// Whether there is a QEMU for this architecture.
    pub qemu: QemuState,
    /// Which control groups the kernel offers.
    pub cgroup: CgroupVersion,
}

/// What changes while the host runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Room {
    /// Memory.
    pub memory_total_bytes: u64,
    /// Memory that can be had without swapping: free, or cache that can be given up.
    pub memory_free_bytes: u64,
    /// The file system of the state directory.
    pub disk_total_bytes: u64,
    /// What this process may still write there.
    pub disk_free_bytes: u64,
    /// Processes that run or wait for a processor or a disk.
    pub load: LoadAverage,
}

impl HostFacts {
    /// Reads everything. Takes as long as `qemu-system-* --version`, some 50 ms, and once in each run of the kernel as
    /// long as the test of KVM.
    ///
    /// # Errors
    /// If the kernel does not tell of memory, load or disk; an absent KVM or QEMU is a fact, not an error.
    pub async fn read(state_dir: &Path) -> anyhow::Result<Self> {
        let usable = std::thread::available_parallelism().context("Can't count processors")?;
        let cores_usable = u32::try_from(usable.get()).unwrap_or(u32::MAX);
        let online = std::fs::read_to_string(CPUS_ONLINE).ok();
        let arch = std::env::consts::ARCH;
        let qemu = QemuState::read(arch).await;
        Ok(Self {
            cores_total: online.and_then(|text| procfs::parse_cpu_list(&text)).unwrap_or(cores_usable),
            cores_usable,
            room: Room::read(state_dir)?,
            arch,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            kvm: KvmState::read(arch, &qemu, state_dir).await,
            qemu,
            cgroup: procfs::parse_cgroup_version(&read("/proc/self/mounts")?),
        })
    }
}

impl Room {
    /// Reads what changes. Cheap: three small files and one system call.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn read(state_dir: &Path) -> anyhow::Result<Self> {
        let memory = procfs::parse_meminfo(&read("/proc/meminfo")?).context("Can't understand /proc/meminfo")?;
        let load = procfs::parse_loadavg(&read("/proc/loadavg")?).context("Can't understand /proc/loadavg")?;
        let (disk_total_bytes, disk_free_bytes) =
            disk(state_dir).with_context(|| format!("Can't ask for the free space at {}", state_dir.display()))?;
        Ok(Self {
            memory_total_bytes: memory.total_bytes,
            memory_free_bytes: memory.available_bytes,
            disk_total_bytes,
            disk_free_bytes,
            load,
        })
    }
}

const CPUS_ONLINE: &str = "/sys/devices/system/cpu/online";

fn read(path: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("Can't read {path}"))
}

/// Total and free bytes of the file system at `path`.
fn disk(path: &Path) -> std::io::Result<(u64, u64)> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends in NUL, and there is room for one statvfs behind the pointer.
    if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, and so filled all of it.
    let stat = unsafe { stat.assume_init() };
    // What root alone may use is not free.
    Ok((stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_machine_has_facts() {
        let directory = tempfile::tempdir().unwrap();
        let facts = HostFacts::read(directory.path()).await.unwrap();
        assert!((1..=facts.cores_total).contains(&facts.cores_usable), "{facts:?}");
        assert!(facts.room.memory_free_bytes <= facts.room.memory_total_bytes, "{facts:?}");
        assert!(facts.room.disk_free_bytes <= facts.room.disk_total_bytes, "{facts:?}");
        assert!(facts.room.memory_total_bytes > 0 && facts.room.disk_total_bytes > 0, "{facts:?}");
        assert!(!facts.kernel.is_empty());
        assert!(!facts.qemu.usable || facts.qemu.version.is_some(), "{facts:?}");
    }

    #[test]
    fn a_missing_state_directory_is_named() {
        let error = Room::read(Path::new("/nonexistent/virtuoso")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/virtuoso"), "{error}");
    }
}

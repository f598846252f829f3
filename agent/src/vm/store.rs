//! VMs on disk: one directory for each, with its definition, what is known of its process, its disk and its sockets.

use super::spec::Spec;
use crate::state::sealed::{self, Kind};
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use virtuoso_overlay::ids::VmId;

const RECORD: Kind = Kind { name: "vm.json", version: 1 };

/// Bytes of a Unix socket's path without the final zero (`sun_path`).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// All that is kept of a VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// What it is.
    pub(super) spec: Spec,
    /// Its process, as far as known.
    pub(super) process: Option<ProcessMark>,
    /// Why its process ended, if that was not in order.
    pub(super) crash: Option<String>,
}

/// Tells a process from all others since the machine was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProcessMark {
    pub(super) pid: u32,
    /// Clock ticks from the start of the machine to that of the process.
    pub(super) start: u64,
}

/// The directories of all VMs.
#[derive(Clone, Debug)]
pub(super) struct Store(PathBuf);

/// The files of one VM.
#[derive(Clone, Debug)]
pub(super) struct Files(PathBuf);

impl Store {
    /// Opens or creates the directory.
    pub(super) fn open(dir: PathBuf) -> anyhow::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("Can't create {}", dir.display()))?;
        Ok(Self(dir))
    }

    pub(super) fn files(&self, id: VmId) -> Files {
        Files(self.0.join(id.to_string()))
    }

    /// Makes a VM's directory.
    pub(super) fn create(&self, id: VmId) -> anyhow::Result<Files> {
        let files = self.files(id);
        let longest = files.serial_socket();
        ensure!(
            longest.as_os_str().len() <= SOCKET_PATH_BYTES_MAX,
            "The state directory's name is too long for the sockets of VMs: {} has more than {SOCKET_PATH_BYTES_MAX} \
             bytes. Start the agent with a shorter --state-dir",
            longest.display()
        );
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&files.0);
        made.with_context(|| format!("Can't create {}", files.0.display()))?;
        Ok(files)
    }

    /// All VMs. One that can't be read is told and left alone.
    pub(super) fn load(&self) -> anyhow::Result<Vec<Record>> {
        let entries = fs::read_dir(&self.0).with_context(|| format!("Can't list {}", self.0.display()))?;
        let mut records = Vec::new();
        for entry in entries {
            let path = entry.with_context(|| format!("Can't list {}", self.0.display()))?.path();
            match Files(path.clone()).read() {
                Ok(Some(record)) => records.push(record),
                // A crash came between the directory and its first file.
                Ok(None) => Files(path).remove()?,
                Err(error) => tracing::warn!("A VM is left alone: {error:#}"),
            }
        }
        Ok(records)
    }
}

impl Files {
    pub(super) fn dir(&self) -> &Path {
        &self.0
    }

    pub(super) fn qmp_socket(&self) -> PathBuf {
        self.0.join("qmp.sock")
    }

    pub(super) fn serial_socket(&self) -> PathBuf {
        self.0.join("serial.sock")
    }

    pub(super) fn vnc_socket(&self) -> PathBuf {
        self.0.join("vnc.sock")
    }

    /// Where QEMU reads what is in the CD-ROM drive.
    pub(super) fn cdrom_socket(&self) -> PathBuf {
        self.0.join("cdrom.sock")
    }

    /// Where memory comes in or goes out.
    pub(super) fn memory_socket(&self) -> PathBuf {
        self.0.join("memory.sock")
    }

    /// Where a disk comes in or goes out.
    pub(super) fn mirror_socket(&self) -> PathBuf {
        self.0.join("mirror.sock")
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.0.join("disk.qcow2")
    }

    /// What QEMU writes to its standard error.
    pub(super) fn log(&self) -> PathBuf {
        self.0.join("qemu.log")
    }

    /// The initial file system with what the agent adds to it.
    pub(super) fn initrd(&self) -> PathBuf {
        self.0.join("initrd.img")
    }

    pub(super) fn write(&self, record: &Record) -> anyhow::Result<()> {
        let content = serde_json::to_vec_pretty(record).context("Can't encode a VM")?;
        sealed::write(&self.0.join(RECORD.name), &RECORD, &content)
    }

    fn read(&self) -> anyhow::Result<Option<Record>> {
        let Some(content) = sealed::read(&self.0.join(RECORD.name), &RECORD)? else { return Ok(None) };
        let record = serde_json::from_slice(&content);
        record.map(Some).with_context(|| format!("Can't understand {}", self.0.join(RECORD.name).display()))
    }

    /// Removes all of it, the record first: what is left after a crash has none and is removed at the next start.
    pub(super) fn remove(&self) -> anyhow::Result<()> {
        let record = self.0.join(RECORD.name);
        if record.exists() {
            fs::remove_file(&record).with_context(|| format!("Can't remove {}", record.display()))?;
        }
        fs::remove_dir_all(&self.0).with_context(|| format!("Can't remove {}", self.0.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::tests::spec;
    use super::*;

    #[test]
    fn records_come_back_and_half_made_vms_go() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("vms")).unwrap();
        let process = Some(ProcessMark { pid: 1, start: 2 });
        let record = Record { spec: spec(), process, crash: None };
        let files = store.create(record.spec.id.0).unwrap();
        files.write(&record).unwrap();
        store.create(VmId([9; 16])).unwrap();
        assert_eq!(store.load().unwrap(), [record]);
        assert!(!store.files(VmId([9; 16])).dir().exists());
        files.remove().unwrap();
        assert!(store.load().unwrap().is_empty());
    }

    #[test]
    fn a_path_too_long_for_sockets_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("x".repeat(80))).unwrap();
        assert!(store.create(VmId([9; 16])).unwrap_err().to_string().contains("shorter --state-dir"));
    }
}

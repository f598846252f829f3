//! Whether guests can run on the processor's own virtualisation.
//!
//! A `/dev/kvm` that opens proves little: it also opens on hosts whose processor shows no virtualisation, where guests
//! then fail, crawl, or worse. So the processor is asked first, and without its word the device is not even opened;
//! then a guest of eight bytes must run on it within seconds, in a process of its own. That is done once in each run of
//! the machine's kernel.

use super::procfs::has_cpu_flag;
use super::qemu::QemuState;
use crate::state::sealed::{self, Kind};
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// Whether KVM can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvmState {
    /// Whether it can: a guest has run.
    pub usable: bool,
    /// Why, in words for an operator.
    pub why: String,
}

/// What the last test told.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tested {
    /// The run of the kernel, and QEMU, that it holds for.
    of: String,
    usable: bool,
    why: String,
}

const DEVICE: &str = "/dev/kvm";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const TESTED: Kind = Kind { name: "kvm", version: 1 };

/// The firmware takes half a second to find the guest.
const BOOT_TIME_MAX: Duration = Duration::from_secs(5);
/// Where QEMU's exit device listens, and what the guest tells it.
const EXIT_PORT: u8 = 0xf4;
const EXIT_VALUE: u8 = 0x10;
/// `(value << 1) | 1`: no status that QEMU ends with by itself.
const EXIT_STATUS: i32 = (EXIT_VALUE as i32) << 1 | 1;
const SECTOR_BYTES: usize = 512;

impl KvmState {
    /// Looks, and tests if need be.
    pub(super) async fn read(arch: &str, qemu: &QemuState, state_dir: &Path) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let open = || OpenOptions::new().read(true).write(true).open(DEVICE).map(drop);
        let seems = Self::judge(arch, &cpuinfo, open);
        let Some(program) = qemu.path.as_deref().filter(|_| seems.usable && qemu.usable) else { return seems };
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
        let of = format!("{} {}", boot.trim(), qemu.why);
        let path = state_dir.join(TESTED.name);
        if let Ok(Some(content)) = sealed::read(&path, &TESTED)
            && let Ok(tested) = serde_json::from_slice::<Tested>(&content)
            && tested.of == of
        {
            return Self { usable: tested.usable, why: tested.why };
        }
        let state = Self::test(program, "kvm", state_dir).await;
        let tested = Tested { of, usable: state.usable, why: state.why.clone() };
        let kept =
            serde_json::to_vec(&tested).map_err(Into::into).and_then(|json| sealed::write(&path, &TESTED, &json));
        if let Err(error) = kept {
            tracing::debug!("Can't keep the result of the test of KVM: {error:#}");
        }
        state
    }

    fn judge(arch: &str, cpuinfo: &str, open: impl FnOnce() -> io::Result<()>) -> Self {
        let unusable = |why: String| Self { usable: false, why };
        // Other architectures have no flag for it: there the kernel makes the device only if it works.
        if matches!(arch, "x86" | "x86_64") && !has_cpu_flag(cpuinfo, &["vmx", "svm"]) {
            return unusable(
                "The processor shows neither vmx nor svm: switch virtualisation on in the firmware, or \
                             nested virtualisation in the hypervisor above"
                    .to_owned(),
            );
        }
        match open() {
            Ok(()) => Self { usable: true, why: format!("The processor has virtualisation and {DEVICE} opens") },
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                unusable(format!("No right to open {DEVICE}: run the agent as root or in group kvm"))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                unusable(format!("There is no {DEVICE}: load the kernel's module kvm_intel or kvm_amd"))
            }
            Err(error) => unusable(format!("{DEVICE} does not open: {error}")),
        }
    }

    /// Boots the smallest of guests.
    async fn test(qemu: &Path, accelerator: &str, dir: &Path) -> Self {
        let disk = dir.join("kvm-test.img");
        let ran = Self::boot(qemu, accelerator, &disk).await;
        // It may not have been made.
        fs::remove_file(&disk).ok();
        match ran {
            Ok(()) => Self { usable: true, why: "A test guest has run on it".into() },
            Err(why) => Self { usable: false, why: format!("A test guest does not run on it: {why}") },
        }
    }

    async fn boot(qemu: &Path, accelerator: &str, disk: &Path) -> Result<(), String> {
        fs::write(disk, boot_sector()).map_err(|error| format!("can't write {}: {error}", disk.display()))?;
        let shown = disk.to_string_lossy().replace(',', ",,");
        let mut command = Command::new(qemu);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(["-machine", "pc", "-m", "16", "-accel", accelerator]);
        command.args(["-device", &format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=4")]);
        command.args(["-drive", &format!("format=raw,if=floppy,readonly=on,file={shown}")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let output = match tokio::time::timeout(BOOT_TIME_MAX, command.output()).await {
            Ok(output) => output.map_err(|error| error.to_string())?,
            Err(_) => return Err(format!("it did not end within {} s", BOOT_TIME_MAX.as_secs())),
        };
        if output.status.code() == Some(EXIT_STATUS) {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        Err(words.trim().lines().last().map_or_else(|| output.status.to_string(), str::to_owned))
    }
}

/// Tells the exit device a number and stops.
fn boot_sector() -> [u8; SECTOR_BYTES] {
    let mut sector = [0; SECTOR_BYTES];
    // mov al, value; out port, al; hlt; jmp to hlt
    sector[..7].copy_from_slice(&[0xb0, EXIT_VALUE, 0xe6, EXIT_PORT, 0xf4, 0xeb, 0xfd]);
    sector[SECTOR_BYTES - 2..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_flag_and_device_are_asked_for() {
        let intel = "flags\t: fpu vmx";
        assert!(KvmState::judge("x86_64", intel, || Ok(())).usable);
        assert!(KvmState::judge("aarch64", "Features\t: fp", || Ok(())).usable);
        for (kind, word) in [(ErrorKind::PermissionDenied, "group kvm"), (ErrorKind::NotFound, "kvm_intel")] {
            let state = KvmState::judge("x86_64", intel, || Err(kind.into()));
            assert!(!state.usable && state.why.contains(word), "{state:?}");
        }
    }

    #[test]
    fn without_the_flag_the_device_is_not_opened() {
        let state = KvmState::judge("x86_64", "flags\t: fpu", || panic!("it was opened"));
        assert!(!state.usable && state.why.contains("vmx"), "{state:?}");
    }

    /// The guest runs without KVM too, which shows that the test can succeed.
    #[tokio::test]
    async fn a_guest_that_runs_is_told_from_one_that_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let qemu = QemuState::read("x86_64").await;
        let Some(program) = qemu.path else { return eprintln!("skipped: there is no QEMU here") };
        let state = KvmState::test(&program, "tcg", dir.path()).await;
        assert!(state.usable, "{state:?}");
        let state = KvmState::test(&program, "no-such-accelerator", dir.path()).await;
        assert!(!state.usable && state.why.contains("no-such-accelerator"), "{state:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

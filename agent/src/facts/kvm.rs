//! Whether guests can run on the processor's own virtualisation.

use super::procfs::has_cpu_flag;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind};

/// Whether KVM can be used, as far as can be told without booting a guest.
///
/// A `/dev/kvm` that opens proves little: it also opens on hosts whose processor shows no virtualisation, where guests
/// then fail or crawl. So both are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvmState {
    /// Whether it can.
    pub usable: bool,
    /// Why, in words for an operator.
    pub why: String,
}

impl KvmState {
    pub(super) fn read(arch: &str) -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let opened = OpenOptions::new().read(true).write(true).open(DEVICE).map(drop);
        Self::judge(arch, &cpuinfo, opened)
    }

    fn judge(arch: &str, cpuinfo: &str, opened: io::Result<()>) -> Self {
        let unusable = |why: String| Self { usable: false, why };
        // Other architectures have no flag for it: there the kernel makes the device only if it works.
        if matches!(arch, "x86" | "x86_64") && !has_cpu_flag(cpuinfo, &["vmx", "svm"]) {
            return unusable(
                "The processor shows neither vmx nor svm: switch virtualisation on in the firmware, or \
                             nested virtualisation in the hypervisor above"
                    .to_owned(),
            );
        }
        match opened {
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
}

const DEVICE: &str = "/dev/kvm";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_flag_and_device_are_asked_for() {
        let intel = "flags\t: fpu vmx";
        assert!(KvmState::judge("x86_64", intel, Ok(())).usable);
        assert!(!KvmState::judge("x86_64", "flags\t: fpu", Ok(())).usable);
        assert!(KvmState::judge("aarch64", "Features\t: fp", Ok(())).usable);
        for (kind, word) in [(ErrorKind::PermissionDenied, "group kvm"), (ErrorKind::NotFound, "kvm_intel")] {
            let state = KvmState::judge("x86_64", intel, Err(kind.into()));
            assert!(!state.usable && state.why.contains(word), "{state:?}");
        }
    }
}

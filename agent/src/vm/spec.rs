//! What a VM is: everything that its process is started from, and that moves with it.

use super::limits::VmLimits;
use super::medium::Medium;
use crate::name::Name;
use crate::text::Text;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use virtuoso_overlay::ids::{Digest, Mac, VmId};
use virtuoso_overlay::vm::lifecycle::RestartPolicy;
use virtuoso_overlay::vm::reservations::Share;

/// The machine that guests see. A version of QEMU's knows all older ones, so that a VM can move to a newer host.
pub const MACHINE: &str = "pc-i440fx-7.2";
/// The processor that guests see: what every x86-64 server since 2008 has, and QEMU can emulate whole.
pub const CPU: &str = "Nehalem";

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Its id.
    pub id: Text<VmId>,
    /// Its name.
    pub name: Name,
    /// When it was made, in seconds since 1970.
    pub made_s: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// Its own disk; 0 for none.
    pub disk_bytes: u64,
    /// What it boots.
    pub boot: Boot,
    /// What is in its CD-ROM drive.
    pub cdrom: Option<Medium>,
    /// Whether the firmware tries the CD-ROM drive before the disk.
    pub cdrom_first: bool,
    /// Its network interfaces, in the order of their PCI addresses.
    pub nics: Vec<Nic>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Public keys that may log in.
    pub ssh_keys: Vec<String>,
    /// Whether it begins again when its process fails.
    pub restart: bool,
    /// What it may use at most.
    pub limits: VmLimits,
    /// QEMU's name of the machine.
    pub machine: String,
    /// QEMU's name of the processor.
    pub cpu: String,
}

/// What a VM boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Boot {
    /// A kernel, from files of the host.
    Kernel {
        /// The kernel.
        kernel: PathBuf,
        /// Its initial file system.
        initrd: Option<PathBuf>,
        /// Its command line.
        append: String,
        /// What its disk begins as, if not as zeros.
        image: Option<BaseImage>,
    },
    /// A disk that begins as an image.
    Image(BaseImage),
    /// Its own disk, which begins empty, or what is in the CD-ROM drive.
    Disk,
}

/// An image below a VM's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseImage {
    /// Its name, for people.
    pub name: Name,
    /// Its content.
    pub digest: Text<Digest>,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// The network that it is plugged into.
    pub network: Name,
    /// Its address.
    pub mac: Text<Mac>,
    /// The host's end of it.
    pub tap: String,
    /// The IP address that its host has chosen for it, if the network has a subnet.
    #[serde(default)]
    pub ip: Option<Ipv4Addr>,
    /// Whether the guest may speak in the name of other addresses.
    #[serde(default)]
    pub spoofing: bool,
}

impl Nic {
    /// The interface number `index` of a VM. Address and name follow from the VM's id, so they stay the same wherever
    /// and whenever it runs; `attempt` counts addresses that were taken.
    pub fn new(vm: VmId, network: Name, index: usize, attempt: u8) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&vm.0).update(&[u8::try_from(index).unwrap_or(u8::MAX), attempt]);
        let digest = hasher.finalize();
        let [a, b, c, d, e, f, g, ..] = *digest.as_bytes();
        let tap = format!("vm-{a:02x}{b:02x}{c:02x}{d:02x}");
        Self { network, mac: Text(Mac([0x52, 0x54, 0x00, e, f, g])), tap, ip: None, spoofing: false }
    }
}

impl Spec {
    /// What it holds of its host.
    pub fn share(&self) -> Share {
        Share { vcpus: self.vcpus, memory_bytes: self.memory_bytes, disk_bytes: self.disk_bytes }
    }

    /// Whether it begins again when its process fails.
    pub fn policy(&self) -> RestartPolicy {
        if self.restart { RestartPolicy::OnFailure } else { RestartPolicy::Never }
    }

    /// What its disk begins as, if not as zeros.
    pub fn base(&self) -> Option<&BaseImage> {
        match &self.boot {
            Boot::Image(image) => Some(image),
            Boot::Kernel { image, .. } => image.as_ref(),
            Boot::Disk => None,
        }
    }

    /// The images that it needs: below its disk, and in its drive.
    pub fn images(&self) -> Vec<Digest> {
        self.image().into_iter().chain(self.cdrom.as_ref().and_then(Medium::image)).collect()
    }

    /// The content that its disk begins as.
    pub fn image(&self) -> Option<Digest> {
        self.base().map(|base| base.digest.0)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn spec() -> Spec {
        let id = VmId([7; 16]);
        Spec {
            id: Text(id),
            name: "vm-8-1".parse().unwrap(),
            made_s: 1_800_000_000,
            vcpus: 2,
            memory_bytes: 128 << 20,
            disk_bytes: 0,
            boot: Boot::Kernel {
                kernel: "/boot/vmlinuz".into(),
                initrd: Some("/boot/initrd,1".into()),
                append: "console=ttyS0 quiet".into(),
                image: None,
            },
            cdrom: None,
            cdrom_first: false,
            nics: vec![Nic::new(id, "blue".parse().unwrap(), 0, 0)],
            labels: BTreeMap::new(),
            ssh_keys: vec![],
            restart: false,
            limits: VmLimits::default(),
            machine: MACHINE.into(),
            cpu: CPU.into(),
        }
    }

    #[test]
    fn interfaces_follow_from_the_id() {
        let nic = |vm: u8, index, attempt| Nic::new(VmId([vm; 16]), "blue".parse().unwrap(), index, attempt);
        assert_eq!(nic(1, 0, 0), nic(1, 0, 0));
        assert!(nic(1, 0, 0).mac != nic(1, 1, 0).mac && nic(1, 0, 0).mac != nic(1, 0, 1).mac);
        assert!(nic(1, 0, 0).tap != nic(2, 0, 0).tap && nic(1, 0, 0).tap.len() == 11);
        assert!(nic(1, 0, 0).mac.to_string().starts_with("52:54:00:"));
    }
}

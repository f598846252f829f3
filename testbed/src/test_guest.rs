//! The guest that VMs of the lab run: a kernel and an initial file system that `guest/build.sh` makes of Debian
//! packages, once, beside the agent's binary.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command;

/// Where the guest is, below the directory of the binaries.
const DIRECTORY: &str = "testbed-guest";
const BUILD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/guest/build.sh");
const BUILD_ISO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/guest/iso.sh");

pub(crate) struct TestGuest {
    kernel: String,
    initrd: String,
    key: String,
    disk: String,
    installer: String,
}

impl TestGuest {
    /// The program that runs it.
    pub(crate) const QEMU: &str = "qemu-system-x86_64";

    /// Makes the guest beside `binary` if it is not there. Needs the network, so it comes before the lab.
    pub(crate) fn prepare(binary: &Path) -> Result<()> {
        for build in [BUILD, BUILD_ISO] {
            command::run(Command::new("bash").arg(build).arg(binary.with_file_name(DIRECTORY)))?;
        }
        Ok(())
    }

    /// The guest beside `binary`.
    pub(crate) fn beside(binary: &Path) -> Result<Self> {
        let directory = binary.with_file_name(DIRECTORY);
        let file = |name: &str| -> Result<String> {
            let path = directory.join(name);
            ensure!(path.is_file(), "There is no {}: make it with {BUILD} {}", path.display(), directory.display());
            Ok(path.to_str().with_context(|| format!("Odd path {}", path.display()))?.to_owned())
        };
        let (kernel, initrd) = (file("vmlinuz")?, file("initrd.img")?);
        let (disk, installer) = (file("disk.img")?, file("installer.iso")?);
        Ok(Self { kernel, initrd, key: file("id_ed25519")?, disk, installer })
    }

    pub(crate) fn kernel(&self) -> &str {
        &self.kernel
    }

    pub(crate) fn initrd(&self) -> &str {
        &self.initrd
    }

    /// A bootable disk with this guest.
    pub(crate) fn disk(&self) -> &str {
        &self.disk
    }

    /// A bootable CD-ROM that writes this disk, and has it as `disk.img`.
    pub(crate) fn installer(&self) -> &str {
        &self.installer
    }

    /// The private key that logs in.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The kernel's command line of a guest with this name and address.
    pub(crate) fn append(&self, name: &str, ip: &str) -> String {
        format!("console=ttyS0 quiet panic=-1 mitigations=off no_timer_check vm.ip={ip}/24 vm.name={name}")
    }

    /// The same of a guest that asks for its address.
    pub(crate) fn append_dhcp(&self, name: &str) -> String {
        format!("console=ttyS0 quiet panic=-1 mitigations=off no_timer_check vm.name={name}")
    }

    /// Log in with the guest's key, and ask nobody anything.
    pub(crate) fn ssh_options(&self) -> Vec<&str> {
        let mut options = vec!["-i", &*self.key];
        for option in [
            "BatchMode=yes",
            "ConnectTimeout=10",
            "LogLevel=ERROR",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
        ] {
            options.extend(["-o", option]);
        }
        options
    }
}

//! QEMU's command line: the same machine for the same definition, on every host and at every time, so that a VM can
//! move. Every device has an id and an address of its own; nothing is left to QEMU's defaults.

use super::spec::{Boot, Spec};
use super::store::Files;
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

/// PCI slots. What is added later takes free ones: a guest notices when a device changes its address.
const SLOT_VGA: u8 = 0x02;
const SLOT_SCSI: u8 = 0x04;
const SLOT_RNG: u8 = 0x05;
const SLOT_NIC: u8 = 0x08;
const SLOT_DISK: u8 = 0x10;

/// The CD-ROM drive. Every VM has one, with or without a medium: a drive can't come later without the guest's help.
pub(super) const DRIVE: &str = "cd0";
/// Seconds in which QEMU waits for an agent that restarts: ten years. Without this, its guest would see errors.
const RECONNECT_S: u32 = 315_360_000;

/// QEMU's name of the device that is a VM's own disk.
pub(super) const DISK_DEVICE: &str = "vd0";
/// QEMU's name of what is behind it.
pub(super) const DISK_NODE: &str = "disk0";

/// Cache of translated code without KVM. QEMU's own default is a gigabyte.
const TCG_CACHE_MIB: u32 = 256;

/// What a guest has more than it was given. QEMU before 9.0 loses writes of emulated guests that move, if their memory
/// is a multiple of 256 KiB: reading 64 pages' dirty bits at once, it leaves the emulated processor in the belief that
/// they are still set. Every host adds it, so that all make the same machine.
const ODD_KIB: u64 = 64;

/// How guests are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accelerator {
    Kvm,
    Tcg,
}

/// What a command line is made of.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    pub(super) spec: &'a Spec,
    pub(super) files: &'a Files,
    pub(super) accelerator: Accelerator,
    /// Listening sockets.
    pub(super) qmp: RawFd,
    pub(super) serial: RawFd,
    /// One for each network interface.
    pub(super) taps: Vec<RawFd>,
    /// In place of the definition's.
    pub(super) initrd: Option<PathBuf>,
    /// The server of the image below the disk.
    pub(super) base: Option<&'a Path>,
    /// Something for cloud-init to read.
    pub(super) seed: Option<PathBuf>,
    /// Its memory comes from another host.
    pub(super) is_incoming: bool,
}

impl Launch<'_> {
    /// The arguments after the program's name. The guest does not run until it is told to.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Arguments::default();
        self.machine(&mut arguments);
        self.sockets(&mut arguments);
        self.boot(&mut arguments);
        self.devices(&mut arguments);
        arguments.0
    }

    fn machine(&self, arguments: &mut Arguments) {
        let spec = self.spec;
        arguments.flag("-nodefaults");
        arguments.flag("-no-user-config");
        arguments.flag("-S");
        if self.is_incoming {
            arguments.option("-incoming", "defer");
        }
        arguments.option("-name", format!("guest={},debug-threads=on", spec.name));
        arguments.option("-uuid", uuid(spec));
        arguments.option("-machine", format!("{},usb=off,dump-guest-core=off", spec.machine));
        arguments.option(
            "-accel",
            match self.accelerator {
                Accelerator::Kvm => "kvm".into(),
                Accelerator::Tcg => format!("tcg,thread=multi,tb-size={TCG_CACHE_MIB}"),
            },
        );
        arguments.option("-cpu", spec.cpu.clone());
        arguments.option("-smp", format!("{0},sockets=1,cores={0},threads=1", spec.vcpus));
        arguments.option("-m", format!("size={}k", spec.memory_bytes / 1024 + ODD_KIB));
        arguments.option("-rtc", "base=utc");
        arguments.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    }

    fn sockets(&self, arguments: &mut Arguments) {
        arguments.option("-chardev", format!("socket,id=qmp0,fd={},server=on,wait=off", self.qmp));
        arguments.option("-mon", "chardev=qmp0,mode=control");
        arguments.option("-chardev", format!("socket,id=serial0,fd={},server=on,wait=off", self.serial));
        arguments.option("-serial", "chardev:serial0");
        arguments.option("-display", "none");
        arguments.option("-vnc", format!("unix:{}", escaped(&self.files.vnc_socket())));
    }

    fn boot(&self, arguments: &mut Arguments) {
        match &self.spec.boot {
            Boot::Kernel { kernel, initrd, append, .. } => {
                arguments.option("-kernel", kernel);
                if let Some(initrd) = self.initrd.as_ref().or(initrd.as_ref()) {
                    arguments.option("-initrd", initrd);
                }
                arguments.option("-append", append);
            }
            Boot::Image { .. } | Boot::Disk => {}
        }
    }

    fn devices(&self, arguments: &mut Arguments) {
        let device = |kind: &str, id: &str, slot: u8| format!("{kind},id={id},bus=pci.0,addr={slot:#x}");
        arguments.option("-device", device("VGA", "vga0", SLOT_VGA));
        arguments.option("-device", device("virtio-scsi-pci", "scsi0", SLOT_SCSI));
        // The firmware tries them in this order.
        let (drive_turn, disk_turn) = if self.spec.cdrom_first { (1, 2) } else { (2, 1) };
        let place = "bus=scsi0.0,channel=0,scsi-id=0,lun=0";
        arguments.option("-device", format!("scsi-cd,id={DRIVE},{place},bootindex={drive_turn}"));
        arguments.option("-object", "rng-random,id=entropy0,filename=/dev/urandom");
        arguments.option("-device", format!("{},rng=entropy0", device("virtio-rng-pci", "rng0", SLOT_RNG)));
        for (index, (nic, fd)) in self.spec.nics.iter().zip(&self.taps).enumerate() {
            let (id, slot) = (format!("nic{index}"), SLOT_NIC + index as u8);
            arguments.option("-netdev", format!("tap,id=net{index},fd={fd},vhost=off"));
            let device = device("virtio-net-pci", &id, slot);
            arguments.option("-device", format!("{device},netdev=net{index},mac={},romfile=", nic.mac));
        }
        if self.spec.disk_bytes > 0 {
            let device = device("virtio-blk-pci", DISK_DEVICE, SLOT_DISK);
            self.disk(arguments, &format!("{device},bootindex={disk_turn}"));
        }
        if let Some(seed) = &self.seed {
            let node = "driver=raw,node-name=seed0,read-only=on,file.driver=file,file.filename=";
            arguments.option("-blockdev", format!("{node}{}", escaped(seed)));
            let device = device("virtio-blk-pci", "vd1", SLOT_DISK + 1);
            arguments.option("-device", format!("{device},drive=seed0"));
        }
    }

    fn disk(&self, arguments: &mut Arguments, device: &str) {
        let mut below = "";
        if let Some(base) = self.base {
            let node = format!("driver=nbd,node-name=base0,read-only=on,reconnect-delay={RECONNECT_S}");
            let server = format!("server.type=unix,server.path={}", escaped(base));
            arguments.option("-blockdev", format!("{node},{server}"));
            below = ",backing=base0";
        }
        let node = format!("driver=qcow2,node-name={DISK_NODE},discard=unmap{below}");
        let disk = escaped(&self.files.disk());
        arguments.option("-blockdev", format!("{node},file.driver=file,file.filename={disk}"));
        // What can't be read or written now is tried again when the VM goes on: its guest sees no error.
        arguments.option("-device", format!("{device},drive={DISK_NODE},rerror=stop,werror=stop"));
    }
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn option(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.push(option.into());
        self.0.push(value.into());
    }
}

/// A path within a list of options, where commas stand twice.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// The id as guests read it in their firmware's tables.
fn uuid(spec: &Spec) -> String {
    let hex = spec.id.to_string();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::super::spec::BaseImage;
    use super::super::spec::tests::spec;
    use super::super::store::Store;
    use super::*;
    use virtuoso_overlay::ids::Digest;

    fn line(spec: &Spec, accelerator: Accelerator) -> String {
        let base = spec.base().map(|_| Path::new("/images/a.sock"));
        let dir = tempfile::tempdir().unwrap();
        let files = Store::open(dir.path().join("a,b")).unwrap().files(spec.id.0);
        let launch = Launch {
            spec,
            files: &files,
            accelerator,
            qmp: 7,
            serial: 8,
            taps: vec![9],
            initrd: None,
            base,
            seed: None,
            is_incoming: false,
        };
        let arguments: Vec<_> = launch.arguments().into_iter().map(|a| a.into_string().unwrap()).collect();
        arguments.join(" ")
    }

    #[test]
    fn machine_and_addresses_are_fixed() {
        let spec = spec();
        let line = line(&spec, Accelerator::Tcg);
        for part in [
            "-machine pc-i440fx-7.2,",
            "-cpu Nehalem",
            "-smp 2,",
            "-m size=131136k",
            "-uuid 07070707-0707-0707-0707-070707070707",
            "-sandbox on,",
            "id=qmp0,fd=7",
            "-netdev tap,id=net0,fd=9,vhost=off",
            "id=nic0,bus=pci.0,addr=0x8,netdev=net0,mac=52:54:00:",
            "-initrd /boot/initrd,1 -append console=ttyS0 quiet",
            "scsi-cd,id=cd0,bus=scsi0.0,",
            "a,,b",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        assert!(!line.contains("kvm") && !line.contains("disk0"), "{line}");
        assert!(!line.contains("tcp:") && !line.contains(" -daemonize"), "{line}");
    }

    #[test]
    fn disks_and_kvm_are_used_if_there_are_any() {
        let spec = Spec { disk_bytes: 1 << 30, ..spec() };
        let line = line(&spec, Accelerator::Kvm);
        assert!(line.contains("addr=0x10,bootindex=1,drive=disk0") && line.contains("lun=0,bootindex=2"), "{line}");
        let first = self::line(&Spec { cdrom_first: true, ..spec }, Accelerator::Kvm);
        assert!(first.contains("addr=0x10,bootindex=2,drive=disk0") && first.contains("lun=0,bootindex=1"), "{first}");
        assert!(line.contains("-accel kvm") && line.contains("virtio-blk-pci,id=vd0,bus=pci.0,addr=0x10"), "{line}");
    }

    #[test]
    fn a_disk_stands_on_its_image() {
        let image = BaseImage { name: "debian".parse().unwrap(), digest: Digest([7; 32]).into() };
        let spec = Spec { disk_bytes: 1 << 30, boot: Boot::Image(image), ..spec() };
        let line = line(&spec, Accelerator::Tcg);
        for part in [
            "driver=nbd,node-name=base0,read-only=on,reconnect-delay=315360000,server.type=unix,\
             server.path=/images/a.sock",
            "node-name=disk0,discard=unmap,backing=base0,",
            "rerror=stop,werror=stop",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }
}

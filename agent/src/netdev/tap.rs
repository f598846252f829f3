//! The agent's TAP in a network's bridge: the way of frames between the bridge and the engine.
//!
//! Every frame on its file descriptor has a virtio-net header in front, so that segmentation and checksums can be
//! left to the last hop. All unsafe code about TAPs is here.

use super::{Netdev, NetdevError, bridge_name, sysctl, tap_name};
use anyhow::{Context, anyhow};
use netlink_packet_route::link::LinkAttribute;
use rtnetlink::{LinkBridgePort, LinkUnspec};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use tun::Layer;
use virtuoso_engine::TapOffloads;
use virtuoso_overlay::ids::NetworkId;
use virtuoso_overlay::wire::frame::VNET_BYTES;

/// Frames that wait for the agent in the kernel. Half of it lost frames where 10,000 came in a second and the engine
/// waited 50 ms for a busy core.
const QUEUE_FRAMES: u32 = 1000;

/// What the TAP takes from the bridge: all that an Ethernet frame can hold. The network's MTU is the switch's to keep,
/// because a bridge drops what is too large without a word, and the switch tells the sender.
pub(super) const MTU_BYTES: u32 = 65_521;

/// A TAP. It goes when the file descriptor is closed.
#[derive(Debug)]
pub struct Tap {
    /// Its name.
    pub name: String,
    /// The kernel's number for it.
    pub index: u32,
    /// Reads and writes one frame or super-frame per call, behind [`VNET_BYTES`] bytes of header; never blocks.
    pub fd: OwnedFd,
    /// What is left to the last hop, of what was asked for.
    pub offloads: TapOffloads,
}

impl Netdev {
    /// Makes the agent's TAP of a network, with as much of `wanted` as the kernel has, and puts it into the network's
    /// bridge.
    ///
    /// # Errors
    /// If there is no bridge, another process holds the TAP, or a right or the kernel's TAP is missing.
    pub async fn create_tap(&self, network: NetworkId, wanted: TapOffloads) -> anyhow::Result<Tap> {
        let name = tap_name(network);
        let bridge = self.interface(&bridge_name(network)).await?;
        let fd = open(&name)?;
        let offloads = enable_offloads(&fd, wanted).with_context(|| format!("Can't set up TAP {name}"))?;
        sysctl::silence_port(&name);
        let index = self.interface(&name).await?.index;
        let message = LinkUnspec::new_with_index(index)
            .mtu(MTU_BYTES)
            .append_extra_attribute(LinkAttribute::TxQueueLen(QUEUE_FRAMES))
            .build();
        self.change(message, format!("to set up TAP {name}")).await?;
        self.enslave(index, &name, &bridge).await?;
        // Who is behind the TAP is the switch's to know. A bridge that learned it would drop the frames of an address
        // that has just moved here, until that address speaks.
        let message = LinkBridgePort::new(index).learning(false).build();
        self.change(message, format!("to set up TAP {name} as a port")).await?;
        let message = LinkUnspec::new_with_index(index).up().build();
        self.change(message, format!("to switch TAP {name} on")).await?;
        Ok(Tap { name, index, fd, offloads })
    }
}

impl Netdev {
    /// Makes a TAP for a guest, which goes when the last descriptor of it is closed. What it leaves to the other side
    /// is for the guest to say.
    ///
    /// # Errors
    /// If another process holds it, or a right or the kernel's TAP is missing.
    pub async fn create_guest_tap(&self, name: &str, mtu: u16) -> anyhow::Result<OwnedFd> {
        let fd = open(name)?;
        sysctl::silence_port(name);
        let index = self.interface(name).await?.index;
        let message = LinkUnspec::new_with_index(index).mtu(u32::from(mtu)).build();
        self.change(message, format!("to set up TAP {name}")).await?;
        Ok(fd)
    }
}

pub(super) fn open(name: &str) -> anyhow::Result<OwnedFd> {
    let mut configuration = tun::Configuration::default();
    configuration.tun_name(name).layer(Layer::L2).platform_config(|platform| {
        // Addresses and flags are set by netlink; the header is what this is about.
        platform.ensure_root_privileges(false).vnet_hdr(true);
    });
    let device = tun::create(&configuration).map_err(|error| explain(error, name))?;
    device.set_nonblock().with_context(|| format!("Can't make TAP {name} non-blocking"))?;
    // SAFETY: `into_raw_fd` gives up the only owner of an open file descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) })
}

fn explain(error: tun::Error, name: &str) -> anyhow::Error {
    let tun::Error::Io(error) = error else {
        return anyhow!(error).context(format!("Can't make TAP {name}"));
    };
    let name = name.to_owned();
    match error.raw_os_error() {
        Some(libc::EACCES) if File::open("/dev/net/tun").is_err() => NetdevError::TunDevice.into(),
        Some(libc::EPERM | libc::EACCES) => NetdevError::MissingRight { action: format!("to make TAP {name}") }.into(),
        Some(libc::EBUSY) => NetdevError::TapBusy { name }.into(),
        Some(libc::EINVAL) => NetdevError::NameTaken { name, expected: "TAP" }.into(),
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            NetdevError::NoKernelSupport { what: "TAPs (/dev/net/tun)", module: "tun" }.into()
        }
        _ => anyhow!(error).context(format!("Can't make TAP {name}")),
    }
}

/// Sets the header's size and byte order, and switches on as much of `wanted` as the kernel has. UDP goes first, as
/// older kernels lack it. What is refused once stays off for this TAP.
fn enable_offloads(fd: &OwnedFd, wanted: TapOffloads) -> io::Result<TapOffloads> {
    let header_bytes = libc::c_int::try_from(VNET_BYTES).expect("the header is small");
    set_by_pointer(fd, libc::TUNSETVNETHDRSZ, header_bytes)?;
    // Ignored by nobody, needed by big-endian hosts only: the header is little-endian on the wire and here.
    set_by_pointer(fd, libc::TUNSETVNETLE, 1)?;
    for offloads in [wanted, TapOffloads { uso: false, ..wanted }] {
        if set_offload(fd, flags_of(offloads)).is_ok() {
            return Ok(offloads);
        }
    }
    set_offload(fd, 0)?;
    Ok(TapOffloads::NONE)
}

fn flags_of(offloads: TapOffloads) -> libc::c_uint {
    let TapOffloads { csum, tso4, tso6, uso } = offloads;
    [
        (csum, libc::TUN_F_CSUM),
        (tso4, libc::TUN_F_TSO4),
        (tso6, libc::TUN_F_TSO6),
        (tso4 || tso6, libc::TUN_F_TSO_ECN),
        (uso, libc::TUN_F_USO4 | libc::TUN_F_USO6),
    ]
    .into_iter()
    .filter(|(is_wanted, _)| *is_wanted)
    .fold(0, |flags, (_, flag)| flags | flag)
}

fn set_by_pointer(fd: &OwnedFd, request: libc::Ioctl, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the requests passed here read one int behind the pointer, which lives until the call returns.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw const value) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set_offload(fd: &OwnedFd, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

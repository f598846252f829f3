//! What is still on its way to a guest that is paused: frames in the queue of its TAP. The descriptor is QEMU's,
//! whoever started it.

use anyhow::{Context, bail};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use virtuoso_engine::GuestPorts;
use virtuoso_overlay::ids::Mac;
use virtuoso_overlay::limits::FRAME_BYTES_MAX;
use virtuoso_overlay::wire::ethernet::EthernetView;
use virtuoso_overlay::wire::frame::VNET_BYTES;

/// Frames that are read at most: a TAP's queue has 1,000.
const FRAMES_MAX: usize = 4_096;
/// The largest virtio-net header that a kernel puts before a frame, with room.
const HEADER_BYTES_MAX: usize = 64;

/// A frame that is for nobody, and that nobody reads: from a station to itself, of a kind for local experiments.
pub(super) const LAST_FRAME: [u8; 60] = {
    let mut frame = [0; 60];
    let mac = [0x02, b'v', b'o', b'l', b's', b't'];
    let mut at = 0;
    while at < mac.len() {
        (frame[at], frame[mac.len() + at]) = (mac[at], mac[at]);
        at += 1;
    }
    (frame[12], frame[13]) = (0x88, 0xb6);
    frame
};

/// The queue of a guest's TAP.
#[derive(Debug)]
pub struct Rest {
    fd: OwnedFd,
}

impl Rest {
    /// The queue of `tap`, which process `pid` has open.
    ///
    /// # Errors
    /// If the process has no such TAP, or the right to look into it is missing.
    pub fn of(pid: u32, tap: &str) -> anyhow::Result<Self> {
        let fd = borrow(pid, number_of(pid, tap)?).with_context(|| format!("Can't use TAP {tap} of process {pid}"))?;
        Ok(Self { fd })
    }

    /// Whether nothing waits. What a bridge was just handed may be a moment on its way.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn is_empty(&self) -> io::Result<bool> {
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the pointer is to the one element that is announced, and lives until the call returns.
        match unsafe { libc::poll(&raw mut poll, 1, 0) } {
            ..0 => Err(io::Error::last_os_error()),
            _ => Ok(poll.revents & libc::POLLIN == 0),
        }
    }

    /// Puts a frame for nobody behind all that waits, by `ports`. `index` is the interface's.
    ///
    /// # Errors
    /// If there is no such interface, or it has no room.
    pub fn put_last(&self, ports: &mut GuestPorts, index: u32) -> io::Result<()> {
        ports.send(index, &[0; VNET_BYTES], &LAST_FRAME)
    }

    /// Takes the frames for `mac` and for groups out: each behind a virtio-net header.
    ///
    /// # Errors
    /// If the TAP can't be read.
    pub fn take(&self, mac: Mac) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut header = 0_i32;
        // SAFETY: the request writes one int behind the pointer, which lives until the call returns.
        if unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut header) } < 0 {
            return Err(io::Error::last_os_error()).context("Can't ask a TAP for its header");
        }
        let header = usize::try_from(header).unwrap_or_default();
        anyhow::ensure!((VNET_BYTES..=HEADER_BYTES_MAX).contains(&header), "A TAP has a header of {header} bytes");
        let mut buffer = vec![0; header + FRAME_BYTES_MAX];
        let mut packets = Vec::new();
        for _ in 0..FRAMES_MAX {
            let Some(length) = read(&self.fd, &mut buffer).context("Can't read a TAP")? else { break };
            let Some(frame) = buffer.get(header..length) else { continue };
            if EthernetView::new_checked(frame).is_ok_and(|view| view.dst() == mac || view.dst().is_group()) {
                packets.push([&buffer[..VNET_BYTES], frame].concat());
            }
        }
        Ok(packets)
    }
}

/// The number that a TAP's descriptor has in a process.
fn number_of(pid: u32, tap: &str) -> anyhow::Result<RawFd> {
    let dir = format!("/proc/{pid}/fdinfo");
    for entry in fs::read_dir(&dir).with_context(|| format!("Can't list {dir}"))?.flatten() {
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let is_tap = text.lines().any(|line| line.strip_prefix("iff:").is_some_and(|name| name.trim() == tap));
        if is_tap && let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            return Ok(number);
        }
    }
    bail!("Process {pid} does not have TAP {tap}")
}

/// A descriptor of ours for what `number` is in another process.
fn borrow(pid: u32, number: RawFd) -> io::Result<OwnedFd> {
    let own = |result: libc::c_long| {
        let fd = RawFd::try_from(result).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the descriptor is new and nobody else has it.
        Ok::<_, io::Error>(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // SAFETY: the call takes no pointers.
    let process = own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the call takes no pointers.
    own(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })
}

/// One frame, or nothing if there is none: QEMU has made the TAP non-blocking.
fn read(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    // SAFETY: the descriptor is open, and the buffer is as long as it is said to be.
    let length = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    match usize::try_from(length) {
        Ok(length) => Ok(Some(length)),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            error => Err(error),
        },
    }
}

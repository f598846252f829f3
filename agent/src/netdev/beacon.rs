//! A raw socket on an uplink, through which hosts on one LAN hear of each other.
//!
//! It is beside the bridge, not behind it: it sends and hears whatever becomes of the port. All unsafe code about
//! packet sockets is here. What the beacons say is not its business.

use super::{Interface, NetdevError};
use anyhow::Context;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use virtuoso_overlay::wire::beacon::{ETHERTYPE, FRAME_BYTES, GROUP};

/// Bytes of a received frame that are looked at: a beacon and room for what a later version adds.
const RECEIVE_BYTES: usize = 256;

/// Sends and receives beacons on one interface.
#[derive(Debug)]
pub struct BeaconSocket {
    fd: AsyncFd<OwnedFd>,
    /// The kernel's number of the interface.
    pub index: u32,
}

impl BeaconSocket {
    /// Opens a socket on an interface.
    ///
    /// # Errors
    /// If the interface is gone, or the right to raw sockets is missing.
    pub fn open(interface: &Interface) -> anyhow::Result<Self> {
        let name = &interface.name;
        let fd = socket().map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                let action = format!("to send beacons on {name}");
                NetdevError::MissingRawRight { action }.into()
            }
            _ => anyhow::Error::new(error).context("Can't open a packet socket"),
        })?;
        let prepare = || {
            // In this order: no frame comes before the socket is bound, so none passes the filter by.
            attach_filter(&fd)?;
            ignore_outgoing(&fd);
            join_group(&fd, interface.index)?;
            bind(&fd, interface.index)
        };
        prepare().with_context(|| format!("Can't listen for beacons on {name}"))?;
        // SAFETY: the descriptor is open, and the `AsyncFd` owns it until it is dropped.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        let fd = fd.map_err(io::Error::from).context("Can't watch a packet socket")?;
        Ok(Self { fd, index: interface.index })
    }

    /// Waits for a beacon and returns its frame. Cancel safe.
    ///
    /// # Errors
    /// If the interface goes down or away.
    pub async fn receive(&self) -> io::Result<Vec<u8>> {
        self.fd.async_io(Interest::READABLE, |fd| receive(fd.as_raw_fd())).await
    }

    /// Sends a frame. It does not wait: a beacon that the NIC has no room for is one that was lost.
    ///
    /// # Errors
    /// If the interface is down or gone, or has no room.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and the length are of `frame`, which lives through the call.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), libc::MSG_DONTWAIT) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn socket() -> io::Result<OwnedFd> {
    // Protocol 0: it hears nothing until it is bound to one.
    // SAFETY: socket takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// To hear all protocols and leave all but one to a filter: a socket of one protocol hears nothing on a bridge's port,
/// since the bridge takes the frames first.
fn bind(fd: &OwnedFd, index: u32) -> io::Result<()> {
    // SAFETY: the structure holds plain integers, for which zeros are valid.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    // SAFETY: the pointer and the length are of `address`, which lives through the call.
    let result = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets untagged frames of the beacons' group and EtherType pass. The kernel does it for each frame of the NIC.
fn attach_filter(fd: &OwnedFd) -> io::Result<()> {
    const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    // The kernel takes tags out of the frame: SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT tells of them.
    const TAGGED: u32 = (-0x1000_i32 + 48).cast_unsigned();
    let [a, b, c, d, e, f] = GROUP.0;
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        step(LOAD_HALF, 0, 0, 12),
        step(IF_EQUAL, 0, 7, ETHERTYPE.0.into()),
        step(LOAD_WORD, 0, 0, 0),
        step(IF_EQUAL, 0, 5, u32::from_be_bytes([a, b, c, d])),
        step(LOAD_HALF, 0, 0, 4),
        step(IF_EQUAL, 0, 3, u16::from_be_bytes([e, f]).into()),
        step(LOAD_WORD, 0, 0, TAGGED),
        step(IF_EQUAL, 0, 1, 0),
        step(RETURN, 0, 0, RECEIVE_BYTES as u32),
        step(RETURN, 0, 0, 0),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// A NIC that is no bridge's port yet drops groups that nobody has asked for.
fn join_group(fd: &OwnedFd, index: u32) -> io::Result<()> {
    let [a, b, c, d, e, f] = GROUP.0;
    let request = libc::packet_mreq {
        mr_ifindex: index.cast_signed(),
        mr_type: libc::PACKET_MR_MULTICAST as u16,
        mr_alen: 6,
        mr_address: [a, b, c, d, e, f, 0, 0],
    };
    set_option(fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)
}

/// Beacons that a guest sends through the bridge are not the LAN's. Kernels before 4.20 show them nevertheless.
fn ignore_outgoing(fd: &OwnedFd) {
    if let Err(error) = set_option(fd, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1_i32) {
        tracing::debug!(%error, "this kernel shows outgoing frames to packet sockets");
    }
}

/// `if_packet.h`; the libc crate does not have it.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

fn set_option<T>(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let (pointer, bytes) = ((&raw const *value).cast(), size_of::<T>() as libc::socklen_t);
    // SAFETY: the pointer and the length are of `value`, which the callers make of the type that the option has. What
    // it points to in turn (the filter's program) lives in the caller until the call returns.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, pointer, bytes) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn receive(fd: RawFd) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; RECEIVE_BYTES.max(FRAME_BYTES)];
    // SAFETY: the pointer and the length are of `frame`, which lives through the call.
    let received = unsafe { libc::recv(fd, frame.as_mut_ptr().cast(), frame.len(), 0) };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    frame.truncate(received.cast_unsigned());
    Ok(frame)
}

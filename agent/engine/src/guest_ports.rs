//! What the data plane does to a guest's port at once, between two frames: whether the bridge floods to it, and frames
//! for it alone. All unsafe code about that is here.
//!
//! A netlink request of this kind takes some ten microseconds; it waits only for another change of network devices.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use virtuoso_overlay::wire::frame::VNET_BYTES;

/// Bytes of the requests and answers: the answer repeats the request.
const MESSAGE_BYTES_MAX: usize = 256;
/// `if_packet.h`; the libc crate does not have it.
const PACKET_VNET_HDR: libc::c_int = 15;
/// `if_link.h`: attributes of a bridge's port.
const IFLA_PROTINFO: u16 = 12;
const FLOODS: [u16; 3] = [9, 27, 30];

/// The kernel's ways to guests' ports, opened when they are used first.
#[derive(Debug, Default)]
pub struct GuestPorts {
    packet: Option<OwnedFd>,
    netlink: Option<OwnedFd>,
}

impl GuestPorts {
    /// Has the bridge pass unknown, multicast and broadcast frames to the port with this index, or not.
    ///
    /// # Errors
    /// If there is no such port, or the right is missing.
    pub fn flood(&mut self, index: u32, on: bool) -> io::Result<()> {
        let fd = opened(&mut self.netlink, || {
            socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE)
        })?;
        let request = flood_request(index, on);
        // SAFETY: the pointer and the length are of `request`, which lives through the call.
        let sent = unsafe { libc::send(fd.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        // The kernel has answered before the call above returned.
        let mut answer = [0_u8; MESSAGE_BYTES_MAX];
        // SAFETY: the pointer and the length are of `answer`, which lives through the call.
        let length =
            unsafe { libc::recv(fd.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), libc::MSG_DONTWAIT) };
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        match answer[16..20] {
            [0, 0, 0, 0] => Ok(()),
            [a, b, c, d] => Err(io::Error::from_raw_os_error(-i32::from_ne_bytes([a, b, c, d]))),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Sends a frame out of the port with this index, which nobody else gets.
    ///
    /// # Errors
    /// If there is no such port, it has no room, or the kernel does not take the header.
    pub fn send(&mut self, index: u32, header: &[u8; VNET_BYTES], frame: &[u8]) -> io::Result<()> {
        let fd = opened(&mut self.packet, packet_socket)?;
        // SAFETY: the structures hold plain integers and pointers, for which zeros are valid.
        let (mut address, mut message): (libc::sockaddr_ll, libc::msghdr) = unsafe { (mem::zeroed(), mem::zeroed()) };
        address.sll_family = libc::AF_PACKET as libc::sa_family_t;
        address.sll_ifindex = index.cast_signed();
        if let Some(&[high, low]) = frame.get(12..14) {
            address.sll_protocol = u16::from_ne_bytes([high, low]);
        }
        let mut parts = [
            libc::iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: header.len() },
            libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() },
        ];
        message.msg_name = (&raw mut address).cast();
        message.msg_namelen = size_of_val(&address) as u32;
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len();
        // SAFETY: all pointers are to values of this function or its arguments, which outlive the call; the kernel
        // reads them only.
        let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn opened(place: &mut Option<OwnedFd>, open: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<&OwnedFd> {
    match place {
        Some(fd) => Ok(fd),
        None => Ok(place.insert(open()?)),
    }
}

fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: socket takes no pointers.
    let fd = unsafe { libc::socket(family, kind, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A socket that hears nothing (protocol 0), and whose frames have a virtio-net header in front.
fn packet_socket() -> io::Result<OwnedFd> {
    let fd = socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0)?;
    let on: libc::c_int = 1;
    // SAFETY: the pointer and the length are of `on`, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_VNET_HDR,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(fd) }
}

/// `RTM_SETLINK` for a bridge's port, with an answer.
fn flood_request(index: u32, on: bool) -> Vec<u8> {
    let flags = FLOODS.iter().flat_map(|flood| attribute(*flood, &[u8::from(on)])).collect::<Vec<u8>>();
    let nested = attribute(IFLA_PROTINFO | libc::NLA_F_NESTED as u16, &flags);
    // `struct ifinfomsg`.
    let mut body = vec![libc::AF_BRIDGE as u8, 0, 0, 0];
    body.extend(index.to_ne_bytes());
    body.extend([0; 8]);
    body.extend(nested);
    // `struct nlmsghdr`.
    let mut request = Vec::with_capacity(16 + body.len());
    request.extend((16 + body.len() as u32).to_ne_bytes());
    request.extend(libc::RTM_SETLINK.to_ne_bytes());
    request.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    request.extend([0; 8]);
    request.extend(body);
    request
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut attribute = Vec::with_capacity(4 + value.len().next_multiple_of(4));
    attribute.extend((4 + value.len() as u16).to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

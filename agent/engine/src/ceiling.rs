//! The largest packet that a way to a peer may carry, for path MTU discovery to end there: what the interface takes
//! that leads to it. Whether the rest of the way takes as much is what discovery finds out.

use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

/// The largest UDP payload that any path is probed for: an interface with an MTU of 9216 and IPv4. Switches for
/// Ethernet take no more.
pub(super) const CEILING_MAX: u16 = 9188;

/// The MTU of Ethernet. Paths are probed for it even if the route takes less when the connection begins: what the
/// kernel remembers of a route may be out of date.
const ETHERNET_MTU: u32 = 1500;

/// The UDP payload up to which a connection is probed that goes to one of `addresses`; the largest of theirs.
///
/// An address may be this host's own as well, such as that of a bridge for containers, and still be listed for a peer.
/// So what never leaves this host counts only if nothing else is listed.
pub(super) fn towards(addresses: &[SocketAddr]) -> u16 {
    let routes: Vec<Route> = addresses.iter().map(|address| Route::to(*address)).collect();
    let leaves = routes.iter().any(|route| !route.is_local);
    let ways = routes.iter().filter(|route| !(leaves && route.is_local));
    ways.map(|route| route.ceiling).max().unwrap_or_else(|| ceiling(ETHERNET_MTU, true))
}

/// The kernel's way to an address.
#[derive(Debug)]
struct Route {
    ceiling: u16,
    /// It ends on this host.
    is_local: bool,
}

impl Route {
    /// What the kernel says; nothing is sent. An address that can't be reached is taken for one behind an Ethernet.
    fn to(address: SocketAddr) -> Self {
        let (mtu, is_local) = ask(address).unwrap_or((ETHERNET_MTU, false));
        Self { ceiling: ceiling(mtu, address.is_ipv4()), is_local }
    }
}

/// The MTU of the route to `address`, and whether it leads back to this host.
fn ask(address: SocketAddr) -> io::Result<(u32, bool)> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.connect(&address.into())?;
    let from = socket.local_addr()?.as_socket();
    Ok((mtu_of(&socket, address.is_ipv4())?, from.is_some_and(|from| from.ip() == address.ip())))
}

/// The MTU of the route that a connected socket takes.
fn mtu_of(socket: &Socket, is_ipv4: bool) -> io::Result<u32> {
    let (level, name) = if is_ipv4 { (libc::IPPROTO_IP, libc::IP_MTU) } else { (libc::IPPROTO_IPV6, libc::IPV6_MTU) };
    let mut mtu: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the value is a c_int of the length that is passed with it.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut mtu).cast(), &raw mut length) };
    if result == 0 { Ok(mtu.unsigned_abs()) } else { Err(io::Error::last_os_error()) }
}

/// The UDP payload in a packet of `mtu` bytes, within what is probed for.
fn ceiling(mtu: u32, is_ipv4: bool) -> u16 {
    let headers = if is_ipv4 { 20 + 8 } else { 40 + 8 };
    u16::try_from(mtu.max(ETHERNET_MTU) - headers).map_or(CEILING_MAX, |payload| payload.min(CEILING_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_leave_room_for_headers_and_have_bounds() {
        let payloads = [576, 1500, 9000, 9216, 65_536].map(|mtu| ceiling(mtu, true));
        assert_eq!(payloads, [1472, 1472, 8972, 9188, CEILING_MAX]);
        assert_eq!([1280, 1500, 9000].map(|mtu| ceiling(mtu, false)), [1452, 1452, 8952]);
    }

    #[test]
    fn loopback_carries_large_packets() {
        let loopback = "127.0.0.1:4747".parse().unwrap();
        assert!(Route::to(loopback).is_local);
        assert_eq!(towards(&[loopback]), CEILING_MAX);
    }

    #[test]
    fn own_addresses_in_a_list_of_others_do_not_count() {
        // A reserved address has no route, or the default one.
        let (own, distant) = ("127.0.0.1:4747".parse().unwrap(), "240.1.1.1:4747".parse().unwrap());
        assert_eq!(towards(&[own, distant]), towards(&[distant]));
        assert_eq!(towards(&[]), 1472);
    }
}

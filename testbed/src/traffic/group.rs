//! Datagrams to a group (IPv4 multicast or broadcast): who of the listeners gets how many.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::guest::{Guest, NIC};
use crate::interrupt;

/// `sender` sends `count` datagrams to `group`; how many each listener got, and each of them only once.
pub(crate) fn send(sender: &Guest, listeners: &[&Guest], group: Ipv4Addr, count: u32) -> Result<BTreeMap<String, u32>> {
    let sockets = listeners.iter().map(|guest| Ok((*guest, listen(guest, group)?))).collect::<Result<Vec<_>>>()?;
    let source = sender.namespace().enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_broadcast(true)?;
        Ok(socket)
    })?;
    if group.is_multicast() {
        sender.namespace().ip(&format!("route replace {group}/32 dev {NIC}"))?;
    }
    for number in 0..count {
        source.send_to(&number.to_be_bytes(), SocketAddrV4::new(group, PORT)).context("Cannot send to the group")?;
        // Below the rate limits that protect a network from broadcast storms.
        interrupt::pause(Duration::from_millis(5))?;
    }
    sockets.iter().map(|(guest, socket)| Ok((guest.namespace().name().to_owned(), collect(socket, count)?))).collect()
}

fn listen(guest: &Guest, group: Ipv4Addr) -> Result<UdpSocket> {
    let IpAddr::V4(own) = guest.ipv4()? else { bail!("An IPv4 address is one") };
    guest.namespace().enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
        if group.is_multicast() {
            socket.join_multicast_v4(&group, &own).with_context(|| format!("Cannot join {group}"))?;
        }
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(socket)
    })
}

fn collect(socket: &UdpSocket, count: u32) -> Result<u32> {
    let mut seen = std::collections::BTreeSet::new();
    let mut buffer = [0; 4];
    let deadline = Instant::now() + SETTLE_TIME;
    while Instant::now() < deadline && seen.len() < count as usize {
        interrupt::check()?;
        if socket.recv(&mut buffer).is_ok() && !seen.insert(buffer) {
            bail!("Datagram {} to the group came twice", u32::from_be_bytes(buffer));
        }
    }
    Ok(u32::try_from(seen.len())?)
}

const PORT: u16 = 7003;
/// For datagrams that are still on their way, and for copies that should not come.
const SETTLE_TIME: Duration = Duration::from_millis(500);

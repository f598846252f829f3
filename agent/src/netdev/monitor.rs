//! Tells what changes on the bridges of networks: interfaces that come and go, addresses that are learned and
//! forgotten.
//!
//! The kernel says so in multicast groups of netlink, and forgets what a slow reader leaves in its bounded buffer. So
//! the monitor reads no faster than its own reader does, and when the kernel has forgotten something it asks for
//! everything and tells the difference. Nothing in between is unbounded.

mod state;

use super::Netdev;
use super::fdb::RawEntry;
use super::interface::Interface;
use anyhow::Context;
use bytes::BytesMut;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use state::State;
use std::io;
use tokio::sync::mpsc;
use virtuoso_overlay::ids::{Mac, NetworkId};

/// Something changed on the bridge of a network. The bridge's name follows from the network.
///
/// The port of an address may be the agent's own TAP (the address is on another host, or left for it) or the bridge
/// itself (this host's own address): see [`super::network_of_tap`] and [`super::network_of_bridge`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// All that was there when the monitor began has been told.
    Synced,
    /// An interface is in the bridge now.
    PortAdded {
        /// Whose bridge.
        network: NetworkId,
        /// The interface.
        interface: String,
    },
    /// An interface is no longer in the bridge.
    PortRemoved {
        /// Whose bridge.
        network: NetworkId,
        /// The interface.
        interface: String,
    },
    /// An address is behind this port now; it may have been behind another before.
    FdbLearned {
        /// Whose bridge.
        network: NetworkId,
        /// The port.
        interface: String,
        /// The address.
        mac: Mac,
        /// The VLAN, for bridges that filter VLANs.
        vlan: Option<u16>,
    },
    /// The bridge no longer knows the address: it aged, or its port went down or away.
    FdbGone {
        /// Whose bridge.
        network: NetworkId,
        /// The port that it was behind.
        interface: String,
        /// The address.
        mac: Mac,
        /// The VLAN, for bridges that filter VLANs.
        vlan: Option<u16>,
    },
}

/// Events that wait for the reader. A host whose VMs all come up at once makes some hundred; then the kernel buffers.
const EVENTS_MAX: usize = 1024;

/// What the kernel buffers for a reader that is busy: some thousand messages.
const SOCKET_BUFFER_BYTES: libc::c_int = 1 << 20;

/// Netlink's messages are at most 32 KiB (`NETLINK_DUMP` in the kernel), several of them up to twice that.
const DATAGRAM_BYTES_MAX: usize = 64 * 1024;

/// Dumps in a row that may fail before the monitor gives up. A dump fails when the tables change under it too much.
const DUMPS_MAX: u32 = 5;

/// Watches the bridges of all networks, those included that come later.
///
/// First it tells what is there, then [`Event::Synced`], then every change. It ends when the receiver is dropped; if
/// the receiver is told of the end, the monitor has failed and said why in the log.
///
/// # Errors
/// If the kernel offers no netlink socket.
pub fn watch(netdev: Netdev) -> anyhow::Result<mpsc::Receiver<Event>> {
    watch_within(netdev, EVENTS_MAX, SOCKET_BUFFER_BYTES)
}

/// [`watch`] with other bounds.
pub(super) fn watch_within(
    netdev: Netdev,
    events_max: usize,
    socket_buffer_bytes: libc::c_int,
) -> anyhow::Result<mpsc::Receiver<Event>> {
    let socket = subscribe(socket_buffer_bytes).context("Can't subscribe to changes of network devices")?;
    let (events, receiver) = mpsc::channel(events_max);
    let monitor = Monitor { netdev, socket, state: State::default(), events };
    tokio::spawn(async move {
        match monitor.run().await {
            Ok(Closed) => tracing::debug!("monitor of network devices ends"),
            Err(error) => tracing::error!("Monitor of network devices failed: {error:#}"),
        }
    });
    Ok(receiver)
}

fn subscribe(buffer_bytes: libc::c_int) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    // The kernel may grant less; then it forgets sooner.
    socket.socket_ref().set_rx_buf_sz(buffer_bytes)?;
    let groups = [MulticastGroup::Link, MulticastGroup::Neigh].map(|group| 1 << (group as u32 - 1));
    socket.socket_mut().bind(&SocketAddr::new(0, groups[0] | groups[1]))?;
    Ok(socket)
}

struct Monitor {
    netdev: Netdev,
    socket: TokioSocket,
    state: State,
    events: mpsc::Sender<Event>,
}

/// The reader has gone: the ordinary end.
struct Closed;

/// What a read brought.
enum Heard {
    Datagram(BytesMut),
    Overrun,
    Closed,
}

impl Monitor {
    async fn run(mut self) -> anyhow::Result<Closed> {
        self.resync().await?;
        let mut closed = self.tell(vec![Event::Synced]).await;
        while closed.is_none() {
            closed = match self.hear().await? {
                Heard::Datagram(bytes) => {
                    let mut events = Vec::new();
                    for_each_message(&bytes, |message| apply(&mut self.state, message, &mut events));
                    let closed = self.tell(events).await;
                    if closed.is_none() && self.state.is_confused() { self.resync().await? } else { closed }
                }
                Heard::Overrun => {
                    tracing::debug!("the kernel forgot changes of network devices: asking for all");
                    self.resync().await?
                }
                Heard::Closed => Some(Closed),
            };
        }
        Ok(Closed)
    }

    async fn hear(&self) -> io::Result<Heard> {
        let mut bytes = BytesMut::with_capacity(DATAGRAM_BYTES_MAX);
        let received = tokio::select! {
            received = self.socket.recv_from(&mut bytes) => received,
            () = self.events.closed() => return Ok(Heard::Closed),
        };
        match received {
            Ok(_) => Ok(Heard::Datagram(bytes)),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Heard::Overrun),
            Err(error) => Err(error),
        }
    }

    /// Asks for everything and tells the difference.
    ///
    /// Changes that the socket holds from before are applied again afterwards. They end in the state that was asked
    /// for, so a reader may see a short detour, never a wrong end.
    async fn resync(&mut self) -> anyhow::Result<Option<Closed>> {
        let mut attempt = 1;
        let (interfaces, entries) = loop {
            match self.dump().await {
                Ok(dumped) => break dumped,
                Err(error) if attempt == DUMPS_MAX => return Err(error),
                Err(error) => tracing::debug!("asking for all network devices again: {error:#}"),
            }
            attempt += 1;
        };
        let events = self.state.replace(interfaces, entries);
        Ok(self.tell(events).await)
    }

    async fn dump(&self) -> anyhow::Result<(Vec<Interface>, Vec<RawEntry>)> {
        Ok((self.netdev.interfaces().await?, self.netdev.raw_fdb().await?))
    }

    async fn tell(&self, events: Vec<Event>) -> Option<Closed> {
        for event in events {
            tracing::trace!(?event, "network devices");
            if self.events.send(event).await.is_err() {
                return Some(Closed);
            }
        }
        None
    }
}

/// Applies one message of the kernel.
fn apply(state: &mut State, message: &RouteNetlinkMessage, events: &mut Vec<Event>) {
    match message {
        // The same messages of the bridge family tell about ports' bridge settings, and their end about those only.
        RouteNetlinkMessage::NewLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            if let Some(interface) = Interface::from_message(link) {
                state.interface_is(&interface, events);
            }
        }
        RouteNetlinkMessage::DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            state.interface_gone(link.header.index, events);
        }
        RouteNetlinkMessage::NewNeighbour(neighbour) => {
            if let Some(entry) = RawEntry::from_message(neighbour) {
                state.entry_is(entry, events);
            }
        }
        RouteNetlinkMessage::DelNeighbour(neighbour) => {
            if let Some(entry) = RawEntry::from_message(neighbour) {
                state.entry_gone(entry, events);
            }
        }
        _ => {}
    }
}

/// Reads the messages of a datagram. One that can't be read is passed over: kernels newer than this code exist.
fn for_each_message(mut bytes: &[u8], mut handle: impl FnMut(&RouteNetlinkMessage)) {
    while let Some(header) = bytes.first_chunk::<4>() {
        let length = usize::try_from(u32::from_ne_bytes(*header)).unwrap_or(usize::MAX);
        if length < NETLINK_HEADER_BYTES || length > bytes.len() {
            return;
        }
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes[..length]) {
            Ok(message) => {
                if let NetlinkPayload::InnerMessage(message) = &message.payload {
                    handle(message);
                }
            }
            Err(error) => tracing::debug!(%error, "a netlink message can't be read"),
        }
        bytes = bytes.get(length.next_multiple_of(NETLINK_ALIGN_BYTES)..).unwrap_or_default();
    }
}

const NETLINK_HEADER_BYTES: usize = 16;
const NETLINK_ALIGN_BYTES: usize = 4;

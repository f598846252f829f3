//! All links of this host: the QUIC endpoint, its connections, and which of them serves which link.
//!
//! A link is served by one connection at a time. When two hosts dial each other at once, the smaller host decides: it
//! holds the other's connection back while its own is being made, and answers only one of them. So both sides agree
//! on the connection, and a link's messages have one order.
//!
//! Nothing here reads the socket or knows ports. The engine feeds packets and time, and takes [`LinkEvent`]s.

mod admission;
mod dialling;
mod table;

use super::cid::{CurrentSlot, NO_SLOT, fill_random, slot_of};
use super::clock::Tick;
use super::connection::{CloseCode, Connection, Phase, Sent};
use super::link::Link;
use super::path::{Path, Route};
use super::queue::Spares;
use super::socket::Socket;
use super::stats::{LinkInfo, TrafficCounters};
use super::{AdmissionCheck, LinkSettings, tls, transport};
use admission::RefusalLog;
use anyhow::Result;
use bytes::BytesMut;
use libp2p::identity::Keypair;
use quinn::udp::EcnCodepoint;
use quinn_proto::{
    ConnectionError, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig, Event, Incoming, ServerConfig,
    TransportConfig,
};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use table::Table;
use virtuoso_overlay::drop_reason::DropReason;
use virtuoso_overlay::ids::HostId;
use virtuoso_overlay::packet::PacketBuffer;
use virtuoso_overlay::wire::frame::FrameHeader;

/// Connections that peers dialled and that are not up. A handshake costs about a millisecond of the engine.
const ARRIVING_MAX: usize = 256;

/// Above this many, a dialler must first show that it receives at the address it sends from.
const ARRIVING_UNVALIDATED_MAX: usize = 32;

/// Time in which a connection must be up.
const SETUP_TIME: Duration = Duration::from_secs(5);

/// How long the smaller host holds a connection back while its own is being made: a few round trips of a long path.
const HOLD_TIME: Duration = Duration::from_secs(1);

/// What waits for a link when its port is read no further: some of each conversation, among which the queue can choose.
/// More would be read only to be dropped.
const BACKLOG_BYTES_MAX: usize = 1 << 20;
/// See [`BACKLOG_BYTES_MAX`].
const BACKLOG_PACKETS_MAX: usize = 512;

/// What happened to a link.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LinkEvent {
    /// It carries frames and messages from now on.
    Up(HostId),
    /// It no longer does.
    Down(HostId, String),
    /// The peer sent a message.
    Message(HostId, Vec<u8>),
    /// One side did not accept the other's certificate.
    Refused { host: HostId, by_us: bool, reason: String },
    /// A link is wanted to a host without a known address.
    AddressWanted(HostId),
}

/// What [`Links`] needs to know about this host.
pub(super) struct LinksConfig {
    pub(super) keypair: Keypair,
    pub(super) certificate: Vec<u8>,
    pub(super) admit: AdmissionCheck,
    pub(super) may_fragment: bool,
    pub(super) settings: LinkSettings,
}

/// All links.
pub(super) struct Links {
    me: HostId,
    keypair: Keypair,
    certificate: Vec<u8>,
    admit: AdmissionCheck,
    /// Keeps guests from choosing conversations that share a queue.
    seed: u64,
    spares: Spares,
    settings: LinkSettings,
    /// Tells this run of the agent from an earlier one, so that peers drop connections to that one at once.
    instance: u64,
    endpoint: Endpoint,
    transport: Arc<TransportConfig>,
    current: CurrentSlot,
    table: Table,
    links: BTreeMap<HostId, Link>,
    /// Slots to look after in this turn.
    touched: Vec<u16>,
    events: VecDeque<LinkEvent>,
    refusals: RefusalLog,
    /// Whether the socket was full when a connection sent last.
    is_blocked: bool,
    response: Vec<u8>,
    outgoing: Vec<u8>,
    /// Frames of peers that are not admitted, and what else has no link to be counted at.
    pub(super) strays: TrafficCounters,
}

impl Links {
    pub(super) fn new(config: LinksConfig) -> Result<Self> {
        let current = CurrentSlot::new();
        let ids = current.clone();
        let mut endpoint = EndpointConfig::new(Arc::new(tls::ResetKey::data(&config.keypair)?));
        endpoint.cid_generator(move || Box::new(super::cid::DataCids(ids.clone())));
        let transport = transport::config(config.may_fragment, config.settings.congestion);
        let mut server = ServerConfig::with_crypto(Arc::new(tls::server(&config.keypair)?));
        server.transport_config(Arc::clone(&transport)).migration(false);
        let endpoint = Endpoint::new(Arc::new(endpoint), Some(Arc::new(server)), !config.may_fragment, None);
        let (mut instance, mut seed) = ([0; 8], [0; 8]);
        fill_random(&mut instance);
        fill_random(&mut seed);
        Ok(Self {
            me: tls::host_id(&config.keypair)?,
            keypair: config.keypair,
            certificate: config.certificate,
            admit: config.admit,
            seed: u64::from_be_bytes(seed),
            spares: Spares::default(),
            settings: config.settings,
            instance: u64::from_be_bytes(instance),
            endpoint,
            transport,
            current,
            table: Table::default(),
            links: BTreeMap::new(),
            touched: Vec::new(),
            events: VecDeque::new(),
            refusals: RefusalLog::default(),
            is_blocked: false,
            response: Vec::new(),
            outgoing: Vec::new(),
            strays: TrafficCounters::default(),
        })
    }

    /// Takes one packet of the data plane. HOT PATH.
    pub(super) fn receive(
        &mut self,
        tick: Tick,
        socket: &Socket,
        via: Path,
        ecn: Option<EcnCodepoint>,
        packet: BytesMut,
    ) {
        let Path::Direct(source) = via;
        let remote = self.table.get(slot_of(&packet)).map_or(source, |connection| connection.name);
        self.current.set(NO_SLOT);
        self.response.clear();
        match self.endpoint.handle(tick.at, remote, None, convert(ecn), packet, &mut self.response) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let Some(slot) = self.table.slot(handle) else { return };
                let Some(connection) = self.table.get_mut(slot) else { return };
                connection.quic.handle_event(event);
                let is_new = connection.phase == Phase::Handshake;
                if is_new {
                    connection.route.hear(via);
                }
                self.touch(slot);
                if is_new {
                    // At once, while it is known which way the packet came.
                    self.look_after(tick, slot, Some(via));
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.accept(tick, socket, source, incoming),
            Some(DatagramEvent::Response(transmit)) => {
                // What a full socket swallows here, the peer asks for again.
                let _ = socket.send(&self.response[..transmit.size], None, source, None);
            }
            None => {}
        }
    }

    /// Takes a packet with an id that nobody issued: perhaps a peer says that it no longer knows a connection.
    pub(super) fn receive_reset(&mut self, tick: Tick, from: SocketAddr, packet: &[u8]) {
        let names: Vec<SocketAddr> = self
            .table
            .iter()
            .filter(|(_, connection)| connection.route.active() == Some(Path::Direct(from)))
            .map(|(_, connection)| connection.name)
            .collect();
        for name in names {
            self.response.clear();
            let event = self.endpoint.handle(tick.at, name, None, None, BytesMut::from(packet), &mut self.response);
            if let Some(DatagramEvent::ConnectionEvent(handle, event)) = event
                && let Some(slot) = self.table.slot(handle)
                && let Some(connection) = self.table.get_mut(slot)
            {
                connection.quic.handle_event(event);
                self.touch(slot);
            }
        }
    }

    /// Looks after every connection that something happened to, and hands the packets that arrived to `deliver`.
    pub(super) fn process(&mut self, tick: Tick, mut deliver: impl FnMut(HostId, &mut TrafficCounters, &[u8])) {
        let mut index = 0;
        while let Some(&slot) = self.touched.get(index) {
            index += 1;
            self.look_after(tick, slot, None);
            self.unpack(tick, slot, &mut deliver);
        }
    }

    /// Sends a packet (virtio-net header and frame) to `host`, or keeps it while there is no room or no link; then
    /// `packet` may get another buffer. HOT PATH.
    pub(super) fn send(&mut self, tick: Tick, host: HostId, header: &FrameHeader, packet: &mut PacketBuffer) {
        let seed = self.seed;
        let link = self.links.entry(host).or_insert_with(|| Link::new(seed));
        let Link { queue, traffic, .. } = link;
        let connection = link.active.and_then(|slot| self.table.get_mut(slot).map(|connection| (slot, connection)));
        let Some((slot, connection)) = connection else {
            queue.push(tick.now.mono, *header, packet, &mut self.spares, &mut traffic.drops, DropReason::NoLink);
            link.want(tick.at);
            return;
        };
        if queue.is_empty() && connection.has_room(tick) {
            pack(tick, connection, traffic, header, packet.as_ref());
        } else {
            queue.push(tick.now.mono, *header, packet, &mut self.spares, &mut traffic.drops, DropReason::QueueFull);
        }
        self.touch(slot);
    }

    /// As [`Links::send`] to each of `hosts`.
    pub(super) fn send_all(&mut self, tick: Tick, hosts: &[HostId], header: &FrameHeader, packet: &PacketBuffer) {
        for host in hosts {
            self.send(tick, *host, header, &mut PacketBuffer::holding(packet.as_ref()));
        }
    }

    /// Whether the link to `host` has so much to send that it need not get more in this turn.
    pub(super) fn is_behind(&self, host: HostId) -> bool {
        self.links.get(&host).is_some_and(|link| {
            link.queue.flow_bytes() > BACKLOG_BYTES_MAX || link.queue.flow_packets() > BACKLOG_PACKETS_MAX
        })
    }

    /// Sends a message to `host`. Without a link it is dropped: the switch tells a new link everything.
    pub(super) fn send_message(&mut self, tick: Tick, host: HostId, message: &[u8]) {
        let Some(slot) = self.links.get(&host).and_then(|link| link.active) else { return };
        let Some(connection) = self.table.get_mut(slot) else { return };
        if let Err(error) = connection.send_message(message) {
            self.end(tick, slot, CloseCode::Protocol, &error.to_string());
        }
        self.touch(slot);
    }

    /// Sends what waits. True if a connection has more than one turn may send.
    pub(super) fn transmit(&mut self, tick: Tick, socket: &Socket) -> bool {
        self.is_blocked = false;
        let mut unfinished = Vec::new();
        let mut has_more = false;
        for slot in std::mem::take(&mut self.touched) {
            let Some(connection) = self.table.get_mut(slot) else { continue };
            connection.is_touched = false;
            let link =
                connection.peer.and_then(|peer| self.links.get_mut(&peer)).filter(|link| link.active == Some(slot));
            let mut waits = false;
            if let Some(link) = link {
                fill(tick, link, connection, &mut self.spares);
                waits = !link.queue.is_empty();
            }
            let sent = connection.transmit(tick, socket, &mut self.outgoing);
            self.is_blocked |= sent == Sent::Blocked;
            has_more |= sent == Sent::Partly || (sent == Sent::All && waits && connection.has_room(tick));
            connection.plan_pace(tick, waits);
            if sent != Sent::All || waits {
                unfinished.push(slot);
            }
            self.retire(slot);
        }
        for slot in unfinished {
            self.touch(slot);
        }
        has_more
    }

    /// Takes what happened.
    pub(super) fn poll_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    /// Whether the socket is full.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    /// Gives up frames that wait for a link for too long, and notes what got lost.
    pub(super) fn expire(&mut self, tick: Tick) {
        for link in self.links.values_mut() {
            for _ in 0..link.queue.expire(tick.now.mono) {
                link.traffic.drops.count(DropReason::NoLink);
            }
        }
        for (_, connection) in self.table.iter_mut() {
            if connection.sample_loss(tick) {
                let host = connection.peer.map(|peer| peer.to_string());
                tracing::info!(host, "The link loses much of what is sent: it gets a congestion window for a while");
            }
        }
    }

    /// Says goodbye on every connection.
    pub(super) fn close_all(&mut self, tick: Tick) {
        for slot in self.table.slots() {
            self.end(tick, slot, CloseCode::Goodbye, "The host stops");
        }
    }

    /// The certificate that peers are shown from now on.
    pub(super) fn set_certificate(&mut self, certificate: Vec<u8>) {
        self.certificate = certificate;
    }

    /// The links, by host.
    pub(super) fn info(&self, now: Instant, socket: &Socket) -> Vec<LinkInfo> {
        self.links.iter().map(|(host, link)| self.link_info(now, socket, *host, link)).collect()
    }

    fn link_info(&self, now: Instant, socket: &Socket, host: HostId, link: &Link) -> LinkInfo {
        let connection = link.active.or(link.dialling).and_then(|slot| self.table.get(slot));
        let path = connection.map(|connection| connection.quic.stats().path);
        LinkInfo {
            host,
            state: link.state(connection.is_some_and(|connection| connection.phase != Phase::Handshake)),
            path: connection.and_then(|connection| connection.route.active()).map(|path| path.to_string()),
            rtt: path.map(|path| path.rtt),
            mtu_bytes: path.map(|path| path.current_mtu),
            sent_packets: path.map_or(0, |path| path.sent_packets),
            lost_packets: path.map_or(0, |path| path.lost_packets),
            batch_packets: connection.map_or(0, |connection| connection.segments_max(socket)),
            congestion: connection.map_or(self.settings.congestion, Connection::congestion),
            repaired_frames: link.repaired,
            queued_frames: link.queue.len() as u64,
            marked_frames: link.queue.marked(),
            traffic: link.traffic,
            error: link.error.clone(),
            age: link.age(now),
        }
    }

    /// A peer dials.
    fn accept(&mut self, tick: Tick, socket: &Socket, source: SocketAddr, incoming: Incoming) {
        let arriving = self.table.iter().filter(|(_, connection)| connection.is_arriving()).count();
        let slot = self.table.vacant().filter(|_| arriving < ARRIVING_MAX);
        let Some(slot) = slot else {
            self.endpoint.ignore(incoming);
            return;
        };
        self.response.clear();
        if arriving >= ARRIVING_UNVALIDATED_MAX && incoming.may_retry() && !incoming.remote_address_validated() {
            if let Ok(transmit) = self.endpoint.retry(incoming, &mut self.response) {
                let _ = socket.send(&self.response[..transmit.size], None, source, None);
            }
            return;
        }
        let name = incoming.remote_address();
        self.current.set(slot);
        match self.endpoint.accept(incoming, tick.at, &mut self.response, None) {
            Ok(made) => {
                let route = Route::accepted(Path::Direct(source));
                let connection = Connection::new(made, name, route, None, tick.at + SETUP_TIME, self.settings);
                self.table.insert(slot, connection);
                self.touch(slot);
            }
            Err(error) => {
                tracing::debug!(%source, cause = %error.cause, "Data connection was not accepted");
                if let Some(transmit) = error.response {
                    let _ = socket.send(&self.response[..transmit.size], None, source, None);
                }
            }
        }
    }

    /// Takes a connection's events, and does what its messages ask for.
    fn look_after(&mut self, tick: Tick, slot: u16, via: Option<Path>) {
        self.current.set(slot);
        while let Some(connection) = self.table.get_mut(slot) {
            let Some(event) = connection.quic.poll() else { break };
            match event {
                Event::Connected => self.on_connected(tick, slot, via),
                Event::ConnectionLost { reason } => self.on_lost(tick, slot, &reason),
                Event::HandshakeDataReady | Event::Stream(_) | Event::DatagramReceived | Event::DatagramsUnblocked => {}
            }
        }
        self.read_messages(tick, slot);
        let Some(connection) = self.table.get_mut(slot) else { return };
        if connection.phase != Phase::Closed
            && let Err(error) = connection.stream.write(&mut connection.quic)
        {
            self.end(tick, slot, CloseCode::Protocol, &error.to_string());
        }
        self.exchange(slot);
    }

    /// Lets the connection and the endpoint tell each other of new and old connection ids.
    fn exchange(&mut self, slot: u16) {
        let Some(connection) = self.table.get_mut(slot) else { return };
        self.current.set(slot);
        while let Some(event) = connection.quic.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(connection.handle, event) {
                connection.quic.handle_event(event);
            }
        }
    }

    /// Hands the packets that the connection brought to `deliver`.
    fn unpack(&mut self, tick: Tick, slot: u16, deliver: &mut impl FnMut(HostId, &mut TrafficCounters, &[u8])) {
        let Some(connection) = self.table.get_mut(slot) else { return };
        let admitted = connection.peer.filter(|_| connection.is_admitted());
        let link = admitted.and_then(|peer| self.links.get_mut(&peer).map(|link| (peer, link)));
        let Some((peer, link)) = link else {
            while connection.next_datagram().is_some() {
                self.strays.drops.count(DropReason::NotAdmitted);
            }
            return;
        };
        while let Some(datagram) = connection.next_datagram() {
            let deliver = |packet: &[u8]| deliver(peer, &mut link.traffic, packet);
            connection.reassembler.feed(tick.now.mono, &datagram, deliver);
        }
        connection.reassembler.settle(tick.now.mono, |packet| deliver(peer, &mut link.traffic, packet));
        connection.plan_repair(tick);
        count_losses(connection, link);
    }

    /// Ends the link to `host`, whose message could not be understood.
    pub(super) fn reject(&mut self, tick: Tick, host: HostId, reason: &str) {
        if let Some(slot) = self.links.get(&host).and_then(|link| link.active) {
            self.end(tick, slot, CloseCode::Protocol, reason);
        }
    }

    /// The link to `host`, which is made if need be.
    fn link_mut(&mut self, host: HostId) -> &mut Link {
        let seed = self.seed;
        self.links.entry(host).or_insert_with(|| Link::new(seed))
    }

    /// Puts the connection on the list of those to look after and to send for.
    fn touch(&mut self, slot: u16) {
        if let Some(connection) = self.table.get_mut(slot)
            && !connection.is_touched
        {
            connection.is_touched = true;
            self.touched.push(slot);
        }
    }

    /// Removes a connection that QUIC has finished with.
    fn retire(&mut self, slot: u16) {
        if self.table.get(slot).is_some_and(|connection| connection.quic.is_drained()) {
            self.exchange(slot);
            self.table.remove(slot);
        }
    }
}

impl Connection {
    /// Whether a peer dialled it and it is not up.
    fn is_arriving(&self) -> bool {
        self.role == super::connection::Role::Acceptor && !matches!(self.phase, Phase::Up | Phase::Closed)
    }
}

/// Hands waiting packets to QUIC while it has room.
fn fill(tick: Tick, link: &mut Link, connection: &mut Connection, spares: &mut Spares) {
    while connection.has_room(tick) {
        let Some(queued) = link.queue.pop(tick.now.mono, spares, &mut link.traffic.drops) else { break };
        pack(tick, connection, &mut link.traffic, &queued.header, queued.packet.as_ref());
        spares.put(queued.packet);
    }
}

fn pack(tick: Tick, connection: &mut Connection, traffic: &mut TrafficCounters, header: &FrameHeader, packet: &[u8]) {
    if connection.pack(tick, header, packet) {
        traffic.sent(frame_bytes(packet));
    } else {
        traffic.drops.count(DropReason::QueueFull);
    }
}

fn count_losses(connection: &mut Connection, link: &mut Link) {
    let (losses, traffic) = (connection.reassembler.take_losses(), &mut link.traffic);
    link.repaired += losses.repaired;
    for _ in 0..losses.incomplete {
        traffic.drops.count(DropReason::Incomplete);
    }
    for _ in 0..losses.malformed {
        traffic.drops.count(DropReason::Malformed);
    }
}

/// Bytes of the Ethernet frame in a packet.
pub(super) fn frame_bytes(packet: &[u8]) -> usize {
    packet.len().saturating_sub(virtuoso_overlay::wire::frame::VNET_BYTES)
}

fn convert(ecn: Option<EcnCodepoint>) -> Option<quinn_proto::EcnCodepoint> {
    ecn.and_then(|ecn| quinn_proto::EcnCodepoint::from_bits(ecn as u8))
}

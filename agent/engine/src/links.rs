//! All links of this host: the QUIC endpoint, its connections, and which of them serves which link.
//!
//! A link is served by one connection at a time. When two hosts dial each other at once, the smaller host decides: it
//! holds the other's connection back while its own is being made, and answers only one of them. So both sides agree
//! on the connection, and a link's messages have one order.
//!
//! Connections begin in the shard at home and stay there, unless there are crews: then one that is up moves to the crew
//! of its peer. What is decided here reaches either as an [`Order`], and both tell what happened as a [`Report`].
//!
//! Nothing here reads the socket or knows ports. The engine feeds packets and time, and takes [`LinkEvent`]s.

mod admission;
mod dialling;
mod standing;

use super::ceiling;
use super::cid::{CurrentSlot, NO_SLOT, fill_random, slot_of};
use super::clock::{Clock, Tick};
use super::command::Wake;
use super::connection::{CloseCode, Connection};
use super::link::Link;
use super::path::{Path, Route};
use super::shard::crew::{Crew, News};
use super::shard::{Order, Report, Shard, Survey};
use super::socket::Socket;
use super::stats::{EngineInfo, LinkInfo, TrafficCounters};
use super::{AdmissionCheck, LinkLimits, LinkSettings, tls, transport};
use admission::RefusalLog;
use anyhow::Result;
use bytes::BytesMut;
use libp2p::identity::Keypair;
use quinn::udp::EcnCodepoint;
use quinn_proto::{
    ConnectionError, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig, EndpointEvent, Incoming, ServerConfig,
    TransportConfig,
};
use standing::{Phase, Role, Standing, Table};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use virtuoso_overlay::drop_reason::DropReason;
use virtuoso_overlay::ids::{HostId, NetworkId};
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

/// Which shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// The one on the engine's thread.
    Home,
    /// The one of the crew with this index.
    Crew(usize),
}

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
    pub(super) socket: Arc<Socket>,
    pub(super) keypair: Keypair,
    pub(super) certificate: Vec<u8>,
    pub(super) admit: AdmissionCheck,
    pub(super) settings: LinkSettings,
    pub(super) clock: Clock,
    /// Wakes the engine's thread.
    pub(super) wake: Arc<Wake>,
}

/// All links.
pub(super) struct Links {
    me: HostId,
    socket: Arc<Socket>,
    keypair: Keypair,
    certificate: Vec<u8>,
    admit: AdmissionCheck,
    settings: LinkSettings,
    /// Tells this run of the agent from an earlier one, so that peers drop connections to that one at once.
    instance: u64,
    endpoint: Endpoint,
    /// What a connection that comes in is served by; its transport settings depend on where it comes from.
    server: ServerConfig,
    may_fragment: bool,
    current: CurrentSlot,
    table: Table,
    links: BTreeMap<HostId, Link>,
    home: Shard,
    crews: Vec<Crew>,
    /// What the crews have told.
    reports: VecDeque<Report>,
    events: VecDeque<LinkEvent>,
    refusals: RefusalLog,
    response: Vec<u8>,
    /// Frames that a crew brought of a peer that is admitted no longer.
    strays: TrafficCounters,
}

impl Links {
    pub(super) fn new(config: LinksConfig) -> Result<Self> {
        let LinksConfig { socket, keypair, certificate, admit, settings, clock, wake } = config;
        let current = CurrentSlot::new();
        let ids = current.clone();
        let mut endpoint = EndpointConfig::new(Arc::new(tls::ResetKey::data(&keypair)?));
        endpoint
            .cid_generator(move || Box::new(super::cid::DataCids(ids.clone())))
            .max_udp_payload_size(ceiling::CEILING_MAX)?;
        let may_fragment = socket.may_fragment();
        let mut server = ServerConfig::with_crypto(Arc::new(tls::server(&keypair)?));
        server.migration(false);
        let endpoint = Endpoint::new(Arc::new(endpoint), Some(Arc::new(server.clone())), !may_fragment, None);
        let (mut instance, mut seed) = ([0; 8], [0; 8]);
        fill_random(&mut instance);
        fill_random(&mut seed);
        let seed = u64::from_be_bytes(seed);
        let crews = 1..settings.threads.count();
        let crews = crews.map(|number| Crew::start(number, Shard::new(Arc::clone(&socket), seed), clock, &wake));
        Ok(Self {
            me: tls::host_id(&keypair)?,
            keypair,
            certificate,
            admit,
            settings,
            instance: u64::from_be_bytes(instance),
            endpoint,
            server,
            may_fragment,
            current,
            table: Table::default(),
            links: BTreeMap::new(),
            home: Shard::new(Arc::clone(&socket), seed),
            crews: crews.collect::<Result<_>>()?,
            socket,
            reports: VecDeque::new(),
            events: VecDeque::new(),
            refusals: RefusalLog::default(),
            response: Vec::new(),
            strays: TrafficCounters::default(),
        })
    }

    /// Takes one packet of the data plane. HOT PATH.
    pub(super) fn receive(&mut self, tick: Tick, via: Path, ecn: Option<EcnCodepoint>, packet: BytesMut) {
        let Path::Direct(source) = via;
        let remote = self.table.get(slot_of(&packet)).map_or(source, |standing| standing.name);
        let bytes = packet.len();
        self.current.set(NO_SLOT);
        self.response.clear();
        match self.endpoint.handle(tick.at, remote, None, convert(ecn), packet, &mut self.response) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let Some(slot) = self.table.slot(handle) else { return };
                match self.place_of(slot) {
                    Some(Place::Home) => self.home.carry_out(tick, Order::Feed { slot, via: Some(via), event }),
                    Some(Place::Crew(crew)) => self.crews[crew].feed(slot, via, event, bytes),
                    None => {}
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.accept(tick, source, incoming),
            Some(DatagramEvent::Response(transmit)) => {
                // What a full socket swallows here, the peer asks for again.
                let _ = self.socket.send(&self.response[..transmit.size], None, source, None);
            }
            None => {}
        }
    }

    /// Takes a packet with an id that nobody issued: perhaps a peer says that it no longer knows a connection.
    pub(super) fn receive_reset(&mut self, tick: Tick, from: SocketAddr, packet: &[u8]) {
        let names: Vec<SocketAddr> = self
            .table
            .iter()
            .filter(|(_, standing)| standing.path == Some(Path::Direct(from)))
            .map(|(_, standing)| standing.name)
            .collect();
        for name in names {
            self.response.clear();
            let event = self.endpoint.handle(tick.at, name, None, None, BytesMut::from(packet), &mut self.response);
            if let Some(DatagramEvent::ConnectionEvent(handle, event)) = event
                && let Some(slot) = self.table.slot(handle)
            {
                self.order(tick, slot, Order::Feed { slot, via: None, event });
            }
        }
    }

    /// Takes what the crews have, and hands the packets that arrived with them to `deliver`.
    pub(super) fn collect(&mut self, mut deliver: impl FnMut(HostId, &mut TrafficCounters, &[u8])) {
        let Self { table, links, crews, reports, strays, .. } = self;
        for crew in crews {
            crew.collect(|news| match news {
                News::Packet(slot, packet) => {
                    let host = table.get(slot).filter(|standing| standing.is_admitted()).and_then(|s| s.peer);
                    match host.and_then(|host| Some((host, links.get_mut(&host)?))) {
                        Some((host, link)) => deliver(host, &mut link.traffic, packet),
                        None => strays.drops.count(DropReason::NotAdmitted),
                    }
                }
                News::Report(report) => reports.push_back(report),
            });
        }
    }

    /// Looks after every connection at home that something happened to, and hands the packets that arrived to
    /// `deliver`. Crews see what there is for them.
    pub(super) fn process(&mut self, tick: Tick, mut deliver: impl FnMut(HostId, &mut TrafficCounters, &[u8])) {
        self.home.look_after();
        self.take_reports(tick);
        self.home.unpack(tick, |_, host, traffic, packet| deliver(host, traffic, packet));
        self.publish();
    }

    /// Sends a packet (virtio-net header and frame) to `host`, or keeps it while there is no room or no link; then
    /// `packet` may get another buffer. HOT PATH.
    pub(super) fn send(&mut self, tick: Tick, host: HostId, header: &FrameHeader, packet: &mut PacketBuffer) {
        let link = link_of(&mut self.links, self.crews.len(), host);
        if link.active.is_none() {
            link.want(tick.at);
        }
        match link.place {
            Place::Home => self.home.send(tick, host, header, packet),
            Place::Crew(crew) => {
                if !self.crews[crew].send(host, header, packet.as_ref()) {
                    link.traffic.drops.count(DropReason::QueueFull);
                }
            }
        }
    }

    /// As [`Links::send`] to each of `hosts`.
    pub(super) fn send_all(&mut self, tick: Tick, hosts: &[HostId], header: &FrameHeader, packet: &PacketBuffer) {
        for host in hosts {
            self.send(tick, *host, header, &mut PacketBuffer::holding(packet.as_ref()));
        }
    }

    /// Whether the link to `host` has so much to send of `network` that it need not get more in this turn.
    pub(super) fn is_behind(&self, host: HostId, network: NetworkId) -> bool {
        match self.links.get(&host).map(|link| link.place) {
            Some(Place::Home) => self.home.is_behind(host, network),
            Some(Place::Crew(crew)) => self.crews[crew].is_full(),
            None => false,
        }
    }

    /// Sends a message to `host`. Without a link it is dropped: the switch tells a new link everything.
    pub(super) fn send_message(&mut self, tick: Tick, host: HostId, message: Vec<u8>) {
        if let Some(slot) = self.links.get(&host).and_then(|link| link.active) {
            self.order(tick, slot, Order::Message { slot, message });
        }
    }

    /// Sends what waits at home, and lets crews see what there is for them. True if a connection at home has more than
    /// one turn may send.
    pub(super) fn transmit(&mut self, tick: Tick) -> bool {
        self.publish();
        self.home.transmit(tick)
    }

    /// The thread is about to sleep. True if no crew has anything to tell: then it wakes the thread.
    pub(super) fn rest(&mut self) -> bool {
        self.crews.iter_mut().all(Crew::rest)
    }

    /// Whether a crew has so much to do that nothing more should be read. The thread is woken when that changes.
    pub(super) fn is_full(&mut self) -> bool {
        self.crews.iter_mut().any(Crew::wait_for_room)
    }

    /// Whether there are threads beside this one, which keep the packets that they are given for a while.
    pub(super) fn has_crews(&self) -> bool {
        !self.crews.is_empty()
    }

    /// Whether a crew has panicked: its links are lost, and the engine with them.
    pub(super) fn is_broken(&self) -> bool {
        self.crews.iter().any(Crew::is_gone)
    }

    /// Takes what happened.
    pub(super) fn poll_event(&mut self, tick: Tick) -> Option<LinkEvent> {
        self.take_reports(tick);
        self.events.pop_front()
    }

    /// Whether the socket is full.
    pub(super) fn is_blocked(&self) -> bool {
        self.home.is_blocked()
    }

    /// Gives up frames that wait for a link for too long, and notes what got lost.
    pub(super) fn expire(&mut self, tick: Tick) {
        self.home.expire(tick);
    }

    /// Says goodbye on every connection, and ends the crews when that is on the wire.
    pub(super) fn stop(&mut self, tick: Tick) {
        for slot in self.table.slots() {
            self.end(tick, slot, CloseCode::Goodbye, "The host stops");
        }
        self.home.transmit(tick);
        self.crews.clear();
    }

    /// The certificate that peers are shown from now on.
    pub(super) fn set_certificate(&mut self, certificate: Vec<u8>) {
        self.certificate = certificate;
    }

    /// Adds the links to `info`, has each crew add what it knows, and sends the whole to `done`.
    pub(super) fn survey(&mut self, now: Instant, mut info: EngineInfo, done: oneshot::Sender<EngineInfo>) {
        info.links = self.links.iter().map(|(host, link)| self.link_info(now, *host, link)).collect();
        info.strays = self.strays;
        self.home.describe(&mut info);
        self.pass_on(Box::new(Survey { info, done, visited: 0 }));
    }

    fn pass_on(&mut self, survey: Box<Survey>) {
        match self.crews.get_mut(survey.visited) {
            Some(crew) => crew.order(Order::Survey(survey)),
            // An asker that no longer waits has no use for an answer.
            None => drop(survey.done.send(survey.info)),
        }
    }

    fn link_info(&self, now: Instant, host: HostId, link: &Link) -> LinkInfo {
        let slot = link.active.or(link.dialling);
        let is_secured = slot.and_then(|slot| self.table.get(slot)).is_some_and(|s| s.phase != Phase::Handshake);
        let mut info = LinkInfo {
            host,
            state: link.state(is_secured),
            path: None,
            rtt: None,
            mtu_bytes: None,
            sent_packets: 0,
            lost_packets: 0,
            black_holes: 0,
            sent_bits_per_s: 0,
            received_bits_per_s: 0,
            batch_packets: 0,
            congestion: self.settings.congestion,
            rate_mbit: self.limits_of(host).rate_mbit,
            repaired_frames: 0,
            queued_frames: 0,
            marked_frames: 0,
            cut_frames: 0,
            traffic: link.traffic,
            error: link.error.clone(),
            age: link.age(now),
        };
        if let Some(slot) = link.dialling {
            self.home.describe_connection(slot, &mut info);
        }
        info
    }

    fn limits_of(&self, host: HostId) -> LinkLimits {
        self.links.get(&host).and_then(|link| link.limits).unwrap_or_else(|| self.settings.limits())
    }

    /// A peer dials. While this host has no certificate to show, it is not heard: then it asks again at once, and after
    /// a refusal much later.
    fn accept(&mut self, tick: Tick, source: SocketAddr, incoming: Incoming) {
        let arriving = self.table.iter().filter(|(_, standing)| standing.is_arriving()).count();
        let slot = self.table.vacant().filter(|_| arriving < ARRIVING_MAX && !self.certificate.is_empty());
        let Some(slot) = slot else {
            self.endpoint.ignore(incoming);
            return;
        };
        self.response.clear();
        if arriving >= ARRIVING_UNVALIDATED_MAX && incoming.may_retry() && !incoming.remote_address_validated() {
            if let Ok(transmit) = self.endpoint.retry(incoming, &mut self.response) {
                let _ = self.socket.send(&self.response[..transmit.size], None, source, None);
            }
            return;
        }
        let name = incoming.remote_address();
        self.current.set(slot);
        let mut server = self.server.clone();
        server.transport_config(self.transport_towards(&[source]));
        match self.endpoint.accept(incoming, tick.at, &mut self.response, Some(Arc::new(server))) {
            Ok((handle, quic)) => {
                let path = Path::Direct(source);
                let standing = Standing::new(handle, name, Role::Acceptor, None, tick.at + SETUP_TIME);
                self.table.insert(slot, Standing { path: Some(path), ..standing });
                self.adopt(tick, slot, Connection::new(quic, Route::accepted(path), self.settings.limits()));
            }
            Err(error) => {
                tracing::debug!(%source, cause = %error.cause, "Data connection was not accepted");
                if let Some(transmit) = error.response {
                    let _ = self.socket.send(&self.response[..transmit.size], None, source, None);
                }
            }
        }
    }

    /// QUIC's settings for a connection that goes to one of `addresses`.
    fn transport_towards(&self, addresses: &[SocketAddr]) -> Arc<TransportConfig> {
        transport::config(self.may_fragment, ceiling::towards(addresses), self.settings.congestion)
    }

    /// Does what follows from what happened in the shards.
    fn take_reports(&mut self, tick: Tick) {
        while let Some(report) = self.reports.pop_front().or_else(|| self.home.poll_report()) {
            match report {
                Report::Secured { slot, peer, path } => self.on_secured(tick, slot, peer, path),
                Report::Message { slot, message } => self.on_message(tick, slot, message),
                Report::Lost { slot, reason } => self.on_lost(tick, slot, &reason),
                Report::Failed { slot, reason } => self.end(tick, slot, CloseCode::Protocol, &reason),
                Report::Endpoint { slot, event } => self.on_endpoint_event(tick, slot, event),
                Report::Survey(mut survey) => {
                    survey.visited += 1;
                    self.pass_on(survey);
                }
            }
        }
    }

    /// Lets the endpoint know of old and new connection ids. After a connection's last event its slot is free.
    fn on_endpoint_event(&mut self, tick: Tick, slot: u16, event: EndpointEvent) {
        let Some(handle) = self.table.get(slot).map(|standing| standing.handle) else { return };
        let is_last = event.is_drained();
        self.current.set(slot);
        if let Some(event) = self.endpoint.handle_event(handle, event) {
            self.order(tick, slot, Order::Feed { slot, via: None, event });
        }
        if is_last {
            self.table.remove(slot);
        }
    }

    /// A new connection begins at home.
    fn adopt(&mut self, tick: Tick, slot: u16, connection: Connection) {
        self.home.carry_out(tick, Order::Adopt { slot, connection: Box::new(connection) });
    }

    /// Moves a connection that is at home to another shard.
    fn relocate(&mut self, tick: Tick, slot: u16, place: Place) {
        let Some(standing) = self.table.get_mut(slot) else { return };
        if standing.place != place
            && let Some(connection) = self.home.release(slot)
        {
            standing.place = place;
            self.order(tick, slot, Order::Adopt { slot, connection });
        }
    }

    /// Has an order carried out where the connection is.
    fn order(&mut self, tick: Tick, slot: u16, order: Order) {
        if let Some(place) = self.place_of(slot) {
            self.order_at(tick, place, order);
        }
    }

    fn order_at(&mut self, tick: Tick, place: Place, order: Order) {
        match place {
            Place::Home => self.home.carry_out(tick, order),
            Place::Crew(crew) => self.crews[crew].order(order),
        }
    }

    fn place_of(&self, slot: u16) -> Option<Place> {
        self.table.get(slot).map(|standing| standing.place)
    }

    fn publish(&mut self) {
        for crew in &mut self.crews {
            crew.publish();
        }
    }

    /// Ends the link to `host`, whose message could not be understood.
    pub(super) fn reject(&mut self, tick: Tick, host: HostId, reason: &str) {
        if let Some(slot) = self.links.get(&host).and_then(|link| link.active) {
            self.end(tick, slot, CloseCode::Protocol, reason);
        }
    }

    /// The link to `host`, which is made if need be.
    fn link_mut(&mut self, host: HostId) -> &mut Link {
        link_of(&mut self.links, self.crews.len(), host)
    }
}

/// The link to `host`. A new one goes to the crew that has the fewest, if there are crews.
fn link_of(links: &mut BTreeMap<HostId, Link>, crews: usize, host: HostId) -> &mut Link {
    if crews > 0 && !links.contains_key(&host) {
        let links_of = |crew: &usize| links.values().filter(|link| link.place == Place::Crew(*crew)).count();
        let place = (0..crews).min_by_key(links_of).map_or(Place::Home, Place::Crew);
        links.insert(host, Link::new(place));
    }
    links.entry(host).or_insert_with(|| Link::new(Place::Home))
}

fn convert(ecn: Option<EcnCodepoint>) -> Option<quinn_proto::EcnCodepoint> {
    ecn.and_then(|ecn| quinn_proto::EcnCodepoint::from_bits(ecn as u8))
}

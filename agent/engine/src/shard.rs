//! A part of the links, driven by one thread: the connections' state machines, what waits for their peers, and the
//! packets on both ways. A shard knows no switch, no port and no certificate: [`super::links`] gives it [`Order`]s, and
//! takes its [`Report`]s and the packets that arrived.
//!
//! Every engine has a shard at home, on its own thread, where connections begin. Without other threads it is the only
//! one. With them, the lanes and the connections that are up are in the shards of [`crew`]s, the same ones of a peer
//! always in the same shard: so the frames of a conversation keep their order.

pub(super) mod crew;
mod lane;
mod mailbox;
mod order;

pub(super) use order::{Order, Report, Survey};

use super::LinkLimits;
use super::clock::Tick;
use super::connection::{Connection, Sent, Stage};
use super::path::Path;
use super::queue::Spares;
use super::slots::Slots;
use super::socket::Socket;
use super::stats::{EngineInfo, LinkInfo, TrafficCounters};
use super::tls;
use lane::Lane;
use quinn_proto::{ConnectionError, ConnectionEvent, Event};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;
use virtuoso_overlay::drop_reason::DropReason;
use virtuoso_overlay::ids::{HostId, NetworkId};
use virtuoso_overlay::packet::PacketBuffer;
use virtuoso_overlay::wire::frame::FrameHeader;

/// What waits for a link when its port is read no further: some of each conversation, among which the queue can choose.
/// More would be read only to be dropped.
const BACKLOG_BYTES_MAX: usize = 1 << 20;
/// See [`BACKLOG_BYTES_MAX`].
const BACKLOG_PACKETS_MAX: usize = 512;

/// Connections and lanes of one thread.
pub(super) struct Shard {
    socket: Arc<Socket>,
    /// Keeps guests from choosing conversations that share a queue.
    seed: u64,
    connections: Slots<Connection>,
    lanes: BTreeMap<HostId, Lane>,
    /// What limits networks on every link, beside what limits the link.
    networks: BTreeMap<NetworkId, LinkLimits>,
    /// Slots to look after in this turn.
    touched: Vec<u16>,
    reports: VecDeque<Report>,
    spares: Spares,
    outgoing: Vec<u8>,
    /// Whether the socket was full when a connection sent last.
    is_blocked: bool,
    /// Frames of peers that are not admitted.
    strays: TrafficCounters,
}

impl Shard {
    /// An empty shard. `seed` is the host's secret.
    pub(super) fn new(socket: Arc<Socket>, seed: u64) -> Self {
        Self {
            socket,
            seed,
            connections: Slots::default(),
            lanes: BTreeMap::new(),
            networks: BTreeMap::new(),
            touched: Vec::new(),
            reports: VecDeque::new(),
            spares: Spares::default(),
            outgoing: Vec::new(),
            is_blocked: false,
            strays: TrafficCounters::default(),
        }
    }

    /// Does what it is told. HOT PATH.
    pub(super) fn carry_out(&mut self, tick: Tick, order: Order) {
        match order {
            Order::Feed { slot, via, event } => self.feed(slot, via, event),
            Order::Adopt { slot, mut connection } => {
                connection.is_touched = false;
                self.connections.put(slot, connection);
                self.touch(slot);
            }
            Order::Admit { slot, host } => {
                if let Some(connection) = self.connections.get_mut(slot) {
                    connection.admitted = Some(host);
                }
            }
            Order::Serve { slot, host } => self.serve(slot, host),
            Order::Limit { slot, limits } => {
                if let Some(connection) = self.connections.get_mut(slot) {
                    connection.limit(limits);
                }
            }
            Order::LimitNetwork { network, limits } => self.limit_network(network, limits),
            Order::Message { slot, message } => self.send_message(slot, &message),
            Order::Close { slot, code, reason } => {
                self.detach(slot);
                if let Some(connection) = self.connections.get_mut(slot) {
                    connection.close(tick, code, &reason);
                }
                self.touch(slot);
            }
            Order::Forget(host) => drop(self.lanes.remove(&host)),
            Order::Survey(mut survey) => {
                self.describe(&mut survey.info);
                self.reports.push_back(Report::Survey(survey));
            }
        }
    }

    /// Takes the next thing that happened.
    pub(super) fn poll_report(&mut self) -> Option<Report> {
        self.reports.pop_front()
    }

    /// Gives a connection away.
    pub(super) fn release(&mut self, slot: u16) -> Option<Box<Connection>> {
        self.connections.take(slot)
    }

    /// Sends a packet (virtio-net header and frame) to `host`, or keeps it while there is no room or no link; then
    /// `packet` may get another buffer. HOT PATH.
    pub(super) fn send(&mut self, tick: Tick, host: HostId, header: &FrameHeader, packet: &mut PacketBuffer) {
        if !self.pass(tick, host, header, packet.as_ref()) {
            self.keep(tick, host, header, packet);
        }
    }

    /// As [`Shard::send`], of a packet that lies elsewhere. HOT PATH.
    pub(super) fn send_copy(&mut self, tick: Tick, host: HostId, header: &FrameHeader, packet: &[u8]) {
        if !self.pass(tick, host, header, packet) {
            let mut packet = self.spares.holding(packet);
            self.keep(tick, host, header, &mut packet);
            self.spares.put(packet);
        }
    }

    /// Whether so much of `network` waits for `host` that it need not get more in this turn.
    pub(super) fn is_behind(&self, host: HostId, network: NetworkId) -> bool {
        self.lanes.get(&host).is_some_and(|lane| {
            let (bytes, packets) = lane.queue.backlog(network);
            bytes > BACKLOG_BYTES_MAX || packets > BACKLOG_PACKETS_MAX
        })
    }

    /// Looks after every connection that something happened to.
    pub(super) fn look_after(&mut self) {
        let mut index = 0;
        while let Some(&slot) = self.touched.get(index) {
            index += 1;
            self.poll_events(slot, None);
            self.read_messages(slot);
            self.exchange(slot);
        }
    }

    /// Hands the packets that arrived to `deliver`, with slot and host of the connection that brought them.
    pub(super) fn unpack(&mut self, tick: Tick, mut deliver: impl FnMut(u16, HostId, &mut TrafficCounters, &[u8])) {
        for &slot in &self.touched {
            let Some(connection) = self.connections.get_mut(slot) else { continue };
            if let Some(host) = connection.admitted {
                connection.unpack(tick, &mut |traffic, packet| deliver(slot, host, traffic, packet));
            } else {
                for _ in 0..connection.discard() {
                    self.strays.drops.count(DropReason::NotAdmitted);
                }
            }
        }
    }

    /// Sends what waits. True if a connection has more than one turn may send.
    pub(super) fn transmit(&mut self, tick: Tick) -> bool {
        self.is_blocked = false;
        let mut unfinished = Vec::new();
        let mut has_more = false;
        for slot in std::mem::take(&mut self.touched) {
            let Some(connection) = self.connections.get_mut(slot) else { continue };
            connection.is_touched = false;
            let lane = connection.admitted.and_then(|host| self.lanes.get_mut(&host));
            let (mut waits, mut opens_at) = (false, None);
            if let Some(lane) = lane.filter(|lane| lane.active == Some(slot)) {
                opens_at = lane.fill(tick, connection, &mut self.spares);
                waits = lane.queue.is_ready(tick.now.mono);
            }
            let sent = connection.transmit(tick, &self.socket, &mut self.outgoing);
            self.is_blocked |= sent == Sent::Blocked;
            has_more |= sent == Sent::Partly || (sent == Sent::All && waits && connection.has_room(tick));
            connection.plan_pace(tick, waits, opens_at);
            if sent != Sent::All || waits {
                unfinished.push(slot);
            }
        }
        for slot in unfinished {
            self.touch(slot);
        }
        has_more
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Whether the socket is full.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    /// When [`Shard::handle_timeouts`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.connections.iter().filter_map(|(_, connection)| connection.next_deadline()).min()
    }

    /// Does what is due.
    pub(super) fn handle_timeouts(&mut self, tick: Tick) {
        let due = |(slot, connection): (u16, &mut Connection)| connection.handle_timeouts(tick).then_some(slot);
        let due: Vec<u16> = self.connections.iter_mut().filter_map(due).collect();
        for slot in due {
            self.touch(slot);
        }
    }

    /// Gives up frames that wait for a link for too long, and notes what got lost.
    pub(super) fn expire(&mut self, tick: Tick) {
        for lane in self.lanes.values_mut() {
            lane.expire(tick);
        }
        for (_, connection) in self.connections.iter_mut() {
            if connection.sample(tick) {
                let host = connection.admitted.map(|peer| peer.to_string());
                tracing::info!(host, "The link loses much of what is sent: it gets a congestion window for a while");
            }
        }
    }

    /// Adds what this shard knows to the figures of the links.
    pub(super) fn describe(&self, info: &mut EngineInfo) {
        info.strays.add(&self.strays);
        for link in &mut info.links {
            let Some(lane) = self.lanes.get(&link.host) else { continue };
            lane.describe(link);
            if let Some(connection) = lane.active.and_then(|slot| self.connections.get(slot)) {
                connection.describe(&self.socket, link);
            }
        }
    }

    /// Adds what is known of one connection to the figures of a link that it does not serve.
    pub(super) fn describe_connection(&self, slot: u16, link: &mut LinkInfo) {
        if let Some(connection) = self.connections.get(slot) {
            connection.describe(&self.socket, link);
        }
    }

    /// Tells a connection what the endpoint has for it: a packet that came over `via`, or new ids.
    fn feed(&mut self, slot: u16, via: Option<Path>, event: ConnectionEvent) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.quic.handle_event(event);
        let is_new = connection.stage == Stage::Handshake;
        if let Some(via) = via.filter(|_| is_new) {
            connection.route.hear(via);
        }
        self.touch(slot);
        if is_new {
            // At once, while it is known which way the packet came.
            self.poll_events(slot, via);
        }
    }

    /// The connection serves the lane of `host` from now on.
    fn serve(&mut self, slot: u16, host: HostId) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.admitted = Some(host);
        lane_of(&mut self.lanes, self.seed, &self.networks, host).rise(slot);
        self.touch(slot);
    }

    /// What limits a network on every link from now on.
    fn limit_network(&mut self, network: NetworkId, limits: LinkLimits) {
        if limits.is_none() {
            self.networks.remove(&network);
        } else {
            self.networks.insert(network, limits);
        }
        for lane in self.lanes.values_mut() {
            lane.queue.limit(network, limits);
        }
    }

    /// The connection carries no frames from now on.
    fn detach(&mut self, slot: u16) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let Some(host) = connection.admitted.take() else { return };
        match self.lanes.get_mut(&host) {
            Some(lane) => lane.fall(slot, connection),
            None => self.strays.add(&connection.traffic),
        }
    }

    /// Packs a packet right away if nothing waits before it; false if it has to wait.
    fn pass(&mut self, tick: Tick, host: HostId, header: &FrameHeader, packet: &[u8]) -> bool {
        let Some(lane) = self.lanes.get(&host) else { return false };
        let Some(slot) = lane.active else { return false };
        let Some(connection) = self.connections.get_mut(slot) else { return false };
        let passes = lane.queue.passes(header.network) && connection.has_room(tick);
        if passes {
            connection.pack(tick, header, packet);
        }
        self.touch(slot);
        passes
    }

    fn keep(&mut self, tick: Tick, host: HostId, header: &FrameHeader, packet: &mut PacketBuffer) {
        let lane = lane_of(&mut self.lanes, self.seed, &self.networks, host);
        lane.push(tick, header, packet, &mut self.spares);
    }

    fn send_message(&mut self, slot: u16, message: &[u8]) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if let Err(error) = connection.send_message(message) {
            self.reports.push_back(Report::Failed { slot, reason: error.to_string() });
        }
        self.touch(slot);
    }

    /// Takes a connection's events.
    fn poll_events(&mut self, slot: u16, via: Option<Path>) {
        while let Some(event) = self.connections.get_mut(slot).and_then(|connection| connection.quic.poll()) {
            match event {
                Event::Connected => self.on_connected(slot, via),
                Event::ConnectionLost { reason } => self.on_lost(slot, reason),
                Event::HandshakeDataReady | Event::Stream(_) | Event::DatagramReceived | Event::DatagramsUnblocked => {}
            }
        }
    }

    /// The handshake is done: the peer's key is proved.
    fn on_connected(&mut self, slot: u16, via: Option<Path>) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if connection.stage != Stage::Handshake {
            return;
        }
        connection.stage = Stage::Secured;
        if let Some(via) = via {
            connection.route.settle(via);
        }
        if connection.quic.side().is_client() {
            connection.stream.open(&mut connection.quic);
        }
        let peer = tls::peer_of(&connection.quic).map_err(|error| error.to_string());
        self.reports.push_back(Report::Secured { slot, peer, path: connection.route.active() });
    }

    fn on_lost(&mut self, slot: u16, reason: ConnectionError) {
        self.detach(slot);
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if connection.stage != Stage::Closed {
            connection.stage = Stage::Closed;
            self.reports.push_back(Report::Lost { slot, reason });
        }
    }

    /// Takes every message that came, and hands those that wait to QUIC as far as it takes them.
    fn read_messages(&mut self, slot: u16) {
        let Some(connection) = self.connections.get_mut(slot).filter(|c| c.stage == Stage::Secured) else { return };
        let failed = loop {
            match connection.receive() {
                Ok(Some(message)) => self.reports.push_back(Report::Message { slot, message }),
                Ok(None) => break connection.stream.write(&mut connection.quic).err(),
                Err(error) => break Some(error),
            }
        };
        if let Some(error) = failed {
            self.reports.push_back(Report::Failed { slot, reason: error.to_string() });
        }
    }

    /// Tells the endpoint of old ids, and that new ones are wanted. A connection that QUIC has finished with ends here.
    fn exchange(&mut self, slot: u16) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        while let Some(event) = connection.quic.poll_endpoint_events() {
            self.reports.push_back(Report::Endpoint { slot, event });
        }
        if connection.quic.is_drained() {
            self.detach(slot);
            self.connections.take(slot);
        }
    }

    /// Puts the connection on the list of those to look after and to send for.
    fn touch(&mut self, slot: u16) {
        if let Some(connection) = self.connections.get_mut(slot)
            && !connection.is_touched
        {
            connection.is_touched = true;
            self.touched.push(slot);
        }
    }
}

/// The lane of `host`. A new one limits `networks`.
fn lane_of<'a>(
    lanes: &'a mut BTreeMap<HostId, Lane>,
    seed: u64,
    networks: &BTreeMap<NetworkId, LinkLimits>,
    host: HostId,
) -> &'a mut Lane {
    lanes.entry(host).or_insert_with(|| {
        let mut lane = Lane::new(seed);
        networks.iter().for_each(|(network, limits)| lane.queue.limit(*network, *limits));
        lane
    })
}

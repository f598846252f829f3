//! One QUIC connection of the data plane: quinn-proto's state machine, the way its packets go, its message stream, and
//! the frames that it packs and puts together again. It belongs to a [`super::shard`]; which connection serves a link
//! is decided in [`super::links`].

use super::LinkLimits;
use super::clock::Tick;
use super::congestion::{self, Rule};
use super::path::{Path, Route};
use super::rate_meter::RateMeter;
use super::socket::{Outcome, Socket};
use super::stats::{LinkInfo, TrafficCounters};
use super::stream::{MessageStream, StreamError};
use super::transport::DATAGRAM_BUFFER_BYTES;
use bytes::Bytes;
use quinn::udp::EcnCodepoint;
use quinn_proto::VarInt;
use std::sync::Arc;
use std::time::Instant;
use virtuoso_overlay::breaker::Breaker;
use virtuoso_overlay::chunk::{Packer, Reassembler, Redundancy};
use virtuoso_overlay::congestion::Congestion;
use virtuoso_overlay::drop_reason::DropReason;
use virtuoso_overlay::ids::HostId;
use virtuoso_overlay::loss::LossMeter;
use virtuoso_overlay::offload::{Gso, VnetHdr};
use virtuoso_overlay::pace::Pace;
use virtuoso_overlay::time;
use virtuoso_overlay::wire::frame::{FrameHeader, HEADER_BYTES, VNET_BYTES};

/// Sends of one connection in one turn of the loop: four super-frames, so that no link waits long for another.
const SENDS_PER_TURN: usize = 4;

/// Bytes that QUIC may hold when it gets another packet. What it holds can't be overtaken, so it is little; but a batch
/// of small packets should fill a send of the socket.
const COMMITTED_BYTES_MAX: usize = 48 << 10;

/// Ends of packets that are sent twice where packets get lost by chance. With headers, the end of a super-frame of up
/// to twenty full segments is smaller.
const REPEATED_BYTES_MAX: usize = 512;

/// How far a connection is, as QUIC sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// The handshake runs.
    Handshake,
    /// The peer's key is proved.
    Secured,
    /// Closed: QUIC drains.
    Closed,
}

/// A connection and what hangs on it.
pub(super) struct Connection {
    pub(super) quic: quinn_proto::Connection,
    pub(super) route: Route,
    pub(super) stage: Stage,
    /// The peer, once its certificate was accepted: frames are taken from then on.
    pub(super) admitted: Option<HostId>,
    /// Frames that this connection carried.
    pub(super) traffic: TrafficCounters,
    /// Frames that lacked a part and were delivered all the same.
    pub(super) repaired: u64,
    pub(super) stream: MessageStream,
    pub(super) reassembler: Reassembler,
    packer: Packer,
    unsent: Option<Unsent>,
    /// When QUIC wants to be called.
    pub(super) deadline: Option<Instant>,
    /// When a frame that lacks a part is given up.
    pub(super) repair_at: Option<Instant>,
    loss: LossMeter,
    rate: RateMeter,
    breaker: Breaker,
    /// What QUIC is told of the setting and of the breaker.
    rule: Arc<Rule>,
    rate_mbit: u32,
    pace: Pace,
    /// The path that turned out to have no segmentation.
    unsegmented: Option<Path>,
    /// When what waits may be sent.
    pub(super) pace_at: Option<Instant>,
    /// Whether it is in the list of connections to look after.
    pub(super) is_touched: bool,
}

/// A batch that the socket had no room for.
struct Unsent {
    contents: Vec<u8>,
    segment: Option<usize>,
    ecn: Option<EcnCodepoint>,
}

/// What a turn of sending ended with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sent {
    /// There is nothing more to send.
    All,
    /// There is more: go on in the next turn.
    Partly,
    /// The socket is full: go on when it is writable.
    Blocked,
}

impl Connection {
    pub(super) fn new(quic: quinn_proto::Connection, route: Route, limits: LinkLimits) -> Self {
        let rule = congestion::rule_of(&quic);
        Self {
            quic,
            route,
            stage: Stage::Handshake,
            admitted: None,
            traffic: TrafficCounters::default(),
            repaired: 0,
            stream: MessageStream::default(),
            reassembler: Reassembler::default(),
            packer: Packer::default(),
            unsent: None,
            deadline: None,
            repair_at: None,
            loss: LossMeter::default(),
            rate: RateMeter::default(),
            breaker: Breaker::default(),
            rule,
            rate_mbit: limits.rate_mbit,
            pace: pace(limits.rate_mbit),
            pace_at: None,
            unsegmented: None,
            is_touched: false,
        }
    }

    /// Whether a packet can be handed to QUIC now: it holds less than a super-frame, be that one or many small ones.
    pub(super) fn has_room(&mut self, tick: Tick) -> bool {
        self.unsent.is_none()
            && self.pace.is_open(tick.now.mono)
            && self.quic.datagrams().send_buffer_space() > DATAGRAM_BUFFER_BYTES - COMMITTED_BYTES_MAX
    }

    /// Packs one packet (virtio-net header and frame) and counts it. HOT PATH.
    pub(super) fn pack(&mut self, tick: Tick, header: &FrameHeader, packet: &[u8]) {
        let size = self.quic.datagrams().max_size();
        if size.is_some_and(|size| self.put(tick, size, header, packet)) {
            self.traffic.sent(frame_bytes(packet));
        } else {
            self.traffic.drops.count(DropReason::QueueFull);
        }
    }

    /// Cuts a packet into datagrams of `size` bytes; false if QUIC did not take all of it.
    fn put(&mut self, tick: Tick, size: usize, header: &FrameHeader, packet: &[u8]) -> bool {
        let headers = if self.loss.is_lossy() { header_bytes(packet) } else { 0 };
        let redundancy = Redundancy { headers, parity: headers > 0 && self.loss.is_random() };
        let mut taken = true;
        let mut datagrams = self.quic.datagrams();
        let mut send = |datagram| taken &= datagrams.send(datagram, false).is_ok();
        self.packer.push(size, redundancy, &header.encode(), packet, &mut send);
        self.pace.spend(tick.now.mono, packet.len());
        taken
    }

    /// Hands the packets that arrived to `deliver`, and what is left of those that will not arrive any more. HOT PATH.
    pub(super) fn unpack(&mut self, tick: Tick, deliver: &mut impl FnMut(&mut TrafficCounters, &[u8])) {
        while let Some(datagram) = self.quic.datagrams().recv() {
            let traffic = &mut self.traffic;
            self.reassembler.feed(tick.now.mono, &datagram, |packet| deliver(traffic, packet));
        }
        let traffic = &mut self.traffic;
        self.reassembler.settle(tick.now.mono, |packet| deliver(traffic, packet));
        self.plan_repair(tick);
        self.count_losses();
    }

    /// Drops the datagrams that arrived, and says how many they were.
    pub(super) fn discard(&mut self) -> usize {
        std::iter::from_fn(|| self.quic.datagrams().recv()).count()
    }

    fn count_losses(&mut self) {
        let losses = self.reassembler.take_losses();
        self.repaired += losses.repaired;
        for _ in 0..losses.incomplete {
            self.traffic.drops.count(DropReason::Incomplete);
        }
        for _ in 0..losses.malformed {
            self.traffic.drops.count(DropReason::Malformed);
        }
    }

    /// Notes how much the path carries and loses. True when that has just opened the breaker.
    pub(super) fn sample(&mut self, tick: Tick) -> bool {
        let stats = self.quic.stats();
        let path = stats.path;
        self.rate.sample(tick.now.mono, stats.udp_tx.bytes, stats.udp_rx.bytes);
        self.loss.sample(path.sent_packets, path.lost_packets, path.rtt);
        let is_open = self.breaker.sample(tick.now.mono, path.sent_packets, path.lost_packets);
        let was_open = self.rule.open_breaker(is_open);
        is_open && !was_open
    }

    /// What limits how much is on its way, now.
    fn congestion(&self) -> Congestion {
        self.rule.active()
    }

    /// Changes what limits it.
    pub(super) fn limit(&mut self, limits: LinkLimits) {
        self.rule.set(limits.congestion);
        if self.rate_mbit != limits.rate_mbit {
            self.rate_mbit = limits.rate_mbit;
            self.pace = pace(limits.rate_mbit);
        }
    }

    /// Bits per second that a network with these limits may send on this path now; zero is no limit. How much of it is
    /// on its way is not known of one network, so a window is a rate: as much in each round trip.
    pub(super) fn rate_of(&self, limits: LinkLimits) -> u64 {
        let rate = u64::from(limits.rate_mbit) * 1_000_000;
        let Some(window) = self.rule.window_for_networks(limits.congestion) else { return rate };
        let windows = u128::from(window) * 8_000_000 / self.quic.rtt().as_micros().max(1);
        let windows = u64::try_from(windows).unwrap_or(u64::MAX).max(1);
        if rate == 0 { windows } else { rate.min(windows) }
    }

    /// Notes whether the limit of a network holds something up. A window that is not used does not grow.
    pub(super) fn hold_up(&self, is_held: bool) {
        self.rule.hold_up(is_held);
    }

    /// Packets of one send on the path in use.
    fn segments_max(&self, socket: &Socket) -> usize {
        let is_unsegmented = self.unsegmented.is_some() && self.unsegmented == self.route.active();
        if is_unsegmented { 1 } else { socket.segments_max(self.quic.current_mtu()) }
    }

    /// Plans when what waits may be sent. A network's limit lets more go at `network_at`.
    pub(super) fn plan_pace(&mut self, tick: Tick, waits: bool, network_at: Option<time::Instant>) {
        let link_at = self.pace.opens_at(tick.now.mono).filter(|_| waits);
        let opens_at = [link_at, network_at].into_iter().flatten().min();
        self.pace_at = opens_at.map(|at| tick.at + at.since(tick.now.mono));
    }

    /// Plans when frames that lack a part are given up.
    fn plan_repair(&mut self, tick: Tick) {
        let at = self.reassembler.deadline();
        self.repair_at = at.map(|at| tick.at + at.since(tick.now.mono));
    }

    /// When something is due: QUIC's timers, a frame to give up, or more that may be sent.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        [self.deadline, self.repair_at, self.pace_at].into_iter().flatten().min()
    }

    /// Does what is due; false if nothing is.
    pub(super) fn handle_timeouts(&mut self, tick: Tick) -> bool {
        if self.next_deadline().is_none_or(|deadline| deadline > tick.at) {
            return false;
        }
        if self.deadline.is_some_and(|deadline| deadline <= tick.at) {
            self.quic.handle_timeout(tick.at);
            self.deadline = self.quic.poll_timeout();
        }
        // They are planned anew when the connection is looked after.
        self.repair_at = self.repair_at.filter(|at| *at > tick.at);
        self.pace_at = self.pace_at.filter(|at| *at > tick.at);
        true
    }

    /// Sends what QUIC has, in batches. `buffer` is the caller's, so that it is allocated once.
    pub(super) fn transmit(&mut self, tick: Tick, socket: &Socket, buffer: &mut Vec<u8>) -> Sent {
        self.flush_packer();
        if let Some(unsent) = self.unsent.take()
            && !self.send(tick, socket, &unsent.contents, unsent.segment, unsent.ecn)
        {
            self.unsent = Some(unsent);
            return Sent::Blocked;
        }
        for _ in 0..SENDS_PER_TURN {
            buffer.clear();
            let Some(transmit) = self.quic.poll_transmit(tick.at, self.segments_max(socket), buffer) else {
                self.deadline = self.quic.poll_timeout();
                return Sent::All;
            };
            let ecn = transmit.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8));
            let contents = &buffer[..transmit.size];
            if !self.send(tick, socket, contents, transmit.segment_size, ecn) {
                self.unsent = Some(Unsent { contents: contents.to_vec(), segment: transmit.segment_size, ecn });
                self.deadline = self.quic.poll_timeout();
                return Sent::Blocked;
            }
        }
        self.deadline = self.quic.poll_timeout();
        Sent::Partly
    }

    /// Takes the next message that came.
    pub(super) fn receive(&mut self) -> Result<Option<Vec<u8>>, StreamError> {
        self.stream.receive(&mut self.quic)
    }

    /// Queues a message and hands it to QUIC.
    pub(super) fn send_message(&mut self, message: &[u8]) -> Result<(), StreamError> {
        self.stream.send(message)?;
        self.stream.write(&mut self.quic)
    }

    /// Closes the connection with a code and a text that the peer logs.
    pub(super) fn close(&mut self, tick: Tick, code: CloseCode, reason: &str) {
        self.stage = Stage::Closed;
        self.quic.close(tick.at, VarInt::from_u32(code as u32), Bytes::copy_from_slice(reason.as_bytes()));
    }

    /// Hands over the datagram that is not full.
    fn flush_packer(&mut self) {
        let mut datagrams = self.quic.datagrams();
        // It was opened with the size that QUIC allows in this turn. Should discovery have found a black hole since,
        // the datagram is lost like any other that was too large.
        let repeated = if self.loss.is_random() { REPEATED_BYTES_MAX } else { 0 };
        self.packer.flush_and_repeat(repeated, &mut |datagram| drop(datagrams.send(datagram, false)));
    }

    /// Adds what is known of this connection to the figures of its link.
    pub(super) fn describe(&self, socket: &Socket, info: &mut LinkInfo) {
        let path = self.quic.stats().path;
        info.path = self.route.active().map(|path| path.to_string());
        info.rtt = Some(path.rtt);
        info.mtu_bytes = Some(path.current_mtu);
        info.sent_packets = path.sent_packets;
        info.lost_packets = path.lost_packets;
        info.black_holes = path.black_holes_detected;
        info.sent_bits_per_s = self.rate.sent();
        info.received_bits_per_s = self.rate.received();
        info.batch_packets = self.segments_max(socket);
        info.congestion = self.congestion();
        info.repaired_frames += self.repaired;
        info.traffic.add(&self.traffic);
    }

    /// Sends to the active path, or to all candidates; false if the socket is full.
    fn send(
        &mut self,
        tick: Tick,
        socket: &Socket,
        contents: &[u8],
        segment: Option<usize>,
        ecn: Option<EcnCodepoint>,
    ) -> bool {
        let mut is_too_large = false;
        for target in self.route.targets() {
            let Path::Direct(address) = target;
            match socket.send(contents, segment, address, ecn) {
                Ok(Outcome::TooLarge) => is_too_large = true,
                Ok(Outcome::Unsegmented) if self.route.active().is_some() => self.unsegmented = Some(target),
                Ok(Outcome::Sent | Outcome::Unsegmented | Outcome::Failed) => {}
                Err(_) => return false,
            }
        }
        // A probe is larger than the present MTU. Anything else that no longer fits tells that the interface's MTU
        // has shrunk: discovery begins anew at once, instead of finding out by loss.
        let bytes = segment.unwrap_or(contents.len());
        if is_too_large && bytes <= usize::from(self.quic.current_mtu()) && self.route.active().is_some() {
            tracing::debug!(bytes, "The interface carries less than before");
            self.quic.path_changed(tick.at);
            // QUIC has made its controllers anew, with a rule of their own.
            let rule = congestion::rule_of(&self.quic);
            rule.follow(&self.rule);
            self.rule = rule;
        }
        true
    }
}

fn pace(rate_mbit: u32) -> Pace {
    Pace::new(u64::from(rate_mbit) * 1_000_000)
}

/// Bytes of the Ethernet frame in a packet.
pub(super) fn frame_bytes(packet: &[u8]) -> usize {
    packet.len().saturating_sub(VNET_BYTES)
}

/// Bytes of all headers of a super-frame, ours included; zero for a plain frame.
fn header_bytes(packet: &[u8]) -> usize {
    let vnet = packet.first_chunk::<VNET_BYTES>().and_then(|vnet| VnetHdr::decode(vnet).ok());
    let vnet = vnet.filter(|vnet| vnet.gso != Gso::None);
    vnet.map_or(0, |vnet| HEADER_BYTES + VNET_BYTES + vnet.header_bytes())
}

/// Why a connection was closed, for the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(super) enum CloseCode {
    /// The agent stops.
    Goodbye = 1,
    /// Another connection serves the link.
    Duplicate = 2,
    /// The certificate was not accepted.
    Refused = 3,
    /// The peer broke the protocol.
    Protocol = 4,
    /// It took too long to come up.
    Timeout = 5,
    /// This host no longer wants a link to the peer.
    Forgotten = 6,
}

impl CloseCode {
    /// Whether a peer closed with this code.
    pub(super) fn is(self, close: &quinn_proto::ApplicationClose) -> bool {
        close.error_code == VarInt::from_u32(self as u32)
    }
}

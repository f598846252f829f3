//! One QUIC connection of the data plane: quinn-proto's state machine, the way its packets go, its message stream, and
//! the frames that it packs and puts together again. Which connection serves a link is decided in [`super::links`].

use super::LinkSettings;
use super::clock::Tick;
use super::congestion::{self, Congestion};
use super::path::{Path, Route};
use super::socket::{Outcome, Socket};
use super::stream::{MessageStream, StreamError};
use super::transport::DATAGRAM_BUFFER_BYTES;
use bytes::Bytes;
use quinn::udp::EcnCodepoint;
use quinn_proto::{ConnectionHandle, VarInt};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use virtuoso_overlay::breaker::Breaker;
use virtuoso_overlay::chunk::{Packer, Reassembler};
use virtuoso_overlay::ids::HostId;
use virtuoso_overlay::loss::LossMeter;
use virtuoso_overlay::offload::{Gso, VnetHdr};
use virtuoso_overlay::pace::Pace;
use virtuoso_overlay::wire::frame::{FrameHeader, HEADER_BYTES, VNET_BYTES};

/// Sends of one connection in one turn of the loop: four super-frames, so that no link waits long for another.
const SENDS_PER_TURN: usize = 4;

/// Bytes that QUIC may hold when it gets another packet. What it holds can't be overtaken, so it is little; but a batch
/// of small packets should fill a send of the socket.
const COMMITTED_BYTES_MAX: usize = 48 << 10;

/// Who dialled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    Dialler,
    Acceptor,
}

/// How far a connection is. Frames are taken from [`Phase::Welcomed`] on and sent when it is [`Phase::Up`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The QUIC handshake runs.
    Handshake,
    /// The peer's hello has not come.
    Hello,
    /// The dialler's hello was good, but a connection that this host dialled may win.
    Held { until: Instant },
    /// The dialler's hello was answered; its confirmation has not come.
    Welcomed,
    /// Both sides know that the other one has accepted.
    Up,
    /// Closed: QUIC drains.
    Closed,
}

/// A connection and what hangs on it.
pub(super) struct Connection {
    pub(super) handle: ConnectionHandle,
    pub(super) quic: quinn_proto::Connection,
    /// The peer's address as QUIC knows it.
    pub(super) name: SocketAddr,
    pub(super) route: Route,
    pub(super) role: Role,
    pub(super) phase: Phase,
    /// When a connection that is not up by then is given up.
    pub(super) setup_until: Instant,
    /// The peer: whom this host dialled, or whose key the handshake proved.
    pub(super) peer: Option<HostId>,
    /// Which run of the peer's agent this is.
    pub(super) instance: u64,
    pub(super) stream: MessageStream,
    pub(super) reassembler: Reassembler,
    packer: Packer,
    unsent: Option<Unsent>,
    /// When QUIC wants to be called.
    pub(super) deadline: Option<Instant>,
    /// When a frame that lacks a part is given up.
    pub(super) repair_at: Option<Instant>,
    loss: LossMeter,
    breaker: Breaker,
    /// Tells QUIC whether the breaker is open.
    limit: Arc<AtomicBool>,
    setting: Congestion,
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
    pub(super) fn new(
        (handle, quic): (ConnectionHandle, quinn_proto::Connection),
        name: SocketAddr,
        route: Route,
        peer: Option<HostId>,
        setup_until: Instant,
        settings: LinkSettings,
    ) -> Self {
        let limit = congestion::breaker_of(&quic);
        let role = if quic.side().is_client() { Role::Dialler } else { Role::Acceptor };
        Self {
            handle,
            quic,
            name,
            route,
            role,
            phase: Phase::Handshake,
            setup_until,
            peer,
            instance: 0,
            stream: MessageStream::default(),
            reassembler: Reassembler::default(),
            packer: Packer::default(),
            unsent: None,
            deadline: None,
            repair_at: None,
            loss: LossMeter::default(),
            breaker: Breaker::default(),
            limit,
            setting: settings.congestion,
            pace: Pace::new(u64::from(settings.rate_mbit) * 1_000_000),
            pace_at: None,
            unsegmented: None,
            is_touched: false,
        }
    }

    /// Whether the peer's certificate was accepted.
    pub(super) fn is_admitted(&self) -> bool {
        matches!(self.phase, Phase::Welcomed | Phase::Up)
    }

    /// Whether a packet can be handed to QUIC now: it holds less than a super-frame, be that one or many small ones.
    pub(super) fn has_room(&mut self, tick: Tick) -> bool {
        self.unsent.is_none()
            && self.pace.is_open(tick.now.mono)
            && self.quic.datagrams().send_buffer_space() > DATAGRAM_BUFFER_BYTES - COMMITTED_BYTES_MAX
    }

    /// Packs one packet (virtio-net header and frame); false if QUIC did not take all of it. HOT PATH.
    pub(super) fn pack(&mut self, tick: Tick, header: &FrameHeader, packet: &[u8]) -> bool {
        let Some(size) = self.quic.datagrams().max_size() else { return false };
        let guarded = if self.loss.is_lossy() { header_bytes(packet) } else { 0 };
        let mut taken = true;
        let mut datagrams = self.quic.datagrams();
        let mut send = |datagram| taken &= datagrams.send(datagram, false).is_ok();
        self.packer.push(size, guarded, &header.encode(), packet, &mut send);
        self.pace.spend(tick.now.mono, packet.len());
        taken
    }

    /// Notes how much the path loses. True when that has just opened the breaker.
    pub(super) fn sample_loss(&mut self, tick: Tick) -> bool {
        let path = self.quic.stats().path;
        self.loss.sample(path.sent_packets, path.lost_packets);
        let is_open = self.breaker.sample(tick.now.mono, path.sent_packets, path.lost_packets);
        let was_open = self.limit.swap(is_open, Ordering::Relaxed);
        is_open && !was_open
    }

    /// What limits how much is on its way, now.
    pub(super) fn congestion(&self) -> Congestion {
        match self.setting {
            Congestion::None if self.limit.load(Ordering::Relaxed) => Congestion::Cubic,
            setting => setting,
        }
    }

    /// Packets of one send on the path in use.
    pub(super) fn segments_max(&self, socket: &Socket) -> usize {
        let is_unsegmented = self.unsegmented.is_some() && self.unsegmented == self.route.active();
        if is_unsegmented { 1 } else { socket.segments_max() }
    }

    /// Plans when what waits may be sent.
    pub(super) fn plan_pace(&mut self, tick: Tick, waits: bool) {
        let opens_at = self.pace.opens_at(tick.now.mono).filter(|_| waits);
        self.pace_at = opens_at.map(|at| tick.at + at.since(tick.now.mono));
    }

    /// Plans when frames that lack a part are given up.
    pub(super) fn plan_repair(&mut self, tick: Tick) {
        let at = self.reassembler.deadline();
        self.repair_at = at.map(|at| tick.at + at.since(tick.now.mono));
    }

    /// Takes the next datagram that came.
    pub(super) fn next_datagram(&mut self) -> Option<Bytes> {
        self.quic.datagrams().recv()
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
        self.phase = Phase::Closed;
        self.quic.close(tick.at, VarInt::from_u32(code as u32), Bytes::copy_from_slice(reason.as_bytes()));
    }

    /// Hands over the datagram that is not full.
    fn flush_packer(&mut self) {
        let mut datagrams = self.quic.datagrams();
        // It was opened with the size that QUIC allows in this turn. Should discovery have found a black hole since,
        // the datagram is lost like any other that was too large.
        self.packer.flush(&mut |datagram| drop(datagrams.send(datagram, false)));
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
        }
        true
    }
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

//! The engine's thread: one loop that owns everything of the data plane and waits in one place.
//!
//! A turn takes what the socket brought, then commands, then at most about one super-frame from each port, then
//! timers, and sends last. It never polls without need: without work it sleeps until a descriptor or a timer is due.

mod poller;
mod realtime;

use super::clock::{Clock, Tick};
use super::command::{Command, Wake};
use super::control_port::ControlPort;
use super::demux::{Class, Demux};
use super::event::{EngineEvent, EventSink};
use super::links::{LinkEvent, Links, frame_bytes};
use super::offload::Segmenter;
use super::path::Path;
use super::port::{Port, PortConfig};
use super::socket::{Socket, canonical};
use super::stats::{EngineInfo, PortInfo, TrafficCounters};
use bytes::BytesMut;
use poller::{Poller, Ready};
use quinn::udp::RecvMeta;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use virtuoso_overlay::drop_reason::DropReason;
use virtuoso_overlay::ids::{HostId, NetworkId};
use virtuoso_overlay::limits::FRAME_BYTES_MAX;
use virtuoso_overlay::switch::{Egress, Ingress, NetworkSpec, Switch, SwitchEffect};
use virtuoso_overlay::wire::frame::{FrameHeader, FrameHeaderError, VNET_BYTES};

/// Bytes that one receive can bring.
const RECEIVE_BYTES: usize = 64 << 10;

/// Receives from the socket in one turn.
const RECEIVES_PER_TURN: usize = 8;

/// What one port may bring in one turn: one super-frame, or some dozens of small frames. More would make packets from
/// the socket wait, which is where latency under load comes from.
const PORT_BYTES_PER_TURN: usize = 64 << 10;
const PORT_FRAMES_PER_TURN: usize = 64;

/// Commands in one turn.
const COMMANDS_PER_TURN: usize = 32;

/// Time between two looks for what waits for too long.
const HOUSEKEEPING: Duration = Duration::from_millis(500);

/// A packet that goes on to another host.
type Forward = (HostId, FrameHeader, Vec<u8>);

/// Everything that the thread owns.
pub(super) struct Worker {
    clock: Clock,
    socket: Arc<Socket>,
    control: Option<Arc<ControlPort>>,
    commands: mpsc::Receiver<Command>,
    wake: Arc<Wake>,
    events: EventSink,
    links: Links,
    switch: Switch,
    demux: Demux,
    ports: BTreeMap<NetworkId, Port>,
    segmenter: Segmenter,
    poller: Poller,
    received: BytesMut,
    packet: Box<[u8]>,
    forwards: Vec<Forward>,
    housekeeping_at: Instant,
}

/// What a new [`Worker`] is made of.
pub(super) struct Parts {
    pub(super) socket: Arc<Socket>,
    pub(super) control: Option<Arc<ControlPort>>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) wake: Arc<Wake>,
    pub(super) events: EventSink,
    pub(super) links: Links,
    pub(super) switch: Switch,
}

impl Worker {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { socket, control, commands, wake, events, links, switch } = parts;
        let clock = Clock::new();
        let tick = clock.tick();
        Self {
            clock,
            socket,
            control,
            commands,
            wake,
            events,
            links,
            switch,
            demux: Demux::new(tick.now.mono),
            ports: BTreeMap::new(),
            segmenter: Segmenter::default(),
            poller: Poller::default(),
            received: BytesMut::new(),
            packet: vec![0; VNET_BYTES + FRAME_BYTES_MAX].into_boxed_slice(),
            forwards: Vec::new(),
            housekeeping_at: tick.at,
        }
    }

    /// Runs until it is told to stop, or nobody is left who could tell.
    pub(super) fn run(mut self) {
        realtime::request();
        let mut has_more = false;
        loop {
            let timeout = if has_more { Duration::ZERO } else { self.timeout() };
            self.poller.wait(&self.socket, self.links.is_blocked(), &self.wake, &self.ports, timeout);
            let tick = self.clock.tick();
            if self.poller.is_ready(Ready::Socket) {
                self.read_socket(tick);
            }
            if self.poller.is_ready(Ready::Wake) {
                self.wake.clear();
                if let Some(done) = self.take_commands(tick) {
                    self.stop(Some(done));
                    return;
                }
            }
            self.read_ports(tick);
            self.handle_timeouts(tick);
            self.process_links(tick);
            has_more = self.links.transmit(tick, &self.socket);
            self.events.flush();
            if self.commands.is_closed() {
                self.stop(None);
                return;
            }
        }
    }

    /// How long the loop may sleep though nothing comes.
    fn timeout(&self) -> Duration {
        let switch = self.switch.poll_timeout().map(|at| self.clock.instant(at));
        let deadline = [self.links.deadline(), switch].into_iter().flatten().fold(self.housekeeping_at, Instant::min);
        deadline.saturating_duration_since(self.clock.tick().at)
    }

    fn read_socket(&mut self, tick: Tick) {
        for _ in 0..RECEIVES_PER_TURN {
            match self.receive() {
                Ok(batch) => self.sort(tick, &batch),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::debug!(%error, "UDP receive failed");
                    break;
                }
            }
            // After each batch: then its buffer is free for the next one.
            self.process_links(tick);
        }
    }

    /// Receives one batch into `self.received`.
    fn receive(&mut self) -> io::Result<RecvMeta> {
        self.received.clear();
        if self.received.capacity() < RECEIVE_BYTES && !self.received.try_reclaim(RECEIVE_BYTES) {
            self.received = BytesMut::zeroed(RECEIVE_BYTES);
            self.received.clear();
        }
        // SAFETY: the buffer has this capacity, and all of its memory was written when it was allocated.
        unsafe { self.received.set_len(RECEIVE_BYTES) };
        let result = self.socket.receive(&mut self.received);
        self.received.truncate(result.as_ref().map_or(0, |batch| batch.len));
        result
    }

    /// Gives each packet of the batch in `self.received` to its plane. HOT PATH.
    fn sort(&mut self, tick: Tick, batch: &RecvMeta) {
        let source = canonical(batch.addr);
        let mut for_control = false;
        while !self.received.is_empty() {
            let len = self.received.len().min(batch.stride.max(1));
            let packet = self.received.split_to(len);
            match self.demux.sort(tick.now.mono, &packet) {
                Class::Data => self.links.receive(tick, &self.socket, Path::Direct(source), batch.ecn, packet),
                class @ (Class::Control | Class::Either) => {
                    if let Some(control) = &self.control {
                        control.push(&packet, batch);
                        for_control = true;
                    }
                    if class == Class::Either {
                        self.links.receive_reset(tick, source, &packet);
                    }
                }
                Class::Junk => {}
            }
        }
        if for_control && let Some(control) = &self.control {
            control.wake();
        }
    }

    /// Lets the links take what arrived for them, and the switch decide about it.
    fn process_links(&mut self, tick: Tick) {
        let Self { links, switch, ports, segmenter, forwards, .. } = self;
        links.process(tick, |from, traffic, packet| {
            if let Err(reason) = take(tick, from, traffic, packet, switch, ports, segmenter, forwards) {
                traffic.drops.count(reason);
            }
        });
        for (host, header, packet) in self.forwards.drain(..) {
            self.links.send(tick, host, &header, &packet);
        }
        self.carry_out(tick);
    }

    /// Tells the switch what happened to links, and does what the switch wants, until both have nothing left.
    fn carry_out(&mut self, tick: Tick) {
        loop {
            if let Some(event) = self.links.poll_event() {
                self.on_link_event(tick, event);
            } else if let Some(effect) = self.switch.poll_effect() {
                self.on_effect(tick, effect);
            } else {
                return;
            }
        }
    }

    fn on_link_event(&mut self, tick: Tick, event: LinkEvent) {
        let now = tick.now.mono;
        match event {
            LinkEvent::Up(host) => {
                self.switch.handle_link_up(now, host);
                self.events.emit(EngineEvent::LinkUp(host));
            }
            LinkEvent::Down(host, reason) => {
                self.switch.handle_link_down(now, host);
                self.events.emit(EngineEvent::LinkDown { host, reason });
            }
            LinkEvent::Message(host, message) => {
                if let Err(error) = self.switch.handle_message(now, host, &message) {
                    self.links.reject(tick, host, &error.to_string());
                }
            }
            LinkEvent::Refused { host, by_us, reason } => {
                self.events.emit(EngineEvent::Refused { host, by_us, reason });
            }
            LinkEvent::AddressWanted(host) => self.events.emit(EngineEvent::AddressWanted(host)),
        }
    }

    fn on_effect(&mut self, tick: Tick, effect: SwitchEffect) {
        match effect {
            SwitchEffect::Connect(host) => self.links.connect(tick, host),
            SwitchEffect::Send { to, message } => self.links.send_message(tick, to, &message),
            SwitchEffect::Transmit { to, header, packet } => self.links.send(tick, to, &header, &packet),
            SwitchEffect::Deliver { network, packet } => {
                if let Some(port) = self.ports.get_mut(&network) {
                    port.deliver(&mut self.segmenter, &packet);
                }
            }
            SwitchEffect::Upward(upward) => self.events.emit(EngineEvent::Switch(upward)),
        }
    }

    /// Reads the ports that have something. A full socket makes them wait: the kernel drops at its own queue then.
    fn read_ports(&mut self, tick: Tick) {
        for index in 0..self.poller.networks().len() {
            let network = self.poller.networks()[index];
            if self.poller.is_ready(Ready::Port(index))
                && let Err(error) = self.read_port(tick, network)
                && self.ports.remove(&network).is_some()
            {
                tracing::warn!(%network, %error, "The network's TAP failed and is served no longer");
                self.switch.detach(tick.now.mono, network);
                self.events.emit(EngineEvent::PortLost { network, error: error.to_string() });
            }
        }
    }

    /// Reads one port's turn. HOT PATH.
    fn read_port(&mut self, tick: Tick, network: NetworkId) -> io::Result<()> {
        let Some(port) = self.ports.get_mut(&network) else { return Ok(()) };
        let mut bytes = 0;
        for _ in 0..PORT_FRAMES_PER_TURN {
            let packet = match port.read(&mut self.packet) {
                Ok(Some(packet)) => packet,
                Ok(None) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            bytes += packet.len();
            match self.switch.ingress(tick.now.mono, network, packet, packet.len()) {
                Ingress::Unicast(host, header) => self.links.send(tick, host, &header, packet),
                Ingress::Flood(hosts, header) => {
                    for host in hosts {
                        self.links.send(tick, *host, &header, packet);
                    }
                }
                Ingress::Reply(reply, reason) => {
                    port.deliver(&mut self.segmenter, reply);
                    port.traffic.drops.count(reason);
                }
                Ingress::Hold(mac, header) => self.switch.hold(network, mac, header, packet.to_vec()),
                Ingress::Drop(reason) => port.traffic.drops.count(reason),
            }
            if bytes >= PORT_BYTES_PER_TURN {
                break;
            }
        }
        Ok(())
    }

    fn handle_timeouts(&mut self, tick: Tick) {
        self.links.handle_timeouts(tick);
        self.switch.handle_timeout(tick.now.mono);
        if self.housekeeping_at <= tick.at {
            self.housekeeping_at = tick.at + HOUSEKEEPING;
            self.links.expire(tick);
        }
    }

    /// Does what the control plane asked for. Returns whom to tell if that was to stop.
    fn take_commands(&mut self, tick: Tick) -> Option<oneshot::Sender<()>> {
        for _ in 0..COMMANDS_PER_TURN {
            match self.commands.try_recv() {
                Ok(Command::Stop(done)) => return Some(done),
                Ok(command) => self.on_command(tick, command),
                Err(_) => return None,
            }
        }
        // There may be more.
        self.wake.wake();
        None
    }

    fn on_command(&mut self, tick: Tick, command: Command) {
        match command {
            // An asker that no longer waits has no use for an answer.
            Command::AddPort(port, done) => drop(done.send(self.add_port(port))),
            Command::Info(done) => drop(done.send(self.info())),
            Command::RemovePort(network) => {
                if self.ports.remove(&network).is_some() {
                    self.switch.detach(tick.now.mono, network);
                }
            }
            Command::SetAddresses(host, addresses) => self.links.set_addresses(tick, host, addresses),
            Command::Connect(host) => self.links.connect(tick, host),
            Command::Forget(host) => self.links.forget(tick, host),
            Command::SetCertificate(certificate) => self.links.set_certificate(certificate),
            Command::Call(call) => call(&mut self.switch, tick.now),
            // The caller has taken it out.
            Command::Stop(done) => drop(done),
        }
    }

    fn add_port(&mut self, config: PortConfig) -> io::Result<()> {
        let (network, mtu) = (config.network, config.mtu);
        self.ports.insert(network, Port::new(config)?);
        self.switch.set_network(NetworkSpec { id: network, mtu });
        self.switch.attach(network);
        Ok(())
    }

    fn info(&self) -> EngineInfo {
        let ports = self.ports.iter();
        EngineInfo {
            links: self.links.info(self.clock.tick().at),
            ports: ports.map(|(network, port)| PortInfo { network: *network, traffic: port.traffic }).collect(),
            strays: self.links.strays,
            demux: self.demux.counters(),
            send_errors: self.socket.send_errors(),
            events_lost: self.events.lost(),
            held_drops: *self.switch.drops(),
        }
    }

    /// Says goodbye, and tells `done` when that is on the wire.
    fn stop(&mut self, done: Option<oneshot::Sender<()>>) {
        let tick = self.clock.tick();
        self.links.close_all(tick);
        self.links.transmit(tick, &self.socket);
        tracing::debug!("The data plane has stopped");
        if let Some(done) = done {
            let _ = done.send(());
        }
    }
}

/// Takes one packet that a link brought: to a port, to where its address went, or into the switch's arms. HOT PATH.
#[expect(clippy::too_many_arguments, reason = "the parts of the worker that are free while its links are borrowed")]
fn take(
    tick: Tick,
    from: HostId,
    traffic: &mut TrafficCounters,
    packet: &[u8],
    switch: &mut Switch,
    ports: &mut BTreeMap<NetworkId, Port>,
    segmenter: &mut Segmenter,
    forwards: &mut Vec<Forward>,
) -> Result<(), DropReason> {
    let (header, packet) = FrameHeader::decode(packet).map_err(|error| match error {
        FrameHeaderError::Truncated => DropReason::Malformed,
        FrameHeaderError::Unknown => DropReason::UnknownVersion,
    })?;
    traffic.received(frame_bytes(packet));
    match switch.egress(tick.now.mono, from, header, packet) {
        Egress::Deliver => {
            ports.get_mut(&header.network).ok_or(DropReason::UnknownNetwork)?.deliver(segmenter, packet);
        }
        Egress::Forward(to, header) => forwards.push((to, header, packet.to_vec())),
        Egress::Hold(mac, header) => switch.hold(header.network, mac, header, packet.to_vec()),
        Egress::Drop(reason) => return Err(reason),
    }
    Ok(())
}

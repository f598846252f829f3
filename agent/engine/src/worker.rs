//! The engine's thread: one loop that owns everything of the data plane but the crews, and waits in one place.
//!
//! A turn takes what the socket brought, then commands, then at most about one super-frame from each port, then
//! timers, and sends last. It never polls without need: without work it sleeps until a descriptor or a timer is due.

mod buffers;

use super::LinkLimits;
use super::clock::{Clock, Tick};
use super::command::{Command, Wake};
use super::control_port::ControlPort;
use super::demux::{Class, Demux};
use super::event::{EngineEvent, EventSink};
use super::lan::Lan;
use super::links::{LinkEvent, Links};
use super::path::Path;
use super::poller::Poller;
use super::priority::Priority;
use super::socket::{Socket, canonical};
use super::stats::{EngineInfo, TrafficCounters};
use buffers::{Buffers, RECEIVE_BYTES};
use bytes::BytesMut;
use quinn::udp::RecvMeta;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use virtuoso_overlay::ids::NetworkId;
use virtuoso_overlay::moderation::Moderation;
use virtuoso_overlay::packet::PacketBuffer;
use virtuoso_overlay::switch::{Switch, SwitchEffect};

/// Packets of a receive that brought less than this are copied for a crew, so that they don't keep a large buffer.
const SLICED_BYTES_MIN: usize = RECEIVE_BYTES / 4;

/// Receives from the socket in one turn.
const RECEIVES_PER_TURN: usize = 8;

/// Commands in one turn.
const COMMANDS_PER_TURN: usize = 32;

/// Time between two looks for what waits for too long.
pub(super) const HOUSEKEEPING: Duration = Duration::from_millis(500);

/// Places of descriptors in the poller; those of ports follow.
const SOCKET: usize = 0;
const WAKE: usize = 1;
const PORTS: usize = 2;

/// Everything that the thread owns. The links go first when it ends, and their crews with them: whoever sees that the
/// events have ended may rely on it that the socket is closed.
pub(super) struct Worker {
    links: Links,
    clock: Clock,
    socket: Arc<Socket>,
    control: Option<Arc<ControlPort>>,
    commands: mpsc::Receiver<Command>,
    wake: Arc<Wake>,
    events: EventSink,
    lan: Lan,
    demux: Demux,
    poller: Poller,
    /// The networks of the ports that were waited for last.
    networks: Vec<NetworkId>,
    moderation: Moderation,
    buffers: Buffers,
    housekeeping_at: Instant,
}

/// What a new [`Worker`] is made of.
pub(super) struct Parts {
    pub(super) clock: Clock,
    pub(super) links: Links,
    pub(super) switch: Switch,
    pub(super) socket: Arc<Socket>,
    pub(super) control: Option<Arc<ControlPort>>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) wake: Arc<Wake>,
    pub(super) events: EventSink,
}

impl Worker {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { clock, links, switch, socket, control, commands, wake, events } = parts;
        let tick = clock.tick();
        Self {
            links,
            clock,
            socket,
            control,
            commands,
            wake,
            events,
            lan: Lan::new(switch),
            demux: Demux::new(tick.now.mono),
            poller: Poller::default(),
            networks: Vec::new(),
            moderation: Moderation::new(tick.now.mono),
            buffers: Buffers::default(),
            housekeeping_at: tick.at,
        }
    }

    /// Runs until it is told to stop, or nobody is left who could tell.
    pub(super) fn run(mut self) {
        let mut priority = Priority::new(self.clock.tick());
        let mut has_more = false;
        loop {
            let reads = !self.links.is_full();
            self.wait(has_more, reads);
            let tick = self.clock.tick();
            self.collect(tick);
            if reads && self.poller.is_readable(SOCKET) {
                self.read_socket(tick);
            }
            if self.poller.is_readable(WAKE) {
                self.wake.clear();
                if let Some(done) = self.take_commands(tick) {
                    self.stop(Some(done));
                    return;
                }
            }
            let pause = if reads { self.read_ports(tick) } else { Duration::ZERO };
            self.handle_timeouts(tick);
            self.process_links(tick);
            has_more = self.links.transmit(tick);
            self.events.flush();
            // When everything is on its way: no packet waits for it.
            priority.review(tick, self.poller.has_found());
            if !pause.is_zero() && !has_more {
                std::thread::sleep(pause);
            }
            if self.commands.is_closed() {
                self.stop(None);
                return;
            }
            if self.links.is_broken() {
                tracing::error!("A thread of the data plane has failed: see the log for the reason");
                return;
            }
        }
    }

    /// Waits until there is something to do. While the socket is full it waits for room in it, and not for ports; and
    /// for neither while a crew is behind.
    fn wait(&mut self, has_more: bool, reads: bool) {
        let timeout = if has_more || !self.links.rest() { Duration::ZERO } else { self.timeout() };
        let is_blocked = self.links.is_blocked();
        let incoming = if reads { libc::POLLIN } else { 0 };
        self.poller.begin();
        self.networks.clear();
        self.poller.watch(&*self.socket, if is_blocked { incoming | libc::POLLOUT } else { incoming });
        self.poller.watch(&*self.wake, libc::POLLIN);
        for (network, port) in self.lan.ports() {
            self.networks.push(*network);
            self.poller.watch(port, if is_blocked { 0 } else { incoming });
        }
        self.poller.wait(timeout);
    }

    /// How long the loop may sleep though nothing comes.
    fn timeout(&self) -> Duration {
        let switch = self.lan.switch.poll_timeout().map(|at| self.clock.instant(at));
        let deadline = [self.links.deadline(), switch].into_iter().flatten().fold(self.housekeeping_at, Instant::min);
        deadline.saturating_duration_since(self.clock.tick().at)
    }

    fn read_socket(&mut self, tick: Tick) {
        for _ in 0..RECEIVES_PER_TURN {
            match self.receive() {
                Ok((batch, buffer)) => self.sort(tick, &batch, buffer),
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

    /// Takes what the crews have, and does what the switch wants about it.
    fn collect(&mut self, tick: Tick) {
        let Self { links, lan, .. } = self;
        links.collect(|from, traffic, packet| lan.take(tick, from, traffic, packet));
        lan.send_forwards(tick, links);
    }

    /// Receives one batch of packets, which fills its buffer.
    fn receive(&mut self) -> io::Result<(RecvMeta, BytesMut)> {
        let mut buffer = self.buffers.get();
        match self.socket.receive(&mut buffer) {
            Ok(batch) => {
                buffer.truncate(batch.len);
                Ok((batch, buffer))
            }
            Err(error) => {
                self.buffers.put(buffer);
                Err(error)
            }
        }
    }

    /// Gives each packet of a batch to its plane. HOT PATH.
    fn sort(&mut self, tick: Tick, batch: &RecvMeta, mut buffer: BytesMut) {
        let source = canonical(batch.addr);
        let is_sliced = !self.links.has_crews() || batch.len >= SLICED_BYTES_MIN;
        let mut for_control = false;
        while !buffer.is_empty() {
            let packet = buffer.split_to(buffer.len().min(batch.stride.max(1)));
            let packet = if is_sliced { packet } else { BytesMut::from(&packet[..]) };
            match self.demux.sort(tick.now.mono, &packet) {
                Class::Data => self.links.receive(tick, Path::Direct(source), batch.ecn, packet),
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
        self.buffers.put(buffer);
        if for_control && let Some(control) = &self.control {
            control.wake();
        }
    }

    /// Lets the links take what arrived for them, and the switch decide about it.
    fn process_links(&mut self, tick: Tick) {
        let Self { links, lan, .. } = self;
        links.process(tick, |from, traffic, packet| lan.take(tick, from, traffic, packet));
        lan.send_forwards(tick, links);
        self.carry_out(tick);
    }

    /// Tells the switch what happened to links, and does what the switch wants, until both have nothing left.
    fn carry_out(&mut self, tick: Tick) {
        loop {
            if let Some(event) = self.links.poll_event(tick) {
                self.on_link_event(tick, event);
            } else if let Some(effect) = self.lan.switch.poll_effect() {
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
                self.lan.switch.handle_link_up(now, host);
                self.events.emit(EngineEvent::LinkUp(host));
            }
            LinkEvent::Down(host, reason) => {
                self.lan.switch.handle_link_down(now, host);
                self.events.emit(EngineEvent::LinkDown { host, reason });
            }
            LinkEvent::Message(host, message) => {
                if let Err(error) = self.lan.switch.handle_message(now, host, &message) {
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
            SwitchEffect::Send { to, message } => self.links.send_message(tick, to, message),
            SwitchEffect::Transmit { to, header, packet } => {
                self.links.send(tick, to, &header, &mut PacketBuffer::holding(&packet));
            }
            SwitchEffect::Deliver { network, packet } => self.lan.deliver(network, &packet),
            SwitchEffect::DeliverTo { network, mac, packet } => self.lan.deliver_to(network, mac, &packet),
            SwitchEffect::Flood { network, mac, on } => self.lan.flood(network, mac, on),
            SwitchEffect::Upward(upward) => self.events.emit(EngineEvent::Switch(upward)),
        }
    }

    /// Reads the ports that have something, and those that were given something in this turn: a guest that answers at
    /// once has done so. A full socket makes them wait: the kernel drops at its own queue then. Returns how long to let
    /// packets gather before the next look.
    fn read_ports(&mut self, tick: Tick) -> Duration {
        let (mut packets, mut bytes) = (0, 0);
        for index in 0..self.networks.len() {
            let network = self.networks[index];
            if !self.poller.is_readable(PORTS + index) && !self.lan.has_delivered(network) {
                continue;
            }
            match self.lan.read_port(tick, network, &mut self.links) {
                Ok(haul) => {
                    packets += haul.packets as u64;
                    bytes += haul.bytes as u64;
                }
                Err(error) if self.lan.remove_port(tick, network) => {
                    tracing::warn!(%network, %error, "The network's TAP failed and is served no longer");
                    self.events.emit(EngineEvent::PortLost { network, error: error.to_string() });
                }
                Err(_) => {}
            }
        }
        self.moderation.pause(tick.now.mono, packets, bytes)
    }

    fn handle_timeouts(&mut self, tick: Tick) {
        self.links.handle_timeouts(tick);
        self.lan.switch.handle_timeout(tick.now.mono);
        self.carry_out(tick);
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
            Command::AddPort(port, done) => drop(done.send(self.lan.add_port(port))),
            Command::Info(done) => {
                let info = self.info();
                self.links.survey(tick.at, info, done);
            }
            Command::RemovePort(network) => {
                self.lan.remove_port(tick, network);
                self.links.limit_network(tick, network, LinkLimits::default());
            }
            Command::SetAddresses(host, addresses) => self.links.set_addresses(tick, host, addresses),
            Command::LimitLink(host, limits) => self.links.set_limits(tick, host, limits),
            Command::LimitNetwork(network, limits) => self.links.limit_network(tick, network, limits),
            Command::Connect(host) => self.links.connect(tick, host),
            Command::Forget(host) => self.links.forget(tick, host),
            Command::SetCertificate(certificate) => self.links.set_certificate(certificate),
            Command::Call(call) => call(&mut self.lan.switch, tick.now),
            Command::Cut(network, call, done) => {
                self.lan.drain_port(tick, network, &mut self.links);
                call(&mut self.lan.switch, tick.now);
                self.carry_out(tick);
                // An asker that no longer waits has no use for an answer.
                let _ = done.send(());
            }
            Command::SetGuest(network, mac, index) => self.lan.set_guest(network, mac, index),
            // The caller has taken it out.
            Command::Stop(done) => drop(done),
        }
    }

    /// What is known without the links.
    fn info(&self) -> EngineInfo {
        EngineInfo {
            links: Vec::new(),
            ports: self.lan.info(),
            strays: TrafficCounters::default(),
            demux: self.demux.counters(),
            send_errors: self.socket.send_errors(),
            events_lost: self.events.lost(),
            held_drops: *self.lan.switch.drops(),
        }
    }

    /// Says goodbye, and tells `done` when that is on the wire.
    fn stop(&mut self, done: Option<oneshot::Sender<()>>) {
        let tick = self.clock.tick();
        self.links.stop(tick);
        tracing::debug!("The data plane has stopped");
        if let Some(done) = done {
            let _ = done.send(());
        }
    }
}

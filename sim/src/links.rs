//! The data plane's surroundings: links between switches, and what goes over them.
//!
//! Stands for the engine. A link takes one and a half round trips on the side that is called and two on the side that
//! calls; its messages arrive in order or not at all, its frames as the fabric likes.

use crate::clock::{MILLISECOND, SECOND, Time};
use crate::control::{IDLE_TIMEOUT_MIN, IDLE_TIMEOUT_SPREAD};
use crate::glue::Outside;
use crate::trace::fingerprint;
use crate::world::{Event, World};
use std::collections::{BTreeMap, VecDeque};
use virtuoso_overlay::ids::{HostId, NetworkId};
use virtuoso_overlay::switch::{Egress, Ingress, SwitchEffect};
use virtuoso_overlay::wire::frame::FrameHeader;

/// All links, by their hosts in order.
#[derive(Default)]
pub(crate) struct Links(BTreeMap<(usize, usize), Link>);

#[derive(Default)]
struct Link {
    /// Counts the connections between these hosts. Events of an older one are void.
    generation: u64,
    sides: [Side; 2],
}

#[derive(Default)]
struct Side {
    phase: Phase,
    /// Messages that were not sent yet.
    outbox: VecDeque<Vec<u8>>,
    /// Frames that wait for the link.
    frames: VecDeque<(FrameHeader, Vec<u8>)>,
    /// When the last message to this side arrives.
    last: Time,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Idle,
    Connecting,
    Up,
}

/// What happens to a link.
pub(crate) enum LinkEvent {
    /// The side that was called has verified the caller.
    Accepted { caller: usize, host: usize, generation: u64 },
    /// The caller has verified the side that it called.
    Established { host: usize, peer: usize, generation: u64 },
    /// The caller gives up, if nothing came of it.
    GivenUp { host: usize, peer: usize, generation: u64 },
    /// A side may have heard nothing for too long.
    Timeout { host: usize, peer: usize, generation: u64 },
    /// The other side closed it.
    Closed { host: usize, peer: usize, generation: u64 },
    /// Tries to send again what is in the outbox.
    Retry { host: usize, peer: usize },
    /// A message arrives.
    Message { from: usize, to: usize, generation: u64, bytes: Vec<u8> },
    /// A frame arrives.
    Frame { from: usize, to: usize, header: FrameHeader, packet: Vec<u8> },
}

impl Links {
    fn link(&mut self, host: usize, peer: usize) -> &mut Link {
        self.0.entry((host.min(peer), host.max(peer))).or_default()
    }

    fn side(&mut self, host: usize, peer: usize) -> &mut Side {
        &mut self.link(host, peer).sides[usize::from(host > peer)]
    }

    fn phase(&self, host: usize, peer: usize) -> Phase {
        let link = self.0.get(&(host.min(peer), host.max(peer)));
        link.map_or(Phase::Idle, |link| link.sides[usize::from(host > peer)].phase)
    }

    fn generation(&self, host: usize, peer: usize) -> u64 {
        self.0.get(&(host.min(peer), host.max(peer))).map_or(0, |link| link.generation)
    }

    /// The peers of a host whose side is not idle.
    fn peers_of(&self, host: usize) -> Vec<usize> {
        let peers = self.0.keys().filter(|(a, b)| *a == host || *b == host).map(|(a, b)| a + b - host);
        peers.filter(|peer| self.phase(host, *peer) != Phase::Idle).collect()
    }
}

impl World {
    pub(crate) fn on_switch_effect(&mut self, host: usize, effect: SwitchEffect) {
        match effect {
            SwitchEffect::Connect(to) => {
                if let Some(peer) = self.index_of(to) {
                    self.connect(host, peer);
                }
            }
            SwitchEffect::Send { to, message } => {
                if let Some(peer) = self.index_of(to) {
                    self.send_message(host, peer, message);
                }
            }
            SwitchEffect::Transmit { to, header, packet } => self.transmit(host, to, header, packet),
            SwitchEffect::Deliver { network, packet } | SwitchEffect::DeliverTo { network, packet, .. } => {
                self.deliver(host, network, &packet);
            }
            // No VM moves here: `scenarios::moves` is about that.
            SwitchEffect::Flood { .. } => {}
            SwitchEffect::Upward(upward) => {
                self.note_upward(host, &upward);
                let now = self.hosts[host].now(self.now);
                let Some(agent) = &mut self.hosts[host].agent else { return };
                if let Outside::FindPort(network, mac) =
                    agent.glue.on_upward(now, &mut agent.node, &mut agent.switch, upward)
                {
                    let found = self.bridge_knows(host, network, mac);
                    if let Some(agent) = &mut self.hosts[host].agent {
                        agent.switch.handle_port_found(now.mono, network, mac, found);
                    }
                }
            }
        }
    }

    fn connect(&mut self, host: usize, peer: usize) {
        if host == peer {
            return self.violate(format!("host {host} wants a link to itself"));
        }
        if self.links.phase(host, peer) != Phase::Idle {
            return;
        }
        self.links.side(host, peer).phase = Phase::Connecting;
        let link = self.links.link(host, peer);
        link.generation += 1;
        let generation = link.generation;
        self.note("link calls", host, peer, generation);
        let delay = self.fabric.latency_us(host, peer) * 3 + self.rng.below(self.options.jitter_us_max + 1);
        self.schedule(delay, Event::Link(LinkEvent::Accepted { caller: host, host: peer, generation }));
        self.schedule(HANDSHAKE_TIMEOUT, Event::Link(LinkEvent::GivenUp { host, peer, generation }));
    }

    pub(crate) fn on_link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Accepted { caller, host, generation } => {
                let current = self.links.generation(host, caller) == generation;
                if current && self.fabric.is_open(host, caller) && self.hosts[host].working().is_some() {
                    let delay = self.fabric.latency_us(host, caller);
                    self.links.side(caller, host).last = self.now + delay;
                    self.schedule(delay, Event::Link(LinkEvent::Established { host: caller, peer: host, generation }));
                    self.link_up(host, caller);
                }
            }
            LinkEvent::Established { host, peer, generation } => {
                let current = self.links.generation(host, peer) == generation;
                let waits = self.links.phase(host, peer) == Phase::Connecting;
                if current && waits && self.fabric.is_open(host, peer) && self.hosts[host].working().is_some() {
                    self.link_up(host, peer);
                }
            }
            LinkEvent::GivenUp { host, peer, generation } => {
                let current = self.links.generation(host, peer) == generation;
                if current && self.links.phase(host, peer) == Phase::Connecting {
                    *self.links.side(host, peer) = Side::default();
                    self.schedule(
                        IDLE_TIMEOUT_MIN,
                        Event::Link(LinkEvent::Timeout { host: peer, peer: host, generation }),
                    );
                }
            }
            LinkEvent::Timeout { host, peer, generation } => self.on_link_timeout(host, peer, generation),
            LinkEvent::Closed { host, peer, generation } => {
                if self.links.generation(host, peer) == generation {
                    self.link_down(host, peer);
                }
            }
            LinkEvent::Retry { host, peer } => self.pump(host, peer),
            LinkEvent::Message { from, to, generation, bytes } => self.on_link_message(from, to, generation, &bytes),
            LinkEvent::Frame { from, to, header, packet } => self.on_frame(from, to, header, packet),
        }
    }

    fn link_up(&mut self, host: usize, peer: usize) {
        if self.links.phase(host, peer) == Phase::Up {
            // The other side has begun anew: what was under way on the old link is lost.
            self.link_down(host, peer);
        }
        self.note("link up", host, peer, 0);
        self.links.side(host, peer).phase = Phase::Up;
        let (now, id) = (self.hosts[host].now(self.now).mono, self.hosts[peer].id);
        if let Some(agent) = self.hosts[host].working() {
            agent.switch.handle_link_up(now, id);
        }
        for (header, packet) in std::mem::take(&mut self.links.side(host, peer).frames) {
            self.transmit_now(host, peer, header, packet);
        }
        self.pump(host, peer);
        self.settle(host);
    }

    fn link_down(&mut self, host: usize, peer: usize) {
        let side = std::mem::take(self.links.side(host, peer));
        if side.phase != Phase::Up {
            return;
        }
        self.note("link down", host, peer, 0);
        let (now, id) = (self.hosts[host].now(self.now).mono, self.hosts[peer].id);
        if let Some(agent) = self.hosts[host].working() {
            agent.switch.handle_link_down(now, id);
        }
        self.settle(host);
    }

    fn on_link_timeout(&mut self, host: usize, peer: usize, generation: u64) {
        let current = self.links.generation(host, peer) == generation;
        let dead = self.fabric.closed_since(host, peer).is_some_and(|since| self.now.since(since) >= IDLE_TIMEOUT_MIN);
        if current && (dead || self.links.phase(peer, host) == Phase::Idle) {
            self.link_down(host, peer);
        }
    }

    fn send_message(&mut self, host: usize, peer: usize, bytes: Vec<u8>) {
        let side = self.links.side(host, peer);
        if side.phase == Phase::Idle || side.outbox.len() >= OUTBOX_MESSAGES_MAX {
            return;
        }
        side.outbox.push_back(bytes);
        self.pump(host, peer);
    }

    /// Sends what waits, if the link is up. Across a cut it stays: QUIC sends it again, as long as the link lives.
    fn pump(&mut self, host: usize, peer: usize) {
        if self.links.phase(host, peer) != Phase::Up || self.links.side(host, peer).outbox.is_empty() {
            return;
        }
        let generation = self.links.generation(host, peer);
        if !self.fabric.is_open(host, peer) {
            return self.schedule(RETRY_INTERVAL, Event::Link(LinkEvent::Retry { host, peer }));
        }
        for bytes in std::mem::take(&mut self.links.side(host, peer).outbox) {
            let delay = self.fabric.stream(&mut self.rng, host, peer, bytes.len()).unwrap_or(0);
            let at = (self.now + delay).max(self.links.side(peer, host).last + 1);
            self.links.side(peer, host).last = at;
            self.hosts[host].traffic.link_bytes += bytes.len() as u64;
            let event = LinkEvent::Message { from: host, to: peer, generation, bytes };
            self.schedule(at.since(self.now), Event::Link(event));
        }
    }

    fn on_link_message(&mut self, from: usize, to: usize, generation: u64, bytes: &[u8]) {
        if self.links.generation(to, from) != generation || self.links.phase(to, from) != Phase::Up {
            return;
        }
        self.note("message", from, to, fingerprint(bytes));
        let (now, id) = (self.hosts[to].now(self.now).mono, self.hosts[from].id);
        let result = self.hosts[to].working().map(|agent| agent.switch.handle_message(now, id, bytes));
        if let Some(Err(error)) = result {
            self.violate(format!("host {to} does not understand host {from}: {error}"));
        }
        self.settle(to);
    }

    pub(crate) fn transmit(&mut self, host: usize, to: HostId, header: FrameHeader, packet: Vec<u8>) {
        let Some(peer) = self.index_of(to) else { return };
        match self.links.phase(host, peer) {
            Phase::Up => return self.transmit_now(host, peer, header, packet),
            Phase::Idle => self.connect(host, peer),
            Phase::Connecting => {}
        }
        let frames = &mut self.links.side(host, peer).frames;
        if frames.len() < WAITING_FRAMES_MAX {
            frames.push_back((header, packet));
        }
    }

    fn transmit_now(&mut self, host: usize, peer: usize, header: FrameHeader, packet: Vec<u8>) {
        self.check_transmission(host, header, &packet);
        if let Some(delay) = self.fabric.datagram(&mut self.rng, host, peer) {
            self.schedule(delay, Event::Link(LinkEvent::Frame { from: host, to: peer, header, packet }));
        }
    }

    fn on_frame(&mut self, from: usize, to: usize, header: FrameHeader, packet: Vec<u8>) {
        if self.links.phase(to, from) != Phase::Up {
            return;
        }
        self.note("frame", from, to, fingerprint(&packet));
        let (now, id) = (self.hosts[to].now(self.now).mono, self.hosts[from].id);
        let Some(agent) = self.hosts[to].working() else { return };
        match agent.switch.egress(now, id, header, &packet) {
            Egress::Deliver => self.deliver(to, header.network, &packet),
            Egress::Forward(next, header) => self.transmit(to, next, header, packet),
            Egress::Hold(mac, header) => agent.switch.hold(now, header.network, mac, header, packet),
            Egress::Taken => {}
            Egress::Drop(reason) => self.note_drop(&packet, reason),
        }
        self.settle(to);
    }

    /// A port of `host` sends a packet.
    pub(crate) fn ingress(&mut self, host: usize, network: NetworkId, packet: Vec<u8>) {
        let now = self.hosts[host].now(self.now).mono;
        let Some(agent) = self.hosts[host].working() else { return };
        match agent.switch.ingress(now, network, &packet, packet.len()) {
            Ingress::Unicast(to, header) => self.transmit(host, to, header, packet),
            Ingress::Flood(hosts, header) => {
                let hosts = hosts.to_vec();
                self.note_flood(&packet);
                for to in hosts {
                    self.transmit(host, to, header, packet.clone());
                }
            }
            Ingress::Reply(reply, _) => {
                let reply = reply.to_vec();
                self.deliver(host, network, &reply);
            }
            Ingress::Hold(mac, header) => agent.switch.hold(now, network, mac, header, packet),
            Ingress::Drop(reason) => self.note_drop(&packet, reason),
        }
    }

    /// The agent of `host` is gone. If it went in order, the others hear of it at once.
    pub(crate) fn drop_links(&mut self, host: usize, in_order: bool) {
        for peer in self.links.peers_of(host) {
            let generation = self.links.generation(host, peer);
            let heard = self.fabric.stream(&mut self.rng, host, peer, 0).filter(|_| in_order);
            if let Some(delay) = heard {
                self.schedule(delay, Event::Link(LinkEvent::Closed { host: peer, peer: host, generation }));
            }
            *self.links.side(host, peer) = Side::default();
        }
    }

    pub(crate) fn expect_link_timeouts(&mut self) {
        let pairs: Vec<(usize, usize)> = self.links.0.keys().copied().collect();
        for (a, b) in pairs {
            if self.fabric.closed_since(a, b).is_none() {
                continue;
            }
            let generation = self.links.generation(a, b);
            for (host, peer) in [(a, b), (b, a)] {
                let delay = IDLE_TIMEOUT_MIN + self.rng.below(IDLE_TIMEOUT_SPREAD);
                self.schedule(delay, Event::Link(LinkEvent::Timeout { host, peer, generation }));
            }
        }
    }
}

const HANDSHAKE_TIMEOUT: u64 = 5 * SECOND;
const RETRY_INTERVAL: u64 = 250 * MILLISECOND;
/// As the engine: enough for what is said while a link is made.
const OUTBOX_MESSAGES_MAX: usize = 1_024;
const WAITING_FRAMES_MAX: usize = 256;

//! This host's side of the networks: the switch, which decides, and the ports, to which its decisions apply.

use super::clock::Tick;
use super::connection::frame_bytes;
use super::links::Links;
use super::port::{Port, PortConfig};
use super::stats::{PortInfo, TrafficCounters};
use crate::guest_ports::GuestPorts;
use std::collections::BTreeMap;
use std::io;
use virtuoso_overlay::drop_reason::DropReason;
use virtuoso_overlay::ids::{HostId, Mac, NetworkId};
use virtuoso_overlay::offload::{Coalescer, Segmenter};
use virtuoso_overlay::packet::PacketBuffer;
use virtuoso_overlay::switch::{Egress, Ingress, NetworkSpec, Switch};
use virtuoso_overlay::wire::frame::{FrameHeader, FrameHeaderError};

/// What one port may bring in one turn: what waits in the kernel's queue can't be chosen from, what is here can. More
/// would make packets from the socket wait.
const BYTES_PER_TURN: usize = 512 << 10;
const FRAMES_PER_TURN: usize = 256;

/// What a port brings at least before it is asked whether the link has enough: one super-frame, some dozens of frames.
const BYTES_PER_TURN_MIN: usize = 64 << 10;
const FRAMES_PER_TURN_MIN: usize = 64;

/// Turns in which a port's queue is empty, or it is full faster than it can be read.
const TURNS_PER_DRAIN: usize = 8;

/// A packet that goes on to another host.
type Forward = (HostId, FrameHeader, PacketBuffer);

/// Switch and ports.
pub(super) struct Lan {
    pub(super) switch: Switch,
    ports: BTreeMap<NetworkId, Port>,
    segmenter: Segmenter,
    coalescer: Coalescer,
    /// The packet that is being read from a port.
    packet: PacketBuffer,
    /// What a batch from the links brought for other hosts.
    forwards: Vec<Forward>,
    /// The ports of guests that move, by their interfaces' indices, and the ways to them.
    guests: BTreeMap<(NetworkId, Mac), u32>,
    guest_ports: GuestPorts,
}

/// How much a port brought in one turn.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Haul {
    pub(super) packets: usize,
    pub(super) bytes: usize,
}

/// What a port brought goes on its way.
struct Turn<'a> {
    tick: Tick,
    network: NetworkId,
    switch: &'a mut Switch,
    port: &'a mut Port,
    segmenter: &'a mut Segmenter,
    links: &'a mut Links,
    /// Whether the link that got the last packet has much to send already.
    is_behind: bool,
}

impl Turn<'_> {
    /// Sends one packet where the switch says. HOT PATH.
    fn send(&mut self, buffer: &mut PacketBuffer) {
        let (tick, packet) = (self.tick, buffer.as_ref());
        match self.switch.ingress(tick.now.mono, self.network, packet, packet.len()) {
            Ingress::Unicast(host, header) => {
                self.links.send(tick, host, &header, buffer);
                self.is_behind = self.links.is_behind(host, self.network);
            }
            Ingress::Flood(hosts, header) => self.links.send_all(tick, hosts, &header, buffer),
            Ingress::Reply(reply, reason) => {
                self.port.deliver(self.segmenter, reply);
                self.port.traffic.drops.count(reason);
            }
            Ingress::Hold(mac, header) => {
                self.switch.hold(tick.now.mono, self.network, mac, header, packet.to_vec());
            }
            Ingress::Drop(reason) => self.port.traffic.drops.count(reason),
        }
    }
}

impl Lan {
    pub(super) fn new(switch: Switch) -> Self {
        Self {
            switch,
            ports: BTreeMap::new(),
            segmenter: Segmenter::default(),
            coalescer: Coalescer::default(),
            packet: PacketBuffer::new(),
            forwards: Vec::new(),
            guests: BTreeMap::new(),
            guest_ports: GuestPorts::default(),
        }
    }

    pub(super) fn ports(&self) -> &BTreeMap<NetworkId, Port> {
        &self.ports
    }

    /// Whether the port of `network` was given something since it was read last.
    pub(super) fn has_delivered(&self, network: NetworkId) -> bool {
        self.ports.get(&network).is_some_and(Port::has_delivered)
    }

    pub(super) fn add_port(&mut self, config: PortConfig) -> io::Result<()> {
        let (network, mtu) = (config.network, config.mtu);
        self.ports.insert(network, Port::new(config)?);
        self.switch.set_network(NetworkSpec { id: network, mtu });
        self.switch.attach(network);
        Ok(())
    }

    /// Closes a port; false if there was none.
    pub(super) fn remove_port(&mut self, tick: Tick, network: NetworkId) -> bool {
        let existed = self.ports.remove(&network).is_some();
        if existed {
            self.switch.detach(tick.now.mono, network);
        }
        existed
    }

    /// Reads one port's turn, joins what belongs together, and sends it where the switch says. HOT PATH.
    pub(super) fn read_port(&mut self, tick: Tick, network: NetworkId, links: &mut Links) -> io::Result<Haul> {
        let Some(port) = self.ports.get_mut(&network) else { return Ok(Haul::default()) };
        let Self { switch, segmenter, coalescer, packet, .. } = self;
        let mut turn = Turn { tick, network, switch, port, segmenter, links, is_behind: false };
        let mut haul = Haul::default();
        let mut result = Ok(());
        for frame in 0..FRAMES_PER_TURN {
            let is_enough = turn.is_behind && (haul.bytes >= BYTES_PER_TURN_MIN || frame >= FRAMES_PER_TURN_MIN);
            if is_enough || haul.bytes >= BYTES_PER_TURN {
                break;
            }
            match turn.port.read(packet) {
                Ok(true) => {
                    haul.packets += 1;
                    haul.bytes += packet.as_ref().len();
                    coalescer.push(packet, &mut |packet| turn.send(packet));
                }
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        coalescer.flush(&mut |packet| turn.send(packet));
        result.map(|()| haul)
    }

    /// Reads all that one port has now, within what a few turns bring.
    pub(super) fn drain_port(&mut self, tick: Tick, network: NetworkId, links: &mut Links) {
        for _ in 0..TURNS_PER_DRAIN {
            // What is wrong with a port is found out when its turn comes.
            if !self.read_port(tick, network, links).is_ok_and(|haul| haul.packets > 0) {
                return;
            }
        }
    }

    /// Takes one packet that the link to `from` brought: to a port, into the switch's arms, or on to another host, for
    /// which [`Lan::send_forwards`] must be called. HOT PATH.
    pub(super) fn take(&mut self, tick: Tick, from: HostId, traffic: &mut TrafficCounters, packet: &[u8]) {
        let (header, packet) = match FrameHeader::decode(packet) {
            Ok(decoded) => decoded,
            Err(FrameHeaderError::Truncated) => return traffic.drops.count(DropReason::Malformed),
            Err(FrameHeaderError::Unknown) => return traffic.drops.count(DropReason::UnknownVersion),
        };
        traffic.received(frame_bytes(packet));
        match self.switch.egress(tick.now.mono, from, header, packet) {
            Egress::Deliver => self.deliver(header.network, packet),
            Egress::Forward(to, header) => self.forwards.push((to, header, PacketBuffer::holding(packet))),
            Egress::Hold(mac, header) => {
                self.switch.hold(tick.now.mono, header.network, mac, header, packet.to_vec());
            }
            Egress::Taken => {}
            Egress::Drop(reason) => traffic.drops.count(reason),
        }
    }

    /// Sends on what [`Lan::take`] found to belong elsewhere.
    pub(super) fn send_forwards(&mut self, tick: Tick, links: &mut Links) {
        for (host, header, mut packet) in self.forwards.drain(..) {
            links.send(tick, host, &header, &mut packet);
        }
    }

    /// Writes a packet to the port of `network`. Without one it goes nowhere: the port was closed a moment ago.
    pub(super) fn deliver(&mut self, network: NetworkId, packet: &[u8]) {
        if let Some(port) = self.ports.get_mut(&network) {
            port.deliver(&mut self.segmenter, packet);
        }
    }

    /// Where the port of a guest is that moves.
    pub(super) fn set_guest(&mut self, network: NetworkId, mac: Mac, index: Option<u32>) {
        match index {
            Some(index) => drop(self.guests.insert((network, mac), index)),
            None => drop(self.guests.remove(&(network, mac))),
        }
    }

    /// Writes a packet to the port of one guest alone.
    pub(super) fn deliver_to(&mut self, network: NetworkId, mac: Mac, packet: &[u8]) {
        let Self { ports, guests, guest_ports, .. } = self;
        if let (Some(port), Some(index)) = (ports.get_mut(&network), guests.get(&(network, mac))) {
            port.deliver_aside(packet, |header, frame| guest_ports.send(*index, header, frame));
        }
    }

    /// Has the bridge pass what it floods to the port of a guest, or not.
    pub(super) fn flood(&mut self, network: NetworkId, mac: Mac, on: bool) {
        let Some(index) = self.guests.get(&(network, mac)) else { return };
        if let Err(error) = self.guest_ports.flood(*index, on) {
            tracing::warn!(%mac, on, %error, "Can't change whether a guest hears what is for groups");
        }
    }

    pub(super) fn info(&self) -> Vec<PortInfo> {
        let ports = self.ports.iter();
        ports.map(|(network, port)| PortInfo { network: *network, traffic: port.traffic }).collect()
    }
}

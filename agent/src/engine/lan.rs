//! This host's side of the networks: the switch, which decides, and the ports, to which its decisions apply.

use super::clock::Tick;
use super::connection::frame_bytes;
use super::links::Links;
use super::port::{Port, PortConfig};
use super::stats::{PortInfo, TrafficCounters};
use std::collections::BTreeMap;
use std::io;
use virtuoso_overlay::drop_reason::DropReason;
use virtuoso_overlay::ids::{HostId, NetworkId};
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
                self.is_behind = self.links.is_behind(host);
            }
            Ingress::Flood(hosts, header) => self.links.send_all(tick, hosts, &header, buffer),
            Ingress::Reply(reply, reason) => {
                self.port.deliver(self.segmenter, reply);
                self.port.traffic.drops.count(reason);
            }
            Ingress::Hold(mac, header) => self.switch.hold(self.network, mac, header, packet.to_vec()),
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
        }
    }

    pub(super) fn ports(&self) -> &BTreeMap<NetworkId, Port> {
        &self.ports
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
            Egress::Hold(mac, header) => self.switch.hold(header.network, mac, header, packet.to_vec()),
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

    pub(super) fn info(&self) -> Vec<PortInfo> {
        let ports = self.ports.iter();
        ports.map(|(network, port)| PortInfo { network: *network, traffic: port.traffic }).collect()
    }
}

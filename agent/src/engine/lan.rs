//! This host's side of the networks: the switch, which decides, and the ports, to which its decisions apply.

use super::clock::Tick;
use super::links::{Links, frame_bytes};
use super::port::{Port, PortConfig};
use super::stats::{PortInfo, TrafficCounters};
use std::collections::BTreeMap;
use std::io;
use virtuoso_overlay::drop_reason::DropReason;
use virtuoso_overlay::ids::{HostId, NetworkId};
use virtuoso_overlay::limits::FRAME_BYTES_MAX;
use virtuoso_overlay::offload::Segmenter;
use virtuoso_overlay::switch::{Egress, Ingress, NetworkSpec, Switch};
use virtuoso_overlay::wire::frame::{FrameHeader, FrameHeaderError, VNET_BYTES};

/// What one port may bring in one turn: one super-frame, or some dozens of small frames. More would make packets from
/// the socket wait, which is where latency under load comes from.
const BYTES_PER_TURN: usize = 64 << 10;
const FRAMES_PER_TURN: usize = 64;

/// A packet that goes on to another host.
type Forward = (HostId, FrameHeader, Vec<u8>);

/// Switch and ports.
pub(super) struct Lan {
    pub(super) switch: Switch,
    ports: BTreeMap<NetworkId, Port>,
    segmenter: Segmenter,
    /// The packet that is being read from a port.
    packet: Box<[u8]>,
    /// What a batch from the links brought for other hosts.
    forwards: Vec<Forward>,
}

impl Lan {
    pub(super) fn new(switch: Switch) -> Self {
        Self {
            switch,
            ports: BTreeMap::new(),
            segmenter: Segmenter::default(),
            packet: vec![0; VNET_BYTES + FRAME_BYTES_MAX].into_boxed_slice(),
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

    /// Reads one port's turn and sends what it brings where the switch says. HOT PATH.
    pub(super) fn read_port(&mut self, tick: Tick, network: NetworkId, links: &mut Links) -> io::Result<()> {
        let Some(port) = self.ports.get_mut(&network) else { return Ok(()) };
        let mut bytes = 0;
        for _ in 0..FRAMES_PER_TURN {
            let packet = match port.read(&mut self.packet) {
                Ok(Some(packet)) => packet,
                Ok(None) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            bytes += packet.len();
            match self.switch.ingress(tick.now.mono, network, packet, packet.len()) {
                Ingress::Unicast(host, header) => links.send(tick, host, &header, packet),
                Ingress::Flood(hosts, header) => {
                    for host in hosts {
                        links.send(tick, *host, &header, packet);
                    }
                }
                Ingress::Reply(reply, reason) => {
                    port.deliver(&mut self.segmenter, reply);
                    port.traffic.drops.count(reason);
                }
                Ingress::Hold(mac, header) => self.switch.hold(network, mac, header, packet.to_vec()),
                Ingress::Drop(reason) => port.traffic.drops.count(reason),
            }
            if bytes >= BYTES_PER_TURN {
                break;
            }
        }
        Ok(())
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
            Egress::Forward(to, header) => self.forwards.push((to, header, packet.to_vec())),
            Egress::Hold(mac, header) => self.switch.hold(header.network, mac, header, packet.to_vec()),
            Egress::Drop(reason) => traffic.drops.count(reason),
        }
    }

    /// Sends on what [`Lan::take`] found to belong elsewhere.
    pub(super) fn send_forwards(&mut self, tick: Tick, links: &mut Links) {
        for (host, header, packet) in self.forwards.drain(..) {
            links.send(tick, host, &header, &packet);
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

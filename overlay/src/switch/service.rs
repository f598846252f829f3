//! What concerns one host's ports alone: the service station, which answers where it is asked, and guests that may
//! speak in no other name than their own.

use super::segment::{PortId, Segment};
use super::{Switch, SwitchEffect, Upward};
use crate::drop_reason::DropReason;
use crate::flood::FloodLimit;
use crate::ids::{Mac, NetworkId};
use crate::limits::{SERVICE_BURST, SERVICE_PACKET_BYTES_MAX, SERVICE_PACKETS_PER_S};
use crate::names::{AddressPlan, SERVICE_MAC, Subnet};
use crate::time::Instant;
use crate::wire::arp::{self, ArpView, Operation};
use crate::wire::dhcp;
use crate::wire::ethernet::{EtherType, EthernetView};
use crate::wire::frame::VNET_BYTES;
use crate::wire::ip::Ipv4View;
use crate::wire::udp::UdpView;
use std::net::{IpAddr, Ipv4Addr};

/// The service station of a network on this host.
pub(super) struct Service {
    plan: AddressPlan,
    limit: FloodLimit,
}

/// What becomes of a frame before the switch looks for its destination.
pub(super) enum Served {
    /// Nothing: it goes its way.
    No,
    /// It is answered by what stands in the reply.
    Reply,
    /// It goes nowhere.
    Drop(DropReason),
}

/// An address that this host gives to a station at one of its ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Assignment {
    /// The address.
    pub ip: Ipv4Addr,
    /// What it is from: other addresses of it are no longer the station's.
    pub subnet: Subnet,
    /// Whether the station may use no other.
    pub guarded: bool,
}

impl Switch {
    /// Serves a network's stations at this host's ports from now on, or no longer.
    pub fn set_service(&mut self, network: NetworkId, plan: Option<AddressPlan>) {
        let Some(segment) = self.segments.get_mut(&network) else { return };
        let limit = FloodLimit::new(SERVICE_PACKETS_PER_S, SERVICE_BURST);
        segment.service = plan.map(|plan| Service { plan, limit });
    }

    /// A station is behind `port`, and this is its address.
    pub fn assign(&mut self, now: Instant, network: NetworkId, mac: Mac, port: Option<PortId>, given: Assignment) {
        self.handle_local(now, network, mac, port, &[]);
        let Some(segment) = self.segments.get_mut(&network) else { return };
        match given.guarded {
            true => drop(segment.guards.insert(mac, given.ip)),
            false => drop(segment.guards.remove(&mac)),
        }
        let Some(binding) = segment.bindings.get_mut(&mac).filter(|binding| binding.state.is_ours()) else { return };
        let stays = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => *ip == given.ip || !(given.guarded || given.subnet.contains(*ip)),
            IpAddr::V6(_) => true,
        };
        let before = binding.claim.ips.len();
        for gone in binding.claim.ips.extract_if(.., |ip| !stays(ip)) {
            if segment.ips.get(&gone) == Some(&mac) {
                segment.ips.remove(&gone);
            }
        }
        if binding.claim.ips.len() != before && binding.claim.ips.contains(&given.ip.into()) {
            self.revise(network, mac);
        } else {
            self.add_addresses(network, mac, &[given.ip.into()], None);
        }
    }

    /// What our claim says has changed: the world hears of it.
    pub(super) fn revise(&mut self, network: NetworkId, mac: Mac) {
        let Some(binding) = self.binding(network, mac) else { return };
        binding.claim.revision += 1;
        let claim = binding.claim.clone();
        self.announce(&claim);
        self.effects.push_back(SwitchEffect::Upward(Upward::Publish(claim)));
    }

    /// A station at a port of this host may speak in any name again.
    pub fn unguard(&mut self, network: NetworkId, mac: Mac) {
        if let Some(segment) = self.segments.get_mut(&network) {
            segment.guards.remove(&mac);
        }
    }

    /// Sends a frame of the service station to this host's ports.
    pub fn serve(&mut self, network: NetworkId, frame: &[u8]) {
        let packet = [&[0; VNET_BYTES], frame].concat();
        self.effects.push_back(SwitchEffect::Deliver { network, packet });
    }

    /// Looks whether a frame of a local port is for the service station, or in the name of somebody else.
    // HOT PATH
    pub(super) fn serve_locally(
        &mut self,
        now: Instant,
        network: NetworkId,
        view: &EthernetView<'_>,
        (frame, len): (&[u8], usize),
    ) -> Served {
        let Some(segment) = self.segments.get_mut(&network) else { return Served::No };
        if segment.is_spoofed(view) {
            return Served::Drop(DropReason::Spoofed);
        }
        let Some(service) = segment.service.as_mut().filter(|_| view.tags().count() == 0) else { return Served::No };
        let dst = view.dst();
        let wanted = match view.ethertype() {
            EtherType::ARP => return service.answer_arp(view, &mut self.reply),
            EtherType::IPV4 if dst == Mac::BROADCAST => service.plan.dhcp && is_for_dhcp_server(view),
            _ => dst == SERVICE_MAC,
        };
        if !wanted {
            return Served::No;
        }
        if frame.len() != len || len > SERVICE_PACKET_BYTES_MAX {
            return Served::Drop(DropReason::TooBig);
        }
        if !service.limit.take(now) {
            return Served::Drop(DropReason::FloodLimit);
        }
        let frame = frame.to_vec();
        self.effects.push_back(SwitchEffect::Upward(Upward::Service { network, frame }));
        Served::Drop(DropReason::Answered)
    }
}

impl Segment {
    /// Whether a frame of a local port speaks in the name of the service station, or of another station than its
    /// source may.
    fn is_spoofed(&self, view: &EthernetView<'_>) -> bool {
        if view.src() == SERVICE_MAC {
            return true;
        }
        let Some(allowed) = self.guards.get(&view.src()) else { return false };
        let is_foreign = |ip: Ipv4Addr| ip != *allowed && !ip.is_unspecified();
        match view.ethertype() {
            EtherType::ARP => ArpView::new_checked(view.payload())
                .is_ok_and(|arp| is_foreign(arp.sender_ip()) || arp.sender_mac() != view.src()),
            EtherType::IPV4 => Ipv4View::new_checked(view.payload()).is_ok_and(|packet| is_foreign(packet.src())),
            _ => false,
        }
    }
}

impl Service {
    /// Answers who asks for the service station, and stops who claims to be it.
    fn answer_arp(&self, view: &EthernetView<'_>, reply: &mut Vec<u8>) -> Served {
        let Ok(arp) = ArpView::new_checked(view.payload()) else { return Served::No };
        let service = self.plan.subnet.service();
        if arp.sender_ip() == service {
            return Served::Drop(DropReason::Spoofed);
        }
        if arp.target_ip() != service || arp.operation() != Operation::Request {
            return if view.dst() == SERVICE_MAC { Served::Drop(DropReason::Answered) } else { Served::No };
        }
        reply.clear();
        reply.extend([0; VNET_BYTES]);
        reply.extend(arp::build_reply(view, &arp, SERVICE_MAC));
        Served::Reply
    }
}

fn is_for_dhcp_server(view: &EthernetView<'_>) -> bool {
    UdpView::new_checked(view).is_ok_and(|datagram| datagram.dst.port() == dhcp::SERVER_PORT)
}

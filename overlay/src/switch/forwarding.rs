//! Where one frame goes. These functions run for every frame or super-frame.

use super::segment::{Binding, State};
use super::{Switch, SwitchEffect, answer};
use crate::claims::Claim;
use crate::drop_reason::DropReason;
use crate::ids::{HostId, Mac, NetworkId};
use crate::limits::{HOP_LIMIT, REDIRECT_INTERVAL, STRAGGLER_TIME};
use crate::names::SERVICE_MAC;
use crate::offload::wire_frames;
use crate::switch::hold::Held;
use crate::switch::service::Served;
use crate::time::Instant;
use crate::wire::beacon;
use crate::wire::ethernet::{self, EthernetView};
use crate::wire::frame::{Flags, FrameHeader, VNET_BYTES};
use crate::wire::message::Message;
use crate::wire::parcel;

/// What becomes of a packet that a port of this host sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Ingress<'a> {
    /// Send it to one host with this header.
    Unicast(HostId, FrameHeader),
    /// Send it to all these hosts with this header.
    Flood(&'a [HostId], FrameHeader),
    /// Write this packet (virtio-net header and frame) back to the port; the one that came goes nowhere.
    Reply(&'a [u8], DropReason),
    /// Its destination is between two hosts: pass the whole packet to [`Switch::hold`].
    Hold(Mac, FrameHeader),
    /// It goes nowhere.
    Drop(DropReason),
}

/// What becomes of a packet that a link brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Egress {
    /// Write it to the port of its network.
    Deliver,
    /// Its destination moved on: send it to this host with this header.
    Forward(HostId, FrameHeader),
    /// Its destination is between two hosts: pass the whole packet to [`Switch::hold`].
    Hold(Mac, FrameHeader),
    /// The effects say what becomes of it.
    Taken,
    /// It goes nowhere.
    Drop(DropReason),
}

impl Switch {
    /// Decides where a packet goes that the port of `network` sent. `head` holds its first bytes (all of a short one
    /// and of one to a group, at least 256 of another), `len` is its whole length, both with the virtio-net header.
    // HOT PATH
    pub fn ingress(&mut self, now: Instant, network: NetworkId, head: &[u8], len: usize) -> Ingress<'_> {
        let Some((vnet, frame)) = head.split_at_checked(VNET_BYTES) else {
            return Ingress::Drop(DropReason::Malformed);
        };
        let Ok(view) = EthernetView::new_checked(frame) else { return Ingress::Drop(DropReason::Malformed) };
        let (src, dst) = (view.src(), view.dst());
        if src.is_group() || src == Mac::ZERO {
            return Ingress::Drop(DropReason::BadSource);
        }
        if ethernet::is_link_local_group(dst) || beacon::is_beacon(&view) {
            return Ingress::Drop(DropReason::LinkLocal);
        }
        match self.serve_locally(now, network, &view, (frame, len - VNET_BYTES)) {
            Served::No => {}
            Served::Reply => {
                self.learn(now, network, src, &view);
                return Ingress::Reply(&self.reply, DropReason::Answered);
            }
            Served::Drop(reason) => {
                if reason != DropReason::Spoofed {
                    self.learn(now, network, src, &view);
                }
                return Ingress::Drop(reason);
            }
        }
        if !self.learn(now, network, src, &view) {
            return Ingress::Drop(DropReason::Duplicate);
        }
        if dst == self.prober {
            return Ingress::Drop(DropReason::Answered);
        }
        let Some(segment) = self.segments.get_mut(&network).filter(|segment| segment.attached) else {
            return Ingress::Drop(DropReason::UnknownNetwork);
        };
        if answer::exceeds(segment.spec.mtu, vnet, &view, len - VNET_BYTES) {
            return match answer::too_big(segment.spec.mtu, frame, &mut self.reply) {
                true => Ingress::Reply(&self.reply, DropReason::TooBig),
                false => Ingress::Drop(DropReason::TooBig),
            };
        }
        let header = FrameHeader { network, hops: HOP_LIMIT, flags: Flags::VNET };
        if dst.is_group() {
            let hosts = &self.hosts;
            let lapsed = |host: HostId| hosts.get(&host).is_some_and(|peer| peer.is_lapsed());
            if answer::from_claims(segment, &view, src, lapsed, &mut self.reply) {
                return Ingress::Reply(&self.reply, DropReason::Answered);
            }
            self.hear_group(now, network, head);
            return self.flood(now, network, header);
        }
        match segment.bindings.get(&dst) {
            Some(Binding { state: State::Local { .. } | State::Probed { .. }, .. }) => Ingress::Drop(DropReason::Local),
            Some(binding) if binding.is_waited_for() => Ingress::Hold(dst, header),
            Some(binding) if !self.hosts.get(&binding.claim.holder).is_some_and(|peer| peer.is_lapsed()) => {
                Ingress::Unicast(binding.claim.holder, header)
            }
            Some(_) | None => self.flood(now, network, header),
        }
    }

    /// Decides where a packet goes that the link to `from` brought, all of which is in `packet`, with the virtio-net
    /// header.
    // HOT PATH
    pub fn egress(&mut self, now: Instant, from: HostId, header: FrameHeader, packet: &[u8]) -> Egress {
        let network = header.network;
        let Some(segment) = self.segments.get(&network) else { return Egress::Drop(DropReason::UnknownNetwork) };
        if !header.flags.has(Flags::VNET) {
            return Egress::Drop(DropReason::Malformed);
        }
        if header.flags == parcel::FLAGS {
            return self.take_parcel(now, from, header, packet);
        }
        let Some(Ok(view)) = packet.get(VNET_BYTES..).map(EthernetView::new_checked) else {
            return Egress::Drop(DropReason::Malformed);
        };
        let (src, dst) = (view.src(), view.dst());
        if src.is_group() || src == Mac::ZERO {
            return Egress::Drop(DropReason::BadSource);
        }
        if src == SERVICE_MAC || dst == SERVICE_MAC {
            return Egress::Drop(DropReason::Spoofed);
        }
        // A guest may overtake its own frames when it moves here, and a frame from here may be sent back to where its
        // destination has moved: here.
        let looped = |b: &Binding| {
            let moved = header.flags.has(Flags::FORWARDED) || now.since(b.since) < STRAGGLER_TIME;
            matches!(b.state, State::Local { .. }) && (dst.is_group() || !moved)
        };
        if segment.bindings.get(&src).is_some_and(looped) {
            // What one of our ports sent comes back: a loop through two uplinks, or a duplicate elsewhere.
            return Egress::Drop(DropReason::Duplicate);
        }
        let deliver = if segment.attached { Egress::Deliver } else { Egress::Drop(DropReason::UnknownNetwork) };
        if dst.is_group() {
            self.hear_group(now, network, packet);
            return deliver;
        }
        match segment.bindings.get(&dst) {
            // Frames overtake the messages of their link, and so the handoff.
            Some(binding) if binding.is_awaited() && !header.flags.has(Flags::FLOOD) => Egress::Hold(dst, header),
            // Of a flooded frame every host has a copy, also the one that the address went to.
            Some(binding) if binding.is_waited_for() && !header.flags.has(Flags::FLOOD) => {
                if binding.state == State::Remote {
                    let claim = binding.claim.clone();
                    self.redirect(now, from, claim);
                }
                Egress::Hold(dst, header)
            }
            Some(Binding { state: State::Remote | State::Refused, claim, .. })
                if !header.flags.has(Flags::FLOOD)
                    // The holder itself may have sent it before it knew; but it gets it back once only.
                    && (claim.holder != from || !header.flags.has(Flags::FORWARDED)) =>
            {
                let claim = claim.clone();
                self.forward(now, from, header, (packet, claim))
            }
            _ => {
                if header.flags.has(Flags::FORWARDED) {
                    self.count_arrival(network, dst, wire_frames(packet));
                }
                deliver
            }
        }
    }

    fn count_arrival(&mut self, network: NetworkId, mac: Mac, frames: u64) {
        if let Some(binding) = self.binding(network, mac) {
            binding.counts.arrived += frames;
        }
    }

    /// Keeps a packet until its destination has arrived somewhere.
    pub fn hold(&mut self, now: Instant, network: NetworkId, mac: Mac, header: FrameHeader, packet: Vec<u8>) {
        let mut held = Held { header, packet };
        let counts = held.date(now);
        if counts {
            self.count_arrival(network, mac, held.frames());
        }
        self.keep(network, mac, held);
    }

    fn flood(&mut self, now: Instant, network: NetworkId, header: FrameHeader) -> Ingress<'_> {
        let Some(segment) = self.segments.get_mut(&network) else { return Ingress::Drop(DropReason::UnknownNetwork) };
        if segment.participants.is_empty() {
            return Ingress::Drop(DropReason::Alone);
        }
        if !segment.flood.take(now) {
            return Ingress::Drop(DropReason::FloodLimit);
        }
        Ingress::Flood(&segment.participants, FrameHeader { flags: header.flags.with(Flags::FLOOD), ..header })
    }

    /// A straggler: its sender has not heard yet that the address moved.
    fn forward(&mut self, now: Instant, from: HostId, header: FrameHeader, (packet, claim): (&[u8], Claim)) -> Egress {
        if header.hops == 0 {
            return Egress::Drop(DropReason::HopLimit);
        }
        let to = claim.holder;
        if let Some(binding) = self.binding(claim.network, claim.mac) {
            binding.counts.forwarded += wire_frames(packet);
        }
        self.redirect(now, from, claim);
        let flags = header.flags.with(Flags::FORWARDED);
        Egress::Forward(to, FrameHeader { hops: header.hops - 1, flags, ..header })
    }

    fn redirect(&mut self, now: Instant, talker: HostId, claim: Claim) {
        let binding = self.segments.get_mut(&claim.network).and_then(|s| s.bindings.get_mut(&claim.mac));
        let Some(binding) = binding else { return };
        let recent = binding.redirected.is_some_and(|(host, at)| host == talker && now.since(at) < REDIRECT_INTERVAL);
        if !recent {
            binding.redirected = Some((talker, now));
            let message = Message::Claims(vec![claim]).encode();
            self.effects.push_back(SwitchEffect::Send { to: talker, message });
        }
    }
}

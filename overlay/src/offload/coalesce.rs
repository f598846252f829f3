//! Plain frames of one conversation joined to a super-frame, as GRO does: from guests without segmentation offload, or
//! of programs that send small packets. The super-frame says everything that is needed to cut it into the same frames
//! again, and costs one pass through the overlay instead of dozens.
//!
//! Frames are joined if they differ in nothing but what the place in a super-frame determines: lengths, checksums, the
//! IPv4 identification, TCP's sequence number and PSH. What is not certain is passed on as it is.

use super::layout::{Layout, Transport};
use super::segment::{pseudo_header, put_u16};
use super::vnet_hdr::{Gso, VnetHdr};
use crate::ids::NetworkId;
use crate::packet::PacketBuffer;
use crate::queue::flow_hash;
use crate::wire::frame::VNET_BYTES;
use crate::wire::ip::{Checksum, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES};
use std::ops::Range;

/// Conversations that are joined at once. More at a time have few frames each.
const SLOTS: usize = 8;

/// Bytes of an IP packet at most.
const PACKET_BYTES_MAX: usize = 65_535;

/// Segments of a super-frame: what every kernel takes of UDP (`UDP_MAX_SEGMENTS` before Linux 6.9).
const SEGMENTS_MAX: usize = 64;

/// The largest segment that is joined: that of a jumbo frame.
const SEGMENT_BYTES_MAX: usize = 9000;

/// Payload of a TCP segment at least: see [`VnetHdr::rebuild`].
const TCP_SEGMENT_BYTES_MIN: usize = 48;

const IPV4_DONT_FRAGMENT: u8 = 0x40;
const TCP_FLAGS: usize = 13;
const TCP_ACK: u8 = 0x10;
const TCP_PSH: u8 = 0x08;

/// Joins the frames of one port.
#[derive(Debug, Default)]
pub struct Coalescer {
    slots: Vec<Slot>,
    /// Slots in use, oldest first; the others keep their buffers.
    used: usize,
    joined: u64,
}

/// One conversation's frames.
#[derive(Debug, Default)]
struct Slot {
    flow: u64,
    packet: PacketBuffer,
    layout: Layout,
    segments: usize,
    /// Payload of each segment but the last.
    segment_bytes: usize,
    /// Whether nothing may follow: the last segment was short, or pushed.
    is_closed: bool,
}

/// A frame that may be joined with others.
struct Candidate {
    flow: u64,
    layout: Layout,
    is_pushed: bool,
}

impl Coalescer {
    /// Takes a packet whose virtio-net header is settled; `packet` holds something else then. What is ready is handed
    /// to `out`; the rest stays until it is, or until [`Coalescer::flush`]. HOT PATH
    pub fn push(&mut self, packet: &mut PacketBuffer, out: &mut impl FnMut(&mut PacketBuffer)) {
        let Some((header, frame)) = packet.as_ref().split_first_chunk::<VNET_BYTES>() else { return out(packet) };
        // The network does not matter: all frames are of one.
        let flow = flow_hash(0, NetworkId(0), frame);
        let place = self.slots[..self.used].iter().position(|slot| slot.flow == flow);
        let candidate = VnetHdr::decode(header).ok().and_then(|header| candidate(flow, &header, frame));
        match (place, candidate) {
            (Some(place), Some(candidate)) if self.slots[place].join(&candidate, frame) => self.joined += 1,
            (place, candidate) => {
                if let Some(place) = place {
                    self.release(place, out);
                }
                match candidate {
                    Some(candidate) => self.begin(&candidate, packet, out),
                    None => out(packet),
                }
            }
        }
    }

    /// Hands everything to `out`, oldest first.
    pub fn flush(&mut self, out: &mut impl FnMut(&mut PacketBuffer)) {
        for slot in &mut self.slots[..self.used] {
            slot.finish();
            out(&mut slot.packet);
        }
        self.used = 0;
    }

    /// Frames that were joined to an earlier one, since the beginning.
    pub fn joined(&self) -> u64 {
        self.joined
    }

    /// Keeps the first frame of a conversation by exchanging buffers.
    fn begin(&mut self, candidate: &Candidate, packet: &mut PacketBuffer, out: &mut impl FnMut(&mut PacketBuffer)) {
        if self.used == SLOTS {
            self.release(0, out);
        }
        if self.used == self.slots.len() {
            self.slots.push(Slot::default());
        }
        let slot = &mut self.slots[self.used];
        std::mem::swap(&mut slot.packet, packet);
        slot.flow = candidate.flow;
        slot.layout = candidate.layout;
        slot.segments = 1;
        slot.segment_bytes = candidate.layout.end - candidate.layout.payload;
        slot.is_closed = candidate.is_pushed;
        self.used += 1;
    }

    /// Hands one conversation's frames to `out`.
    fn release(&mut self, place: usize, out: &mut impl FnMut(&mut PacketBuffer)) {
        self.slots[place].finish();
        out(&mut self.slots[place].packet);
        self.slots[place..self.used].rotate_left(1);
        self.used -= 1;
    }
}

impl Slot {
    /// Appends the frame's payload if it continues what is here.
    fn join(&mut self, candidate: &Candidate, frame: &[u8]) -> bool {
        let payload = &frame[candidate.layout.payload..];
        let bytes = self.layout.end + payload.len() - self.layout.network;
        let fits = !self.is_closed
            && self.segments < SEGMENTS_MAX
            && payload.len() <= self.segment_bytes
            && bytes <= PACKET_BYTES_MAX
            && self.continues(&candidate.layout, frame);
        if !fits || !self.packet.append(payload) {
            return false;
        }
        if candidate.is_pushed {
            self.packet.as_mut()[VNET_BYTES + self.layout.header + TCP_FLAGS] |= TCP_PSH;
        }
        self.layout.end += payload.len();
        self.segments += 1;
        self.is_closed = candidate.is_pushed || payload.len() < self.segment_bytes;
        true
    }

    /// Whether the headers of `frame` are those that the next segment would get.
    fn continues(&self, layout: &Layout, frame: &[u8]) -> bool {
        let first = &self.packet.as_ref()[VNET_BYTES..];
        let Layout { network, header, payload, .. } = self.layout;
        let same = |begin: usize, range: Range<usize>| {
            let range = begin + range.start..begin + range.end;
            first[range.clone()] == frame[range]
        };
        let same_places = (layout.transport, layout.is_v6) == (self.layout.transport, self.layout.is_v6)
            && (layout.network, layout.header, layout.payload) == (network, header, payload);
        if !same_places || !same(0, 0..network) {
            return false;
        }
        let same_network = match self.layout.is_v6 {
            true => same(network, 0..4) && same(network, 6..40),
            false => {
                let id = u16_at(first, network + 4).wrapping_add(self.segments as u16);
                let may_have_any_id = first[network + 6] & IPV4_DONT_FRAGMENT != 0;
                same(network, 0..2)
                    && same(network, 6..10)
                    && same(network, 12..20)
                    && (may_have_any_id || u16_at(frame, network + 4) == id)
            }
        };
        same_network
            && match self.layout.transport {
                Transport::Udp => same(header, 0..4),
                Transport::Tcp => {
                    let next = u32_at(first, header + 4).wrapping_add((self.layout.end - payload) as u32);
                    same(header, 0..4)
                        && u32_at(frame, header + 4) == next
                        && same(header, 8..13)
                        && same(header, 14..16)
                        && same(header, 18..payload - header)
                }
            }
    }

    /// Makes a super-frame of the joined segments: lengths, checksums, virtio-net header.
    fn finish(&mut self) {
        if self.segments <= 1 {
            return;
        }
        let Layout { transport, is_v6, network, header, end, .. } = self.layout;
        let csum_offset = self.layout.checksum_offset();
        let vnet = VnetHdr {
            gso: match (transport, is_v6) {
                (Transport::Udp, _) => Gso::Udp,
                (Transport::Tcp, true) => Gso::Tcp6,
                (Transport::Tcp, false) => Gso::Tcp4,
            },
            gso_size: self.segment_bytes as u16,
            needs_csum: true,
            csum_start: header as u16,
            csum_offset: csum_offset as u16,
            hdr_len: self.layout.payload as u16,
            ..VnetHdr::PLAIN
        };
        let packet = self.packet.as_mut();
        packet[..VNET_BYTES].copy_from_slice(&vnet.encode());
        let (ip, segment) = packet[VNET_BYTES + network..].split_at_mut(header - network);
        if is_v6 {
            put_u16(ip, 4, end - network - IPV6_HEADER_BYTES);
        } else {
            put_u16(ip, 2, end - network);
            put_u16(ip, 10, 0);
            let checksum = Checksum::default().with(ip).finish();
            put_u16(ip, 10, checksum.into());
        }
        if transport == Transport::Udp {
            put_u16(segment, 4, end - header);
        }
        let partial = !pseudo_header(&self.layout, ip, end - header).finish();
        put_u16(segment, csum_offset, partial.into());
    }
}

/// What the frame needs to be joined, or `None` if it must go as it is.
fn candidate(flow: u64, header: &VnetHdr, frame: &[u8]) -> Option<Candidate> {
    if header.gso != Gso::None {
        return None;
    }
    let layout = Layout::of(frame).ok()?;
    let ip = &frame[layout.network..layout.header];
    let plain_header = if layout.is_v6 { IPV6_HEADER_BYTES } else { IPV4_HEADER_BYTES };
    let payload_bytes = layout.end - layout.payload;
    let segment = &frame[layout.header..layout.end];
    let (payload_min, is_pushed) = match layout.transport {
        Transport::Tcp => {
            let flags = segment[TCP_FLAGS];
            if flags & !TCP_PSH != TCP_ACK {
                return None;
            }
            (TCP_SEGMENT_BYTES_MIN, flags & TCP_PSH != 0)
        }
        Transport::Udp => {
            let has_checksum = u16_at(segment, layout.checksum_offset()) != 0;
            if !has_checksum || usize::from(u16_at(segment, 4)) != segment.len() {
                return None;
            }
            (1, false)
        }
    };
    let fits = ip.len() == plain_header
        && layout.end == frame.len()
        && (payload_min..=SEGMENT_BYTES_MAX).contains(&payload_bytes)
        && (layout.is_v6 || Checksum::default().with(ip).finish() == 0)
        && (header.needs_csum || pseudo_header(&layout, ip, segment.len()).with(segment).finish() == 0);
    fits.then_some(Candidate { flow, layout, is_pushed })
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_be_bytes([bytes[offset], bytes[offset + 1]])
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes([bytes[offset], bytes[offset + 1], bytes[offset + 2], bytes[offset + 3]])
}

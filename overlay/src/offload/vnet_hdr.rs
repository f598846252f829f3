//! The virtio-net header in front of a frame.
//!
//! What a peer sends is untrusted input to this host's kernel. Of its header only the wish counts: which kind of
//! segmentation, with which size, and whether the checksum is still to be completed. Everything that is written to a
//! TAP is computed from the frame itself; a wish that does not fit the frame is [`BadOffload`].

use super::layout::{Layout, Transport};
use super::segment::complete_checksum;
use crate::wire::frame::VNET_BYTES;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`.
const GSO_TCPV6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`.
const GSO_UDP_L4: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`, a bit beside the kind.
const GSO_ECN: u8 = 0x80;

/// Payload of a TCP segment at least: Linux's `tcp_min_snd_mss`. Less would let one packet cost thousands.
const TCP_SEGMENT_BYTES_MIN: u16 = 48;

/// Segments of a UDP super-frame at most: what Linux accepts (`UDP_MAX_SEGMENTS`).
const UDP_SEGMENTS_MAX: usize = 128;

/// How a super-frame is to be segmented.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gso {
    None,
    Tcp4,
    Tcp6,
    Udp,
}

/// A virtio-net header. Its `hdr_len` is never read: bridges leave it wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VnetHdr {
    pub gso: Gso,
    /// The segments' payload in bytes.
    pub gso_size: u16,
    /// The super-frame's first segment announces a reduced window (CWR).
    pub ecn: bool,
    /// The checksum over what follows `csum_start` is to be written `csum_offset` behind it.
    pub needs_csum: bool,
    pub csum_start: u16,
    pub csum_offset: u16,
    pub(super) hdr_len: u16,
}

/// The header asks for what can't be done with this frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("The virtio-net header does not fit the frame")]
pub struct BadOffload;

/// How many frames a packet (virtio-net header and frame) is on a wire: a super-frame is several.
pub fn wire_frames(packet: &[u8]) -> u64 {
    let segments = || {
        let (header, frame) = packet.split_first_chunk::<VNET_BYTES>()?;
        let header = VnetHdr::decode(header).and_then(|wish| wish.rebuild(frame)).ok()?;
        let layout = Layout::of(frame).ok().filter(|_| header.gso != Gso::None)?;
        Some((layout.end - layout.payload).div_ceil(usize::from(header.gso_size.max(1))) as u64)
    };
    segments().unwrap_or(1)
}

impl VnetHdr {
    /// The header of a frame that is finished.
    pub const PLAIN: Self =
        Self { gso: Gso::None, gso_size: 0, ecn: false, needs_csum: false, csum_start: 0, csum_offset: 0, hdr_len: 0 };

    /// Reads a header. The fields may be anything: see [`VnetHdr::rebuild`].
    pub fn decode(bytes: &[u8; VNET_BYTES]) -> Result<Self, BadOffload> {
        let [flags, kind, hdr_low, hdr_high, size_low, size_high, start_low, start_high, offset_low, offset_high] =
            *bytes;
        let gso = match kind & !GSO_ECN {
            0 => Gso::None,
            GSO_TCPV4 => Gso::Tcp4,
            GSO_TCPV6 => Gso::Tcp6,
            GSO_UDP_L4 => Gso::Udp,
            _ => return Err(BadOffload),
        };
        Ok(Self {
            gso,
            gso_size: u16::from_le_bytes([size_low, size_high]),
            ecn: kind & GSO_ECN != 0,
            needs_csum: flags & NEEDS_CSUM != 0,
            csum_start: u16::from_le_bytes([start_low, start_high]),
            csum_offset: u16::from_le_bytes([offset_low, offset_high]),
            hdr_len: u16::from_le_bytes([hdr_low, hdr_high]),
        })
    }

    /// Writes the header.
    pub fn encode(&self) -> [u8; VNET_BYTES] {
        let kind = match self.gso {
            Gso::None => 0,
            Gso::Tcp4 => GSO_TCPV4,
            Gso::Tcp6 => GSO_TCPV6,
            Gso::Udp => GSO_UDP_L4,
        };
        let [hdr_low, hdr_high] = self.hdr_len.to_le_bytes();
        let [size_low, size_high] = self.gso_size.to_le_bytes();
        let [start_low, start_high] = self.csum_start.to_le_bytes();
        let [offset_low, offset_high] = self.csum_offset.to_le_bytes();
        let flags = if self.needs_csum { NEEDS_CSUM } else { 0 };
        let kind = if self.ecn { kind | GSO_ECN } else { kind };
        [flags, kind, hdr_low, hdr_high, size_low, size_high, start_low, start_high, offset_low, offset_high]
    }

    /// The header that this frame may have: the wishes of `self`, everything else from the frame. HOT PATH.
    pub fn rebuild(self, frame: &[u8]) -> Result<Self, BadOffload> {
        if self.gso == Gso::None && !self.needs_csum {
            return Ok(Self::PLAIN);
        }
        let layout = Layout::of(frame).map_err(|_| BadOffload)?;
        let header = self.rebuild_within(&layout, frame.len())?;
        // The kernel sums up to the end of the frame: padding must not count.
        let is_padded = header.gso == Gso::None && frame[layout.end..].iter().any(|byte| *byte != 0);
        if is_padded { Err(BadOffload) } else { Ok(header) }
    }

    /// As [`VnetHdr::rebuild`] for a frame of `frame_bytes` with this layout.
    pub(super) fn rebuild_within(self, layout: &Layout, frame_bytes: usize) -> Result<Self, BadOffload> {
        let same_place =
            usize::from(self.csum_start) == layout.header && usize::from(self.csum_offset) == layout.checksum_offset();
        // A super-frame without a partial checksum does not exist: its segments' checksums differ.
        if !self.needs_csum || !same_place {
            return Err(BadOffload);
        }
        let checksum =
            Self { needs_csum: true, csum_start: self.csum_start, csum_offset: self.csum_offset, ..Self::PLAIN };
        if self.gso == Gso::None {
            return Ok(checksum);
        }
        self.check_segments(layout, frame_bytes)?;
        if layout.end - layout.payload <= usize::from(self.gso_size) {
            return Ok(checksum);
        }
        let hdr_len = u16::try_from(layout.payload).map_err(|_| BadOffload)?;
        Ok(Self { gso: self.gso, gso_size: self.gso_size, ecn: self.ecn, hdr_len, ..checksum })
    }

    /// The header of a piece of the super-frame that has this one, with so many bytes of payload.
    pub(super) fn of_payload(self, bytes: usize) -> Self {
        if bytes > usize::from(self.gso_size) {
            return self;
        }
        Self { gso: Gso::None, gso_size: 0, ecn: false, hdr_len: 0, ..self }
    }

    /// The header for a frame that this host's kernel handed over with `self`, before it goes to a peer.
    ///
    /// The kernel also leaves checksums partial that no peer would accept, such as those inside a guest's own tunnels.
    /// They are completed here.
    pub fn settle(self, frame: &mut [u8]) -> Result<Self, BadOffload> {
        match self.rebuild(frame) {
            Err(BadOffload) if self.gso == Gso::None => {
                complete_checksum(frame, self.csum_start.into(), self.csum_offset.into()).ok_or(BadOffload)?;
                Ok(Self::PLAIN)
            }
            other => other,
        }
    }

    /// Bytes in front of the payload, of a header that was rebuilt for a super-frame.
    pub fn header_bytes(&self) -> usize {
        self.hdr_len.into()
    }

    /// Bytes of the largest IP packet that the frame becomes on a wire.
    pub fn packet_bytes(&self, frame: &[u8]) -> usize {
        match (self.gso, Layout::of(frame)) {
            (Gso::None, Ok(layout)) => layout.end - layout.network,
            (_, Ok(layout)) => layout.payload - layout.network + usize::from(self.gso_size),
            // Neither TCP nor UDP: all behind an untagged Ethernet header, at least.
            (_, Err(_)) => frame.len().saturating_sub(ETHERNET_TAGGED_BYTES),
        }
    }

    fn check_segments(&self, layout: &Layout, frame_bytes: usize) -> Result<(), BadOffload> {
        let payload = layout.end - layout.payload;
        let fits = match self.gso {
            Gso::None => true,
            Gso::Tcp4 | Gso::Tcp6 => {
                layout.transport == Transport::Tcp
                    && layout.is_v6 == (self.gso == Gso::Tcp6)
                    && self.gso_size >= TCP_SEGMENT_BYTES_MIN
            }
            Gso::Udp => {
                layout.transport == Transport::Udp
                    && !self.ecn
                    && self.gso_size > 0
                    && payload.div_ceil(usize::from(self.gso_size)) <= UDP_SEGMENTS_MAX
            }
        };
        if fits && layout.end == frame_bytes { Ok(()) } else { Err(BadOffload) }
    }
}

/// An Ethernet header with two VLAN tags.
const ETHERNET_TAGGED_BYTES: usize = 14 + 8;

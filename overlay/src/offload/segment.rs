//! Segmentation and checksums in software, for a device that has no offload.

use super::layout::{Layout, Transport};
use super::vnet_hdr::{BadOffload, Gso, VnetHdr};
use crate::wire::frame::VNET_BYTES;
use crate::wire::ip::{Checksum, IPV6_HEADER_BYTES, Protocol};

/// TCP flags by their place in the header.
const TCP_FLAGS: usize = 13;
const TCP_FIN_PSH: u8 = 0x09;
const TCP_CWR: u8 = 0x80;

/// Cuts super-frames into frames. Keeps one buffer.
#[derive(Debug, Default)]
pub struct Segmenter {
    frame: Vec<u8>,
}

impl Segmenter {
    /// Hands the segments that lie within `ranges` of `packet`, a super-frame with its virtio-net header of which the
    /// rest is missing, to `out`: one super-frame for each range. False if there are none; of a plain frame there never
    /// are. The headers must be here. `head` is put in front of each.
    pub fn salvage(
        &mut self,
        head: &[u8],
        packet: &[u8],
        ranges: &[(usize, usize)],
        out: &mut impl FnMut(&[u8]),
    ) -> bool {
        self.try_salvage(head, packet, ranges, out).unwrap_or(false)
    }

    fn try_salvage(
        &mut self,
        head: &[u8],
        packet: &[u8],
        ranges: &[(usize, usize)],
        out: &mut impl FnMut(&[u8]),
    ) -> Option<bool> {
        let (vnet, frame) = packet.split_first_chunk::<VNET_BYTES>()?;
        let (first, headers_end) = ranges.first().map(|(begin, end)| (*begin, end.saturating_sub(VNET_BYTES)))?;
        // Nothing may be read that is not here: not even a length.
        let vnet = VnetHdr::decode(vnet).ok().filter(|vnet| first == 0 && vnet.gso != Gso::None)?;
        let headers = frame.get(..headers_end.min(frame.len()))?;
        let layout = Layout::of_headers(headers, frame.len()).ok()?;
        let vnet = vnet.rebuild_within(&layout, frame.len()).ok().filter(|vnet| vnet.gso != Gso::None)?;
        let size = usize::from(vnet.gso_size);
        let mut found = false;
        for &(begin, end) in ranges {
            let begin = begin.saturating_sub(VNET_BYTES + layout.payload);
            let end = end.saturating_sub(VNET_BYTES + layout.payload);
            let is_last = end + layout.payload == layout.end;
            let (from, to) = (begin.next_multiple_of(size), if is_last { end } else { end - end % size });
            if from >= to {
                continue;
            }
            found = true;
            self.frame.clear();
            self.frame.extend_from_slice(head);
            let place = Place { index: from / size, offset: from, is_last };
            self.append_piece(&vnet, &layout, frame, (from, to), place);
            out(&self.frame);
        }
        Some(found)
    }

    /// Appends a super-frame of the payload `from..to`, or a plain frame if that is one segment.
    fn append_piece(&mut self, vnet: &VnetHdr, layout: &Layout, frame: &[u8], range: (usize, usize), place: Place) {
        let vnet = VnetHdr { ecn: vnet.ecn && place.index == 0, ..*vnet }.of_payload(range.1 - range.0);
        self.frame.extend_from_slice(&vnet.encode());
        let begin = self.frame.len();
        self.frame.extend_from_slice(&frame[..layout.payload]);
        self.frame.extend_from_slice(&frame[layout.payload + range.0..layout.payload + range.1]);
        prepare_piece(layout, place, &mut self.frame[begin..]);
    }

    /// Hands every frame that `frame` with the rebuilt header `header` stands for to `out`, checksums complete.
    pub fn finish(&mut self, header: &VnetHdr, frame: &[u8], mut out: impl FnMut(&[u8])) -> Result<(), BadOffload> {
        if header.gso != Gso::None {
            return self.split(header, frame, out);
        }
        if !header.needs_csum {
            out(frame);
            return Ok(());
        }
        self.frame.clear();
        self.frame.extend_from_slice(frame);
        complete_checksum(&mut self.frame, header.csum_start.into(), header.csum_offset.into()).ok_or(BadOffload)?;
        out(&self.frame);
        Ok(())
    }

    fn split(&mut self, header: &VnetHdr, frame: &[u8], mut out: impl FnMut(&[u8])) -> Result<(), BadOffload> {
        let layout = Layout::of(frame).map_err(|_| BadOffload)?;
        let size = usize::from(header.gso_size.max(1));
        let pieces = frame[layout.payload..layout.end].chunks(size);
        let last = pieces.len().saturating_sub(1);
        for (index, piece) in pieces.enumerate() {
            self.frame.clear();
            self.frame.extend_from_slice(&frame[..layout.payload]);
            self.frame.extend_from_slice(piece);
            let place = Place { index, offset: index * size, is_last: index == last };
            finish_segment(&layout, place, &mut self.frame);
            out(&self.frame);
        }
        Ok(())
    }
}

/// Which segment of a super-frame, or the first of several in a row.
struct Place {
    index: usize,
    /// Its payload's offset in the super-frame's payload.
    offset: usize,
    is_last: bool,
}

/// Takes the last segment off `packet`, a super-frame with its virtio-net header, and returns how many bytes are left:
/// the caller must cut it there. Of a plain frame nothing can be taken. HOT PATH
pub fn cut_last_segment(packet: &mut [u8]) -> Option<usize> {
    let (header, frame) = packet.split_first_chunk_mut::<VNET_BYTES>()?;
    let vnet = VnetHdr::decode(header).and_then(|wish| wish.rebuild(frame)).ok()?;
    if vnet.gso == Gso::None {
        return None;
    }
    let layout = Layout::of(frame).ok()?;
    let size = usize::from(vnet.gso_size);
    let payload = (layout.end - layout.payload - 1) / size * size;
    let piece = &mut frame[..layout.payload + payload];
    prepare_piece(&layout, Place { index: 0, offset: 0, is_last: false }, piece);
    *header = vnet.of_payload(payload).encode();
    Some(VNET_BYTES + layout.payload + payload)
}

/// As [`finish_segment`] for several segments in a row, whose checksum stays partial.
fn prepare_piece(layout: &Layout, place: Place, piece: &mut [u8]) {
    set_headers(layout, place, piece);
    let (network, transport) = piece[layout.network..].split_at_mut(layout.header - layout.network);
    let partial = !pseudo_header(layout, network, transport.len()).finish();
    put_u16(transport, layout.checksum_offset(), partial.into());
}

/// Writes lengths, identification, sequence number, flags and checksums of one segment that has the super-frame's
/// headers.
fn finish_segment(layout: &Layout, place: Place, segment: &mut [u8]) {
    set_headers(layout, place, segment);
    let (network, transport) = segment[layout.network..].split_at_mut(layout.header - layout.network);
    put_u16(transport, layout.checksum_offset(), 0);
    let checksum = never_zero(pseudo_header(layout, network, transport.len()).with(transport).finish());
    put_u16(transport, layout.checksum_offset(), checksum.into());
}

/// Writes all that a place in the super-frame determines, but for the transport checksum.
fn set_headers(layout: &Layout, place: Place, segment: &mut [u8]) {
    let bytes = segment.len();
    let (network, transport) = segment[layout.network..].split_at_mut(layout.header - layout.network);
    if layout.is_v6 {
        put_u16(network, 4, bytes - layout.network - IPV6_HEADER_BYTES);
    } else {
        put_u16(network, 2, bytes - layout.network);
        let id = u16::from_be_bytes([network[4], network[5]]).wrapping_add(place.index as u16);
        put_u16(network, 4, id.into());
        put_u16(network, 10, 0);
        let checksum = Checksum::default().with(network).finish();
        put_u16(network, 10, checksum.into());
    }
    match layout.transport {
        Transport::Tcp => {
            let number = [transport[4], transport[5], transport[6], transport[7]];
            let number = u32::from_be_bytes(number).wrapping_add(place.offset as u32);
            transport[4..8].copy_from_slice(&number.to_be_bytes());
            if !place.is_last {
                transport[TCP_FLAGS] &= !TCP_FIN_PSH;
            }
            if place.index > 0 {
                transport[TCP_FLAGS] &= !TCP_CWR;
            }
        }
        Transport::Udp => put_u16(transport, 4, bytes - layout.header),
    }
}

/// Addresses, protocol and length, as the transport checksum counts them.
pub(super) fn pseudo_header(layout: &Layout, network: &[u8], transport_bytes: usize) -> Checksum {
    let protocol = match layout.transport {
        Transport::Tcp => Protocol::TCP,
        Transport::Udp => Protocol::UDP,
    };
    let addresses = if layout.is_v6 { &network[8..40] } else { &network[12..20] };
    // Both versions' pseudo headers add up to the same sum: the fields stand in other places of 16-bit words.
    Checksum::default().with(addresses).with(&(transport_bytes as u32).to_be_bytes()).with(&[0, protocol.0])
}

/// Completes a checksum that the kernel left partial: the sum over everything from `start`, where the pseudo header's
/// sum stands in the field. `None` if the field is outside the frame.
pub(super) fn complete_checksum(frame: &mut [u8], start: usize, offset: usize) -> Option<()> {
    let summed = frame.get_mut(start..)?;
    summed.get(offset..offset + 2)?;
    let checksum = never_zero(Checksum::default().with(summed).finish());
    put_u16(summed, offset, checksum.into());
    Some(())
}

/// UDP writes a checksum of zero as all ones, because zero means "none"; for the others the two are equal.
const fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { u16::MAX } else { checksum }
}

pub(super) fn put_u16(bytes: &mut [u8], offset: usize, value: usize) {
    bytes[offset..offset + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

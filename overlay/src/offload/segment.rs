//! Segmentation and checksums in software, for a device that has no offload.

use super::layout::{Layout, Transport};
use super::vnet_hdr::{BadOffload, Gso, VnetHdr};
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

/// Which segment of a super-frame.
struct Place {
    index: usize,
    /// Its payload's offset in the super-frame's payload.
    offset: usize,
    is_last: bool,
}

/// Writes lengths, identification, sequence number, flags and checksums of one segment that has the super-frame's
/// headers.
fn finish_segment(layout: &Layout, place: Place, segment: &mut [u8]) {
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
    put_u16(transport, layout.checksum_offset(), 0);
    let checksum = never_zero(pseudo_header(layout, network, transport.len()).with(transport).finish());
    put_u16(transport, layout.checksum_offset(), checksum.into());
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

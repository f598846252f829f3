//! Explicit congestion notification in the packets that guests send: told instead of dropped, where they understand.

use crate::wire::ethernet::{EtherType, EthernetView};
use crate::wire::ip::{IPV4_HEADER_BYTES, IPV6_HEADER_BYTES};

/// The two bits of the traffic class that say what the sender understands; both set say "congestion experienced".
const ECN: u8 = 0x03;

/// Marks the IP packet in `frame` as having met congestion (CE) if its sender understands that. False if it does not,
/// or if there is no such packet; then the frame is unchanged.
pub fn mark_ce(frame: &mut [u8]) -> bool {
    let Ok(view) = EthernetView::new_checked(frame) else { return false };
    let (ethertype, offset) = (view.ethertype(), view.payload_offset());
    let packet = &mut frame[offset..];
    match ethertype {
        EtherType::IPV4 => packet.first_chunk_mut::<IPV4_HEADER_BYTES>().is_some_and(mark_v4),
        EtherType::IPV6 => packet.first_chunk_mut::<IPV6_HEADER_BYTES>().is_some_and(mark_v6),
        _ => false,
    }
}

fn mark_v4(header: &mut [u8; IPV4_HEADER_BYTES]) -> bool {
    if header[0] >> 4 != 4 || header[1] & ECN == 0 {
        return false;
    }
    let before = u16::from_be_bytes([header[0], header[1]]);
    header[1] |= ECN;
    let after = u16::from_be_bytes([header[0], header[1]]);
    let checksum = u16::from_be_bytes([header[10], header[11]]);
    header[10..12].copy_from_slice(&updated(checksum, before, after).to_be_bytes());
    true
}

/// Bits 4 to 11 of an IPv6 header are its traffic class; it has no checksum.
fn mark_v6(header: &mut [u8; IPV6_HEADER_BYTES]) -> bool {
    if header[0] >> 4 != 6 || (header[1] >> 4) & ECN == 0 {
        return false;
    }
    header[1] |= ECN << 4;
    true
}

/// An Internet checksum after one of the summed words has changed (RFC 1624, equation 3).
fn updated(checksum: u16, before: u16, after: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!before) + u32::from(after);
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

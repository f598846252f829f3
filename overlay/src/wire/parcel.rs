//! A parcel: a frame to a group, packed for one port of another host. This is its only definition.
//!
//! An Ethernet frame for the guest behind that port, behind a plain virtio-net header. It travels under a frame header
//! with [`FLAGS`], which nothing else has, and never leaves the overlay. Behind the Ethernet header:
//!
//! ```text
//!  0 .. 3   4         5        6  7    8 .. 15                       16 ..
//! +--------+---------+--------+-------+-----------------------------+--------------------------------------+
//! | "VOUP" | version | counts | 0  0  | microseconds (BE), see time | virtio-net header, frame to a group  |
//! +--------+---------+--------+-------+-----------------------------+--------------------------------------+
//! ```

use super::PacketError;
use super::beacon::ETHERTYPE;
use super::ethernet::{self, EthernetView, VlanTags};
use super::frame::{Flags, VNET_BYTES};
use crate::ids::Mac;
use crate::limits::FRAME_BYTES_MAX;

/// What the frame header of a parcel says: a flooded frame is never sent on, so nothing else has both.
pub const FLAGS: Flags = Flags::VNET.with(Flags::FLOOD).with(Flags::FORWARDED);

/// Version of the parcel that this host speaks.
pub const VERSION: u8 = 1;

/// Bytes before the packet inside.
pub const HEAD_BYTES: usize = VNET_BYTES + ethernet::HEADER_BYTES + BODY_BYTES;

const BODY_BYTES: usize = 16;
const MAGIC: [u8; 4] = *b"VOUP";
const COUNTS_AT: usize = VNET_BYTES + ethernet::HEADER_BYTES + 5;
const TIME_AT: usize = VNET_BYTES + ethernet::HEADER_BYTES + 8;

/// A parcel that was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parcel<'a> {
    /// Microseconds: on the wire the age of the packet inside, the time since its host got it. A host that keeps the
    /// parcel writes there when that was, by its own clock.
    pub time: u64,
    /// Whether it waited at its host, so that both hosts count it.
    pub counts: bool,
    /// Virtio-net header and frame.
    pub packet: &'a [u8],
    /// The station that sent the frame.
    pub src: Mac,
}

/// Packs `packet` (virtio-net header and frame) for `dst`. Nothing if it is too large to be packed.
pub fn pack(dst: Mac, src: Mac, time: u64, packet: &[u8]) -> Option<Vec<u8>> {
    let frame_bytes = HEAD_BYTES - VNET_BYTES + packet.len();
    if frame_bytes > FRAME_BYTES_MAX {
        return None;
    }
    let mut parcel = vec![0; VNET_BYTES];
    parcel.extend(ethernet::build_header(dst, src, VlanTags::NONE, ETHERTYPE, BODY_BYTES + packet.len()));
    parcel.extend_from_slice(&MAGIC);
    parcel.extend_from_slice(&[VERSION, 0, 0, 0]);
    parcel.extend_from_slice(&time.to_be_bytes());
    parcel.extend_from_slice(packet);
    Some(parcel)
}

/// Reads a parcel: all of it, with its own virtio-net header.
///
/// # Errors
/// If it is none, is of another version, or what it holds is not a frame to a group.
pub fn open(bytes: &[u8]) -> Result<Parcel<'_>, PacketError> {
    let (head, packet) = bytes.split_at_checked(HEAD_BYTES).ok_or(PacketError::Truncated)?;
    let view = EthernetView::new_checked(head.get(VNET_BYTES..).ok_or(PacketError::Truncated)?)?;
    let body = view.payload().first_chunk::<BODY_BYTES>().ok_or(PacketError::Truncated)?;
    let &[m0, m1, m2, m3, version, counts, _, _, t0, t1, t2, t3, t4, t5, t6, t7] = body;
    if view.ethertype() != ETHERTYPE || [m0, m1, m2, m3] != MAGIC || version != VERSION {
        return Err(PacketError::OtherKind);
    }
    let inner = EthernetView::new_checked(packet.get(VNET_BYTES..).ok_or(PacketError::Truncated)?)?;
    if !inner.dst().is_group() || inner.src().is_group() || inner.src() == Mac::ZERO {
        return Err(PacketError::Malformed);
    }
    let time = u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]);
    Ok(Parcel { time, counts: counts != 0, packet, src: inner.src() })
}

/// Writes another time into a parcel.
pub fn set_time(parcel: &mut [u8], time: u64) {
    if let Some(bytes) = parcel.get_mut(TIME_AT..TIME_AT + 8) {
        bytes.copy_from_slice(&time.to_be_bytes());
    }
}

/// Marks a parcel as one that waited at its host.
pub fn set_counts(parcel: &mut [u8]) {
    if let Some(byte) = parcel.get_mut(COUNTS_AT) {
        *byte = 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GUEST: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const HOST: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn packet(dst: Mac, src: Mac) -> Vec<u8> {
        [&[7; VNET_BYTES][..], &dst.0, &src.0, &[0x08, 0, 1, 2, 3]].concat()
    }

    #[test]
    fn what_was_packed_is_found_again() {
        let packet = packet(Mac::BROADCAST, HOST);
        let mut parcel = pack(GUEST, HOST, 5, &packet).unwrap();
        assert_eq!(open(&parcel), Ok(Parcel { time: 5, counts: false, packet: &packet, src: HOST }));
        set_time(&mut parcel, 9);
        set_counts(&mut parcel);
        assert_eq!(open(&parcel), Ok(Parcel { time: 9, counts: true, packet: &packet, src: HOST }));
        assert_eq!(EthernetView::new_checked(&parcel[VNET_BYTES..]).unwrap().dst(), GUEST);
    }

    #[test]
    fn only_frames_to_groups_of_stations_are_taken() {
        for (dst, src) in [(GUEST, HOST), (Mac::BROADCAST, Mac::BROADCAST), (Mac::BROADCAST, Mac::ZERO)] {
            let parcel = pack(GUEST, HOST, 0, &packet(dst, src)).unwrap();
            assert_eq!(open(&parcel), Err(PacketError::Malformed));
        }
        assert_eq!(pack(GUEST, HOST, 0, &vec![0; VNET_BYTES + FRAME_BYTES_MAX]), None);
        assert_eq!(open(&packet(GUEST, HOST)), Err(PacketError::Truncated));
    }

    proptest! {
        #[test]
        fn any_bytes_open_or_fail(bytes: Vec<u8>, cut in 0usize..90) {
            let _ = open(&bytes);
            let mut parcel = pack(GUEST, HOST, 1, &packet(Mac::BROADCAST, HOST)).unwrap();
            parcel.truncate(cut);
            let _ = open(&parcel);
            let tail: Vec<u8> = parcel.into_iter().take(HEAD_BYTES).chain(bytes).collect();
            let _ = open(&tail);
        }
    }
}

//! The exclusive or of a packet's pieces of one length, by which the bytes of one lost datagram are found again: of all
//! bytes at a distance of that length, at most one was in it.

use std::ops::Range;

/// Adds the bytes that stand at `offset` of the packet.
pub(super) fn add(parity: &mut [u8], offset: usize, mut bytes: &[u8]) {
    let mut place = offset.checked_rem(parity.len()).unwrap_or(0);
    while !bytes.is_empty() && !parity.is_empty() {
        let room = &mut parity[place..];
        let (now, rest) = bytes.split_at(bytes.len().min(room.len()));
        room.iter_mut().zip(now).for_each(|(sum, byte)| *sum ^= byte);
        (bytes, place) = (rest, 0);
    }
}

/// Fills the only gap of `packet`, which is no longer than the parity.
pub(super) fn fill_gap(packet: &mut [u8], gap: Range<usize>, mut parity: Vec<u8>) {
    add(&mut parity, 0, &packet[..gap.start]);
    add(&mut parity, gap.end, &packet[gap.end..]);
    let begin = gap.start % parity.len();
    let sums = parity[begin..].iter().chain(&parity[..begin]);
    packet[gap].iter_mut().zip(sums).for_each(|(byte, sum)| *byte = *sum);
}

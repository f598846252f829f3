//! Packer and reassembler against each other and against a model.

use super::reassembler::Losses;
use super::*;
use crate::time::Instant;
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::HashMap;

fn pack(size: usize, packets: &[Vec<u8>]) -> Vec<Bytes> {
    let mut packer = Packer::default();
    let mut datagrams = Vec::new();
    for packet in packets {
        let (head, body) = packet.split_at(packet.len().min(18));
        packer.push(size, head, body, &mut |datagram| datagrams.push(datagram));
    }
    packer.flush(&mut |datagram| datagrams.push(datagram));
    datagrams
}

fn unpack<'a>(datagrams: impl IntoIterator<Item = &'a Bytes>) -> (Vec<Vec<u8>>, Reassembler) {
    let mut reassembler = Reassembler::default();
    let mut packets = Vec::new();
    for datagram in datagrams {
        reassembler.feed(Instant(0), datagram, |packet| packets.push(packet.to_vec()));
    }
    (packets, reassembler)
}

/// Packets that are all different, so that a mixture of two would show.
fn packets() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop_oneof![19usize..200, 1000usize..3000, Just(PACKET_BYTES_MAX)], 1..40).prop_map(|sizes| {
        let numbered =
            |(index, size): (usize, usize)| (0..size).map(|at| (at.wrapping_mul(31) ^ index) as u8).collect();
        sizes.into_iter().enumerate().map(numbered).collect()
    })
}

proptest! {
    #[test]
    fn what_is_packed_comes_out_in_order(size in 200usize..1500, packets in packets()) {
        let datagrams = pack(size, &packets);
        for datagram in &datagrams[..datagrams.len() - 1] {
            prop_assert_eq!(datagram.len(), size, "only the last datagram may be short");
        }
        let (out, mut reassembler) = unpack(&datagrams);
        prop_assert_eq!(out, packets);
        prop_assert_eq!(reassembler.take_losses(), Losses::default());
    }

    #[test]
    fn loss_reorder_and_duplication_yield_only_whole_frames(
        size in 200usize..1500,
        packets in packets(),
        faults in prop::collection::vec((0u8..10, 0usize..20), 1..2000),
    ) {
        let datagrams = pack(size, &packets);
        let mut arrivals = Vec::new();
        for (index, datagram) in datagrams.iter().enumerate() {
            let (fault, delay) = faults[index % faults.len()];
            let times = match fault { 0 => 0, 1 => 2, _ => 1 };
            arrivals.extend((0..times).map(|time| (index + time * delay + if fault == 2 { delay } else { 0 }, datagram)));
        }
        arrivals.sort_by_key(|(at, _)| *at);
        let (out, _) = unpack(arrivals.into_iter().map(|(_, datagram)| datagram));
        let mut sent: HashMap<&[u8], usize> = HashMap::new();
        for packet in &packets {
            *sent.entry(packet).or_default() += 1;
        }
        for packet in &out {
            prop_assert!(sent.contains_key(&packet[..]), "a packet came out that was never sent");
        }
    }

    #[test]
    fn any_bytes_are_taken(datagrams: Vec<Vec<u8>>) {
        let datagrams: Vec<Bytes> = datagrams.into_iter().map(Bytes::from).collect();
        unpack(&datagrams);
    }

    /// Chunks of one frame in any cut and order, against a model that remembers which bytes are here.
    #[test]
    fn one_frame_matches_the_model(chunks in prop::collection::vec((0usize..100, 1usize..60), 1..40)) {
        const TOTAL: usize = 100;
        let frame: Vec<u8> = (0..TOTAL as u8).collect();
        let mut reassembler = Reassembler::default();
        let mut have = [false; TOTAL];
        for (offset, len) in chunks {
            let end = (offset + len).min(TOTAL);
            let mut datagram = ChunkHeader { id: 7, offset, total: TOTAL }.encode().to_vec();
            datagram.extend(&frame[offset..end]);
            let mut out = Vec::new();
            reassembler.feed(Instant(0), &datagram, |packet| out.push(packet.to_vec()));
            let overlap = have[offset..end].iter().filter(|have| **have).count();
            if end - offset == TOTAL {
                prop_assert_eq!(&out[..], std::slice::from_ref(&frame), "a whole frame passes at once");
                continue;
            }
            if overlap == end - offset {
                prop_assert!(out.is_empty(), "a duplicate changes nothing");
                continue;
            }
            have[offset..end].fill(true);
            if overlap > 0 {
                prop_assert!(out.is_empty());
                prop_assert_eq!(reassembler.take_losses().incomplete, 1, "an overlap ends the frame");
                have = [false; TOTAL];
            } else if have == [true; TOTAL] {
                prop_assert_eq!(&out[..], std::slice::from_ref(&frame));
                have = [false; TOTAL];
            } else {
                prop_assert!(out.is_empty());
            }
        }
    }
}

#[test]
fn lost_frames_are_counted_once_they_are_old() {
    let datagrams = pack(1200, &[vec![1; 5000]]);
    let (out, mut reassembler) = unpack(&datagrams[1..]);
    assert!(out.is_empty());
    reassembler.expire(Instant(400_000));
    assert_eq!(reassembler.take_losses().incomplete, 0);
    reassembler.expire(Instant(600_000));
    assert_eq!(reassembler.take_losses().incomplete, 1);
}

#[test]
fn incomplete_frames_pin_bounded_memory() {
    let mut reassembler = Reassembler::default();
    for id in 0..1000 {
        let mut datagram = ChunkHeader { id, offset: 0, total: PACKET_BYTES_MAX }.encode().to_vec();
        datagram.extend([0; 100]);
        reassembler.feed(Instant(u64::from(id)), &datagram, |_| panic!("incomplete"));
    }
    assert!(reassembler.take_losses().incomplete >= 1000 - 16);
}

#[test]
fn contradicting_headers_are_malformed() {
    for (offset, total) in [(5, 5), (9, 5), (0, PACKET_BYTES_MAX + 1)] {
        let mut datagram = ChunkHeader { id: 0, offset, total }.encode().to_vec();
        datagram.extend([0; 100]);
        let (out, mut reassembler) = unpack([&Bytes::from(datagram)]);
        assert!(out.is_empty());
        assert_eq!(reassembler.take_losses(), Losses { incomplete: 0, malformed: 1 });
    }
}

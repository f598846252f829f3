//! Packer and reassembler against each other and against a model.

use super::reassembler::Losses;
use super::*;
use crate::time::Instant;
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::HashMap;
use std::time::Duration;

const NONE: Redundancy = Redundancy { headers: 0, parity: false };

fn pack(size: usize, packets: &[Vec<u8>]) -> Vec<Bytes> {
    let mut packer = Packer::default();
    let mut datagrams = Vec::new();
    for packet in packets {
        let (head, body) = packet.split_at(packet.len().min(18));
        packer.push(size, NONE, head, body, &mut |datagram| datagrams.push(datagram));
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
    fn one_datagram_of_each_packet_may_get_lost(
        size in 200usize..1500,
        datagram_counts in prop::collection::vec(3usize..12, 1..20),
        lost in 0usize..12,
    ) {
        let (mut packer, mut reassembler) = (Packer::default(), Reassembler::default());
        for (index, count) in datagram_counts.into_iter().enumerate() {
            let packet: Vec<u8> = (0..count * (size - 8) - index).map(|at| ((at * 31) ^ index) as u8).collect();
            let mut datagrams = Vec::new();
            packer.push(size, Redundancy { headers: 0, parity: true }, &packet[..18], &packet[18..], &mut |d| datagrams.push(d));
            packer.flush(&mut |datagram| datagrams.push(datagram));
            prop_assert_eq!(datagrams.len(), count + 1);
            datagrams.remove(lost % count);
            let mut out = Vec::new();
            datagrams.iter().for_each(|d| reassembler.feed(Instant(0), d, |packet| out.push(packet.to_vec())));
            prop_assert_eq!(out, [packet]);
        }
        prop_assert_eq!(reassembler.take_losses(), Losses::default());
        prop_assert_eq!(reassembler.deadline(), None);
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
        let mut id = 7;
        for (offset, len) in chunks {
            let end = (offset + len).min(TOTAL);
            let mut datagram = ChunkHeader { id, offset, total: TOTAL, short: 0 }.encode().to_vec();
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
                (have, id) = ([false; TOTAL], id + 1);
            } else if have == [true; TOTAL] {
                prop_assert_eq!(&out[..], std::slice::from_ref(&frame));
                (have, id) = ([false; TOTAL], id + 1);
            } else {
                prop_assert!(out.is_empty());
            }
        }
    }
}

#[test]
fn the_end_of_a_packet_is_repeated_and_no_other_packet() {
    let (large, small) = (vec![1; 1540], vec![2; 90]);
    let mut packer = Packer::default();
    let mut datagrams = Vec::new();
    for packet in [&large, &small] {
        packer.push(1434, NONE, &packet[..18], &packet[18..], &mut |datagram| datagrams.push(datagram));
    }
    packer.flush_and_repeat(512, &mut |datagram| datagrams.push(datagram));
    assert_eq!(datagrams.iter().map(Bytes::len).collect::<Vec<_>>(), [1434, 122 + 98, 122]);
    let (all, mut reassembler) = unpack(&datagrams);
    assert_eq!(all, [large.clone(), small.clone()]);
    assert_eq!(reassembler.take_losses(), Losses::default());
    let (without_second, _) = unpack([&datagrams[0], &datagrams[2]]);
    assert_eq!(without_second, [large], "the small packet was in the one that got lost");
    // What fits into one datagram, and what is too large, goes once.
    for (bytes, count) in [(900, 1), (2400, 2)] {
        let mut count_left = count;
        packer.push(1434, NONE, &[], &vec![3; bytes], &mut |_| count_left -= 1);
        packer.flush_and_repeat(512, &mut |_| count_left -= 1);
        assert_eq!(count_left, 0, "{bytes}");
    }
}

#[test]
fn lost_frames_are_counted_once_nothing_more_will_come() {
    let datagrams = pack(1200, &[vec![1; 5000]]);
    let (out, mut reassembler) = unpack(&datagrams[1..]);
    assert!(out.is_empty());
    let deadline = reassembler.deadline().unwrap();
    reassembler.settle(Instant(deadline.0 - 1), |_| panic!("it may come yet"));
    assert_eq!(reassembler.take_losses().incomplete, 0);
    reassembler.settle(deadline, |_| panic!("of a plain frame there are no parts"));
    assert_eq!(reassembler.take_losses(), Losses { incomplete: 1, repaired: 0, malformed: 0 });
    assert_eq!(reassembler.deadline(), None);
}

/// A TCP super-frame of `segments` times 1000 bytes behind a frame header and a virtio-net header.
fn super_frame(segments: usize) -> Vec<u8> {
    let mut packet = vec![1, 1, 4, 0, 0, 0, 0, 7];
    packet.extend([1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0]);
    packet.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0]);
    packet.extend((40 + segments as u16 * 1000).to_be_bytes());
    packet.extend([0, 9, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend([0, 80, 0, 81, 0, 0, 0, 0, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    packet.extend((0..segments * 1000).map(|at| (at / 1000) as u8));
    packet
}

/// Sends a super-frame, loses the datagram `lost`, and returns which segments came out.
fn survivors(guarded: usize, lost: usize) -> Vec<u8> {
    const SEGMENTS: usize = 20;
    let mut packer = Packer::default();
    let mut datagrams = Vec::new();
    let packet = super_frame(SEGMENTS);
    packer.push(1400, Redundancy { headers: guarded, parity: false }, &packet[..18], &packet[18..], &mut |datagram| {
        datagrams.push(datagram);
    });
    // What follows tells that nothing more will come.
    packer.push(1400, NONE, &[9; 18], &[9; 6000], &mut |datagram| datagrams.push(datagram));
    packer.flush(&mut |datagram| datagrams.push(datagram));
    datagrams.remove(lost);
    let (out, _) = unpack(&datagrams);
    let mut segments = Vec::new();
    for packet in out.iter().filter(|packet| packet[0] == 1) {
        let payload = &packet[18 + 54..];
        assert_eq!(payload.len() % 1000, 0);
        let sequence = u32::from_be_bytes(packet[18 + 38..18 + 42].try_into().unwrap());
        assert_eq!(sequence, u32::from(payload[0]) * 1000);
        assert!(payload.iter().enumerate().all(|(at, byte)| usize::from(*byte) == usize::from(payload[0]) + at / 1000));
        segments.extend((0..payload.len() / 1000).map(|segment| payload[segment * 1000]));
    }
    assert!(segments.is_sorted());
    segments
}

#[test]
fn a_lost_datagram_costs_the_segments_that_it_carried() {
    for lost in 1..14 {
        let segments = survivors(0, lost);
        assert!(segments.len() >= 17, "datagram {lost}: {segments:?}");
    }
    assert_eq!(survivors(0, 0), [], "without headers there are no segments");
    for lost in 0..14 {
        let segments = survivors(72, lost);
        assert!(segments.len() >= 17, "headers sent twice, datagram {lost}: {segments:?}");
    }
}

#[test]
fn headers_that_are_sent_twice_change_nothing_else() {
    let mut packer = Packer::default();
    let mut datagrams = Vec::new();
    let packets = [super_frame(20), vec![5; 100], super_frame(40), vec![6; 4000]];
    for packet in &packets {
        packer.push(1400, Redundancy { headers: 72, parity: false }, &packet[..18], &packet[18..], &mut |datagram| {
            datagrams.push(datagram);
        });
    }
    packer.flush(&mut |datagram| datagrams.push(datagram));
    let (out, mut reassembler) = unpack(&datagrams);
    assert_eq!(out, packets);
    assert_eq!(reassembler.take_losses(), Losses::default());
    assert_eq!(reassembler.deadline(), None);
}

#[test]
fn a_path_that_reorders_is_given_more_time() {
    let mut reassembler = Reassembler::default();
    let mut packer = Packer::default();
    let mut complete = 0;
    for _ in 0..50 {
        let mut datagrams = Vec::new();
        packer.push(1000, NONE, &[7; 18], &[7; 20_000], &mut |datagram| datagrams.push(datagram));
        packer.flush(&mut |datagram| datagrams.push(datagram));
        // The third one comes eight later, behind the frame's end or not.
        let late = datagrams.remove(12);
        datagrams.push(late);
        let mut next = Vec::new();
        packer.push(1000, NONE, &[8; 18], &[8; 10_000], &mut |datagram| next.push(datagram));
        packer.flush(&mut |datagram| next.push(datagram));
        let late = datagrams.pop().unwrap();
        next.insert(8, late);
        for datagram in datagrams.iter().chain(&next) {
            reassembler.feed(Instant(0), datagram, |packet| complete += u32::from(packet.len() == 20_018));
        }
    }
    assert!(complete >= 45, "{complete}");
}

/// Sends a packet of two datagrams, the second one `gap` later, if it comes. True if all of it came out.
fn passes(reassembler: &mut Reassembler, id: u16, now: &mut Instant, gap: Option<Duration>) -> bool {
    let chunk = |offset| [&ChunkHeader { id, offset, total: 200, short: 0 }.encode()[..], &[1; 100]].concat();
    let mut is_whole = false;
    reassembler.feed(*now, &chunk(0), |packet| is_whole |= packet.len() == 200);
    let deadline = reassembler.deadline().unwrap();
    if gap.is_none_or(|gap| *now + gap >= deadline) {
        reassembler.settle(deadline, |_| panic!("of a plain frame there are no parts"));
    }
    *now = gap.map_or(deadline, |gap| *now + gap);
    if gap.is_some() {
        reassembler.feed(*now, &chunk(100), |packet| is_whole |= packet.len() == 200);
    }
    is_whole
}

#[test]
fn a_slow_path_is_given_more_time() {
    let (mut reassembler, mut now) = (Reassembler::default(), Instant(0));
    let mut passes = |id, gap: Option<u64>| passes(&mut reassembler, id, &mut now, gap.map(Duration::from_millis));
    assert!(passes(0, Some(30)), "1 Mbit/s, beside another flow");
    assert!(!passes(1, Some(70)));
    assert!((2..40).all(|id| passes(id, Some(70))), "a window is open once in a round trip of 70 ms");
    // Where chunks get lost nobody waits for so long.
    assert!((100..140).all(|id| !passes(id, None)));
    assert!(!passes(200, Some(30)));
    assert!(passes(201, Some(30)), "one late chunk is enough to know better");
    assert!(!passes(202, Some(5000)));
    assert!(!passes(203, Some(5000)), "but it is not waited for without end");
}

#[test]
fn incomplete_frames_pin_bounded_memory() {
    let mut reassembler = Reassembler::default();
    for id in 0..1000 {
        let mut datagram = ChunkHeader { id, offset: 0, total: PACKET_BYTES_MAX, short: 0 }.encode().to_vec();
        datagram.extend([0; 100]);
        reassembler.feed(Instant(u64::from(id)), &datagram, |_| panic!("incomplete"));
    }
    assert!(reassembler.take_losses().incomplete >= 1000 - 16);
}

#[test]
fn contradicting_headers_are_malformed() {
    for (offset, total) in [(9, 5), (0, PACKET_BYTES_MAX + 1)] {
        let mut datagram = ChunkHeader { id: 0, offset, total, short: 0 }.encode().to_vec();
        datagram.extend([0; 100]);
        let (out, mut reassembler) = unpack([&Bytes::from(datagram)]);
        assert!(out.is_empty());
        assert_eq!(reassembler.take_losses(), Losses { incomplete: 0, repaired: 0, malformed: 1 });
    }
}

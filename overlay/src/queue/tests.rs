//! Flow queues against a model that does the same slowly, and properties that hold whatever comes.

use super::*;
use crate::ids::NetworkId;
use crate::time::Instant;
use crate::wire::frame::{Flags, FrameHeader, VNET_BYTES};
use crate::wire::ip::Checksum;
use proptest::prelude::*;

mod model;

const HEADER: FrameHeader = FrameHeader { network: NetworkId(1), hops: 1, flags: Flags::VNET };
const ROOM: usize = 1 << 20;

/// A UDP packet over IPv4 behind a virtio-net header, from port `flow`, its payload numbered.
fn packet(flow: u16, number: u32, bytes: usize, ecn: u8) -> Vec<u8> {
    let mut packet = vec![0; VNET_BYTES];
    packet.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    let mut ip = vec![0x45, ecn, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ip[2..4].copy_from_slice(&(28 + bytes as u16).to_be_bytes());
    let checksum = Checksum::default().with(&ip).finish();
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(ip);
    packet.extend(flow.to_be_bytes());
    packet.extend([0, 9]);
    packet.extend((8 + bytes as u16).to_be_bytes());
    packet.extend([0, 0]);
    let payload = packet.len();
    packet.resize(payload + bytes.max(4), 0);
    packet[payload..payload + 4].copy_from_slice(&number.to_be_bytes());
    packet
}

/// Bytes of each segment of a [`super_frame`].
const SEGMENT_BYTES: usize = 1000;

/// As [`packet`], to be segmented.
fn super_frame(number: u32, segments: u16) -> Vec<u8> {
    let mut packet = packet(1, number, usize::from(segments) * SEGMENT_BYTES, 0);
    // NEEDS_CSUM, GSO_UDP_L4, no header length, the segments, the UDP header and the place of its checksum.
    packet[..2].copy_from_slice(&[1, 5]);
    packet[4..6].copy_from_slice(&(SEGMENT_BYTES as u16).to_le_bytes());
    packet[6..10].copy_from_slice(&[34, 0, 6, 0]);
    packet
}

fn flow_of(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[44], packet[45]])
}

fn number_of(packet: &[u8]) -> u32 {
    u32::from_be_bytes([packet[52], packet[53], packet[54], packet[55]])
}

/// What a test does to the queues.
#[derive(Clone, Debug)]
enum Step {
    Push { flow: u16, bytes: usize, ecn: u8 },
    Pop,
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![4usize..100, 1000usize..1500, 20_000usize..60_000];
    let push = (0u16..6, size, 0u8..4).prop_map(|(flow, bytes, ecn)| Step::Push { flow, bytes, ecn });
    prop::collection::vec(
        prop_oneof![6 => push, 5 => Just(Step::Pop), 3 => (1u64..40_000).prop_map(Step::Wait)],
        1..600,
    )
}

proptest! {
    #[test]
    fn nothing_is_lost_reordered_or_above_the_bound(steps in steps()) {
        let mut queue = FqCodel::new(7, ROOM);
        let (mut now, mut pushed, mut dropped, mut popped) = (0, 0u32, 0u32, 0u32);
        let mut last = [None; 6];
        for step in steps {
            match step {
                Step::Push { flow, bytes, ecn } => {
                    queue.push(Instant(now), HEADER, packet(flow, pushed, bytes, ecn), &mut |_| dropped += 1);
                    pushed += 1;
                    prop_assert!(queue.bytes() <= ROOM);
                }
                Step::Pop => {
                    if let Some(queued) = queue.pop(Instant(now), &mut |_| dropped += 1) {
                        let number = Some(number_of(&queued.packet));
                        let last = &mut last[usize::from(flow_of(&queued.packet))];
                        prop_assert!(*last < number, "order within a flow");
                        *last = number;
                        popped += 1;
                    } else {
                        prop_assert!(queue.is_empty());
                    }
                }
                Step::Wait(micros) => now += micros,
            }
            prop_assert_eq!(pushed, popped + dropped + queue.len() as u32);
        }
        while queue.pop(Instant(now), &mut |_| dropped += 1).is_some() {
            popped += 1;
        }
        prop_assert_eq!((queue.len(), queue.bytes()), (0, 0));
        prop_assert_eq!(pushed, popped + dropped);
    }

    #[test]
    fn matches_the_model(steps in steps()) {
        let mut queue = FqCodel::new(7, ROOM);
        let mut model = model::Model::new(7, ROOM);
        let (mut now, mut pushed) = (0, 0u32);
        for step in steps {
            match step {
                Step::Push { flow, bytes, ecn } => {
                    let packet = packet(flow, pushed, bytes, ecn);
                    pushed += 1;
                    let mut dropped = Vec::new();
                    queue.push(Instant(now), HEADER, packet.clone(), &mut |queued| dropped.push(queued.packet));
                    prop_assert_eq!(dropped, model.push(now, packet));
                }
                Step::Pop => {
                    let mut dropped = Vec::new();
                    let popped = queue.pop(Instant(now), &mut |queued| dropped.push(queued.packet));
                    prop_assert_eq!((popped.map(|queued| queued.packet), dropped), model.pop(now));
                }
                Step::Wait(micros) => now += micros,
            }
        }
    }

    #[test]
    fn a_mark_keeps_the_checksum_right(ecn in 0u8..4, source: u8, ttl: u8) {
        let mut frame = packet(1, 2, 30, ecn)[VNET_BYTES..].to_vec();
        (frame[22], frame[29]) = (ttl, source);
        frame[24..26].copy_from_slice(&[0, 0]);
        let checksum = Checksum::default().with(&frame[14..34]).finish();
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        let before = frame.clone();
        prop_assert_eq!(mark_ce(&mut frame), ecn != 0);
        if ecn == 0 {
            prop_assert_eq!(frame, before);
        } else {
            prop_assert_eq!(frame[15] & 3, 3);
            prop_assert_eq!(Checksum::default().with(&frame[14..34]).finish(), 0);
        }
    }

    #[test]
    fn any_bytes_have_a_flow_and_may_be_marked(mut frame: Vec<u8>, seed: u64) {
        let hash = flow_hash(seed, NetworkId(3), &frame);
        prop_assert_eq!(hash, flow_hash(seed, NetworkId(3), &frame));
        mark_ce(&mut frame);
    }
}

#[test]
fn a_sparse_flow_goes_first() {
    let mut queue = FqCodel::new(7, ROOM);
    for number in 0..100 {
        queue.push(Instant(0), HEADER, packet(1, number, 1400, 0), &mut |_| {});
    }
    for _ in 0..20 {
        queue.pop(Instant(0), &mut |_| {});
    }
    queue.push(Instant(0), HEADER, packet(2, 0, 56, 0), &mut |_| {});
    assert_eq!(flow_of(&queue.pop(Instant(0), &mut |_| {}).unwrap().packet), 2);
}

#[test]
fn busy_flows_share_bytes_and_not_packets() {
    let mut queue = FqCodel::new(7, 64 << 20);
    for number in 0..1000 {
        queue.push(Instant(0), HEADER, packet(1, number, 1400, 0), &mut |_| {});
        queue.push(Instant(0), HEADER, packet(2, number, 50_000, 0), &mut |_| {});
    }
    let mut bytes = [0; 3];
    while bytes[1] < 1_000_000 {
        let queued = queue.pop(Instant(0), &mut |_| {}).unwrap();
        bytes[usize::from(flow_of(&queued.packet))] += queued.packet.len();
    }
    let ratio = f64::from(bytes[1] as u32) / f64::from(bytes[2] as u32);
    assert!((0.8..1.25).contains(&ratio), "{bytes:?}");
}

#[test]
fn a_standing_queue_is_told_a_burst_is_not() {
    let mut queue = FqCodel::new(7, 64 << 20);
    let mut dropped = 0;
    // A burst that is gone within the interval.
    for number in 0..200 {
        queue.push(Instant(0), HEADER, packet(1, number, 1400, 0), &mut |_| dropped += 1);
    }
    for at in 0..200 {
        queue.pop(Instant(at * 200), &mut |_| dropped += 1);
    }
    assert_eq!(dropped, 0);
    // The same wait for seconds.
    for number in 0..5000 {
        let at = Instant(1_000_000 + u64::from(number) * 1000);
        queue.push(at, HEADER, packet(1, number, 1400, 0), &mut |_| dropped += 1);
        if number >= 10 {
            queue.pop(at, &mut |_| dropped += 1);
        }
    }
    assert!(dropped > 3, "{dropped}");
}

#[test]
fn who_understands_is_marked_and_not_dropped() {
    let mut queue = FqCodel::new(7, 64 << 20);
    for number in 0..2000 {
        let at = Instant(u64::from(number) * 1000);
        queue.push(at, HEADER, packet(1, number, 1400, 2), &mut |_| panic!("dropped"));
        if number >= 10 {
            queue.pop(at, &mut |_| panic!("dropped"));
        }
    }
    assert!(queue.marked() > 3, "{}", queue.marked());
}

#[test]
fn a_super_frame_loses_one_segment() {
    let mut queue = FqCodel::new(7, 64 << 20);
    let segments: u16 = 40;
    let mut popped = Vec::new();
    for number in 0..2000 {
        let at = Instant(u64::from(number) * 1000);
        queue.push(at, HEADER, super_frame(number, segments), &mut |_| panic!("dropped"));
        if number >= 10 {
            popped.extend(queue.pop(at, &mut |_| panic!("dropped")).map(|queued| queued.packet));
        }
    }
    let bytes = super_frame(0, segments).len();
    let cut = popped.iter().filter(|packet| packet.len() == bytes - SEGMENT_BYTES).count();
    assert!(cut > 3 && cut as u64 == queue.cut(), "{cut}");
    assert!(popped.iter().all(|packet| packet.len() >= bytes - SEGMENT_BYTES), "no more than one");
    assert!(popped.is_sorted_by_key(|packet| number_of(packet)));
}

#[test]
fn a_flood_drops_its_own_and_not_others() {
    let mut queue = FqCodel::new(7, ROOM);
    for number in 0..10 {
        queue.push(Instant(0), HEADER, packet(2, number, 100, 0), &mut |_| panic!("there is room"));
    }
    for number in 0..20_000 {
        let drop = |queued: Queued<Vec<u8>>| assert_eq!(flow_of(&queued.packet), 1);
        queue.push(Instant(0), HEADER, packet(1, number, 1400, 0), &mut { drop });
    }
}

#[test]
fn what_is_too_old_goes() {
    let mut queue = FqCodel::new(7, ROOM);
    for second in 0..5 {
        queue.push(Instant(second * 1_000_000), HEADER, packet(1, second as u32, 100, 0), &mut |_| {});
    }
    let mut expired = 0;
    queue.expire(Instant(2_500_000), &mut |_| expired += 1);
    assert_eq!((expired, queue.len()), (3, 2));
}

/// Frames of one conversation, and one that differs in a single thing.
#[test]
fn what_makes_a_conversation() {
    let hash = |frame: &[u8]| flow_hash(7, NetworkId(1), frame);
    let v4 = packet(5, 0, 100, 0)[VNET_BYTES..].to_vec();
    let mut tagged = v4[..12].to_vec();
    tagged.extend([0x81, 0, 0, 5]);
    tagged.extend(&v4[12..]);
    assert_eq!(hash(&v4), hash(&packet(5, 9, 1000, 1)[VNET_BYTES..]));
    assert_eq!(hash(&v4), hash(&tagged), "the same conversation behind a tag");
    assert_ne!(hash(&v4), hash(&packet(6, 0, 100, 0)[VNET_BYTES..]));
    let mut fragment = v4.clone();
    fragment[20] = 0x20;
    let mut later = fragment.clone();
    (later[21], later[34]) = (9, 77);
    assert_eq!(hash(&fragment), hash(&later), "fragments go by address");
    let mut v6 = v4[..12].to_vec();
    v6.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 100, 6, 64]);
    v6.extend([3; 32]);
    v6.extend([0, 80, 1, 1]);
    v6.resize(200, 0);
    let mut other = v6.clone();
    other[56] = 2;
    assert_ne!(hash(&v6), hash(&other));
    assert_ne!(hash(&v6), flow_hash(7, NetworkId(2), &v6));
    assert_ne!(hash(&v6), flow_hash(8, NetworkId(1), &v6));
}

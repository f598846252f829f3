//! Frames that were joined, cut again by the segmenter, against the frames that went in.

use super::*;
use crate::offload::segment::complete_checksum;
use crate::packet::PacketBuffer;

/// A frame of one of a few conversations, as a guest would send it next.
#[derive(Clone, Debug)]
struct Next {
    flow: usize,
    payload: usize,
    /// Whether the guest computes checksums itself.
    is_complete: bool,
    flags: u8,
    /// What else is different from the frame before.
    change: Change,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Change {
    Nothing,
    Class,
    Window,
    Gap,
    BadChecksum,
}

fn next() -> impl Strategy<Value = Next> {
    let payload = prop_oneof![Just(0usize), Just(18), Just(100), 1usize..300, Just(1448)];
    let flags = prop_oneof![6 => Just(0x10u8), 2 => Just(0x18), 1 => any::<u8>()];
    let change = prop_oneof![
        12 => Just(Change::Nothing),
        1 => Just(Change::Class),
        1 => Just(Change::Window),
        1 => Just(Change::Gap),
        1 => Just(Change::BadChecksum),
    ];
    (0usize..5, payload, any::<bool>(), flags, change).prop_map(|(flow, payload, is_complete, flags, change)| Next {
        flow,
        payload,
        is_complete,
        flags,
        change,
    })
}

/// Conversations 0 and 1 are TCP, 2 and 3 UDP, 4 is TCP with options; odd ones use IPv6.
struct Guest {
    sequence: [u32; 5],
    id: u16,
}

impl Guest {
    fn send(&mut self, number: usize, next: &Next) -> (VnetHdr, Vec<u8>) {
        let payload: Vec<u8> = (0..next.payload).map(|at| (at * 7 + number) as u8).collect();
        let udp = matches!(next.flow, 2 | 3);
        let tcp_options = if next.flow == 4 { 3 } else { 0 };
        let v6 = next.flow % 2 == 1;
        let shape = Shape { tags: next.flow % 3, v6, udp, options: 0, tcp_options, flags: next.flags, payload };
        let mut frame = build(&shape);
        let layout = Layout::of(&frame).unwrap();
        frame[layout.header + 1] = next.flow as u8;
        let sequence = &mut self.sequence[next.flow];
        if next.change == Change::Gap {
            *sequence = sequence.wrapping_add(1);
        }
        if !udp {
            frame[layout.header + 4..layout.header + 8].copy_from_slice(&sequence.to_be_bytes());
            *sequence = sequence.wrapping_add(next.payload as u32);
            if next.change == Change::Window {
                frame[layout.header + 14] ^= 1;
            }
        }
        if !v6 {
            // Every second conversation of IPv4 may be fragmented, and counts.
            let dont_fragment = next.flow == 0;
            frame[layout.network + 6] = if dont_fragment { 0x40 } else { 0 };
            frame[layout.network + 4..layout.network + 6].copy_from_slice(&self.id.to_be_bytes());
            self.id = self.id.wrapping_add(1);
        }
        if next.change == Change::Class {
            frame[layout.network + 1] ^= 0x20;
        }
        finish_ip(&mut frame, &layout);
        let mut vnet = header(&shape, &frame, 0);
        if next.is_complete {
            let field = layout.header + layout.checksum_offset();
            let (start, offset) = (layout.header, layout.checksum_offset());
            complete_checksum(&mut frame, start, offset).unwrap();
            if next.change == Change::BadChecksum {
                frame[field] ^= 0x40;
            }
            vnet = VnetHdr::PLAIN;
        }
        (vnet, frame)
    }
}

fn finish_ip(frame: &mut [u8], layout: &Layout) {
    if !layout.is_v6 {
        let ip = &mut frame[layout.network..layout.header];
        ip[10..12].copy_from_slice(&[0, 0]);
        let checksum = !fold(sum(ip));
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// The frame as it stands on a wire, but for the identification that nobody reads.
fn on_wire(vnet: &VnetHdr, frame: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    Segmenter::default().finish(vnet, frame, |segment| frames.push(segment.to_vec())).unwrap();
    for frame in &mut frames {
        let layout = Layout::of(frame).unwrap();
        if !layout.is_v6 && frame[layout.network + 6] & 0x40 != 0 {
            frame[layout.network + 4..layout.network + 6].copy_from_slice(&[0, 0]);
            finish_ip(frame, &layout);
        }
    }
    frames
}

fn packet(vnet: &VnetHdr, frame: &[u8]) -> PacketBuffer {
    let mut buffer = PacketBuffer::new();
    let packet = [&vnet.encode()[..], frame].concat();
    buffer
        .fill(|bytes| {
            bytes[..packet.len()].copy_from_slice(&packet);
            Ok::<_, ()>(packet.len())
        })
        .unwrap();
    buffer
}

/// Sends all frames through a coalescer, and returns what came out as on a wire, with the number of packets it was in.
fn pass(frames: &[(VnetHdr, Vec<u8>)]) -> (Vec<Vec<u8>>, usize) {
    let mut coalescer = Coalescer::default();
    let (mut out, mut packets) = (Vec::new(), 0);
    let mut take = |packet: &mut PacketBuffer| {
        let (vnet, frame) = packet.as_ref().split_first_chunk::<VNET_BYTES>().unwrap();
        // A peer accepts what was joined.
        let vnet = VnetHdr::decode(vnet).unwrap().rebuild(frame).unwrap();
        out.extend(on_wire(&vnet, frame));
        packets += 1;
    };
    for (vnet, frame) in frames {
        coalescer.push(&mut packet(vnet, frame), &mut take);
    }
    coalescer.flush(&mut take);
    (out, packets)
}

fn flow_of(frame: &[u8]) -> u8 {
    frame[Layout::of(frame).unwrap().header + 1]
}

proptest! {
    #[test]
    fn joined_frames_are_the_same_on_a_wire_and_in_order(nexts in prop::collection::vec(next(), 1..200)) {
        let mut guest = Guest { sequence: [u32::MAX - 2000; 5], id: u16::MAX - 30 };
        let sent: Vec<_> = nexts.iter().enumerate().map(|(number, next)| guest.send(number, next)).collect();
        let (out, packets) = pass(&sent);
        prop_assert!(packets <= sent.len());
        for flow in 0..5 {
            let of = |frames: &[Vec<u8>]| frames.iter().filter(|frame| flow_of(frame) == flow).cloned().collect::<Vec<_>>();
            let before: Vec<_> = sent.iter().flat_map(|(vnet, frame)| on_wire(vnet, frame)).collect();
            prop_assert_eq!(of(&out), of(&before));
        }
    }

    #[test]
    fn any_bytes_pass(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..40)) {
        let mut coalescer = Coalescer::default();
        let mut passed = 0;
        for frame in &frames {
            coalescer.push(&mut packet(&VnetHdr::PLAIN, frame), &mut |_| passed += 1);
        }
        coalescer.flush(&mut |_| passed += 1);
        prop_assert_eq!(passed + coalescer.joined() as usize, frames.len());
    }
}

#[test]
fn small_datagrams_of_one_conversation_become_one_packet() {
    for is_complete in [false, true] {
        let mut guest = Guest { sequence: [0; 5], id: 0 };
        let next = Next { flow: 2, payload: 18, is_complete, flags: 0, change: Change::Nothing };
        let frames: Vec<_> = (0..64).map(|number| guest.send(number, &next)).collect();
        assert_eq!(pass(&frames).1, 1);
    }
}

#[test]
fn a_stream_becomes_super_frames() {
    let mut guest = Guest { sequence: [0; 5], id: 0 };
    let next = Next { flow: 4, payload: 1448, is_complete: true, flags: 0x10, change: Change::Nothing };
    let frames: Vec<_> = (0..90).map(|number| guest.send(number, &next)).collect();
    assert_eq!(pass(&frames).1, 2, "45 segments are what an IP packet can hold");
}

#[test]
fn a_broken_frame_stays_alone_and_broken() {
    let mut guest = Guest { sequence: [0; 5], id: 0 };
    let good = Next { flow: 0, payload: 1000, is_complete: true, flags: 0x10, change: Change::Nothing };
    let bad = Next { change: Change::BadChecksum, ..good };
    let frames: Vec<_> = [&good, &good, &bad, &good, &good].map(|next| guest.send(0, next)).into();
    let (out, packets) = pass(&frames);
    assert_eq!(packets, 3);
    assert_eq!(out[2], on_wire(&frames[2].0, &frames[2].1)[0]);
}

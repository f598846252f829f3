//! Headers rebuilt from frames, and segmentation against an independent reading of its output.

mod coalescing;
mod cut;
mod salvage;

use super::layout::{Layout, Transport};
use super::vnet_hdr::BadOffload;
use super::*;
use crate::wire::frame::VNET_BYTES;
use proptest::prelude::*;

/// What a test frame is made of.
#[derive(Clone, Debug)]
struct Shape {
    tags: usize,
    v6: bool,
    udp: bool,
    /// IPv4 options, or an IPv6 hop-by-hop header, in units of eight bytes.
    options: usize,
    /// TCP options in units of four bytes.
    tcp_options: usize,
    flags: u8,
    payload: Vec<u8>,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let payload = prop::collection::vec(any::<u8>(), 0..9000);
    (0usize..3, any::<bool>(), any::<bool>(), 0usize..3, 0usize..11, any::<u8>(), payload).prop_map(
        |(tags, v6, udp, options, tcp_options, flags, payload)| Shape {
            tags,
            v6,
            udp,
            options,
            tcp_options,
            flags,
            payload,
        },
    )
}

/// One's complement sum, the plain way: an independent reference for the checksums.
fn sum(bytes: &[u8]) -> u32 {
    let mut sum = 0u32;
    for (index, byte) in bytes.iter().enumerate() {
        sum += u32::from(*byte) << (if index % 2 == 0 { 8 } else { 0 });
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of the pseudo header of the frame's transport segment.
fn pseudo(frame: &[u8], layout: &Layout) -> u32 {
    let addresses = match layout.is_v6 {
        true => &frame[layout.network + 8..layout.network + 40],
        false => &frame[layout.network + 12..layout.network + 20],
    };
    let protocol = if layout.transport == Transport::Tcp { 6 } else { 17 };
    sum(addresses) + protocol + (layout.end - layout.header) as u32
}

/// A frame as the kernel hands it over: IP header finished, transport checksum partial.
fn build(shape: &Shape) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for tag in 0..shape.tags {
        frame.extend([if tag == 0 && shape.tags == 2 { 0x88a8u16 } else { 0x8100 }.to_be_bytes(), [0, 5]].concat());
    }
    let transport_bytes = if shape.udp { 8 } else { 20 + 4 * shape.tcp_options.min(10) } + shape.payload.len();
    let protocol = if shape.udp { 17 } else { 6 };
    let network = frame.len() + 2;
    if shape.v6 {
        let extension = 8 * shape.options;
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(((extension + transport_bytes) as u16).to_be_bytes());
        frame.extend([if extension > 0 { 0 } else { protocol }, 64]);
        frame.extend((0..32).map(|byte| byte * 7));
        if extension > 0 {
            frame.extend([protocol, shape.options as u8 - 1]);
            frame.extend(vec![0; extension - 2]);
        }
    } else {
        let header = 20 + 8 * shape.options;
        frame.extend([8, 0, 0x40 | (header / 4) as u8, 0]);
        frame.extend(((header + transport_bytes) as u16).to_be_bytes());
        frame.extend([0xff, 0xfe, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(vec![1; 8 * shape.options]);
        let checksum = !fold(sum(&frame[network..]));
        frame[network + 10..network + 12].copy_from_slice(&checksum.to_be_bytes());
    }
    let header = frame.len();
    frame.extend([0x12, 0x34, 0x56, 0x78]);
    if shape.udp {
        frame.extend((transport_bytes as u16).to_be_bytes());
        frame.extend([0, 0]);
    } else {
        frame.extend([0xff, 0xff, 0xff, 0x00, 1, 2, 3, 4, ((5 + shape.tcp_options.min(10)) << 4) as u8, shape.flags]);
        frame.extend([1, 0, 0, 0, 0, 0]);
        frame.extend(vec![1; 4 * shape.tcp_options.min(10)]);
    }
    frame.extend(&shape.payload);
    let layout = Layout::of(&frame).unwrap();
    assert_eq!(layout.header, header);
    let partial = fold(pseudo(&frame, &layout));
    let field = layout.header + layout.checksum_offset();
    frame[field..field + 2].copy_from_slice(&partial.to_be_bytes());
    frame
}

fn header(shape: &Shape, frame: &[u8], gso_size: u16) -> VnetHdr {
    let layout = Layout::of(frame).unwrap();
    let gso = match (gso_size, shape.udp, shape.v6) {
        (0, ..) => Gso::None,
        (_, true, _) => Gso::Udp,
        (_, false, false) => Gso::Tcp4,
        (_, false, true) => Gso::Tcp6,
    };
    VnetHdr {
        gso,
        gso_size,
        needs_csum: true,
        csum_start: layout.header as u16,
        csum_offset: layout.checksum_offset() as u16,
        ..VnetHdr::PLAIN
    }
}

/// Whether lengths and checksums of a finished frame are right.
fn assert_finished(frame: &[u8]) {
    let layout = Layout::of(frame).unwrap();
    assert_eq!(layout.end, frame.len());
    if !layout.is_v6 {
        let header = 4 * usize::from(frame[layout.network] & 15);
        assert_eq!(fold(sum(&frame[layout.network..layout.network + header])), 0xffff, "IPv4 header checksum");
    }
    assert_eq!(fold(pseudo(frame, &layout) + sum(&frame[layout.header..])), 0xffff, "transport checksum");
    if layout.transport == Transport::Udp {
        let length = u16::from_be_bytes([frame[layout.header + 4], frame[layout.header + 5]]);
        assert_eq!(usize::from(length), frame.len() - layout.header);
    }
}

proptest! {
    #[test]
    fn segments_are_finished_and_carry_the_payload(shape in shapes(), size in 100u16..2000) {
        let frame = build(&shape);
        let header = header(&shape, &frame, size).rebuild(&frame).unwrap();
        let layout = Layout::of(&frame).unwrap();
        let mut payload = Vec::new();
        let mut frames = Vec::new();
        Segmenter::default().finish(&header, &frame, |frame| frames.push(frame.to_vec())).unwrap();
        for (index, segment) in frames.iter().enumerate() {
            assert_finished(segment);
            let part = Layout::of(segment).unwrap();
            prop_assert_eq!((part.network, part.header, part.payload), (layout.network, layout.header, layout.payload));
            if !shape.udp {
                let number = u32::from_be_bytes(segment[part.header + 4..part.header + 8].try_into().unwrap());
                prop_assert_eq!(number, 0xffff_ff00u32.wrapping_add(payload.len() as u32));
                let flags = segment[part.header + 13];
                let last = index + 1 == frames.len();
                let expected = shape.flags & if last { 0xff } else { !0x09 } & if index > 0 { !0x80 } else { 0xff };
                prop_assert_eq!(flags, expected);
            }
            if !shape.v6 {
                let id = u16::from_be_bytes([segment[part.network + 4], segment[part.network + 5]]);
                prop_assert_eq!(id, 0xfffeu16.wrapping_add(index as u16));
            }
            prop_assert!(segment.len() - part.payload <= size.into());
            payload.extend_from_slice(&segment[part.payload..]);
        }
        prop_assert_eq!(payload, shape.payload);
    }

    #[test]
    fn partial_checksums_are_completed(shape in shapes()) {
        let frame = build(&shape);
        let header = header(&shape, &frame, 0).rebuild(&frame).unwrap();
        Segmenter::default().finish(&header, &frame, assert_finished).unwrap();
        let mut settled = frame.clone();
        prop_assert_eq!(header.settle(&mut settled), Ok(header));
        prop_assert_eq!(settled, frame, "a checksum that a peer can complete stays partial");
    }

    /// Whatever a peer sends: it is refused, or the header that the kernel sees is within the frame.
    #[test]
    fn rebuilt_headers_are_within_the_frame(
        shape in shapes(), bytes: [u8; VNET_BYTES], keep_kind: bool, cut in 0usize..40,
    ) {
        let mut frame = build(&shape);
        frame.truncate(frame.len() - cut.min(frame.len()));
        let Ok(mut wish) = VnetHdr::decode(&bytes) else { return Ok(()) };
        if keep_kind && let Ok(layout) = Layout::of(&frame) {
            wish.csum_start = layout.header as u16;
            wish.csum_offset = layout.checksum_offset() as u16;
        }
        let Ok(header) = wish.rebuild(&frame) else { return Ok(()) };
        prop_assert_eq!(VnetHdr::decode(&header.encode()), Ok(header));
        prop_assert_eq!(header.rebuild(&frame), Ok(header), "rebuilding is stable");
        if header.needs_csum {
            prop_assert!(usize::from(header.csum_start) + usize::from(header.csum_offset) + 2 <= frame.len());
        }
        if header.gso != Gso::None {
            prop_assert!(header.needs_csum && header.gso_size > 0);
            let mut count = 0;
            Segmenter::default().finish(&header, &frame, |_| count += 1).unwrap();
            prop_assert!(count > 1 && count < 2000);
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes: [u8; VNET_BYTES], mut frame: Vec<u8>) {
        let Ok(header) = VnetHdr::decode(&bytes) else { return Ok(()) };
        let _ = header.rebuild(&frame);
        header.packet_bytes(&frame);
        let _ = header.settle(&mut frame);
    }
}

fn tcp(payload: usize) -> (Shape, Vec<u8>) {
    let shape =
        Shape { tags: 0, v6: false, udp: false, options: 0, tcp_options: 0, flags: 0x10, payload: vec![7; payload] };
    let frame = build(&shape);
    (shape, frame)
}

#[test]
fn lies_are_refused() {
    let (shape, frame) = tcp(3000);
    let good = header(&shape, &frame, 1000);
    assert!(good.rebuild(&frame).is_ok());
    let lies = [
        VnetHdr { gso: Gso::Tcp6, ..good },
        VnetHdr { gso: Gso::Udp, ..good },
        VnetHdr { gso_size: 0, ..good },
        VnetHdr { gso_size: 8, ..good },
        VnetHdr { needs_csum: false, ..good },
        VnetHdr { csum_start: 14, ..good },
        VnetHdr { csum_offset: 6, ..good },
        VnetHdr { gso: Gso::None, csum_start: 60_000, ..good },
    ];
    for lie in lies {
        assert_eq!(lie.rebuild(&frame), Err(BadOffload), "{lie:?}");
    }
    assert_eq!(good.rebuild(&[&frame[..], b"tail"].concat()), Err(BadOffload), "bytes behind a super-frame");
    assert_eq!(VnetHdr::decode(&[1, 3, 0, 0, 0, 0, 0, 0, 0, 0]), Err(BadOffload), "UFO is unknown");
}

#[test]
fn small_super_frames_become_plain_ones() {
    let (shape, frame) = tcp(1000);
    let header = header(&shape, &frame, 1000).rebuild(&frame).unwrap();
    assert_eq!((header.gso, header.needs_csum), (Gso::None, true));
    assert_eq!(header.packet_bytes(&frame), 1040);
}

#[test]
fn the_segment_size_decides_about_the_mtu() {
    let (shape, frame) = tcp(9000);
    assert_eq!(header(&shape, &frame, 1460).rebuild(&frame).unwrap().packet_bytes(&frame), 1500);
}

#[test]
fn checksums_inside_tunnels_are_completed_before_they_leave() {
    let (shape, inner) = tcp(100);
    let outer = Shape { udp: true, payload: inner.clone(), ..shape };
    let mut frame = build(&outer);
    let inside = frame.len() - inner.len();
    let layout = Layout::of(&inner).unwrap();
    let wish =
        VnetHdr { needs_csum: true, csum_start: (inside + layout.header) as u16, csum_offset: 16, ..VnetHdr::PLAIN };
    assert_eq!(wish.rebuild(&frame), Err(BadOffload));
    assert_eq!(wish.settle(&mut frame), Ok(VnetHdr::PLAIN));
    assert_finished(&frame[inside..]);
}

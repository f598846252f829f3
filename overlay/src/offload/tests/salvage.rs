//! What is made of a super-frame that lacks parts, against its segments.

use super::*;

proptest! {
    #[test]
    fn whole_segments_within_the_ranges_come_out(
        shape in shapes(),
        size in 48u16..3000,
        cuts in prop::collection::vec(0usize..9200, 0..12),
    ) {
        let frame = build(&shape);
        let vnet = header(&shape, &frame, size);
        let Ok(vnet) = vnet.rebuild(&frame) else { return Ok(()) };
        prop_assume!(vnet.gso != Gso::None);
        let layout = Layout::of(&frame).unwrap();
        let packet = [&vnet.encode()[..], &frame].concat();
        // Every second stretch between two cuts is missing. The headers are here.
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| VNET_BYTES + layout.payload + cut).collect();
        cuts.retain(|cut| *cut < packet.len());
        cuts.sort_unstable();
        cuts.dedup();
        let ranges: Vec<(usize, usize)> = std::iter::once(0)
            .chain(cuts.iter().skip(1).step_by(2).copied())
            .zip(cuts.iter().step_by(2).copied().chain(std::iter::once(packet.len())))
            .collect();
        let mut damaged = packet.clone();
        for (index, byte) in damaged.iter_mut().enumerate() {
            if !ranges.iter().any(|(begin, end)| (*begin..*end).contains(&index)) {
                *byte = 0xee;
            }
        }
        let mut whole = Vec::new();
        let mut begin = VNET_BYTES + layout.payload;
        Segmenter::default().finish(&vnet, &frame, |segment| {
            let end = begin + segment.len() - layout.payload;
            if ranges.iter().any(|(from, to)| *from <= begin && end <= *to) {
                whole.push(segment.to_vec());
            }
            begin = end;
        }).unwrap();
        prop_assert_eq!(wire_frames(&packet), (layout.end - layout.payload).div_ceil(vnet.gso_size.into()) as u64);
        let (mut out, mut frames) = (Vec::new(), 0);
        let found = Segmenter::default().salvage(b"head", &damaged, &ranges, &mut |piece| {
            let piece = piece.strip_prefix(b"head").unwrap();
            frames += wire_frames(piece);
            let (vnet, frame) = piece.split_first_chunk::<VNET_BYTES>().unwrap();
            let vnet = VnetHdr::decode(vnet).unwrap().rebuild(frame).unwrap();
            Segmenter::default().finish(&vnet, frame, |segment| out.push(segment.to_vec())).unwrap();
        });
        prop_assert_eq!(found, !whole.is_empty());
        prop_assert_eq!(frames, out.len() as u64);
        prop_assert_eq!(out, whole);
    }

    #[test]
    fn any_bytes_are_taken(packet: Vec<u8>, mut cuts in prop::collection::vec(0usize..300, 2..8)) {
        cuts.sort_unstable();
        let ranges: Vec<_> = cuts.chunks_exact(2).map(|cut| (cut[0].min(packet.len()), cut[1].min(packet.len()))).collect();
        Segmenter::default().salvage(&[], &packet, &ranges, &mut |_| {});
        wire_frames(&packet);
    }
}

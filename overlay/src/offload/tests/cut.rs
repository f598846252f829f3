//! A super-frame without its last segment, against its segments.

use super::*;

proptest! {
    #[test]
    fn all_segments_but_the_last_are_left(shape in shapes(), size in 48u16..3000) {
        let frame = build(&shape);
        let vnet = header(&shape, &frame, size);
        let Ok(vnet) = vnet.rebuild(&frame) else { return Ok(()) };
        let mut packet = [&vnet.encode()[..], &frame].concat();
        let cut = cut_last_segment(&mut packet);
        if vnet.gso == Gso::None {
            prop_assert_eq!(cut, None);
            prop_assert_eq!(&packet[VNET_BYTES..], &frame);
            return Ok(());
        }
        packet.truncate(cut.unwrap());
        let mut wanted = segments(&vnet, &frame);
        wanted.pop();
        let (header, rest) = packet.split_first_chunk::<VNET_BYTES>().unwrap();
        let header = VnetHdr::decode(header).unwrap().rebuild(rest).unwrap();
        prop_assert_eq!(header.gso == Gso::None, wanted.len() == 1);
        prop_assert_eq!(segments(&header, rest), wanted);
    }

    #[test]
    fn any_bytes_can_be_cut(mut packet: Vec<u8>) {
        let bytes = packet.len();
        prop_assert!(cut_last_segment(&mut packet).is_none_or(|left| left < bytes));
    }
}

fn segments(vnet: &VnetHdr, frame: &[u8]) -> Vec<Vec<u8>> {
    let mut segments = Vec::new();
    Segmenter::default().finish(vnet, frame, |segment| segments.push(segment.to_vec())).unwrap();
    segments
}

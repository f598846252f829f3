//! A virtio-net header and its frame from a peer: what is rebuilt stays as it is when it is rebuilt again, and
//! can be cut.

#![no_main]

use virtuoso_overlay::offload::{Gso, Segmenter, VnetHdr};
use virtuoso_overlay::wire::frame::VNET_BYTES;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((header, frame)) = bytes.split_first_chunk::<VNET_BYTES>() else { return };
    let Ok(wish) = VnetHdr::decode(header) else { return };
    let mut own = frame.to_vec();
    let _ = wish.settle(&mut own);
    let Ok(rebuilt) = wish.rebuild(frame) else { return };
    assert_eq!(rebuilt.rebuild(frame), Ok(rebuilt));
    if rebuilt.gso != Gso::None {
        let mut segments = 0;
        Segmenter::default().finish(&rebuilt, frame, |_| segments += 1).expect("a rebuilt header can be cut");
        assert!(segments > 1);
    }
});

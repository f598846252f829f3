//! Buffers to receive into. The packets of one are slices of it, so it is used again when all of them are done with:
//! at once where they are processed on this thread, a little later where a crew has them.

use bytes::BytesMut;
use std::collections::VecDeque;

/// Bytes that one receive can bring.
pub(super) const RECEIVE_BYTES: usize = 64 << 10;

/// Buffers that are kept.
const BUFFERS_MAX: usize = 16;

/// Buffers that have been used, oldest first.
#[derive(Default)]
pub(super) struct Buffers(VecDeque<BytesMut>);

impl Buffers {
    /// A buffer of [`RECEIVE_BYTES`], with anything in it.
    pub(super) fn get(&mut self) -> BytesMut {
        let is_free = |buffer: &mut BytesMut| buffer.capacity() >= RECEIVE_BYTES || buffer.try_reclaim(RECEIVE_BYTES);
        let free = self.0.front_mut().is_some_and(is_free).then(|| self.0.pop_front()).flatten();
        let Some(mut buffer) = free else { return BytesMut::zeroed(RECEIVE_BYTES) };
        // SAFETY: the buffer has this capacity, and all of its memory was written when it was allocated.
        unsafe { buffer.set_len(RECEIVE_BYTES) };
        buffer
    }

    /// Takes a buffer back, of which others may still have slices.
    pub(super) fn put(&mut self, mut buffer: BytesMut) {
        buffer.clear();
        if self.0.len() < BUFFERS_MAX {
            self.0.push_back(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_when_nobody_has_a_slice_of_it() {
        let mut buffers = Buffers::default();
        let mut first = buffers.get();
        let place = first.as_ptr();
        let slice = first.split_to(1000);
        buffers.put(first);
        let second = buffers.get();
        assert_ne!(second.as_ptr(), place, "its slice is in use");
        drop(slice);
        buffers.put(second);
        let third = buffers.get();
        assert_eq!((third.as_ptr(), third.len()), (place, RECEIVE_BYTES));
    }
}

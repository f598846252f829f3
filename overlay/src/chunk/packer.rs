//! Cuts frames into datagrams of the path's size.

use super::{CHUNK_HEADER_BYTES, ChunkHeader, SHORT_BYTES_MAX};
use bytes::{BufMut, Bytes, BytesMut};
use std::ops::Range;

/// Bytes that are allocated at once for datagrams: a super-frame with its headers, so that the allocator is asked
/// about once per super-frame.
const SLAB_BYTES: usize = 72 << 10;

/// A chunk with less payload than this is not begun: the room at the end of the datagram is padded instead.
const PAYLOAD_BYTES_MIN: usize = 32;

/// Packs the frames of one link.
#[derive(Debug, Default)]
pub struct Packer {
    /// The datagram that is being filled, with the slab's free room behind it.
    open: BytesMut,
    /// Where in it the end of a packet stands that began in an earlier datagram.
    tail: Range<usize>,
    next_id: u16,
}

impl Packer {
    /// Cuts `head` and `body`, one packet, into datagrams of `size` bytes and hands the full ones to `out`. The last
    /// one stays open for the next packet until [`Packer::flush`].
    ///
    /// If the packet spans several datagrams, its first `guarded` bytes are sent a second time in the last one: without
    /// its headers, what else arrives of a packet is worth nothing. HOT PATH.
    pub fn push(&mut self, size: usize, guarded: usize, head: &[u8], body: &[u8], out: &mut impl FnMut(Bytes)) {
        debug_assert!(size > CHUNK_HEADER_BYTES + PAYLOAD_BYTES_MIN);
        let total = head.len() + body.len();
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let (mut offset, mut chunks, mut tail) = (0, 0, 0);
        while offset < total {
            let room = self.reserve(size, PAYLOAD_BYTES_MIN.min(total - offset), out);
            let len = room.min(total - offset);
            tail = self.open.len();
            self.open.put_slice(&ChunkHeader { id, offset, total, short: 0 }.encode());
            put_range(&mut self.open, head, body, offset, len);
            offset += len;
            chunks += 1;
        }
        if chunks > 1 {
            self.tail = tail..self.open.len();
        }
        let guarded = guarded.next_multiple_of(2);
        if chunks > 1 && (2..=SHORT_BYTES_MAX.min(total)).contains(&guarded) {
            self.reserve(size, guarded, out);
            self.open.put_slice(&ChunkHeader { id, offset: 0, total, short: guarded }.encode());
            put_range(&mut self.open, head, body, 0, guarded);
            self.tail.end = self.open.len();
        }
    }

    /// Sees to it that the open datagram has room for a chunk of `payload` bytes, and returns how many it has room for.
    fn reserve(&mut self, size: usize, payload: usize, out: &mut impl FnMut(Bytes)) -> usize {
        let room = size.saturating_sub(self.open.len());
        if room < CHUNK_HEADER_BYTES + payload {
            self.open.put_bytes(0, room);
            self.flush(out);
        }
        if self.open.is_empty() && self.open.capacity() < size {
            self.open = BytesMut::with_capacity(SLAB_BYTES);
        }
        size.saturating_sub(self.open.len() + CHUNK_HEADER_BYTES)
    }

    /// Hands the open datagram to `out`.
    pub fn flush(&mut self, out: &mut impl FnMut(Bytes)) {
        self.flush_and_repeat(0, out);
    }

    /// As [`Packer::flush`]. If the end of a packet that began in an earlier datagram stands in it, and has `repeated`
    /// bytes at most, that is handed out once more: a small datagram gets lost as easily as a large one, and a packet
    /// that needs both twice as often as one that needs one.
    pub fn flush_and_repeat(&mut self, repeated: usize, out: &mut impl FnMut(Bytes)) {
        let tail = std::mem::take(&mut self.tail);
        if self.open.is_empty() {
            return;
        }
        let datagram = self.open.split().freeze();
        let again = (1..=repeated).contains(&tail.len()).then(|| datagram.slice(tail));
        out(datagram);
        again.map(out);
    }
}

/// Appends `len` bytes from `offset` of `head` followed by `body`.
fn put_range(out: &mut BytesMut, head: &[u8], body: &[u8], offset: usize, len: usize) {
    let from_head = head.get(offset..).unwrap_or_default();
    let from_head = &from_head[..from_head.len().min(len)];
    out.put_slice(from_head);
    let begin = (offset + from_head.len()) - head.len().min(offset + from_head.len());
    out.put_slice(&body[begin..begin + len - from_head.len()]);
}

//! Cuts frames into datagrams of the path's size.

use super::{CHUNK_HEADER_BYTES, ChunkHeader, SHORT_BYTES_MAX, parity};
use bytes::{BufMut, Bytes, BytesMut};
use std::ops::{Range, RangeInclusive};

/// Bytes that are allocated at once for datagrams: a super-frame with its headers, so that the allocator is asked
/// about once per super-frame.
const SLAB_BYTES: usize = 72 << 10;

/// A chunk with less payload than this is not begun: the room at the end of the datagram is padded instead.
const PAYLOAD_BYTES_MIN: usize = 32;

/// Datagrams of a packet that gets a parity: three at least, because the end of one that has two is small and is
/// repeated. A flow that sends larger packets is fast enough to have others on their way when one gets lost; it would
/// gain little, and notice that its path has become narrower. For smaller ones, headers sent twice would take more of
/// the path than they save.
const PARITY_DATAGRAMS: RangeInclusive<usize> = 3..=12;

/// What is sent of a packet besides itself.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Redundancy {
    /// Bytes at the front of a packet that go once more in its last datagram, if it spans more than a dozen: without
    /// its headers, what else arrives of it is worth nothing. At most 254.
    pub headers: usize,
    /// Whether one that spans fewer gets a parity: then any one of its datagrams may get lost.
    pub parity: bool,
}

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
    /// one stays open for the next packet until [`Packer::flush`]. HOT PATH.
    pub fn push(&mut self, size: usize, redundancy: Redundancy, head: &[u8], body: &[u8], out: &mut impl FnMut(Bytes)) {
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
        if chunks > *PARITY_DATAGRAMS.end() {
            let header = ChunkHeader { id, offset: 0, total, short: redundancy.headers };
            self.repeat_headers(size, header, head, body, out);
        } else if redundancy.parity && PARITY_DATAGRAMS.contains(&chunks) {
            out(parity_chunk(size, ChunkHeader { id, offset: total, total, short: 0 }, head, body));
        } else if chunks > 1 {
            self.tail = tail..self.open.len();
        }
    }

    /// Adds a chunk with the first bytes of a packet, as many as `header` tells, if they are not too many.
    fn repeat_headers(
        &mut self,
        size: usize,
        header: ChunkHeader,
        head: &[u8],
        body: &[u8],
        out: &mut impl FnMut(Bytes),
    ) {
        let short = header.short.next_multiple_of(2);
        if (2..=SHORT_BYTES_MAX.min(header.total)).contains(&short) {
            self.reserve(size, short, out);
            self.open.put_slice(&ChunkHeader { short, ..header }.encode());
            put_range(&mut self.open, head, body, 0, short);
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

/// A datagram of `size` bytes with the parity of a packet. It stands alone, so that it gets lost alone.
fn parity_chunk(size: usize, header: ChunkHeader, head: &[u8], body: &[u8]) -> Bytes {
    let mut datagram = BytesMut::zeroed(size);
    let (place, sums) = datagram.split_at_mut(CHUNK_HEADER_BYTES);
    place.copy_from_slice(&header.encode());
    parity::add(sums, 0, head);
    parity::add(sums, head.len(), body);
    datagram.freeze()
}

/// Appends `len` bytes from `offset` of `head` followed by `body`.
fn put_range(out: &mut BytesMut, head: &[u8], body: &[u8], offset: usize, len: usize) {
    let from_head = head.get(offset..).unwrap_or_default();
    let from_head = &from_head[..from_head.len().min(len)];
    out.put_slice(from_head);
    let begin = (offset + from_head.len()) - head.len().min(offset + from_head.len());
    out.put_slice(&body[begin..begin + len - from_head.len()]);
}

//! Frames in chunks: any frame fits any path, and datagrams are exactly as large as the path allows.
//!
//! ```text
//!  0 .. 1     2 .. 4        5 .. 7       8 ..
//! +----------+-------------+------------+---------------------------+
//! | id (BE)  | offset (BE) | total (BE) | min(total - offset, rest) |
//! +----------+-------------+------------+---------------------------+
//! ```
//! Of `total`, the upper 7 bits are half the length of a chunk that ends before the datagram and its frame do: headers
//! that are sent twice. Zero, the usual case, means that it goes on as far as possible.
//!
//! A chunk whose offset is its total is a **parity**: the exclusive or of the packet's pieces of that length. A packet
//! with one gap of at most this length is complete with it.
//!
//! Chunks stand back to back in a datagram; a total of zero, or fewer bytes than a header, is padding to the end.
//! The peer is untrusted: a chunk that contradicts another one ends the frame, never the link.

mod packer;
mod parity;
mod reassembler;

pub use packer::{Packer, Redundancy};
pub use reassembler::Reassembler;

use crate::limits::FRAME_BYTES_MAX;
use crate::wire::frame::{HEADER_BYTES, VNET_BYTES};

/// Bytes of a chunk's header.
const CHUNK_HEADER_BYTES: usize = 8;

/// Bytes of what is cut into chunks: frame header, virtio-net header and frame.
pub const PACKET_BYTES_MAX: usize = HEADER_BYTES + VNET_BYTES + FRAME_BYTES_MAX;

const _: () = assert!(PACKET_BYTES_MAX < 1 << TOTAL_BITS, "a total has 17 bits, an offset is smaller");

/// Bits of a total in its field.
const TOTAL_BITS: u32 = 17;

/// Bytes of a chunk that tells its length, at most; it is even.
const SHORT_BYTES_MAX: usize = 254;

/// A decoded chunk header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct ChunkHeader {
    id: u16,
    offset: usize,
    total: usize,
    /// Bytes of the chunk, if it tells; else zero.
    short: usize,
}

impl ChunkHeader {
    fn encode(self) -> [u8; CHUNK_HEADER_BYTES] {
        let [id_high, id_low] = self.id.to_be_bytes();
        let [_, o1, o2, o3] = (self.offset as u32).to_be_bytes();
        let [_, t1, t2, t3] = (self.total as u32 | (self.short as u32 / 2) << TOTAL_BITS).to_be_bytes();
        [id_high, id_low, o1, o2, o3, t1, t2, t3]
    }

    fn is_parity(self) -> bool {
        self.offset == self.total
    }

    fn decode(bytes: [u8; CHUNK_HEADER_BYTES]) -> Self {
        let [id_high, id_low, o1, o2, o3, t1, t2, t3] = bytes;
        let total = u32::from_be_bytes([0, t1, t2, t3]);
        Self {
            id: u16::from_be_bytes([id_high, id_low]),
            offset: u32::from_be_bytes([0, o1, o2, o3]) as usize,
            total: (total & ((1 << TOTAL_BITS) - 1)) as usize,
            short: (total >> TOTAL_BITS) as usize * 2,
        }
    }
}

#[cfg(test)]
mod tests;

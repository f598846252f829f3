//! One packet in memory that is used again and again.

use crate::limits::FRAME_BYTES_MAX;
use crate::wire::frame::VNET_BYTES;

/// Bytes of a packet (virtio-net header and frame) that can lose its end.
pub trait Packet: AsRef<[u8]> + AsMut<[u8]> {
    /// Keeps the first `bytes`, which are not more than there are.
    fn truncate(&mut self, bytes: usize);
}

/// A packet (virtio-net header and frame), in a buffer that may be larger.
#[derive(Clone, Debug)]
pub struct PacketBuffer {
    bytes: Vec<u8>,
    len: usize,
}

impl PacketBuffer {
    /// Bytes of a buffer that holds the largest packet.
    pub const BYTES: usize = VNET_BYTES + FRAME_BYTES_MAX;

    /// An empty packet in a buffer that holds the largest one.
    pub fn new() -> Self {
        Self { bytes: vec![0; Self::BYTES], len: 0 }
    }

    /// A copy of `packet` in a buffer of its size.
    pub fn holding(packet: &[u8]) -> Self {
        Self { bytes: packet.to_vec(), len: packet.len() }
    }

    /// Whether it holds the largest packet.
    pub fn is_large(&self) -> bool {
        self.bytes.len() == Self::BYTES
    }

    /// Lets `fill` write into the whole buffer and say how long the packet is.
    ///
    /// # Errors
    /// Those of `fill`; then the packet is empty.
    pub fn fill<E>(&mut self, fill: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<(), E> {
        self.len = 0;
        self.len = fill(&mut self.bytes)?.min(self.bytes.len());
        Ok(())
    }

    /// Appends `bytes`; false if they don't fit, and then nothing is changed.
    pub fn append(&mut self, bytes: &[u8]) -> bool {
        let Some(room) = self.bytes.get_mut(self.len..self.len + bytes.len()) else { return false };
        room.copy_from_slice(bytes);
        self.len += bytes.len();
        true
    }
}

impl Packet for PacketBuffer {
    fn truncate(&mut self, bytes: usize) {
        self.len = self.len.min(bytes);
    }
}

impl Packet for Vec<u8> {
    fn truncate(&mut self, bytes: usize) {
        Self::truncate(self, bytes);
    }
}

impl Default for PacketBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl AsRef<[u8]> for PacketBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl AsMut<[u8]> for PacketBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

//! The header in front of every frame on a link. This is its only definition.
//!
//! ```text
//!  0        1        2        3        4 .. 7
//! +--------+--------+--------+--------+-----------------+
//! | version| flags  | hops   | 0      | network id (BE) |
//! +--------+--------+--------+--------+-----------------+
//! ```
//! Behind it stand 10 bytes of virtio-net header (when [`Flags::VNET`] is set) and the Ethernet frame.

use crate::ids::NetworkId;

/// Version of the header that this host speaks.
pub const VERSION: u8 = 1;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 8;

/// Bytes of the virtio-net header that may follow (`struct virtio_net_hdr`, legacy layout without `num_buffers`).
pub const VNET_BYTES: usize = 10;

/// A decoded frame header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// The network the frame belongs to.
    pub network: NetworkId,
    /// How often it may still be sent on.
    pub hops: u8,
    /// What else stands in the packet.
    pub flags: Flags,
}

/// Bits of the header's second byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flags(u8);

/// Why bytes are not a frame header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameHeaderError {
    /// Fewer bytes than a header has.
    #[error("Frame header is truncated")]
    Truncated,
    /// Another version, or flags or bytes that this version leaves at zero.
    #[error("Frame header has an unknown version or flag")]
    Unknown,
}

impl Flags {
    /// A virtio-net header follows.
    pub const VNET: Self = Self(1);
    /// The frame goes to more than one host: it is never sent on.
    pub const FLOOD: Self = Self(2);
    /// Sent on by a host that no longer holds the destination.
    pub const FORWARDED: Self = Self(4);

    const KNOWN: u8 = 7;

    /// Whether all bits of `other` are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These bits and those of `other`.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl FrameHeader {
    /// Writes the header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let [a, b, c, d] = self.network.0.to_be_bytes();
        [VERSION, self.flags.0, self.hops, 0, a, b, c, d]
    }

    /// Reads a header and returns it with the bytes behind it.
    ///
    /// # Errors
    /// If the bytes are too few, of another version, or set what this version leaves at zero.
    pub fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), FrameHeaderError> {
        let (head, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(FrameHeaderError::Truncated)?;
        let [version, flags, hops, zero, a, b, c, d] = *head;
        if version != VERSION || flags & !Flags::KNOWN != 0 || zero != 0 {
            return Err(FrameHeaderError::Unknown);
        }
        Ok((Self { network: NetworkId(u32::from_be_bytes([a, b, c, d])), hops, flags: Flags(flags) }, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trips(network: u32, hops: u8, flags in 0u8..8) {
            let header = FrameHeader { network: NetworkId(network), hops, flags: Flags(flags) };
            let mut bytes = header.encode().to_vec();
            bytes.extend(b"frame");
            prop_assert_eq!(FrameHeader::decode(&bytes), Ok((header, &b"frame"[..])));
        }

        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>) {
            if let Ok((header, rest)) = FrameHeader::decode(&bytes) {
                prop_assert_eq!([&header.encode()[..], rest].concat(), bytes);
            }
        }
    }

    #[test]
    fn other_versions_are_refused() {
        let mut bytes = FrameHeader { network: NetworkId(1), hops: 1, flags: Flags::VNET }.encode();
        bytes[0] = 2;
        assert_eq!(FrameHeader::decode(&bytes), Err(FrameHeaderError::Unknown));
        assert_eq!(FrameHeader::decode(&bytes[..7]), Err(FrameHeaderError::Truncated));
    }
}

//! Encoding of everything that hosts tell each other, save frames. The only user of bincode.
//!
//! Every encoding begins with a version byte. Decoding is bounded by a limit that the caller names, allocates no more
//! than that, and refuses bytes that are left over. A number may be encoded in more than one length, so what is signed
//! or hashed is always encoded anew, never taken from the wire.

use bincode::config::{self, Configuration, Limit, LittleEndian, Varint};
use bincode::{Decode, Encode};

/// Version of the encodings of this crate.
pub const CODEC_VERSION: u8 = 1;

/// How much more memory than bytes a message may take: the smallest encoded row is a quarter of its size in memory.
pub const MEMORY_FACTOR: usize = 8;

/// Why bytes are not the value they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// More bytes than the limit of this kind of value.
    #[error("Message of {bytes} bytes is larger than the limit of {limit}")]
    TooLarge {
        /// How many there were.
        bytes: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Another version of the encoding, or nothing at all.
    #[error("Message has encoding version {0:?}, this host speaks {CODEC_VERSION}")]
    Version(Option<u8>),
    /// Not an encoding of the value.
    #[error("Message is malformed")]
    Malformed,
}

/// Encodes `value` behind the version byte.
pub fn encode<T: Encode>(value: &T) -> Vec<u8> {
    let mut bytes = vec![CODEC_VERSION];
    bincode::encode_into_std_write(value, &mut bytes, config::standard()).expect("writing to a Vec can't fail");
    bytes
}

/// Decodes a value from at most `BYTES` bytes, whose containers may take at most `MEMORY` bytes. Values are larger in
/// memory than encoded; [`MEMORY_FACTOR`] suits everything here.
///
/// # Errors
/// If the bytes are too many, of another version, malformed, or more than the value.
pub fn decode<T: Decode<()>, const BYTES: usize, const MEMORY: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > BYTES {
        return Err(CodecError::TooLarge { bytes: bytes.len(), limit: BYTES });
    }
    let (&version, body) = bytes.split_first().ok_or(CodecError::Version(None))?;
    if version != CODEC_VERSION {
        return Err(CodecError::Version(Some(version)));
    }
    let config: Configuration<LittleEndian, Varint, Limit<MEMORY>> = config::standard().with_limit::<MEMORY>();
    let (value, used) = bincode::decode_from_slice(body, config).map_err(|_| CodecError::Malformed)?;
    if used == body.len() { Ok(value) } else { Err(CodecError::Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_encoding_is_fixed() {
        let bytes = encode(&(7u32, String::from("blue"), Some([1u8, 2])));
        assert_eq!(bytes, [1, 7, 4, b'b', b'l', b'u', b'e', 1, 1, 2]);
    }

    #[test]
    fn lengths_that_lie_allocate_nothing() {
        // A vector that says it has 2^60 elements.
        let bytes = [1, 253, 0, 0, 0, 0, 0, 0, 0, 16];
        assert_eq!(decode::<Vec<u64>, 64, 64>(&bytes), Err(CodecError::Malformed));
    }

    #[test]
    fn bounds_and_versions_are_checked() {
        assert_eq!(decode::<u8, 4, 4>(&[1, 2, 3, 4, 5]), Err(CodecError::TooLarge { bytes: 5, limit: 4 }));
        assert_eq!(decode::<u8, 4, 4>(&[]), Err(CodecError::Version(None)));
        assert_eq!(decode::<u8, 4, 4>(&[9, 2]), Err(CodecError::Version(Some(9))));
        assert_eq!(decode::<u8, 4, 4>(&[1, 2, 3]), Err(CodecError::Malformed));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>) {
            let _ = decode::<Vec<(String, Option<u64>)>, 256, 256>(&bytes);
        }
    }
}

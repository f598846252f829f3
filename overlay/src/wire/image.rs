//! What hosts say on a stream of image content: questions one way, answers the other way in the same order.
//!
//! A question or the head of an answer is one byte of length and then so many bytes; the content that an answer
//! announces follows its head without encoding. Content is proven by its digest, so nothing here is signed.

use crate::ids::Digest;
use crate::wire::codec::{self, CodecError};
use bincode::{Decode, Encode};

/// Bytes of the longest question or head.
pub const IMAGE_MESSAGE_BYTES_MAX: usize = 64;

/// Bytes of one list of digests.
pub const CHUNK_LIST_BYTES_MAX: u64 = 256 << 10;

/// A question. Whoever asks may ask again before the answer is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum ImageRequest {
    /// The list of an image's chunks.
    Manifest(Digest),
    /// One chunk's content.
    Chunk(Digest),
    /// Which chunks of an image are here, now and as they come. Each answer is a list of their digests, of
    /// [`CHUNK_LIST_BYTES_MAX`] at most; an empty one says that all are here, and is the last.
    Follow(Digest),
}

/// The head of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum ImageAnswer {
    /// So many bytes of content follow.
    Content(u64),
    /// It is not here, or damaged.
    Missing,
}

impl ImageRequest {
    /// Encodes the question.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Decodes a question.
    ///
    /// # Errors
    /// If the bytes are not one question of at most [`IMAGE_MESSAGE_BYTES_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, IMAGE_MESSAGE_BYTES_MAX, IMAGE_MESSAGE_BYTES_MAX>(bytes)
    }
}

impl ImageAnswer {
    /// Encodes the head.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Decodes a head.
    ///
    /// # Errors
    /// If the bytes are not one head of at most [`IMAGE_MESSAGE_BYTES_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, IMAGE_MESSAGE_BYTES_MAX, IMAGE_MESSAGE_BYTES_MAX>(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_round_trip_within_their_bound() {
        for request in [
            ImageRequest::Manifest(Digest([255; 32])),
            ImageRequest::Chunk(Digest([7; 32])),
            ImageRequest::Follow(Digest([1; 32])),
        ] {
            let bytes = request.encode();
            assert!(bytes.len() <= IMAGE_MESSAGE_BYTES_MAX);
            assert_eq!(ImageRequest::decode(&bytes), Ok(request));
        }
        for answer in [ImageAnswer::Content(u64::MAX), ImageAnswer::Missing] {
            let bytes = answer.encode();
            assert!(bytes.len() <= IMAGE_MESSAGE_BYTES_MAX);
            assert_eq!(ImageAnswer::decode(&bytes), Ok(answer));
        }
        assert!(ImageRequest::decode(&[0; IMAGE_MESSAGE_BYTES_MAX + 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>) {
            let _ = ImageRequest::decode(&bytes);
            let _ = ImageAnswer::decode(&bytes);
        }
    }
}

//! What hosts say on a stream of a disc: a file of one host in the CD-ROM drive of a VM on another. Questions one way,
//! answers the other way in the same order.
//!
//! A question or the head of an answer is one byte of length and then so many bytes; the content that an answer
//! announces follows its head without encoding.

use crate::ids::DiscKey;
use crate::wire::codec::{self, CodecError};
use bincode::{Decode, Encode};

/// Bytes of the longest question or head.
pub const DISC_MESSAGE_BYTES_MAX: usize = 64;
/// Bytes of one read.
pub const DISC_READ_BYTES_MAX: u32 = 256 << 10;

/// A question. Whoever asks may ask again before the answer is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum DiscRequest {
    /// The disc that all later reads are of. Whoever knows its key may read it.
    Open(DiscKey),
    /// Its content: at most [`DISC_READ_BYTES_MAX`], within the disc. Nothing at all asks whether the other side lives.
    Read {
        /// Where it begins.
        offset: u64,
        /// How many bytes.
        length: u32,
    },
    /// The drive does not have it any more: it need not be kept.
    GiveBack(DiscKey),
}

/// The head of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum DiscAnswer {
    /// The disc is open and has so many bytes.
    Opened(u64),
    /// So many bytes of content follow: as many as were asked for.
    Content(u32),
    /// The file can't be read there.
    Unreadable,
    /// There is no such disc, or not any more.
    Unknown,
    /// It is not kept any more.
    GivenBack,
}

impl DiscRequest {
    /// Encodes the question.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Decodes a question.
    ///
    /// # Errors
    /// If the bytes are not one question of at most [`DISC_MESSAGE_BYTES_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, DISC_MESSAGE_BYTES_MAX, DISC_MESSAGE_BYTES_MAX>(bytes)
    }
}

impl DiscAnswer {
    /// Encodes the head.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Decodes a head.
    ///
    /// # Errors
    /// If the bytes are not one head of at most [`DISC_MESSAGE_BYTES_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, DISC_MESSAGE_BYTES_MAX, DISC_MESSAGE_BYTES_MAX>(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_round_trip_within_their_bound() {
        let key = DiscKey([255; 16]);
        let read = DiscRequest::Read { offset: u64::MAX, length: u32::MAX };
        for request in [DiscRequest::Open(key), read, DiscRequest::GiveBack(key)] {
            let bytes = request.encode();
            assert!(bytes.len() <= DISC_MESSAGE_BYTES_MAX);
            assert_eq!(DiscRequest::decode(&bytes), Ok(request));
        }
        for answer in [DiscAnswer::Opened(u64::MAX), DiscAnswer::Content(u32::MAX), DiscAnswer::GivenBack] {
            let bytes = answer.encode();
            assert!(bytes.len() <= DISC_MESSAGE_BYTES_MAX);
            assert_eq!(DiscAnswer::decode(&bytes), Ok(answer));
        }
        assert!(DiscRequest::decode(&[0; DISC_MESSAGE_BYTES_MAX + 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>) {
            let _ = DiscRequest::decode(&bytes);
            let _ = DiscAnswer::decode(&bytes);
        }
    }
}

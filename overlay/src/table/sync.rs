//! What two hosts say to find and repair the differences of their tables.
//!
//! The asker sends the root of its digest. If the answerer's differs, it answers with its buckets; the asker asks for
//! the tags (names and versions) of those that differ from its own, then for the rows it lacks, and sends along those
//! that the answerer lacks.

use super::{Row, Version};
use crate::limits::{GOSSIP_BYTES_MAX, SYNC_REQUEST_BYTES_MAX, SYNC_RESPONSE_BYTES_MAX};
use crate::wire::codec::{self, CodecError, MEMORY_FACTOR};
use bincode::{Decode, Encode};

/// Rows that their writer has just written.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Gossip {
    /// The rows.
    pub rows: Vec<Row>,
}

/// A row and how long ago its writer wrote it, as far as the sender can tell: a late joiner must not take an old row of
/// a dead host for news.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct AgedRow {
    /// The row.
    pub row: Row,
    /// Its age in seconds.
    pub age_s: u32,
}

/// A row's name and version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Tag {
    /// See [`Row::name`].
    pub name: u64,
    /// The version that the sender has.
    pub version: Version,
}

/// What the asker says.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum SyncRequest {
    /// The digest of its digest.
    Root(u64),
    /// Wants the tags of these buckets.
    Tags(Vec<u8>),
    /// Wants the rows of these names, and gives these.
    Rows {
        /// Names.
        want: Vec<u64>,
        /// Rows.
        give: Vec<AgedRow>,
    },
}

/// What the answerer says.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum SyncResponse {
    /// The tables are the same.
    Same,
    /// They are not; these are its buckets.
    Buckets(Vec<u64>),
    /// The tags of the buckets, in their order, as many whole buckets as fit.
    Tags(Vec<(u8, Vec<Tag>)>),
    /// Rows, in the order of the names, as many as fit.
    Rows(Vec<AgedRow>),
}

/// Implements the bounded encoding of a message.
macro_rules! message {
    ($type:ident, $limit:expr) => {
        impl $type {
            /// Encodes the message.
            pub fn encode(&self) -> Vec<u8> {
                codec::encode(self)
            }

            /// Decodes a message.
            ///
            /// # Errors
            /// If the bytes are not one, or more than its bound.
            pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
                codec::decode::<Self, { $limit }, { $limit * MEMORY_FACTOR }>(bytes)
            }
        }
    };
}

message!(Gossip, GOSSIP_BYTES_MAX);
message!(SyncRequest, SYNC_REQUEST_BYTES_MAX);
message!(SyncResponse, SYNC_RESPONSE_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>) {
            let _ = Gossip::decode(&bytes);
            let _ = SyncRequest::decode(&bytes);
            let _ = SyncResponse::decode(&bytes);
        }
    }
}

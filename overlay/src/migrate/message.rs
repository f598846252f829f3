//! What the two agents of a migration say to each other, over an ordered stream that may break at any time.

use super::{MESSAGE_BYTES_MAX, MigrationId, PostCopy};
use crate::claims::Claim;
use crate::ids::VmId;
use crate::wire::codec::{self, CodecError, MEMORY_FACTOR};
use bincode::{Decode, Encode};

/// What the source asks the target to take.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Offer {
    /// Which migration.
    pub id: MigrationId,
    /// The VM.
    pub vm: VmId,
    /// Everything the VM is started from, as the agents write it.
    pub definition: Vec<u8>,
    /// Whether it has a disk of its own.
    pub has_disk: bool,
    /// When memory may be fetched after the guest runs.
    pub post_copy: PostCopy,
}

/// From source to target.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum ToTarget {
    /// Take this VM.
    Offer(Offer),
    /// All of it has been sent: it is yours. Sent again until it is answered.
    Go {
        /// Which migration.
        id: MigrationId,
        /// Its addresses, signed over; empty if the source has lost them.
        handoffs: Vec<Claim>,
    },
    /// It stays here. Sent again until the target declines.
    Abort {
        /// Which migration.
        id: MigrationId,
        /// Why.
        why: String,
    },
    /// You have it, and nothing of it is left here.
    Finish {
        /// Which migration.
        id: MigrationId,
    },
}

/// From target to source.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum ToSource {
    /// A machine waits for disk and memory.
    Ready {
        /// Which migration.
        id: MigrationId,
        /// Whether it can fetch memory while the guest runs.
        post_copy: bool,
    },
    /// The guest runs here.
    Taken {
        /// Which migration.
        id: MigrationId,
        /// How it arrived.
        arrival: Arrival,
    },
    /// There is no copy here that runs or ever will.
    Declined {
        /// Which migration.
        id: MigrationId,
        /// Why.
        why: String,
    },
    /// Everything has arrived. May it run?
    Ask {
        /// Which migration.
        id: MigrationId,
    },
    /// What its addresses' frames were, for the report.
    Counted {
        /// Which migration.
        id: MigrationId,
        /// Frames that waited at the target.
        buffered: u64,
        /// Frames that the source sent on and that arrived.
        arrived: u64,
        /// Frames that waited at the target and died.
        lost: u64,
    },
}

/// How a guest arrived, by the target's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Arrival {
    /// Microseconds from `Go` until its ports were open and what had waited was on its way to the guest.
    pub opened_us: u64,
    /// Microseconds from `Go` to this message.
    pub answered_us: u64,
    /// The guest's process is gone already: what is left to be sent helps nobody.
    pub has_ended: bool,
    /// Microseconds of `opened_us`, in post-copy, in which the hypervisor waited for what it needed of the guest before
    /// that could go on.
    pub fetched_us: u64,
}

impl ToTarget {
    /// Which migration it is about.
    pub const fn id(&self) -> MigrationId {
        match self {
            Self::Offer(offer) => offer.id,
            Self::Go { id, .. } | Self::Abort { id, .. } | Self::Finish { id } => *id,
        }
    }

    /// Encodes the message.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Decodes a message.
    ///
    /// # Errors
    /// If the bytes are not one message of at most [`MESSAGE_BYTES_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, MESSAGE_BYTES_MAX, { MESSAGE_BYTES_MAX * MEMORY_FACTOR }>(bytes)
    }
}

impl ToSource {
    /// Which migration it is about.
    pub const fn id(&self) -> MigrationId {
        match self {
            Self::Ready { id, .. }
            | Self::Taken { id, .. }
            | Self::Declined { id, .. }
            | Self::Ask { id }
            | Self::Counted { id, .. } => *id,
        }
    }

    /// What a target says of a migration that it does not know.
    pub fn unknown(id: MigrationId) -> Self {
        Self::Declined { id, why: "the target knows nothing of it".into() }
    }

    /// Encodes the message.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Decodes a message.
    ///
    /// # Errors
    /// If the bytes are not one message of at most [`MESSAGE_BYTES_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, MESSAGE_BYTES_MAX, { MESSAGE_BYTES_MAX * MEMORY_FACTOR }>(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_round_trip() {
        let id = MigrationId([7; 16]);
        let offer =
            Offer { id, vm: VmId([1; 16]), definition: b"{}".to_vec(), has_disk: true, post_copy: PostCopy::Now };
        for message in [ToTarget::Offer(offer), ToTarget::Abort { id, why: "x".into() }, ToTarget::Finish { id }] {
            assert_eq!(ToTarget::decode(&message.encode()), Ok(message));
        }
        let arrival = Arrival { opened_us: 3, answered_us: 4, has_ended: false, fetched_us: 2 };
        for message in [ToSource::Ready { id, post_copy: true }, ToSource::Taken { id, arrival }] {
            assert_eq!(ToSource::decode(&message.encode()), Ok(message));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>) {
            let _ = (ToTarget::decode(&bytes), ToSource::decode(&bytes));
        }
    }
}

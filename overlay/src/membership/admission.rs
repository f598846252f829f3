//! What two hosts say to each other when a control connection comes up, before anything else.

use super::{CODEC_LIMIT_ADMIT, Certificate};
use crate::ids::SwarmId;
use crate::wire::codec::{self, CodecError, MEMORY_FACTOR};
use bincode::{Decode, Encode};

/// The dialer's word.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum AdmitRequest {
    /// A member shows its certificate.
    Member(Certificate),
    /// A host asks to become one.
    Join {
        /// The name it wants.
        name: String,
        /// The swarm its ticket is for, and the ticket's id and secret. Without, it waits for approval.
        ticket: Option<(SwarmId, [u8; 8], [u8; 16])>,
    },
    /// A member brings the certificate that the other host waits for.
    Offer {
        /// The waiting host's certificate.
        yours: Certificate,
        /// The bringing host's.
        mine: Certificate,
    },
}

/// The listener's word.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum AdmitAnswer {
    /// The asker's certificate holds; here is mine.
    Welcome(Certificate),
    /// The asker is a member from now on.
    Granted {
        /// The asker's certificate.
        yours: Certificate,
        /// The answering host's.
        mine: Certificate,
    },
    /// The asker waits for an admin. `swarm` tells which swarm it would join.
    Pending {
        /// The answering host's swarm.
        swarm: SwarmId,
    },
    /// No.
    Refused {
        /// Why, for programs.
        refusal: Refusal,
        /// Why, for people.
        text: String,
    },
}

/// Why a host is not let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Refusal {
    /// The answering host is no member itself yet.
    NotReady,
    /// The certificate does not hold here.
    Certificate,
    /// The ticket opens nothing.
    Ticket,
    /// The name is no DNS label or is another member's.
    Name,
    /// Too many hosts wait for approval.
    Busy,
}

impl AdmitRequest {
    /// Encodes the request.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Decodes a request.
    ///
    /// # Errors
    /// If the bytes are not one.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, CODEC_LIMIT_ADMIT, { CODEC_LIMIT_ADMIT * MEMORY_FACTOR }>(bytes)
    }
}

impl AdmitAnswer {
    /// Encodes the answer.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Decodes an answer.
    ///
    /// # Errors
    /// If the bytes are not one.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, CODEC_LIMIT_ADMIT, { CODEC_LIMIT_ADMIT * MEMORY_FACTOR }>(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_and_answers_round_trip() {
        let join = AdmitRequest::Join { name: "beta".into(), ticket: Some((SwarmId([1; 32]), [2; 8], [3; 16])) };
        assert_eq!(AdmitRequest::decode(&join.encode()), Ok(join));
        let no = AdmitAnswer::Refused { refusal: Refusal::Ticket, text: "Ticket has expired".into() };
        assert_eq!(AdmitAnswer::decode(&no.encode()), Ok(no));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>) {
            let _ = AdmitRequest::decode(&bytes);
            let _ = AdmitAnswer::decode(&bytes);
        }
    }
}

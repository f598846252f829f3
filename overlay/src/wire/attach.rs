//! What hosts say on a stream to a VM's console or display: the host of whoever looks on one side, the VM's host on the
//! other. What is typed is confirmed, so that after a move each byte of it goes to the VM's new host or has gone to the
//! old one, and never both.
//!
//! A message is four bytes of length, in network order, and then so many bytes.

use crate::ids::{HostId, VmId};
use crate::wire::codec::{self, CodecError};
use bincode::{Decode, Encode};

/// Bytes of output or input in one message.
pub const ATTACH_PIECE_BYTES_MAX: usize = 32 << 10;
/// Bytes of the longest message.
pub const ATTACH_MESSAGE_BYTES_MAX: usize = ATTACH_PIECE_BYTES_MAX + 64;
/// Bytes of a console's past.
pub const CONSOLE_PAST_BYTES_MAX: usize = 64 << 10;
/// Bytes that wait for a guest to read them.
pub const CONSOLE_TYPED_BYTES_MAX: usize = 4 << 10;
/// Bytes of the longest [`ConsolePart`].
pub const CONSOLE_PART_BYTES_MAX: usize = CONSOLE_PAST_BYTES_MAX + CONSOLE_TYPED_BYTES_MAX + 256;

/// A place in what a guest wrote to its console.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Place {
    /// Which past: drawn when nothing is known of what was written before, so that places of two pasts are never mixed.
    pub past: u64,
    /// Bytes before it.
    pub position: u64,
}

/// From the host of whoever looks.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum AttachRequest {
    /// The first message: the console of this VM, behind what was seen already.
    Console {
        /// Whose.
        vm: VmId,
        /// Where to go on; without it, from the beginning of what is known.
        seen: Option<Place>,
    },
    /// The first message: the display of this VM.
    Display {
        /// Whose.
        vm: VmId,
    },
    /// What was typed: at most [`ATTACH_PIECE_BYTES_MAX`].
    Input(Vec<u8>),
}

/// From the VM's host.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum AttachAnswer {
    /// Output follows, from here on. A display has no place.
    Opened(Place),
    /// No such VM runs here; where it went, if that is known.
    Gone(Option<HostId>),
    /// Output: at most [`ATTACH_PIECE_BYTES_MAX`].
    Output(Vec<u8>),
    /// So many further bytes of input go to the guest. What is not confirmed when [`Self::End`] comes does not.
    Accepted(u32),
    /// The VM does not run here any more. The last message.
    End,
}

/// A part of a console that moves with its VM, from the old host to the new one.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct ConsolePart {
    /// Which past.
    pub past: u64,
    /// Bytes of it before `output`.
    pub begin: u64,
    /// What the guest wrote: at most [`CONSOLE_PAST_BYTES_MAX`].
    pub output: Vec<u8>,
    /// What was typed and the guest has not read: at most [`CONSOLE_TYPED_BYTES_MAX`], and what is in a socket.
    pub typed: Vec<u8>,
    /// Whether the guest has written nothing more there.
    pub is_last: bool,
}

impl AttachRequest {
    /// Encodes the message.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Decodes a message.
    ///
    /// # Errors
    /// If the bytes are not one message of at most [`ATTACH_MESSAGE_BYTES_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, ATTACH_MESSAGE_BYTES_MAX, ATTACH_MESSAGE_BYTES_MAX>(bytes)
    }
}

impl AttachAnswer {
    /// Encodes the message.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Decodes a message.
    ///
    /// # Errors
    /// If the bytes are not one message of at most [`ATTACH_MESSAGE_BYTES_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, ATTACH_MESSAGE_BYTES_MAX, ATTACH_MESSAGE_BYTES_MAX>(bytes)
    }
}

impl ConsolePart {
    /// Encodes the message.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Decodes a message.
    ///
    /// # Errors
    /// If the bytes are not one message of at most [`CONSOLE_PART_BYTES_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, CONSOLE_PART_BYTES_MAX, CONSOLE_PART_BYTES_MAX>(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_longest_messages_are_within_their_bounds() {
        let place = Place { past: u64::MAX, position: u64::MAX };
        let piece = vec![7; ATTACH_PIECE_BYTES_MAX];
        for request in [
            AttachRequest::Console { vm: VmId([9; 16]), seen: Some(place) },
            AttachRequest::Display { vm: VmId([9; 16]) },
            AttachRequest::Input(piece.clone()),
        ] {
            assert_eq!(AttachRequest::decode(&request.encode()), Ok(request));
        }
        for answer in [
            AttachAnswer::Opened(place),
            AttachAnswer::Gone(Some(HostId([9; 32]))),
            AttachAnswer::Output(piece),
            AttachAnswer::Accepted(u32::MAX),
            AttachAnswer::End,
        ] {
            assert_eq!(AttachAnswer::decode(&answer.encode()), Ok(answer));
        }
        let (output, typed) = (vec![1; CONSOLE_PAST_BYTES_MAX], vec![2; CONSOLE_TYPED_BYTES_MAX + 64]);
        let part = ConsolePart { past: u64::MAX, begin: u64::MAX, output, typed, is_last: true };
        assert_eq!(ConsolePart::decode(&part.encode()), Ok(part));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>) {
            let _ = (AttachRequest::decode(&bytes), AttachAnswer::decode(&bytes), ConsolePart::decode(&bytes));
        }
    }
}

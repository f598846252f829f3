//! Messages of the reliable stream of a link: how two data planes talk about claims.

use crate::claims::Claim;
use crate::ids::{Epoch, Mac, NetworkId};
use crate::limits::MESSAGE_BYTES_MAX;
use crate::wire::codec::{self, CodecError, MEMORY_FACTOR};
use bincode::{Decode, Encode};

/// One message between the switches of two hosts.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Message {
    /// Claims that the sender holds or knows to be newer than what the receiver acts on. Also the redirect that answers
    /// a frame sent to a former holder.
    Claims(Vec<Claim>),
    /// The sender's port shows an address that the receiver holds.
    Ask {
        /// The network of the address.
        network: NetworkId,
        /// The address.
        mac: Mac,
        /// The epoch in which the asker knows the receiver to hold it.
        epoch: Epoch,
    },
    /// Answers [`Message::Ask`]: the address is yours, with my signature.
    Grant(Claim),
    /// Answers [`Message::Ask`]: the address is in use here.
    Refuse(Claim),
    /// The sender no longer has the address, and nobody asked for it.
    Release {
        /// The network of the address.
        network: NetworkId,
        /// The address.
        mac: Mac,
        /// The epoch that ends.
        epoch: Epoch,
    },
}

impl Message {
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
    use crate::claims::Ground;
    use crate::ids::HostId;
    use proptest::prelude::*;

    #[test]
    fn messages_round_trip() {
        let claim = Claim {
            network: NetworkId(9),
            mac: Mac([2, 0, 0, 0, 0, 9]),
            ips: vec!["10.0.0.9".parse().unwrap(), "fd00::9".parse().unwrap()],
            router: Some(false),
            holder: HostId([1; 32]),
            epoch: Epoch(3),
            revision: 1,
            ground: Ground::Lapsed { from: HostId([2; 32]) },
        };
        let message = Message::Claims(vec![claim]);
        assert_eq!(Message::decode(&message.encode()), Ok(message));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>) {
            let _ = Message::decode(&bytes);
        }
    }
}

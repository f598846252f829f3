//! Identifiers. Each is a newtype, so that a network can't be taken for a host.

use bincode::{Decode, Encode};
use std::fmt;
use std::str::FromStr;

/// A host: its Ed25519 public key. The text form is the libp2p `PeerId` (base58 of the identity multihash of the
/// protobuf-encoded key), so one string names a host everywhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct HostId(pub [u8; 32]);

/// One virtual Ethernet segment. Derived from swarm and name, so that every host derives the same id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct NetworkId(pub u32);

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct Mac(pub [u8; 6]);

/// The version of a claim: the higher one wins.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Debug, Default)]
pub struct Epoch(pub u64);

/// The BLAKE3 digest that names an image.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct Digest(pub [u8; 32]);

/// A swarm: the Ed25519 public key of its authority.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct SwarmId(pub [u8; 32]);

/// A virtual machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct VmId(pub [u8; 16]);

/// What opens a disc on the shelf of its host: a secret of those who may read it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct DiscKey(pub [u8; 16]);

/// Why a text is not an identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    /// The text is not a base58 Ed25519 `PeerId`.
    #[error("Not a host id: expected a base58 Ed25519 PeerId such as 12D3KooW...")]
    Host,
    /// The text is not six hexadecimal bytes.
    #[error("Not a MAC address: expected six hexadecimal bytes such as 52:54:00:12:34:56")]
    Mac,
    /// The text is not hexadecimal of the right length.
    #[error("Not a digest: expected {0} hexadecimal digits")]
    Hex(usize),
}

/// Identity multihash (code 0, length 36) of `PublicKey { type: Ed25519 (1), data: 32 bytes }`.
/// Source: libp2p specs, peer-ids.
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

impl HostId {
    /// The bytes of the libp2p `PeerId`.
    pub fn peer_id_bytes(&self) -> [u8; 38] {
        let mut bytes = [0; 38];
        bytes[..6].copy_from_slice(&PEER_ID_PREFIX);
        bytes[6..].copy_from_slice(&self.0);
        bytes
    }

    /// The host of a libp2p `PeerId`'s bytes, or `None` if that names no Ed25519 key.
    pub fn from_peer_id_bytes(bytes: &[u8]) -> Option<Self> {
        let key = bytes.strip_prefix(&PEER_ID_PREFIX)?;
        Some(Self(key.try_into().ok()?))
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bs58::encode(self.peer_id_bytes()).into_string())
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.to_string();
        write!(f, "HostId(..{})", &text[text.len() - 6..])
    }
}

impl FromStr for HostId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let mut bytes = [0; 38];
        let n = bs58::decode(text).onto(&mut bytes[..]).map_err(|_| ParseIdError::Host)?;
        Self::from_peer_id_bytes(&bytes[..n]).ok_or(ParseIdError::Host)
    }
}

impl NetworkId {
    /// The id of the network `name` in `swarm`: the first four bytes of a keyed BLAKE3 hash.
    ///
    /// Two names can share an id (probability 1e-4 among 1,000 networks); creating the second is refused.
    pub fn of(swarm: SwarmId, name: &str) -> Self {
        let hash = blake3::keyed_hash(&swarm.0, name.as_bytes());
        let bytes = hash.as_bytes();
        Self(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetworkId({self})")
    }
}

impl Mac {
    /// All stations.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// No station: never a valid source.
    pub const ZERO: Self = Self([0; 6]);

    /// Whether the address names a group of stations (multicast or broadcast).
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let mut mac = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut mac {
            let part = parts.next().filter(|p| p.len() == 2).ok_or(ParseIdError::Mac)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| ParseIdError::Mac)?;
        }
        if parts.next().is_some() { Err(ParseIdError::Mac) } else { Ok(Self(mac)) }
    }
}

/// Implements lower-case hexadecimal text for a byte-array newtype.
macro_rules! hex_text {
    ($id:ident, $len:literal) => {
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:02x}{:02x}..)", stringify!($id), self.0[0], self.0[1])
            }
        }

        impl FromStr for $id {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let error = ParseIdError::Hex(2 * $len);
                if text.len() != 2 * $len || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(error);
                }
                let mut bytes = [0; $len];
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| error)?;
                }
                Ok(Self(bytes))
            }
        }
    };
}

hex_text!(Digest, 32);
hex_text!(SwarmId, 32);
hex_text!(VmId, 16);
hex_text!(DiscKey, 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_id_text_round_trips() {
        let host = HostId([7; 32]);
        let text = host.to_string();
        assert!(text.starts_with("12D3KooW"), "{text}");
        assert_eq!(text.parse(), Ok(host));
        assert_eq!("12D3KooW".parse::<HostId>(), Err(ParseIdError::Host));
        assert_eq!("".parse::<HostId>(), Err(ParseIdError::Host));
    }

    #[test]
    fn mac_text_round_trips() {
        let mac: Mac = "52:54:00:ab:cd:EF".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:ef");
        for wrong in ["", "52:54:00:ab:cd", "52:54:00:ab:cd:ef:00", "5:54:00:ab:cd:ef", "xx:54:00:ab:cd:ef"] {
            assert_eq!(wrong.parse::<Mac>(), Err(ParseIdError::Mac), "{wrong}");
        }
    }

    #[test]
    fn digest_text_round_trips() {
        let digest = Digest([0xa5; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!("a5".parse::<Digest>(), Err(ParseIdError::Hex(64)));
    }

    #[test]
    fn network_ids_depend_on_swarm_and_name() {
        let (one, two) = (SwarmId([1; 32]), SwarmId([2; 32]));
        assert_eq!(NetworkId::of(one, "blue"), NetworkId::of(one, "blue"));
        assert_ne!(NetworkId::of(one, "blue"), NetworkId::of(one, "red"));
        assert_ne!(NetworkId::of(one, "blue"), NetworkId::of(two, "blue"));
    }
}

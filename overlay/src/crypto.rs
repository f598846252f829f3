//! Signatures as an argument: the agent brings Ed25519, the simulator a cheap keyed hash.

use bincode::{Decode, Encode};

/// An Ed25519 signature, or what stands for it in the simulator.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Signature(pub [u8; 64]);

/// Holds one private key.
pub trait Signer: Send + Sync {
    /// The public key.
    fn public_key(&self) -> [u8; 32];

    /// Signs `message`. Signing is deterministic.
    fn sign(&self, message: &[u8]) -> Signature;
}

/// Checks signatures of any key.
pub trait Verifier: Send + Sync {
    /// Whether `signature` over `message` was made by the holder of `public_key`.
    fn verify(&self, public_key: &[u8; 32], message: &[u8], signature: &Signature) -> bool;
}

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signature({:02x}{:02x}..)", self.0[0], self.0[1])
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A keyed hash in place of Ed25519. Anyone can forge it, so it is for tests only.

    use super::*;
    use crate::ids::HostId;

    /// A key that is one byte.
    pub(crate) struct Toy(pub(crate) u8);

    impl Toy {
        pub(crate) fn host(&self) -> HostId {
            HostId([self.0; 32])
        }
    }

    fn seal(key: &[u8; 32], message: &[u8]) -> Signature {
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(blake3::keyed_hash(key, message).as_bytes());
        Signature(signature)
    }

    impl Signer for Toy {
        fn public_key(&self) -> [u8; 32] {
            self.host().0
        }

        fn sign(&self, message: &[u8]) -> Signature {
            seal(&self.host().0, message)
        }
    }

    impl Verifier for Toy {
        fn verify(&self, public_key: &[u8; 32], message: &[u8], signature: &Signature) -> bool {
            seal(public_key, message) == *signature
        }
    }
}

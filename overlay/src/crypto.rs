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

//! A keyed hash in place of Ed25519: a thousand times cheaper, forgeable by anyone, and nobody here forges.

use std::sync::Arc;
use virtuoso_overlay::crypto::{Signature, Signer, Verifier};
use virtuoso_overlay::ids::{HostId, SwarmId};
use virtuoso_overlay::membership::{Certificate, CertificateRequest, Roles};
use virtuoso_overlay::time::UnixTime;

/// A key pair.
#[derive(Clone, Copy)]
pub(crate) struct Key([u8; 32]);

/// Checks any key's signatures.
pub(crate) struct Keyring;

impl Key {
    /// The key of a host. Ids are scattered, so that their order is not the hosts' order.
    pub(crate) fn of_host(index: usize) -> Self {
        let mut rng = crate::rng::Rng::new(index as u64);
        let mut bytes = [0; 32];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&rng.next().to_be_bytes());
        }
        Self(bytes)
    }

    /// The swarm's.
    pub(crate) const fn authority() -> Self {
        Self([0xaa; 32])
    }

    pub(crate) const fn host_id(&self) -> HostId {
        HostId(self.0)
    }

    pub(crate) const fn swarm_id(&self) -> SwarmId {
        SwarmId(self.0)
    }

    pub(crate) fn signer(self) -> Arc<dyn Signer> {
        Arc::new(self)
    }
}

impl Signer for Key {
    fn public_key(&self) -> [u8; 32] {
        self.0
    }

    fn sign(&self, message: &[u8]) -> Signature {
        seal(&self.0, message)
    }
}

impl Verifier for Keyring {
    fn verify(&self, public_key: &[u8; 32], message: &[u8], signature: &Signature) -> bool {
        seal(public_key, message) == *signature
    }
}

/// The certificate of a host.
pub(crate) fn certificate(index: usize, host: HostId, now_s: u64) -> Certificate {
    let request = CertificateRequest {
        host,
        name: format!("host-{index}"),
        roles: Roles::default(),
        issued: UnixTime(now_s),
        expires: UnixTime(now_s + 365 * 86_400),
        serial: index as u64,
    };
    Certificate::issue(&Key::authority(), request)
}

fn seal(key: &[u8; 32], message: &[u8]) -> Signature {
    let mut state = key.chunks(8).fold(0x243f_6a88_85a3_08d3, mix);
    for chunk in message.chunks(8) {
        state = mix(state, chunk);
    }
    let mut signature = [0; 64];
    for (index, part) in signature.chunks_mut(8).enumerate() {
        part.copy_from_slice(&mix(state, &[index as u8]).to_be_bytes());
    }
    Signature(signature)
}

fn mix(state: u64, chunk: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..chunk.len()].copy_from_slice(chunk);
    let mixed = (state ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29) ^ chunk.len() as u64
}

//! One row: who wrote it, under which key, in which version, signed.

use super::Body;
use crate::crypto::{Signature, Signer, Verifier};
use crate::ids::{Digest, HostId, Mac, NetworkId, SwarmId, VmId};
use crate::wire::codec;
use bincode::{Decode, Encode};

/// What a row is about, among the rows of its writer. Hosts come first, so that anti-entropy brings the certificate
/// before what it vouches for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Encode, Decode)]
pub enum Key {
    /// The writer itself.
    Host,
    /// A network.
    Network(NetworkId),
    /// An address.
    Claim(NetworkId, Mac),
    /// An image.
    Image(Digest),
    /// A VM.
    Vm(VmId),
    /// A host that waits for approval.
    Pending(HostId),
    /// A certificate that was issued.
    Certificate(HostId),
    /// That the writer is there.
    Beat,
}

impl Key {
    /// Whether rows of this key say that their writer is there.
    pub(super) const fn is_lease(self) -> bool {
        matches!(self, Self::Host | Self::Beat)
    }
}

/// Orders the versions of a row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Encode, Decode)]
pub struct Version {
    /// Grows with every start of the writer.
    pub incarnation: u64,
    /// Grows with every row that the writer writes.
    pub seq: u64,
}

/// A row.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Row {
    /// Who wrote it.
    pub writer: HostId,
    /// What it is about.
    pub key: Key,
    /// Which version it is.
    pub version: Version,
    /// What it says; nothing if the row is taken back.
    pub body: Option<Body>,
    /// The writer's, over all of the above and the swarm.
    pub signature: Signature,
}

impl Row {
    /// Writes and signs a row.
    pub fn sign(swarm: SwarmId, signer: &dyn Signer, key: Key, version: Version, body: Option<Body>) -> Self {
        let writer = HostId(signer.public_key());
        let mut row = Self { writer, key, version, body, signature: Signature([0; 64]) };
        row.signature = signer.sign(&row.signed_bytes(swarm));
        row
    }

    /// Whether the writer signed it for `swarm`.
    pub fn is_signed(&self, swarm: SwarmId, verifier: &dyn Verifier) -> bool {
        verifier.verify(&self.writer.0, &self.signed_bytes(swarm), &self.signature)
    }

    /// Whether key and content agree and keep their bounds.
    pub fn is_well_formed(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.key() == self.key && body.is_well_formed(self.writer))
    }

    /// Names (writer, key) in 64 bits. Two rows of one table share a name with probability 1e-9 among 100,000 rows; the
    /// later one then looks changed for ever, which costs one row in every comparison.
    pub fn name(&self) -> u64 {
        short_hash(&(self.writer, self.key))
    }

    fn signed_bytes(&self, swarm: SwarmId) -> Vec<u8> {
        let mut bytes = b"virtuoso row 1".to_vec();
        bytes.extend(swarm.0);
        bytes.extend(codec::encode(&(&self.writer, &self.key, &self.version, &self.body)));
        bytes
    }
}

/// The first eight bytes of the BLAKE3 hash of an encoding.
pub(super) fn short_hash(value: &impl Encode) -> u64 {
    let hash = blake3::hash(&codec::encode(value));
    let (head, _) = hash.as_bytes().split_first_chunk::<8>().expect("a hash has 32 bytes");
    u64::from_be_bytes(*head)
}

//! Ed25519 keys in files: the host's identity and, on hosts that founded a swarm, the swarm's authority. Made once,
//! 0600, never overwritten. The only place that signs and verifies.

use crate::state::StateDir;
use crate::state::sealed::{Kind, Reason, Unreadable};
use anyhow::{Context, anyhow, ensure};
use libp2p::PeerId;
use libp2p::identity::{Keypair, ed25519};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use virtuoso_overlay::crypto::{Signature, Signer, Verifier};
use virtuoso_overlay::ids::{Digest, HostId};

/// This host's key.
pub const IDENTITY: Kind = Kind { name: "identity.key", version: 1 };
/// The key of a swarm that was founded here.
pub const AUTHORITY: Kind = Kind { name: "authority.key", version: 1 };

/// A private key and its file's purpose.
#[derive(Clone)]
pub struct SigningKey(ed25519::Keypair);

/// Verifies Ed25519 signatures.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ed25519;

impl SigningKey {
    /// The key in the file; makes both if there is no file.
    pub fn load_or_create(state: &StateDir, kind: &Kind) -> anyhow::Result<Self> {
        match Self::load(state, kind)? {
            Some(key) => Ok(key),
            None => Self::create(state, kind),
        }
    }

    /// The key in the file, or `None` if there is no file. A file that others can read is refused.
    pub fn load(state: &StateDir, kind: &Kind) -> anyhow::Result<Option<Self>> {
        let path = state.path().join(kind.name);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("Can't read {}", path.display())),
            Ok(metadata) => {
                let mode = metadata.mode() & 0o7777;
                ensure!(
                    mode & 0o077 == 0,
                    "The key file {} is open to other users (mode {mode:04o}): make sure that nobody copied it, then \
                     `chmod 600 {0}`",
                    path.display()
                );
            }
        }
        let Some(content) = state.read(kind)? else { return Ok(None) };
        let text = std::str::from_utf8(&content).unwrap_or_default();
        // A private key has the length and the text form of a digest.
        let secret: Option<Digest> = text.trim().parse().ok();
        let key = secret.and_then(|secret| Self::from_secret(secret.0));
        key.map(Some).ok_or_else(|| anyhow!(Unreadable { path, reason: Reason::Content("not a private key".into()) }))
    }

    /// Makes a key and its file.
    pub fn create(state: &StateDir, kind: &Kind) -> anyhow::Result<Self> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| anyhow!("Can't draw a key: {error}"))?;
        let key = Self::from_secret(secret).context("Can't make a key")?;
        state.create(kind, format!("{}\n", Digest(secret)).as_bytes())?;
        Ok(key)
    }

    fn from_secret(mut secret: [u8; 32]) -> Option<Self> {
        let secret = ed25519::SecretKey::try_from_bytes(&mut secret).ok()?;
        Some(Self(ed25519::Keypair::from(secret)))
    }

    /// The host that has this key.
    pub fn host_id(&self) -> HostId {
        HostId(self.public_key())
    }

    /// For libp2p's transports.
    pub fn keypair(&self) -> Keypair {
        self.0.clone().into()
    }
}

impl Signer for SigningKey {
    fn public_key(&self) -> [u8; 32] {
        self.0.public().to_bytes()
    }

    fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).try_into().expect("an Ed25519 signature has 64 bytes"))
    }
}

impl Verifier for Ed25519 {
    fn verify(&self, public_key: &[u8; 32], message: &[u8], signature: &Signature) -> bool {
        ed25519::PublicKey::try_from_bytes(public_key).is_ok_and(|key| key.verify(message, &signature.0))
    }
}

/// Private keys don't belong into logs.
impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({:?})", self.host_id())
    }
}

/// The libp2p name of a host.
pub fn peer_id(host: HostId) -> PeerId {
    PeerId::from_bytes(&host.peer_id_bytes()).expect("an identity multihash of 36 bytes is a peer id")
}

/// The host of a libp2p name, or `None` if that is not the name of an Ed25519 key.
pub fn host_id(peer: &PeerId) -> Option<HostId> {
    HostId::from_peer_id_bytes(&peer.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn is_made_once() {
        let tmp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&tmp.path().join("s")).unwrap();
        let first = SigningKey::load_or_create(&state, &IDENTITY).unwrap();
        let again = SigningKey::load_or_create(&state, &IDENTITY).unwrap();
        assert_eq!(first.host_id(), again.host_id());
        assert_eq!(fs::metadata(state.path().join("identity.key")).unwrap().mode() & 0o777, 0o600);
        SigningKey::create(&state, &IDENTITY).unwrap_err();
        assert!(SigningKey::load(&state, &AUTHORITY).unwrap().is_none());
        assert_ne!(SigningKey::create(&state, &AUTHORITY).unwrap().host_id(), first.host_id());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&tmp.path().join("s")).unwrap();
        SigningKey::create(&state, &IDENTITY).unwrap();
        let path = state.path().join("identity.key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = SigningKey::load(&state, &IDENTITY).unwrap_err().to_string();
        assert!(error.contains("mode 0640") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_damaged_key_is_kept() {
        let tmp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&tmp.path().join("s")).unwrap();
        SigningKey::create(&state, &IDENTITY).unwrap();
        let path = state.path().join("identity.key");
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 2]).unwrap();
        assert!(SigningKey::load_or_create(&state, &IDENTITY).unwrap_err().is::<Unreadable>());
        assert_eq!(fs::read(&path).unwrap().len(), whole.len() - 2);
    }

    #[test]
    fn signs_and_verifies() {
        let key = SigningKey::from_secret([7; 32]).unwrap();
        let signature = key.sign(b"message");
        assert!(Ed25519.verify(&key.public_key(), b"message", &signature));
        assert!(!Ed25519.verify(&key.public_key(), b"massage", &signature));
        assert!(!Ed25519.verify(&[0xff; 32], b"message", &signature));
        assert_eq!(key.sign(b"message"), signature);
    }

    #[test]
    fn names_convert_both_ways() {
        let key = SigningKey::from_secret([9; 32]).unwrap();
        let peer = peer_id(key.host_id());
        assert_eq!(peer, key.keypair().public().to_peer_id());
        assert_eq!(host_id(&peer), Some(key.host_id()));
        assert_eq!(peer.to_string(), key.host_id().to_string());
        assert_eq!(host_id(&PeerId::random()), None);
    }
}

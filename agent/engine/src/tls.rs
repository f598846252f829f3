//! TLS of the data plane: libp2p's certificate extension both ways, so that the handshake proves the peer's host key.
//!
//! The certificates are libp2p's, the configuration is ours: cipher suites in the order of this CPU's speed, an ALPN
//! that no libp2p endpoint speaks, no key log whatever the environment says, no session tickets.

use anyhow::{Context, Result, anyhow, ensure};
use libp2p::identity::Keypair;
use libp2p_tls::certificate;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::crypto::{CryptoError, HmacKey};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use std::sync::Arc;
use virtuoso_overlay::ids::HostId;

/// What a data-plane connection speaks. The control plane's endpoint offers another protocol, so a packet that was
/// led to the wrong plane ends its handshake here.
pub(crate) const ALPN: &[u8] = b"virtuoso-data/1";

/// The name in the client's hello. Keys name hosts, names don't: it is constant and not sent.
pub(crate) const SERVER_NAME: &str = "virtuoso";

/// The host of an Ed25519 key pair.
///
/// # Errors
/// If the key is of another kind.
pub(crate) fn host_id(keypair: &Keypair) -> Result<HostId> {
    let public = keypair.public().try_into_ed25519().context("The host key must be an Ed25519 key")?;
    Ok(HostId(public.to_bytes()))
}

/// TLS for connections that peers dial.
pub(crate) fn server(keypair: &Keypair) -> Result<QuicServerConfig> {
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(PeerVerifier { expected: None }))
        .with_cert_resolver(Arc::new(OneCertificate::new(keypair)?));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(QuicServerConfig::try_from(config)?)
}

/// TLS for a connection to `peer`.
pub(crate) fn client(keypair: &Keypair, peer: HostId) -> Result<QuicClientConfig> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PeerVerifier { expected: Some(peer) }))
        .with_client_cert_resolver(Arc::new(OneCertificate::new(keypair)?));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    Ok(QuicClientConfig::try_from(config)?)
}

/// The peer whose key the handshake of `connection` proved.
pub(crate) fn peer_of(connection: &quinn_proto::Connection) -> Result<HostId> {
    let identity = connection.crypto_session().peer_identity().context("The peer showed no certificate")?;
    let chain = identity
        .downcast::<Vec<CertificateDer<'static>>>()
        .map_err(|_| anyhow!("The peer's identity is no certificate"))?;
    let first = chain.first().context("The peer showed no certificate")?;
    Ok(verified_host(first)?)
}

/// The suites by speed: AES where the CPU computes it, ChaCha20 first where not. AES-128 must always be present,
/// because QUIC protects first packets with it.
fn provider() -> Arc<CryptoProvider> {
    let aes = [cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384];
    let mut suites = aes.to_vec();
    suites.insert(if cpu_has_aes() { 2 } else { 0 }, cipher_suite::TLS13_CHACHA20_POLY1305_SHA256);
    Arc::new(CryptoProvider { cipher_suites: suites, ..default_provider() })
}

fn cpu_has_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Shows this host's certificate to everyone. rustls's own holder refuses libp2p's extension, because it is critical.
#[derive(Debug)]
struct OneCertificate(Arc<CertifiedKey>);

impl OneCertificate {
    fn new(keypair: &Keypair) -> Result<Self> {
        let (certificate, key) = certificate::generate(keypair).context("Can't make the data plane's certificate")?;
        Ok(Self(Arc::new(CertifiedKey::new(vec![certificate], any_ecdsa_type(&key)?))))
    }
}

impl ResolvesServerCert for OneCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl ResolvesClientCert for OneCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Accepts exactly one self-signed certificate with libp2p's extension, from `expected` if that is given.
#[derive(Debug)]
struct PeerVerifier {
    expected: Option<HostId>,
}

impl PeerVerifier {
    fn check(&self, certificate: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Error> {
        if !others.is_empty() {
            return Err(Error::General("A host shows exactly one certificate".into()));
        }
        let host = verified_host(certificate)?;
        match self.expected {
            Some(expected) if expected != host => Err(Error::General(format!("The address belongs to {host}"))),
            _ => Ok(()),
        }
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(certificate, others).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(certificate, others).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

/// Signatures that the certificates of hosts use: libp2p makes P-256 keys for them.
const SCHEMES: [SignatureScheme; 2] = [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519];

/// The host that vouches for `certificate` in libp2p's extension; the certificate's own signature is checked too.
fn verified_host(certificate: &CertificateDer<'_>) -> Result<HostId, Error> {
    let parsed = certificate::parse(certificate).map_err(|_| Error::from(CertificateError::BadEncoding))?;
    HostId::from_peer_id_bytes(&parsed.peer_id().to_bytes())
        .ok_or_else(|| Error::General("The peer's host key is no Ed25519 key".into()))
}

fn verify_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    certificate::parse(certificate)
        .map_err(|_| Error::from(CertificateError::BadEncoding))?
        .verify_signature(signed.scheme, message, signed.signature())
        .map_err(|_| Error::from(CertificateError::BadSignature))?;
    Ok(HandshakeSignatureValid::assertion())
}

fn no_tls12() -> Error {
    Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered)
}

/// The key behind stateless resets. It is derived from the host key, so that a restarted host can tell its peers at
/// once that their connections are gone.
pub(crate) struct ResetKey([u8; 32]);

impl ResetKey {
    /// The key of the data plane.
    pub(crate) fn data(keypair: &Keypair) -> Result<Self> {
        Self::derive("virtuoso data plane stateless reset v1", keypair)
    }

    /// The key of the control plane.
    pub(crate) fn control(keypair: &Keypair) -> Result<Self> {
        Self::derive("virtuoso control plane stateless reset v1", keypair)
    }

    fn derive(context: &str, keypair: &Keypair) -> Result<Self> {
        let host = keypair.clone().try_into_ed25519().context("The host key must be an Ed25519 key")?;
        let secret = host.secret();
        ensure!(secret.as_ref().len() == 32, "The host key must have 32 bytes");
        Ok(Self(blake3::derive_key(context, secret.as_ref())))
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        blake3::Hasher::new_keyed(&self.0).update(data).finalize_xof().fill(signature);
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let expected = blake3::keyed_hash(&self.0, data);
        let given = blake3::Hash::from_slice(signature).map_err(|_| CryptoError)?;
        // The comparison of hashes takes constant time.
        if expected == given { Ok(()) } else { Err(CryptoError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_keys_come_from_the_host_key_and_the_plane() {
        let host = Keypair::ed25519_from_bytes([1; 32]).unwrap();
        let data = ResetKey::data(&host).unwrap();
        assert_eq!(data.0, ResetKey::data(&host).unwrap().0);
        assert_ne!(data.0, ResetKey::control(&host).unwrap().0);
        let mut signature = vec![0; data.signature_len()];
        data.sign(b"id", &mut signature);
        assert!(data.verify(b"id", &signature).is_ok());
        assert!(data.verify(b"di", &signature).is_err());
        assert!(data.verify(b"id", &signature[1..]).is_err());
    }

    #[test]
    fn a_certificate_names_its_host() {
        let host = Keypair::ed25519_from_bytes([1; 32]).unwrap();
        let (certificate, _) = certificate::generate(&host).unwrap();
        assert_eq!(verified_host(&certificate).unwrap(), host_id(&host).unwrap());
        let other = PeerVerifier { expected: Some(HostId([9; 32])) };
        assert!(other.check(&certificate, &[]).is_err());
        assert!(PeerVerifier { expected: None }.check(&certificate, std::slice::from_ref(&certificate)).is_err());
    }
}

//! Who belongs to the swarm: certificates, tickets, and the exchange by which a host shows the one or uses the other.
//!
//! A swarm is its authority's key. A host is a member while it holds a certificate that the authority signed and that
//! has not expired; every connection, control and data, begins by showing it. A ticket carries a one-time secret that
//! its issuer exchanges for a certificate; without one, a host waits until an admin approves it.

mod admission;
mod ticket;

pub use admission::{AdmitAnswer, AdmitRequest, Refusal};
pub use ticket::{Ticket, TicketBook, TicketEntry, TicketError, TicketParseError};

use crate::crypto::{Signature, Signer, Verifier};
use crate::ids::{HostId, SwarmId};
use crate::limits::{CERTIFICATE_SKEW_MAX, NAME_CHARS_MAX};
use crate::time::UnixTime;
use crate::wire::codec::{self, CodecError, MEMORY_FACTOR};
use bincode::{Decode, Encode};

/// Bytes of an encoded certificate at most.
pub const CERTIFICATE_BYTES_MAX: usize = 512;

/// Bytes of an encoded ticket at most: eight addresses with peer ids.
const CODEC_LIMIT_TICKET: usize = 2_048;

/// Bytes of an encoded admission message at most: two certificates and a text.
const CODEC_LIMIT_ADMIT: usize = 4_096;

/// Bytes of all that an admin host has issued: certificates for a swarm of the largest size.
const ISSUED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The authority's word that a host is a member.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Certificate {
    /// The swarm: the key that signed.
    pub swarm: SwarmId,
    /// The member.
    pub host: HostId,
    /// The name the member has in the swarm, one DNS label.
    pub name: String,
    /// When it was signed.
    pub issued: UnixTime,
    /// From when on it is void.
    pub expires: UnixTime,
    /// What the member may do. Only [`Roles::ADMIN`] has a meaning today; unknown bits are kept.
    pub roles: Roles,
    /// Names this certificate in a list of revoked ones.
    pub serial: u64,
    /// Which of the authority's keys signed, counted from zero: rotation raises it.
    pub authority_generation: u32,
    /// How long resources may be used without renewal, in seconds; zero for no such limit.
    pub lease_s: u32,
    /// Over all of the above.
    pub signature: Signature,
}

/// A set of roles.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Roles(pub u32);

impl Roles {
    /// May approve hosts and issue tickets; holds the authority's key.
    pub const ADMIN: Self = Self(1);

    /// Whether all roles of `other` are in the set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What an admin host has issued: it must outlive restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Issued {
    /// For other hosts.
    pub certificates: Vec<Certificate>,
    /// Tickets and who used them.
    pub tickets: TicketBook,
}

impl Issued {
    /// Encodes all of it.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Decodes it.
    ///
    /// # Errors
    /// If the bytes are something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, ISSUED_BYTES_MAX, { ISSUED_BYTES_MAX * MEMORY_FACTOR }>(bytes)
    }
}

/// Why a certificate does not make its bearer a member.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not a certificate.
    #[error("Certificate is unreadable: {0}")]
    Unreadable(#[from] CodecError),
    /// Another swarm's.
    #[error("Certificate belongs to swarm {theirs}, this host to swarm {ours}")]
    OtherSwarm {
        /// The certificate's swarm.
        theirs: SwarmId,
        /// Our swarm.
        ours: SwarmId,
    },
    /// Another host's.
    #[error("Certificate was issued to {0}, not to the host that shows it")]
    OtherHost(HostId),
    /// Past its end.
    #[error("Certificate expired at {} (seconds since 1970)", .0.0)]
    Expired(UnixTime),
    /// From the future.
    #[error("Certificate was issued at {} (seconds since 1970), which is in the future: check this host's clock", .0.0)]
    NotYet(UnixTime),
    /// The signature is not the authority's.
    #[error("Certificate is not signed by the swarm's authority")]
    Forged,
    /// A name that is no DNS label.
    #[error("Certificate has an invalid host name")]
    BadName,
}

/// What a certificate is to be issued for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateRequest {
    /// The member to be.
    pub host: HostId,
    /// Its name.
    pub name: String,
    /// Its roles.
    pub roles: Roles,
    /// From when.
    pub issued: UnixTime,
    /// Until when.
    pub expires: UnixTime,
    /// Unique among the authority's certificates.
    pub serial: u64,
}

impl Certificate {
    /// Signs a certificate with the authority's key.
    pub fn issue(authority: &dyn Signer, request: CertificateRequest) -> Self {
        let CertificateRequest { host, name, roles, issued, expires, serial } = request;
        let mut certificate = Self {
            swarm: SwarmId(authority.public_key()),
            host,
            name,
            issued,
            expires,
            roles,
            serial,
            authority_generation: 0,
            lease_s: 0,
            signature: Signature([0; 64]),
        };
        certificate.signature = authority.sign(&certificate.signed_bytes());
        certificate
    }

    /// Encodes the certificate.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Decodes a certificate without checking it.
    ///
    /// # Errors
    /// If the bytes are not a certificate.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, CERTIFICATE_BYTES_MAX, { CERTIFICATE_BYTES_MAX * MEMORY_FACTOR }>(bytes)
    }

    /// Whether this makes `bearer` a member of `swarm` at `now`.
    ///
    /// # Errors
    /// Says why not.
    pub fn check(
        &self,
        swarm: SwarmId,
        bearer: HostId,
        now: UnixTime,
        verifier: &dyn Verifier,
    ) -> Result<(), CertificateError> {
        if self.swarm != swarm {
            return Err(CertificateError::OtherSwarm { theirs: self.swarm, ours: swarm });
        }
        if self.host != bearer {
            return Err(CertificateError::OtherHost(self.host));
        }
        if self.expires <= now {
            return Err(CertificateError::Expired(self.expires));
        }
        if self.issued > now + CERTIFICATE_SKEW_MAX {
            return Err(CertificateError::NotYet(self.issued));
        }
        if !is_name(&self.name) {
            return Err(CertificateError::BadName);
        }
        match verifier.verify(&swarm.0, &self.signed_bytes(), &self.signature) {
            true => Ok(()),
            false => Err(CertificateError::Forged),
        }
    }

    fn signed_bytes(&self) -> Vec<u8> {
        let blank = Self { signature: Signature([0; 64]), ..self.clone() };
        [b"virtuoso certificate 1".as_slice(), &blank.encode()].concat()
    }
}

/// Whether `text` is one DNS label: 1 to 63 of `a-z`, `0-9`, `-`, not beginning or ending with `-`.
pub fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= NAME_CHARS_MAX
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::Toy;
    use proptest::prelude::*;

    fn certificate() -> Certificate {
        let request = CertificateRequest {
            host: Toy(1).host(),
            name: "alpha".into(),
            roles: Roles::ADMIN,
            issued: UnixTime(1_000),
            expires: UnixTime(2_000),
            serial: 1,
        };
        Certificate::issue(&Toy(9), request)
    }

    fn check(certificate: &Certificate, now: u64) -> Result<(), CertificateError> {
        certificate.check(SwarmId([9; 32]), Toy(1).host(), UnixTime(now), &Toy(0))
    }

    #[test]
    fn a_certificate_holds_for_its_host_swarm_and_time() {
        let certificate = certificate();
        assert_eq!(check(&certificate, 1_500), Ok(()));
        assert_eq!(check(&certificate, 2_000), Err(CertificateError::Expired(UnixTime(2_000))));
        assert_eq!(check(&certificate, 1), Err(CertificateError::NotYet(UnixTime(1_000))));
        let other = certificate.check(SwarmId([8; 32]), Toy(1).host(), UnixTime(1_500), &Toy(0));
        assert!(matches!(other, Err(CertificateError::OtherSwarm { .. })), "{other:?}");
        let thief = certificate.check(SwarmId([9; 32]), Toy(2).host(), UnixTime(1_500), &Toy(0));
        assert_eq!(thief, Err(CertificateError::OtherHost(Toy(1).host())));
    }

    #[test]
    fn every_field_is_signed() {
        let good = certificate();
        let changed = [
            Certificate { name: "beta".into(), ..good.clone() },
            Certificate { expires: UnixTime(9_000), ..good.clone() },
            Certificate { roles: Roles(0), ..good.clone() },
            Certificate { serial: 2, ..good.clone() },
            Certificate { lease_s: 1, ..good.clone() },
            Certificate { authority_generation: 1, ..good },
        ];
        for certificate in changed {
            assert_eq!(check(&certificate, 1_500), Err(CertificateError::Forged), "{certificate:?}");
        }
    }

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "vm-8-1", "0x", &"a".repeat(63)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "é", &"a".repeat(64)] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>) {
            let _ = Certificate::decode(&bytes);
        }
    }
}

//! Who may connect: the certificates of hosts, checked on every connection of both planes.

use crate::clock;
use crate::identity::Ed25519;
use dashmap::DashMap;
use std::sync::OnceLock;
use virtuoso_overlay::ids::{HostId, SwarmId};
use virtuoso_overlay::limits::HOSTS_MAX;
use virtuoso_overlay::membership::{Certificate, CertificateError};

/// The members this host knows, shared by the control task and the engine's thread.
#[derive(Debug, Default)]
pub struct Gatekeeper {
    swarm: OnceLock<SwarmId>,
    members: DashMap<HostId, Certificate>,
}

/// Why a host is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// This host has joined no swarm.
    #[error("This host is not a member of a swarm yet")]
    NoSwarm,
    /// The certificate does not hold.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// There are too many.
    #[error("The swarm has more than {HOSTS_MAX} members")]
    Full,
}

impl Gatekeeper {
    /// This host is a member from now on. What it was before stays.
    pub fn enter(&self, certificate: &Certificate) {
        self.swarm.get_or_init(|| certificate.swarm);
    }

    /// This host's swarm.
    pub fn swarm(&self) -> Option<SwarmId> {
        self.swarm.get().copied()
    }

    /// Checks and remembers the certificate that `host` shows. Returns whether it is new.
    ///
    /// # Errors
    /// If it does not make the host a member.
    pub fn admit(&self, host: HostId, certificate: &Certificate) -> Result<bool, NotAdmitted> {
        let swarm = self.swarm().ok_or(NotAdmitted::NoSwarm)?;
        certificate.check(swarm, host, clock::wall(), &Ed25519)?;
        if self.members.get(&host).is_some_and(|known| *known == *certificate) {
            return Ok(false);
        }
        if self.members.len() >= HOSTS_MAX && !self.members.contains_key(&host) {
            return Err(NotAdmitted::Full);
        }
        Ok(self.members.insert(host, certificate.clone()).is_none())
    }

    /// [`Self::admit`] for an encoded certificate.
    ///
    /// # Errors
    /// If it does not make the host a member.
    pub fn admit_encoded(&self, host: HostId, certificate: &[u8]) -> Result<bool, NotAdmitted> {
        let certificate = Certificate::decode(certificate).map_err(CertificateError::from)?;
        self.admit(host, &certificate)
    }

    /// The certificate of a member.
    pub fn certificate(&self, host: HostId) -> Option<Certificate> {
        self.members.get(&host).map(|certificate| certificate.clone())
    }

    /// All members but this host.
    pub fn members(&self) -> Vec<Certificate> {
        self.members.iter().map(|entry| entry.value().clone()).collect()
    }

    /// Forgets members whose certificates have expired, and returns them.
    pub fn expire(&self) -> Vec<HostId> {
        let now = clock::wall();
        let expired: Vec<HostId> =
            self.members.iter().filter(|entry| entry.value().expires <= now).map(|entry| *entry.key()).collect();
        for host in &expired {
            self.members.remove(host);
        }
        expired
    }
}

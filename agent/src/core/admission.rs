//! How hosts become members: this host of a swarm, and others of its swarm.
//!
//! On every new connection each side introduces itself: a member by its certificate, another host by its wish to join,
//! with a ticket's secret for the ticket's issuer. Who waits for approval is told as soon as the certificate is there.

use super::Core;
use crate::clock;
use crate::events::EventKind;
use crate::facts::HostFacts;
use crate::gatekeeper::{Gatekeeper, NotAdmitted};
use crate::identity::{Ed25519, SigningKey};
use crate::names;
use crate::state::StateDir;
use crate::state::sealed::Kind;
use crate::swarm::service::Reply;
use crate::text::Text;
use anyhow::Context;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use virtuoso_overlay::ids::{HostId, SwarmId};
use virtuoso_overlay::limits::PENDING_MAX;
use virtuoso_overlay::membership::{
    AdmitAnswer, AdmitRequest, Certificate, CertificateRequest, Issued, Refusal, Roles, Ticket, TicketError, is_name,
};
use virtuoso_overlay::node::{Node, NodeConfig};
use virtuoso_overlay::table::{Body, Key, PendingRow};
use virtuoso_overlay::time::{Instant, UnixTime};

/// This host's certificate.
pub(crate) const CERTIFICATE: Kind = Kind { name: "certificate", version: 1 };
/// What an admin host has issued.
pub(crate) const ISSUED: Kind = Kind { name: "issued", version: 1 };

/// How long a certificate holds. Renewal comes with roles and rotation; until then it must outlive a deployment.
pub(crate) const CERTIFICATE_TIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a ticket holds unless its issuer says otherwise.
pub(crate) const TICKET_TIME: Duration = Duration::from_secs(24 * 3600);
/// How often a host that waits asks again. Approval is told at once; this is for a word that got lost.
const ASK_AGAIN: Duration = Duration::from_secs(15);

/// What this host can show, and what it can sign.
pub struct Credentials {
    /// This host's certificate, if it is a member.
    pub certificate: Option<Certificate>,
    /// The swarm's key, if this host is an admin.
    pub authority: Option<Arc<SigningKey>>,
    /// Tickets to join with, while it is none.
    pub tickets: Vec<Ticket>,
    /// What it has issued.
    pub issued: Issued,
}

/// Where admission stands.
pub(super) struct Admission {
    pub(super) credentials: Credentials,
    pub(super) gatekeeper: Arc<Gatekeeper>,
    /// The swarm that lets this host wait.
    pub(super) waiting_at: Option<SwarmId>,
    /// Why this host was refused last.
    pub(super) refused: Option<String>,
    asked_at: Instant,
    /// Strangers that are connected, and the address they came from.
    strangers: BTreeMap<HostId, String>,
    /// Strangers that asked to be let in.
    asking: BTreeSet<HostId>,
}

/// Reads what this host has issued.
///
/// # Errors
/// If the file can't be read.
pub(crate) fn load_issued(state: &StateDir) -> anyhow::Result<Issued> {
    let Some(bytes) = state.read(&ISSUED)? else { return Ok(Issued::default()) };
    Issued::decode(&bytes).with_context(|| format!("Can't understand {}", state.path().join(ISSUED.name).display()))
}

impl Admission {
    pub(super) fn new(credentials: Credentials, gatekeeper: Arc<Gatekeeper>) -> Self {
        Self {
            credentials,
            gatekeeper,
            waiting_at: None,
            refused: None,
            asked_at: Instant::default(),
            strangers: BTreeMap::new(),
            asking: BTreeSet::new(),
        }
    }

    pub(super) fn is_admin(&self) -> bool {
        self.credentials.authority.is_some()
    }
}

impl Core {
    /// Begins with the facts that were read at start, as a member if this host has a certificate.
    ///
    /// # Errors
    /// If the swarm can't be entered.
    pub fn start(&mut self, facts: HostFacts) -> anyhow::Result<()> {
        self.own_row.facts = Some(facts);
        tokio::spawn(names::stub::serve(self.handle(), self.config.dns.listen));
        match self.admission.credentials.certificate.clone() {
            Some(certificate) => self.become_member(certificate),
            None => Ok(()),
        }
    }

    /// This host is a member from now on.
    fn become_member(&mut self, certificate: Certificate) -> anyhow::Result<()> {
        self.swarm.set_swarm(certificate.swarm)?;
        self.admission.gatekeeper.enter(&certificate);
        self.plane.set_certificate(certificate.encode());
        self.admission.waiting_at = None;
        self.admission.refused = None;
        let config = NodeConfig {
            swarm: certificate.swarm,
            signer: self.key.clone(),
            verifier: Arc::new(Ed25519),
            incarnation: self.incarnation,
            seed: crate::entropy::u64(),
        };
        self.node = Some(Node::new(config, self.clock.now()));
        tracing::info!(name = certificate.name, swarm = %certificate.swarm, "This host is a member of the swarm");
        self.admission.credentials.certificate = Some(certificate);
        self.publish_host_row();
        self.publish_issued();
        self.publish_images();
        self.enter_networks();
        self.publish_vms();
        Ok(())
    }

    /// A host is connected: introduce this one.
    pub(super) fn introduce(&mut self, host: HostId, address: String) {
        if self.admission.gatekeeper.certificate(host).is_none() {
            self.admission.strangers.insert(host, address);
        }
        let request = match &self.admission.credentials.certificate {
            Some(certificate) => AdmitRequest::Member(certificate.clone()),
            None => self.join_request(host),
        };
        self.send_admit(host, &request);
    }

    pub(super) fn forget_stranger(&mut self, host: HostId) {
        self.admission.strangers.remove(&host);
        self.admission.asking.remove(&host);
    }

    /// A ticket's secret goes to the hosts that the ticket names, and to no other.
    fn join_request(&self, host: HostId) -> AdmitRequest {
        let peer = host.to_string();
        let tickets = &self.admission.credentials.tickets;
        let ticket = tickets.iter().find(|ticket| ticket.addresses.iter().any(|address| address.ends_with(&peer)));
        let ticket = ticket.map(|ticket| (ticket.swarm, ticket.id, ticket.secret));
        AdmitRequest::Join { name: self.config.name.to_string(), ticket }
    }

    fn send_admit(&mut self, host: HostId, request: &AdmitRequest) {
        if let Err(error) = self.swarm.send_admit(host, request.encode()) {
            tracing::debug!(%host, %error, "Can't introduce this host");
        }
    }

    /// Asks again where this host waits.
    pub(super) fn retry_admission(&mut self) {
        let now = self.clock.mono();
        if self.node.is_some() || now.since(self.admission.asked_at) < ASK_AGAIN {
            return;
        }
        self.admission.asked_at = now;
        for host in self.admission.strangers.keys().copied().collect::<Vec<_>>() {
            let request = self.join_request(host);
            self.send_admit(host, &request);
        }
    }

    /// Members whose certificates end are members no more.
    pub(super) fn expire_members(&mut self) {
        for host in self.admission.gatekeeper.expire() {
            tracing::warn!(%host, "The certificate of a member has expired: it is no longer admitted");
            self.swarm.set_admitted(host, false);
            self.plane.forget(host);
        }
    }

    /// A host introduces itself.
    pub(super) fn on_admit_request(&mut self, host: HostId, bytes: &[u8], reply: Reply) {
        let answer = match AdmitRequest::decode(bytes) {
            Err(error) => refuse(Refusal::Certificate, error.to_string()),
            Ok(request) => match &self.admission.credentials.certificate {
                Some(mine) => {
                    let mine = mine.clone();
                    self.answer(host, request, mine)
                }
                None => self.answer_as_stranger(host, request),
            },
        };
        if let AdmitAnswer::Refused { text, .. } = &answer
            && self.node.is_some()
        {
            tracing::warn!(%host, "Refused a host: {text}");
        }
        if let Err(error) = self.swarm.respond(reply, answer.encode()) {
            tracing::debug!(%host, %error, "Can't answer a host");
        }
    }

    fn answer(&mut self, host: HostId, request: AdmitRequest, mine: Certificate) -> AdmitAnswer {
        match request {
            AdmitRequest::Member(certificate) => match self.admit(host, &certificate) {
                Ok(()) => AdmitAnswer::Welcome(mine),
                Err(error) => refuse(Refusal::Certificate, error.to_string()),
            },
            AdmitRequest::Offer { .. } => AdmitAnswer::Welcome(mine),
            AdmitRequest::Join { name, .. } if !is_name(&name) => {
                refuse(Refusal::Name, format!("{name:?} is no host name: use 1 to 63 of a-z, 0-9 and -"))
            }
            AdmitRequest::Join { name, ticket } => self.answer_join(host, name, ticket, mine),
        }
    }

    /// A host that is no member itself takes a certificate that it has asked for, and nothing else.
    fn answer_as_stranger(&mut self, host: HostId, request: AdmitRequest) -> AdmitAnswer {
        let AdmitRequest::Offer { yours, mine } = request else {
            return refuse(Refusal::NotReady, "This host is not a member of a swarm yet".into());
        };
        if self.admission.waiting_at != Some(yours.swarm) {
            return refuse(Refusal::Certificate, "This host does not wait for this swarm".into());
        }
        match self.take_certificate(host, yours, &mine) {
            Ok(certificate) => AdmitAnswer::Welcome(certificate),
            Err(error) => refuse(Refusal::Certificate, format!("{error:#}")),
        }
    }

    fn answer_join(
        &mut self,
        host: HostId,
        name: String,
        ticket: Option<(SwarmId, [u8; 8], [u8; 16])>,
        mine: Certificate,
    ) -> AdmitAnswer {
        if let Some(yours) = self.certificate_for(host) {
            return self.grant(yours, mine);
        }
        if let Some(other) = self.member_named(&name).filter(|other| *other != host) {
            return refuse(Refusal::Name, format!("The name {name} is taken by {other}: choose another by --name"));
        }
        let Some((swarm, id, secret)) = ticket else { return self.let_wait(host, name, mine.swarm) };
        match self.redeem(host, name, swarm, &id, &secret) {
            Ok(yours) => self.grant(yours, mine),
            Err(error) => refuse(Refusal::Ticket, format!("{error:#}")),
        }
    }

    /// The host is a member for this one before it knows itself.
    fn grant(&mut self, yours: Certificate, mine: Certificate) -> AdmitAnswer {
        match self.admit(yours.host, &yours) {
            Ok(()) => AdmitAnswer::Granted { yours, mine },
            Err(error) => refuse(Refusal::Certificate, error.to_string()),
        }
    }

    fn redeem(
        &mut self,
        host: HostId,
        name: String,
        swarm: SwarmId,
        id: &[u8; 8],
        secret: &[u8; 16],
    ) -> anyhow::Result<Certificate> {
        let now = clock::wall();
        let ours = self.admission.gatekeeper.swarm();
        anyhow::ensure!(ours == Some(swarm), "Ticket is for another swarm ({swarm})");
        let authority = self.admission.credentials.authority.clone().ok_or(TicketError::Wrong)?;
        self.admission.credentials.issued.tickets.redeem(now, (id, secret), host, &name)?;
        self.issue(&authority, host, name)
    }

    /// Signs a certificate, keeps it and tells the swarm.
    pub(super) fn issue(&mut self, authority: &SigningKey, host: HostId, name: String) -> anyhow::Result<Certificate> {
        let certificate = sign_certificate(authority, host, name, Roles::default());
        let issued = &mut self.admission.credentials.issued;
        issued.certificates.retain(|old| old.host != host);
        issued.certificates.push(certificate.clone());
        self.state.write(&ISSUED, &issued.encode()).context("Can't keep the certificate")?;
        tracing::info!(%host, name = certificate.name, "Admitted a host to the swarm");
        let now = self.clock.now();
        if let Some(node) = &mut self.node {
            node.put(now, Body::Certificate(certificate.clone()));
            node.take_back(now, Key::Pending(host));
        }
        let event = EventKind::MemberAdmitted { host: Text(host), name: certificate.name.clone() };
        self.events.emit(event);
        Ok(certificate)
    }

    /// Makes a ticket, which admits a host of any name unless one is given.
    pub(super) fn make_ticket(&mut self, valid: Duration, name: Option<&str>) -> anyhow::Result<Ticket> {
        let swarm = self.admission.gatekeeper.swarm().context("This host is not a member of a swarm yet")?;
        let now = clock::wall();
        let ticket = Ticket {
            swarm,
            addresses: self.ticket_addresses(),
            id: crate::entropy::bytes(),
            secret: crate::entropy::bytes(),
            expires: now + valid,
        };
        let issued = &mut self.admission.credentials.issued;
        issued.tickets.add(now, &ticket, name)?;
        self.state.write(&ISSUED, &issued.encode()).context("Can't keep the ticket")?;
        Ok(ticket)
    }

    fn let_wait(&mut self, host: HostId, name: String, swarm: SwarmId) -> AdmitAnswer {
        let address = self.admission.strangers.get(&host).cloned().unwrap_or_default();
        let now = self.clock.now();
        let Some(node) = &mut self.node else {
            return refuse(Refusal::NotReady, "This host is not a member of a swarm yet".into());
        };
        self.admission.asking.insert(host);
        if node.table().get(node.me(), Key::Pending(host)).is_some_and(|row| row.body.is_some()) {
            return AdmitAnswer::Pending { swarm };
        }
        let waiting = node.table().bodies_of(node.me()).filter(|body| matches!(body, Body::Pending(_))).count();
        if waiting >= PENDING_MAX {
            return refuse(Refusal::Busy, "Too many hosts wait for approval here".into());
        }
        tracing::info!(%host, name, "A host waits for approval: virtuoso swarm approve {host}");
        node.put(now, Body::Pending(PendingRow { host, name: name.clone(), address, since: now.wall }));
        self.events.emit(EventKind::HostPending { host: Text(host), name });
        AdmitAnswer::Pending { swarm }
    }

    /// The answer to this host's introduction.
    pub(super) fn on_admit_answer(&mut self, host: HostId, bytes: &[u8]) {
        let answer = match AdmitAnswer::decode(bytes) {
            Ok(answer) => answer,
            Err(error) => return tracing::warn!(%host, "A host answers nonsense to our introduction: {error}"),
        };
        match answer {
            AdmitAnswer::Welcome(certificate) => {
                if let Err(error) = self.admit(host, &certificate) {
                    tracing::warn!(%host, "Refused a host: {error}");
                }
            }
            AdmitAnswer::Granted { yours, mine } if self.node.is_none() => {
                if let Err(error) = self.take_certificate(host, yours, &mine) {
                    tracing::warn!(%host, "Refused a certificate: {error:#}");
                    self.admission.refused = Some(format!("{error:#}"));
                }
            }
            AdmitAnswer::Granted { .. } => {}
            AdmitAnswer::Pending { swarm } => self.wait_at(host, swarm),
            AdmitAnswer::Refused { refusal: Refusal::NotReady, text } => tracing::debug!(%host, "{text}"),
            AdmitAnswer::Refused { text, .. } => {
                if self.admission.refused.as_ref() != Some(&text) {
                    tracing::warn!(%host, "A host refused this one: {text}");
                }
                self.admission.refused = Some(text);
            }
        }
    }

    fn wait_at(&mut self, host: HostId, swarm: SwarmId) {
        if self.node.is_none() && self.admission.waiting_at != Some(swarm) {
            let me = self.me();
            tracing::info!(%host, "Waiting for approval: an admin must run `virtuoso swarm approve {me}`");
            self.admission.waiting_at = Some(swarm);
        }
    }

    /// This host's certificate has come. Both certificates are checked before anything is kept.
    fn take_certificate(
        &mut self,
        host: HostId,
        yours: Certificate,
        theirs: &Certificate,
    ) -> anyhow::Result<Certificate> {
        let now = clock::wall();
        let peer = host.to_string();
        let invited =
            self.admission.credentials.tickets.iter().find(|t| t.addresses.iter().any(|a| a.ends_with(&peer)));
        if let Some(ticket) = invited {
            let (swarm, other) = (ticket.swarm, yours.swarm);
            anyhow::ensure!(swarm == other, "The ticket is for swarm {swarm}, the host belongs to {other}");
        }
        yours.check(yours.swarm, self.me(), now, &Ed25519)?;
        theirs.check(yours.swarm, host, now, &Ed25519)?;
        self.state.write(&CERTIFICATE, &yours.encode()).context("Can't keep the certificate")?;
        self.become_member(yours.clone())?;
        self.admit(host, theirs)?;
        let others: Vec<HostId> = self.admission.strangers.keys().copied().filter(|other| *other != host).collect();
        for other in others {
            self.send_admit(other, &AdmitRequest::Member(yours.clone()));
        }
        Ok(yours)
    }

    /// Lets a host in that shows a good certificate.
    pub(super) fn admit(&mut self, host: HostId, certificate: &Certificate) -> Result<(), NotAdmitted> {
        let fresh = self.admission.gatekeeper.admit(host, certificate)?;
        self.forget_stranger(host);
        self.swarm.set_admitted(host, true);
        if fresh {
            tracing::debug!(%host, name = certificate.name, "Admitted a member");
        }
        Ok(())
    }

    /// A certificate for a host that may wait here: it is told at once.
    pub(super) fn offer(&mut self, yours: &Certificate) {
        let host = yours.host;
        let now = self.clock.now();
        if let Some(node) = &mut self.node {
            node.take_back(now, Key::Pending(host));
        }
        let Some(mine) = self.admission.credentials.certificate.clone() else { return };
        if self.admission.asking.contains(&host) {
            self.send_admit(host, &AdmitRequest::Offer { yours: yours.clone(), mine });
        }
    }

    /// The certificate that some admin has issued for `host`.
    pub(super) fn certificate_for(&self, host: HostId) -> Option<Certificate> {
        let node = self.node.as_ref()?;
        let swarm = node.swarm();
        let issued = node.table().bodies().filter_map(|(_, body)| match body {
            Body::Certificate(certificate) if certificate.host == host => Some(certificate),
            _ => None,
        });
        issued.filter(|c| c.check(swarm, host, clock::wall(), &Ed25519).is_ok()).max_by_key(|c| c.serial).cloned()
    }

    pub(super) fn member_named(&self, name: &str) -> Option<HostId> {
        let own = self.admission.credentials.certificate.as_ref().filter(|own| own.name == name);
        let issued = self.admission.credentials.issued.certificates.iter().find(|issued| issued.name == name);
        let known = || self.admission.gatekeeper.members().into_iter().find(|member| member.name == name);
        own.or(issued).map(|certificate| certificate.host).or_else(|| known().map(|member| member.host))
    }

    /// An admin's certificates stand in the tables, so that any member can hand them out.
    fn publish_issued(&mut self) {
        let now = self.clock.now();
        let Some(node) = &mut self.node else { return };
        let wall = clock::wall();
        for certificate in self.admission.credentials.issued.certificates.iter().filter(|c| c.expires > wall) {
            node.put(now, Body::Certificate(certificate.clone()));
        }
    }
}

/// Signs a certificate that begins now.
pub(crate) fn sign_certificate(authority: &SigningKey, host: HostId, name: String, roles: Roles) -> Certificate {
    let issued: UnixTime = clock::wall();
    let request = CertificateRequest {
        host,
        name,
        roles,
        issued,
        expires: issued + CERTIFICATE_TIME,
        serial: crate::entropy::u64(),
    };
    Certificate::issue(authority, request)
}

fn refuse(refusal: Refusal, text: String) -> AdmitAnswer {
    AdmitAnswer::Refused { refusal, text }
}

//! The tables as the control API shows them.

use super::Core;
use super::networks::not_a_member;
use crate::clock;
use crate::control::model::ClaimState;
use crate::control::model::{
    BootstrapStatus, Check, FdbEntry, Host, HostMatch, HostQuery, HostState, Image, Member, Network, Peer, PendingHost,
    Port, Status, SwarmState, Vm, VmNetwork,
};
use crate::control::problem::ApiError;
use crate::shortage::explain;
use crate::swarm::bootstrap;
use crate::text::Text;
use crate::timestamp;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;
use virtuoso_overlay::ids::{Digest, HostId, Mac, NetworkId};
use virtuoso_overlay::membership::{Certificate, Roles};
use virtuoso_overlay::switch;
use virtuoso_overlay::table::{self, Body, HostRow, Key, NetworkRow, Standing, VmRow, VmState};
use virtuoso_overlay::time::{Instant, UnixTime};

impl Core {
    /// This agent, without what the engine counts.
    pub(super) fn status(&self) -> Status {
        let table = self.node.as_ref().map(|node| node.table());
        let certificate = self.admission.credentials.certificate.as_ref();
        let peers = self.swarm.peers();
        Status {
            id: Text(self.me()),
            name: self.config.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            swarm: certificate.map(|certificate| Text(certificate.swarm)),
            state: self.swarm_state(),
            admin: self.admission.is_admin(),
            members: self.members().len() as u64,
            members_alive: table
                .map_or(0, |table| table.hosts().filter(|(host, _)| self.is_alive(*host)).count() as u64),
            peers_connected: peers.iter().map(|peer| peer.host).collect::<std::collections::BTreeSet<_>>().len() as u64,
            networks: self
                .networks
                .attached()
                .filter_map(|network| self.networks.name(network))
                .map(Into::into)
                .collect(),
            addresses: self.swarm.addresses().iter().map(ToString::to_string).collect(),
            refused: self.admission.refused.clone().filter(|_| self.node.is_none()),
            bootstrap: self.bootstrap_status(),
            drops: BTreeMap::new(),
            uptime_s: self.clock.uptime().as_secs(),
            pid: std::process::id(),
        }
    }

    fn swarm_state(&self) -> SwarmState {
        match (&self.node, self.admission.waiting_at) {
            (Some(_), _) => SwarmState::Member,
            (None, Some(_)) => SwarmState::Pending,
            (None, None) => SwarmState::Joining,
        }
    }

    fn bootstrap_status(&self) -> Vec<BootstrapStatus> {
        let places = self.swarm.bootstrap_status().into_iter().filter(|place| !place.remembered);
        let status = |place: bootstrap::Status| BootstrapStatus {
            address: place.addresses.first().map(ToString::to_string).unwrap_or_default(),
            connected: place.state == bootstrap::State::Connected,
            attempts: place.failures,
            next_attempt_s: place.next_try.map(|wait| wait.as_secs_f64()),
            error: place.last_error,
        };
        places.map(status).collect()
    }

    pub(super) fn checks(&self) -> Vec<Check> {
        let status = self.status();
        let swarm = match (status.state, status.peers_connected, status.members) {
            (SwarmState::Member, 0, members) if members > 1 => Check::warning(
                "swarm",
                format!("No other member of {members} is connected"),
                "Look at `virtuoso peers` and `virtuoso status`: are the others' UDP and TCP ports reachable?",
            ),
            (SwarmState::Member, peers, members) => {
                Check::ok("swarm", format!("Member of a swarm of {members}, {peers} connected"))
            }
            (SwarmState::Pending, ..) => Check::warning(
                "swarm",
                "Waits for an admin's approval",
                format!("On an admin host: virtuoso swarm approve {}", self.me()),
            ),
            (SwarmState::Joining, ..) => {
                let refused = self.admission.refused.clone();
                Check::failed(
                    "swarm",
                    refused.unwrap_or_else(|| "No host of the swarm answers".into()),
                    "Check the bootstrap address or ask for a new ticket (virtuoso swarm invite)",
                )
            }
        };
        std::iter::once(swarm).chain(self.vm_checks()).collect()
    }

    /// Whether VMs can run here, and how.
    fn vm_checks(&self) -> Vec<Check> {
        let Some(facts) = &self.own_row.facts else { return Vec::new() };
        let (qemu, kvm) = (&facts.qemu, &facts.kvm);
        let qemu = match qemu.usable {
            true => Check::ok("qemu", qemu.why.clone()),
            false => Check::warning("qemu", qemu.why.clone(), "Until then this host runs no VMs"),
        };
        let kvm = match kvm.usable {
            true => Check::ok("kvm", kvm.why.clone()),
            false => Check::warning("kvm", kvm.why.clone(), "Until then VMs run without it, some ten times slower"),
        };
        vec![qemu, kvm]
    }

    pub(super) fn peers(&self) -> Vec<Peer> {
        let peer = |row: crate::swarm::service::PeerRow| Peer {
            id: Text(row.host),
            name: self.admission.gatekeeper.certificate(row.host).map(|certificate| certificate.name),
            member: row.member,
            address: row.address.to_string(),
            outbound: row.dialled,
            rtt_us: row.rtt.map(|rtt| rtt.as_micros() as u64),
            version: Some(row.agent).filter(|agent| !agent.is_empty()),
            age_s: seconds(row.age),
        };
        self.swarm.peers().into_iter().map(peer).collect()
    }

    pub(super) fn hosts(&self) -> Vec<Host> {
        let Some(node) = &self.node else { return Vec::new() };
        let mut hosts: Vec<Host> = node.table().hosts().map(|(host, row)| self.host_view(host, row)).collect();
        hosts.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        hosts
    }

    pub(super) fn find_hosts(&self, query: &HostQuery) -> Result<Vec<HostMatch>, ApiError> {
        let node = self.node.as_ref().ok_or_else(not_a_member)?;
        let table = node.table();
        let wanted = table::HostQuery {
            vcpus: query.vcpus.unwrap_or_default(),
            memory_bytes: query.memory.unwrap_or_default().0,
            disk_bytes: query.disk.unwrap_or_default().0,
            labels: query.labels.clone(),
            image: query.image.as_ref().map(ToString::to_string),
        };
        let mut rank = 0;
        let mut matches = Vec::new();
        for found in wanted.run(table, self.clock.mono()) {
            let Some(row) = table.host(found.host) else { continue };
            let fits = found.lacks.is_empty();
            rank += u32::from(fits);
            if fits || query.explain {
                matches.push(HostMatch {
                    host: self.host_view(found.host, row),
                    rank: fits.then_some(rank),
                    left_out: found.lacks.iter().map(explain).collect(),
                });
            }
        }
        Ok(matches)
    }

    fn host_view(&self, host: HostId, row: &HostRow) -> Host {
        let has = &row.resources;
        let (standing, age) = self.standing(host);
        Host {
            id: Text(host),
            name: row.certificate.name.clone(),
            state: match standing {
                Standing::Alive => HostState::Alive,
                Standing::Silent => HostState::Suspect,
                Standing::Left => HostState::Gone,
            },
            vcpus_total: has.vcpus_total,
            vcpus_free: has.vcpus_free,
            memory_total_bytes: has.memory_total_bytes,
            memory_free_bytes: has.memory_free_bytes,
            disk_total_bytes: has.disk_total_bytes,
            disk_free_bytes: has.disk_free_bytes,
            load: f64::from(has.load_centi) / 100.0,
            arch: has.arch.clone(),
            kvm: has.kvm,
            qemu: has.qemu.clone(),
            vms: has.vms,
            vms_cpu_percent: has.vms_cpu_percent,
            vms_memory_bytes: has.vms_memory_bytes,
            labels: row.labels.iter().cloned().collect::<BTreeMap<String, String>>(),
            version: row.version.clone(),
            age_s: seconds(age),
        }
    }

    /// This host is there, and its row is always fresh.
    pub(super) fn standing(&self, host: HostId) -> (Standing, Duration) {
        let known = self.node.as_ref().and_then(|node| node.table().standing(host, self.clock.mono()));
        match known {
            Some((standing, age)) if host != self.me() => (standing, age),
            _ => (Standing::Alive, Duration::ZERO),
        }
    }

    fn is_alive(&self, host: HostId) -> bool {
        self.standing(host).0 == Standing::Alive
    }

    pub(super) fn networks(&self) -> Vec<(NetworkRow, Network)> {
        let Some(node) = &self.node else { return Vec::new() };
        let mut networks: BTreeMap<&str, &NetworkRow> = BTreeMap::new();
        for (_, body) in node.table().bodies() {
            if let Body::Network(row) = body {
                let known = networks.entry(&row.name).or_insert(row);
                if row.created < known.created {
                    *known = row;
                }
            }
        }
        networks.into_values().map(|row| (row.clone(), self.network_view(row))).collect()
    }

    /// A network without its ports, which the kernel tells, and its traffic, which the engine counts.
    pub(super) fn network_view(&self, row: &NetworkRow) -> Network {
        let bridge = self.networks.is_attached(row.id).then(|| crate::netdev::bridge_name(row.id));
        let mut hosts: Vec<String> = self.hosts_in(row.id).into_iter().map(|host| self.name_of(host)).collect();
        hosts.sort_unstable();
        Network {
            name: row.name.clone(),
            id: row.id.to_string(),
            mtu_bytes: row.mtu.into(),
            congestion: row.congestion.to_string(),
            rate_mbit: row.rate_mbit,
            bridge,
            ports: Vec::<Port>::new(),
            hosts,
            subnet: row.plan.map(|plan| Text(plan.subnet)),
            dhcp: row.plan.is_some_and(|plan| plan.dhcp),
            service_address: row.plan.map(|plan| plan.subnet.service()),
            host_address: self.networks.own_address(row.id),
            traffic: None,
        }
    }

    pub(super) fn fdb_view(&self, now: Instant, entry: &switch::FdbEntry) -> FdbEntry {
        FdbEntry {
            mac: Text(entry.mac),
            ips: entry.ips.clone(),
            host: Text(entry.holder),
            host_name: self.name_of(entry.holder),
            interface: entry.port.and_then(|port| self.networks.interface(port)).map(Into::into),
            epoch: entry.epoch.0,
            state: match entry.state {
                switch::AddressState::Local | switch::AddressState::Probed => ClaimState::Local,
                switch::AddressState::Departed | switch::AddressState::Wanted => ClaimState::Moving,
                switch::AddressState::Remote => ClaimState::Remote,
                switch::AddressState::Lapsed => ClaimState::Expired,
                switch::AddressState::Duplicate => ClaimState::Conflict,
            },
            age_s: seconds(now.since(entry.confirmed)),
        }
    }

    pub(super) fn images(&self) -> Vec<Image> {
        let Some(node) = &self.node else { return Vec::new() };
        let local = self.images.list();
        let mut images: BTreeMap<(String, Digest), Image> = BTreeMap::new();
        for (host, body) in node.table().bodies() {
            let Body::Image(row) = body else { continue };
            if !row.complete {
                continue;
            }
            let stored = local.iter().find(|image| image.digest == row.digest);
            let image = images.entry((row.name.clone(), row.digest)).or_insert_with(|| Image {
                name: row.name.clone(),
                digest: Text(row.digest),
                size_bytes: row.size_bytes,
                providers: Vec::new(),
                provider_names: Vec::new(),
                local: stored.is_some(),
                stored_bytes: stored.map(|image| image.stored_bytes),
                unique_bytes: None,
            });
            image.providers.push(Text(host));
            image.provider_names.push(self.name_of(host));
        }
        images.into_values().collect()
    }

    pub(super) fn vms(&self) -> Vec<Vm> {
        let mut rows: Vec<_> = self.vm_rows().collect();
        rows.sort_by_key(|(host, row)| (&row.name, row.id, self.vm_rank(*host, row)));
        rows.dedup_by_key(|(_, row)| row.id);
        rows.into_iter().map(|(host, row)| self.vm_view(host, row)).collect()
    }

    fn vm_view(&self, host: HostId, row: &VmRow) -> Vm {
        let state = match row.state {
            VmState::Stopped => "stopped",
            VmState::Running => "running",
            VmState::Paused => "paused",
            VmState::Migrating => "migrating",
            VmState::Crashed => "crashed",
            VmState::Creating => "creating",
        };
        let nic = |(network, mac, given): &(NetworkId, Mac, Option<IpAddr>)| {
            let seen = self.ips_of(host, *network, *mac).into_iter().filter(|ip| Some(*ip) != *given);
            VmNetwork {
                network: self.name_of_network(*network),
                mac: Text(*mac),
                ips: given.iter().copied().chain(seen).collect(),
            }
        };
        Vm {
            id: Text(row.id),
            name: row.name.clone(),
            state: state.into(),
            host: Text(host),
            host_name: self.name_of(host),
            vcpus: row.vcpus,
            memory_bytes: row.memory_bytes,
            image: row.image.map(|digest| self.name_of_image(digest)),
            networks: row.nics.iter().map(nic).collect(),
            details: None,
        }
    }

    /// The IP addresses that the holder of an address was seen with.
    pub(super) fn ips_of(&self, host: HostId, network: NetworkId, mac: Mac) -> Vec<IpAddr> {
        let row = self.node.as_ref().and_then(|node| node.table().get(host, Key::Claim(network, mac)));
        match row.and_then(|row| row.body.as_ref()) {
            Some(Body::Claim(claim)) => claim.ips.clone(),
            _ => Vec::new(),
        }
    }

    fn name_of_network(&self, id: NetworkId) -> String {
        self.network_of_id(id).unwrap_or_else(|| id.to_string())
    }

    fn name_of_image(&self, digest: Digest) -> String {
        let bodies = self.node.iter().flat_map(|node| node.table().bodies());
        let name = bodies.into_iter().find_map(|(_, body)| match body {
            Body::Image(row) if row.digest == digest => Some(row.name.clone()),
            _ => None,
        });
        name.unwrap_or_else(|| digest.to_string())
    }

    pub(super) fn members(&self) -> Vec<Member> {
        let connected = self.swarm.peers();
        let mut certificates: BTreeMap<HostId, Certificate> =
            self.admission.gatekeeper.members().into_iter().map(|member| (member.host, member)).collect();
        if let Some(own) = &self.admission.credentials.certificate {
            certificates.insert(own.host, own.clone());
        }
        if let Some(node) = &self.node {
            for (_, body) in node.table().bodies() {
                if let Body::Certificate(certificate) = body {
                    certificates.entry(certificate.host).or_insert_with(|| certificate.clone());
                }
            }
        }
        let me = self.me();
        let mut members: Vec<Member> = certificates
            .into_values()
            .map(|certificate| Member {
                id: Text(certificate.host),
                connected: certificate.host == me || connected.iter().any(|peer| peer.host == certificate.host),
                admin: certificate.roles.has(Roles::ADMIN),
                expires: rfc3339(certificate.expires),
                name: certificate.name,
            })
            .collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        members
    }

    pub(super) fn pending(&self) -> Vec<PendingHost> {
        let Some(node) = &self.node else { return Vec::new() };
        let now = clock::wall();
        let mut pending: BTreeMap<HostId, PendingHost> = BTreeMap::new();
        for (_, body) in node.table().bodies() {
            let Body::Pending(row) = body else { continue };
            if self.certificate_for(row.host).is_none() {
                pending.entry(row.host).or_insert_with(|| PendingHost {
                    id: Text(row.host),
                    name: row.name.clone(),
                    address: row.address.clone(),
                    age_s: now.0.saturating_sub(row.since.0) as f64,
                });
            }
        }
        pending.into_values().collect()
    }
}

/// Seconds to the millisecond: more digits mean nothing here.
pub(super) fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

pub(super) fn rfc3339(time: UnixTime) -> String {
    timestamp::rfc3339(Duration::from_secs(time.0))
}

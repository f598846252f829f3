//! What this host says of itself: its row, written again when a fact has changed by enough to matter.

use super::Core;
use crate::config::{Config, Limits};
use crate::facts::{HostFacts, Quantised, Room};
use crate::vm::TotalUsage;
use virtuoso_overlay::ids::NetworkId;
use virtuoso_overlay::limits::{HOST_ADDRESSES_MAX, HOST_LABELS_MAX, HOST_NETWORKS_MAX};
use virtuoso_overlay::table::{Body, HostRow, Resources};
use virtuoso_overlay::vm::reservations::Share;

/// The parts of this host's row that the core does not keep elsewhere.
#[derive(Default)]
pub(super) struct OwnRow {
    /// Nothing until they have been read for the first time.
    pub(super) facts: Option<HostFacts>,
    published: Option<Quantised>,
}

impl Core {
    /// Looks at what changes while the host runs, and tells the swarm if it is worth it.
    pub(super) fn refresh_facts(&mut self) {
        let room = match Room::read(self.state.path()) {
            Ok(room) => room,
            Err(error) => return tracing::warn!("Can't read this host's facts: {error:#}"),
        };
        let Some(facts) = &mut self.own_row.facts else { return };
        facts.room = room;
        let steps = Quantised::of(facts, &self.guests.used, self.own_row.published.as_ref());
        if self.own_row.published.as_ref() != Some(&steps) {
            self.publish_host_row();
        }
    }

    /// Writes this host's row.
    pub(super) fn publish_host_row(&mut self) {
        let (Some(facts), Some(certificate)) = (&self.own_row.facts, &self.admission.credentials.certificate) else {
            return;
        };
        let row = HostRow {
            certificate: certificate.clone(),
            addresses: self.row_addresses(),
            resources: used(lent(resources(facts, &self.config.limits), self.guests.held), self.guests.used),
            labels: labels(&self.config),
            networks: self.attached_networks(),
            draining: self.is_draining(),
            version: env!("CARGO_PKG_VERSION").into(),
            // The node sets it from the size of the swarm.
            refresh_s: 1,
        };
        self.own_row.published = Some(Quantised::of(facts, &self.guests.used, self.own_row.published.as_ref()));
        let now = self.clock.now();
        if let Some(node) = &mut self.node {
            node.put(now, Body::Host(Box::new(row)));
        }
    }

    /// What the machine has, as far as its owner lends it, before VMs take their share.
    pub(super) fn own_resources(&self) -> Option<Resources> {
        self.own_row.facts.as_ref().map(|facts| resources(facts, &self.config.limits))
    }

    fn attached_networks(&self) -> Vec<NetworkId> {
        self.networks.attached().take(HOST_NETWORKS_MAX).collect()
    }

    /// Where other hosts find this one. Loopback addresses are told only by a host that has no other; link-local ones
    /// mean nothing without the name of an interface.
    fn row_addresses(&self) -> Vec<String> {
        let all = self.swarm.addresses();
        let is_loopback = |text: &String| text.starts_with("/ip4/127.") || text.starts_with("/ip6/::1/");
        let advertised = self.config.advertise.iter().map(ToString::to_string);
        let mut addresses: Vec<String> = advertised.chain(all.iter().map(ToString::to_string)).collect();
        addresses.retain(|address| !address.starts_with("/ip6/fe80:"));
        // What is reached through the swarm's networks is no way to build them.
        let own: Vec<String> = self.networks.own_addresses().map(|ip| format!("/ip4/{ip}/")).collect();
        addresses.retain(|address| !own.iter().any(|own| address.starts_with(own)));
        if !addresses.iter().all(is_loopback) {
            addresses.retain(|address| !is_loopback(address));
        }
        addresses.truncate(HOST_ADDRESSES_MAX);
        addresses
    }

    /// The addresses that go into a ticket: the row's, with this host's id.
    pub(super) fn ticket_addresses(&self) -> Vec<String> {
        let me = self.me();
        let addresses = self.row_addresses();
        let max = virtuoso_overlay::limits::TICKET_ADDRESSES_MAX;
        addresses.into_iter().take(max).map(|address| format!("{address}/p2p/{me}")).collect()
    }
}

/// What the machine has, as far as its owner lends it.
fn resources(facts: &HostFacts, limits: &Limits) -> Resources {
    let room = &facts.room;
    let vcpus = limits.vcpus.map_or(facts.cores_usable, |limit| limit.min(facts.cores_usable));
    let memory = limits.memory.map_or(room.memory_total_bytes, |limit| limit.0.min(room.memory_total_bytes));
    let disk = limits.disk.map_or(room.disk_total_bytes, |limit| limit.0.min(room.disk_total_bytes));
    Resources {
        vcpus_total: vcpus,
        vcpus_free: vcpus,
        memory_total_bytes: memory,
        memory_free_bytes: room.memory_free_bytes.min(memory),
        disk_total_bytes: disk,
        disk_free_bytes: room.disk_free_bytes.min(disk),
        load_centi: (room.load.one_minute * 100.0) as u32,
        arch: facts.arch.into(),
        kvm: facts.kvm.usable,
        qemu: facts.qemu.version.filter(|_| facts.qemu.usable).map(|version| version.to_string()),
        vms: 0,
        vms_cpu_percent: 0,
        vms_memory_bytes: 0,
    }
}

/// With what VMs use.
fn used(has: Resources, used: TotalUsage) -> Resources {
    Resources { vms: used.vms, vms_cpu_percent: used.cpu_percent, vms_memory_bytes: used.memory_bytes, ..has }
}

/// What is left when VMs have their share. Memory and disk that VMs use are missing from what is free already; what
/// they may still take is held back as well.
fn lent(has: Resources, held: Share) -> Resources {
    Resources {
        vcpus_free: has.vcpus_total.saturating_sub(held.vcpus),
        memory_free_bytes: has.memory_free_bytes.min(has.memory_total_bytes.saturating_sub(held.memory_bytes)),
        disk_free_bytes: has.disk_free_bytes.min(has.disk_total_bytes.saturating_sub(held.disk_bytes)),
        ..has
    }
}

fn labels(config: &Config) -> Vec<(String, String)> {
    config.labels.iter().take(HOST_LABELS_MAX).map(|(key, value)| (key.clone(), value.clone())).collect()
}

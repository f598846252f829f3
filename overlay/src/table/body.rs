//! What rows say.

use crate::claims::Claim;
use crate::congestion::Congestion;
use crate::ids::{Digest, HostId, Mac, NetworkId, VmId};
use crate::limits::{
    HOST_ADDRESSES_MAX, HOST_LABELS_MAX, HOST_NETWORKS_MAX, NAME_CHARS_MAX, NETWORK_MTU_MAX, NETWORK_MTU_MIN,
    ROW_TEXT_BYTES_MAX, VM_NICS_MAX,
};
use crate::membership::{Certificate, is_name};
use crate::names::AddressPlan;
use crate::table::Key;
use crate::time::UnixTime;
use bincode::{Decode, Encode};
use std::net::IpAddr;

/// The content of a row.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Body {
    /// A host and what it has.
    Host(Box<HostRow>),
    /// A network, as each host writes it that made it or has a port in it.
    Network(NetworkRow),
    /// An address that the writer holds.
    Claim(Claim),
    /// An image that the writer can serve.
    Image(ImageRow),
    /// A VM that the writer runs or keeps.
    Vm(VmRow),
    /// A host that waits for approval, as the member writes it that it asked.
    Pending(PendingRow),
    /// A certificate that the writer, an admin, has issued.
    Certificate(Certificate),
    /// The writer is there, and everything that it says holds. A tenth of a host row's size.
    Beat(Beat),
}

/// A sign of life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Beat {
    /// Seconds until the next one at the latest. Three of them are the writer's lease.
    pub refresh_s: u16,
}

/// A host and what it has.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct HostRow {
    /// Shows that the writer is a member.
    pub certificate: Certificate,
    /// Multiaddrs under which it can be reached.
    pub addresses: Vec<String>,
    /// What it has.
    pub resources: Resources,
    /// Labels from its configuration, sorted.
    pub labels: Vec<(String, String)>,
    /// The networks in which it has a port, sorted.
    pub networks: Vec<NetworkId>,
    /// It takes no new VMs.
    pub draining: bool,
    /// The agent's version.
    pub version: String,
    /// Seconds until its next [`Beat`] at the latest, or until this row comes again. Three of them are its lease.
    pub refresh_s: u16,
}

/// What a host has for VMs, within its owner's limits.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Resources {
    /// Virtual CPUs.
    pub vcpus_total: u32,
    /// Virtual CPUs that no VM has.
    pub vcpus_free: u32,
    /// Bytes of memory.
    pub memory_total_bytes: u64,
    /// Bytes of memory that are available.
    pub memory_free_bytes: u64,
    /// Bytes of disk where images and volumes are kept.
    pub disk_total_bytes: u64,
    /// Bytes of it that are free.
    pub disk_free_bytes: u64,
    /// Load average of the last minute, in hundredths.
    pub load_centi: u32,
    /// Machine architecture, such as `x86_64`.
    pub arch: String,
    /// Whether KVM can be used.
    pub kvm: bool,
    /// Version of QEMU, if it can be used.
    pub qemu: Option<String>,
    /// VMs that run.
    pub vms: u32,
    /// Processor time that they use; 100 is one whole processor.
    pub vms_cpu_percent: u32,
    /// Bytes of memory that they use.
    pub vms_memory_bytes: u64,
}

/// A network.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct NetworkRow {
    /// Its id.
    pub id: NetworkId,
    /// Its name.
    pub name: String,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// When it was made. Of two rows that differ the older one holds.
    pub created: UnixTime,
    /// How its stations get addresses, if that is the hosts' to care for.
    pub plan: Option<AddressPlan>,
    /// What limits how much each link has of it on its way, beside what limits the link.
    pub congestion: Congestion,
    /// The most that each link sends of it, in Mbit/s; 0 is no limit.
    pub rate_mbit: u32,
}

/// An image.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct ImageRow {
    /// Names its content.
    pub digest: Digest,
    /// Its name.
    pub name: String,
    /// Bytes of its content.
    pub size_bytes: u64,
    /// Whether all of it is at the row's host. If not, it is being fetched there, and what has come can be had.
    pub complete: bool,
}

/// A VM.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct VmRow {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// What it does.
    pub state: VmState,
    /// Its virtual CPUs.
    pub vcpus: u32,
    /// Its memory.
    pub memory_bytes: u64,
    /// What its disk is based on.
    pub image: Option<Digest>,
    /// Its network interfaces, with the addresses that its host has given them.
    pub nics: Vec<(NetworkId, Mac, Option<IpAddr>)>,
    /// When it was made, by its host's clock. Of two VMs of one name the older one keeps it.
    pub made: UnixTime,
}

/// What a VM does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum VmState {
    /// Nothing.
    Stopped,
    /// It runs.
    Running,
    /// It waits for something outside, such as an image.
    Paused,
    /// It is on its way to another host.
    Migrating,
    /// It ended by itself in disorder.
    Crashed,
    /// It is being made: it has its name and its share of the host, and no process yet.
    Creating,
}

/// A host that waits for approval.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct PendingRow {
    /// The host.
    pub host: HostId,
    /// The name it wants.
    pub name: String,
    /// Where it was seen.
    pub address: String,
    /// Since when it waits.
    pub since: UnixTime,
}

impl Body {
    /// The key under which this content stands.
    pub fn key(&self) -> Key {
        match self {
            Self::Host(_) => Key::Host,
            Self::Network(row) => Key::Network(row.id),
            Self::Claim(claim) => Key::Claim(claim.network, claim.mac),
            Self::Image(row) => Key::Image(row.digest),
            Self::Vm(row) => Key::Vm(row.id),
            Self::Pending(row) => Key::Pending(row.host),
            Self::Certificate(certificate) => Key::Certificate(certificate.host),
            Self::Beat(_) => Key::Beat,
        }
    }

    /// Whether the content keeps its bounds and is `writer`'s to write.
    pub fn is_well_formed(&self, writer: HostId) -> bool {
        match self {
            Self::Host(row) => row.is_well_formed() && row.certificate.host == writer,
            Self::Network(row) => row.is_well_formed(),
            Self::Claim(claim) => claim.is_well_formed() && claim.holder == writer,
            Self::Image(row) => is_image_name(&row.name),
            Self::Vm(row) => is_name(&row.name) && row.nics.len() <= VM_NICS_MAX,
            Self::Pending(row) => is_name(&row.name) && row.address.len() <= ROW_TEXT_BYTES_MAX,
            Self::Certificate(certificate) => is_name(&certificate.name),
            Self::Beat(beat) => beat.refresh_s > 0,
        }
    }
}

impl NetworkRow {
    fn is_well_formed(&self) -> bool {
        is_name(&self.name)
            && (NETWORK_MTU_MIN..=NETWORK_MTU_MAX).contains(&self.mtu)
            && self.plan.is_none_or(|plan| plan.subnet.is_well_formed())
    }
}

impl HostRow {
    fn is_well_formed(&self) -> bool {
        let short = |text: &String| text.len() <= ROW_TEXT_BYTES_MAX;
        self.addresses.len() <= HOST_ADDRESSES_MAX
            && self.addresses.iter().all(short)
            && self.labels.len() <= HOST_LABELS_MAX
            && self.labels.iter().all(|(key, value)| key.len() <= NAME_CHARS_MAX && value.len() <= NAME_CHARS_MAX)
            && self.networks.len() <= HOST_NETWORKS_MAX
            && short(&self.version)
            && short(&self.resources.arch)
            && self.resources.qemu.as_ref().is_none_or(short)
            && self.refresh_s > 0
    }
}

/// Whether `text` may name an image: like a host's name, with dots for versions.
pub fn is_image_name(text: &str) -> bool {
    text.len() <= NAME_CHARS_MAX && text.split('.').all(is_name)
}

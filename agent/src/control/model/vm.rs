//! Virtual machines.

use super::cdrom::{Cdrom, CdromInsert};
use crate::name::Name;
use crate::text::Text;
use crate::vm::VmLimits;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use utoipa::ToSchema;
use virtuoso_overlay::ids::{Digest, HostId, Mac, VmId};

/// A virtual machine as its host's row tells.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Text<VmId>,
    /// Its name.
    pub name: String,
    /// What it is doing, as `running`.
    pub state: String,
    /// The host it runs on.
    #[schema(value_type = String)]
    pub host: Text<HostId>,
    /// That host's name.
    pub host_name: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// Name or digest of its image.
    pub image: Option<String>,
    /// Its network interfaces.
    pub networks: Vec<VmNetwork>,
    /// What only its own host knows; absent in lists, and while that host is not reachable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<VmDetails>,
}

/// A virtual machine as its own host knows it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VmDetails {
    /// Its own disk, at its largest; 0 if it has none.
    pub disk_bytes: u64,
    /// Its kernel, if it boots one from a file of its host.
    pub kernel: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it begins again when it crashed.
    pub restart: bool,
    /// Why it crashed, if it did.
    pub crash: Option<String>,
    /// What it waits for, if it can't go on and that is known.
    #[serde(default)]
    pub trouble: Option<String>,
    /// Its process on its host.
    pub pid: Option<u32>,
    /// Processor time that it has used since its start.
    pub cpu_s: Option<f64>,
    /// Processor time within the last seconds; 100 is one whole processor.
    pub cpu_percent: Option<f64>,
    /// Memory that it uses on its host.
    pub memory_used_bytes: Option<u64>,
    /// Space that its own disk takes on its host.
    pub disk_used_bytes: u64,
    /// What it read from its disk since its start.
    pub io_read_bytes: Option<u64>,
    /// What it wrote to it.
    pub io_written_bytes: Option<u64>,
    /// What its network interfaces received.
    pub net_rx_bytes: Option<u64>,
    /// What they sent.
    pub net_tx_bytes: Option<u64>,
    /// What it may use at most.
    pub limits: VmLimits,
    /// What is in its CD-ROM drive.
    pub cdrom: Option<Cdrom>,
    /// The Unix socket on its host where its display is served (VNC).
    pub vnc_socket: String,
}

/// A network interface of a VM.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VmNetwork {
    /// The network's name.
    pub network: String,
    /// The interface's address.
    #[schema(value_type = String)]
    pub mac: Text<Mac>,
    /// Its IP addresses: the one that the network gave it, and what else was seen.
    #[schema(value_type = Vec<String>)]
    pub ips: Vec<IpAddr>,
}

/// Asks for a virtual machine.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmCreate {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Names this request: the same one again makes nothing twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Virtual CPUs; one by default.
    #[serde(default = "one")]
    pub vcpus: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// Its own disk; as large as the image by default.
    #[serde(default)]
    pub disk_bytes: u64,
    /// The image that its disk begins as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub image: Option<Name>,
    /// A kernel to boot, a file on its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub kernel: Option<PathBuf>,
    /// The kernel's initial file system, a file on its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default)]
    pub append: String,
    /// What is in its CD-ROM drive when it starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cdrom: Option<CdromInsert>,
    /// What its firmware tries first; the disk by default. An empty disk can't be booted, so a CD-ROM is next then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootDevice>,
    /// The networks that it is plugged into.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub networks: Vec<Name>,
    /// Whether its interfaces may speak in the name of other addresses than their own.
    #[serde(default)]
    pub spoofing: bool,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Public keys that may log in.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// Whether it begins again when it crashed.
    #[serde(default)]
    pub restart: bool,
    /// What it may use at most.
    #[serde(default)]
    pub limits: VmLimits,
    /// Whether it is only made, and not started.
    #[serde(default)]
    pub stopped: bool,
    /// The host it runs on, by name or id; this one by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Whether the best host that has room takes it.
    #[serde(default)]
    pub best: bool,
    /// With `best`, labels that the host must have, as `key` or `key=value`.
    #[serde(default)]
    pub host_labels: Vec<String>,
    /// What its disk is a copy of: hosts say this to each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<VmDiskOffer>,
}

/// A copy of a VM's disk, for a clone.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmDiskOffer {
    /// Who has it.
    #[schema(value_type = String)]
    pub host: Text<HostId>,
    /// What it is called there.
    pub token: String,
    /// The image below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub digest: Option<Text<Digest>>,
}

/// Asks for a copy of a virtual machine, with an id and addresses of its own.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmClone {
    /// The copy's name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Names this request: the same one again makes nothing twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The host it runs on, by name or id; that of the original by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Whether it is only made, and not started.
    #[serde(default)]
    pub stopped: bool,
}

/// What a VM's firmware boots from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum BootDevice {
    /// Its own disk.
    Disk,
    /// The CD-ROM drive.
    Cdrom,
}

/// Asks a virtual machine to end.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VmStop {
    /// At once, without telling the guest.
    pub force: bool,
    /// How long the guest may take before it is ended; 60 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u32>,
}

fn one() -> u32 {
    1
}

//! This host and the others: status, facts, queries, health.

use crate::name::Name;
use crate::size::ByteSize;
use crate::text::Text;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;
use virtuoso_overlay::ids::{HostId, SwarmId};

/// This agent at a glance.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// This host's id.
    #[schema(value_type = String)]
    pub id: Text<HostId>,
    /// This host's name.
    #[schema(value_type = String)]
    pub name: Name,
    /// The agent's version.
    pub version: String,
    /// The swarm's id; absent while no swarm has admitted this host.
    #[schema(value_type = Option<String>)]
    pub swarm: Option<Text<SwarmId>>,
    /// Where this host stands with the swarm.
    pub state: SwarmState,
    /// Whether this host can admit others.
    pub admin: bool,
    /// Hosts that the swarm has admitted, this one included, as far as known.
    pub members: u64,
    /// Members with a live row, this one included.
    pub members_alive: u64,
    /// Open connections to peers.
    pub peers_connected: u64,
    /// Names of the networks attached on this host.
    pub networks: Vec<String>,
    /// Addresses that peers can find this host at.
    pub addresses: Vec<String>,
    /// Why the swarm did not let this host in, if it refused.
    pub refused: Option<String>,
    /// How each bootstrap address fares.
    pub bootstrap: Vec<BootstrapStatus>,
    /// Frames that died on this host and are counted neither by a link nor by a network, by reason.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
    /// Seconds since the agent started.
    pub uptime_s: u64,
    /// The agent's process.
    pub pid: u32,
}

/// Where a host stands with its swarm.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SwarmState {
    /// Not heard by any host of a swarm yet.
    Joining,
    /// Known to a swarm, waiting for an admin's approval.
    Pending,
    /// Admitted.
    Member,
}

/// One bootstrap address.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct BootstrapStatus {
    /// The address, without a ticket's secret.
    pub address: String,
    /// Whether a connection through it is open.
    pub connected: bool,
    /// Dials since the last success.
    pub attempts: u32,
    /// Seconds until the next dial.
    pub next_attempt_s: Option<f64>,
    /// Why the last dial failed.
    pub error: Option<String>,
}

/// A host as its row tells.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Host {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Text<HostId>,
    /// Its name.
    pub name: String,
    /// Whether it is heard of.
    pub state: HostState,
    /// Virtual CPUs lent to the swarm.
    pub vcpus_total: u32,
    /// Those that no VM holds.
    pub vcpus_free: u32,
    /// Memory lent to the swarm.
    pub memory_total_bytes: u64,
    /// That which no VM holds.
    pub memory_free_bytes: u64,
    /// Disk space lent to the swarm.
    pub disk_total_bytes: u64,
    /// That which is free.
    pub disk_free_bytes: u64,
    /// Runnable processes, averaged over a minute.
    pub load: f64,
    /// Processor architecture, as `x86_64`.
    pub arch: String,
    /// Whether VMs run with hardware help.
    pub kvm: bool,
    /// Version of QEMU; absent if there is none.
    pub qemu: Option<String>,
    /// VMs that run.
    #[serde(default)]
    pub vms: u32,
    /// Processor time that they use; 100 is one whole processor.
    #[serde(default)]
    pub vms_cpu_percent: u32,
    /// Memory that they use.
    #[serde(default)]
    pub vms_memory_bytes: u64,
    /// The owner's labels.
    pub labels: BTreeMap<String, String>,
    /// The agent's version.
    pub version: String,
    /// Seconds since its row was refreshed.
    pub age_s: f64,
}

/// Whether a host is heard of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// Its row is fresh.
    Alive,
    /// Its row is late.
    Suspect,
    /// It said goodbye, or was silent for too long.
    Gone,
}

/// A host that was looked at for a query.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HostMatch {
    #[serde(flatten)]
    pub host: Host,
    /// 1 for the best; absent if the host was left out.
    pub rank: Option<u32>,
    /// Why the host was left out; empty if it wasn't.
    pub left_out: Vec<String>,
}

/// What a VM would need of its host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostQuery {
    /// Free virtual CPUs.
    pub vcpus: Option<u32>,
    /// Free memory.
    pub memory: Option<ByteSize>,
    /// Free disk space.
    pub disk: Option<ByteSize>,
    /// Labels it must have, with a value or with any.
    pub labels: Vec<(String, Option<String>)>,
    /// An image it should have. Hosts that have it come first.
    pub image: Option<Name>,
    /// Whether hosts that were left out are told too.
    pub explain: bool,
}

/// What is well and what is not.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Doctor {
    /// No check failed.
    pub ok: bool,
    /// All that was looked at.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// Stable name, as `tun_device`.
    pub name: String,
    /// What was found.
    pub result: CheckResult,
    /// One line about it.
    pub detail: String,
    /// What to do about it.
    pub fix: Option<String>,
}

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckResult {
    /// As it should be.
    Ok,
    /// Works, but not as well as it could.
    Warning,
    /// Something won't work.
    Failed,
}

impl Check {
    /// All is well.
    pub fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.into(), result: CheckResult::Ok, detail: detail.into(), fix: None }
    }

    /// It works, but there is something to do.
    pub fn warning(name: &str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name: name.into(), result: CheckResult::Warning, detail: detail.into(), fix: Some(fix.into()) }
    }

    /// It does not work.
    pub fn failed(name: &str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name: name.into(), result: CheckResult::Failed, detail: detail.into(), fix: Some(fix.into()) }
    }
}

impl From<Vec<Check>> for Doctor {
    fn from(checks: Vec<Check>) -> Self {
        Self { ok: checks.iter().all(|check| check.result != CheckResult::Failed), checks }
    }
}

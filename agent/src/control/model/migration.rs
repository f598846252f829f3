//! Migrations of VMs.

use crate::size::ByteSize;
use crate::text::Text;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use virtuoso_overlay::ids::HostId;

/// Asks for a VM to be moved to another host while it runs.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmMigrate {
    /// The host, by name or id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The best host that has room.
    #[serde(default)]
    pub best: bool,
    /// When memory may be fetched after the guest has begun to run at the target.
    #[serde(default)]
    pub post_copy: PostCopyPolicy,
    /// Bytes of memory and disk per second at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub bandwidth: Option<ByteSize>,
}

/// When memory may be fetched after the guest has begun to run at the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum PostCopyPolicy {
    /// When copying it beforehand does not come to an end.
    #[default]
    Auto,
    /// Never: a guest that writes too fast is slowed down.
    Never,
    /// At once.
    Now,
}

/// An operator's word about a migration whose other host is gone for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmResolve {
    /// Which copy runs.
    pub copy: WhichCopy,
}

/// One of the copies of a VM that was moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum WhichCopy {
    /// That of the host that is asked.
    Here,
    /// That of the other host.
    There,
}

/// How far a migration has come.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct MigrationProgress {
    /// `reserve`, `prepare`, `disk`, `memory`, `switch-over`, `resume` or `finish`.
    pub phase: String,
    /// Bytes of disk that have been copied.
    pub disk_bytes: u64,
    /// Bytes of memory that have been sent.
    pub memory_bytes: u64,
    /// Bytes of memory that are still to be sent.
    pub remaining_bytes: u64,
    /// Bytes sent per second.
    pub rate_bytes_s: u64,
    /// Bytes of memory that the guest changes per second.
    pub dirty_bytes_s: u64,
    /// Seconds until the memory is there, if it goes on like that.
    pub estimate_s: Option<u64>,
}

/// How a migration went.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MigrationReport {
    /// The VM.
    pub name: String,
    /// The host that has it.
    #[schema(value_type = String)]
    pub to: Text<HostId>,
    /// That host's name.
    pub host_name: String,
    /// From the request until the guest ran at the target and nothing was left at the source.
    pub total_ms: f64,
    /// The hypervisor's own figure: from the guest's pause until its last state was sent.
    pub downtime_ms: f64,
    /// From when frames for the guest waited at the source until the first of them was on its way to the guest at the
    /// target. The hosts' clocks are joined by half the round trip of the hand-over.
    pub blackout_ms: f64,
    /// Frames that the source sent on.
    pub frames_forwarded: u64,
    /// Frames that waited, at either host.
    pub frames_buffered: u64,
    /// Frames that died while they waited or between the hosts.
    pub frames_lost: u64,
    /// Frames that came to the target more often than they were sent on.
    pub frames_duplicated: u64,
    /// Whether the guest ran at the target before all of its memory was there.
    pub post_copy: bool,
    /// What was sent.
    pub bytes: MigrationBytes,
}

/// What became of a host's VMs when it was drained.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct DrainReport {
    /// Those that went.
    pub moved: Vec<MigrationReport>,
    /// Those that stayed.
    pub stayed: Vec<StayedVm>,
}

/// A VM that could not be moved.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct StayedVm {
    /// The VM.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// What a migration has sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct MigrationBytes {
    /// Of memory and devices.
    pub memory: u64,
    /// Of the disk.
    pub disk: u64,
}

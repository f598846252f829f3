//! What the control API says and is told: the JSON types, and nothing else. Scripts rely on these keys; one that is
//! here stays, and new ones may come. Units stand last in a key.

mod cdrom;
mod host;
mod image;
mod migration;
mod network;
mod swarm;
mod vm;

pub use cdrom::{Cdrom, CdromInsert, Loan};
pub use host::{
    BootstrapStatus, Check, CheckResult, Doctor, Host, HostMatch, HostQuery, HostState, Status, SwarmState,
};
pub use image::{DamagedChunk, Image, ImageExport, ImageImport, ImagePull, ImageVerification, Progress};
pub use migration::{
    DrainReport, MigrationBytes, MigrationProgress, MigrationReport, PostCopyPolicy, StayedVm, VmMigrate, VmResolve,
    WhichCopy,
};
pub use network::{
    Attach, ClaimState, Detach, FdbEntry, Link, LinkState, Network, NetworkCreate, NetworkTraffic, Port, PortKind,
    PortState,
};
pub use swarm::{Approve, Invite, InviteRequest, Member, Peer, PendingHost};
pub use vm::{BootDevice, Vm, VmClone, VmCreate, VmDetails, VmDiskOffer, VmNetwork, VmStop};

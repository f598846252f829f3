//! What the control API asks of the agent: one method for each verb. The router knows only this.

use super::model::{
    Attach, CdromInsert, Check, Detach, DrainReport, FdbEntry, Host, HostMatch, HostQuery, Image, ImageExport,
    ImageImport, ImagePull, ImageVerification, Invite, InviteRequest, Link, Loan, Member, MigrationProgress,
    MigrationReport, Network, NetworkCreate, Peer, PendingHost, Port, Progress, Status, Vm, VmClone, VmCreate,
    VmMigrate, VmResolve, VmStop,
};
use super::problem::ApiError;
use crate::attach::Session;
use crate::disc::User;
use crate::name::Name;
use crate::vm::VmLimitsChange;
use axum::extract::Request;
use axum::response::Response;
use futures::future::BoxFuture;
use std::path::PathBuf;
use tokio::sync::watch;
use virtuoso_overlay::ids::HostId;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A user of this host.
    Local,
    /// Another host, for one of its users.
    Member(HostId),
}

/// What a request is for, and so which host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A host by its name or id.
    Host(String),
    /// A VM by its name.
    Vm(Name),
}

/// The result of a verb, when it is there. Dropping it cancels the work.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, ApiError>>;

/// The agent as seen from the control socket. Unknown names are [`ApiError::not_found`].
pub trait Backend: Send + Sync + 'static {
    /// This agent at a glance.
    fn status(&self) -> Answer<'_, Status>;
    /// Open control connections.
    fn peers(&self) -> Answer<'_, Vec<Peer>>;
    /// Links of the data plane.
    fn links(&self) -> Answer<'_, Vec<Link>>;
    /// Checks of swarm, links and whatever else only the running agent knows. The router adds those of the machine.
    fn checks(&self) -> Answer<'_, Vec<Check>>;

    /// All hosts, by name.
    fn hosts(&self) -> Answer<'_, Vec<Host>>;
    /// Hosts for a VM, best first; those left out at the end, if asked for.
    fn find_hosts(&self, query: HostQuery) -> Answer<'_, Vec<HostMatch>>;

    /// All networks, by name.
    fn networks(&self) -> Answer<'_, Vec<Network>>;
    /// One network.
    fn network(&self, name: Name) -> Answer<'_, Network>;
    /// Makes a network known to the swarm.
    fn create_network(&self, request: NetworkCreate) -> Answer<'_, Network>;
    /// Removes a network that is attached nowhere.
    fn delete_network(&self, name: Name) -> Answer<'_, ()>;
    /// Attaches a network on this host, or an interface to it.
    fn attach(&self, name: Name, request: Attach) -> Answer<'_, Network>;
    /// Undoes [`Self::attach`].
    fn detach(&self, name: Name, request: Detach) -> Answer<'_, Network>;
    /// Addresses on a network.
    fn fdb(&self, name: Name) -> Answer<'_, Vec<FdbEntry>>;
    /// This host's ports, of all networks.
    fn ports(&self) -> Answer<'_, Vec<Port>>;

    /// All images of the swarm, by name.
    fn images(&self) -> Answer<'_, Vec<Image>>;
    /// One image.
    fn image(&self, name: Name) -> Answer<'_, Image>;
    /// Imports a file into this host's store and advertises it.
    fn import_image(&self, request: ImageImport, progress: watch::Sender<Progress>) -> Answer<'_, Image>;
    /// Fetches an image, by name or digest, from the hosts that have it.
    fn pull_image(&self, image: String, request: ImagePull, progress: watch::Sender<Progress>) -> Answer<'_, Image>;
    /// Writes an image of this host to a new file.
    fn export_image(&self, name: Name, request: ImageExport, progress: watch::Sender<Progress>) -> Answer<'_, ()>;
    /// Reads and hashes all that this host has of an image.
    fn verify_image(&self, name: Name, progress: watch::Sender<Progress>) -> Answer<'_, ImageVerification>;
    /// Removes an image from this host.
    fn remove_image(&self, name: Name) -> Answer<'_, ()>;

    /// All VMs, by name.
    fn vms(&self) -> Answer<'_, Vec<Vm>>;
    /// One VM.
    fn vm(&self, name: Name) -> Answer<'_, Vm>;
    /// Makes a VM: on this host if a member asks, else where the request says.
    fn create_vm(&self, request: VmCreate, origin: Origin) -> Answer<'_, Vm>;
    /// Starts a VM of this host.
    fn start_vm(&self, name: Name) -> Answer<'_, Vm>;
    /// Ends a VM of this host.
    fn stop_vm(&self, name: Name, request: VmStop) -> Answer<'_, Vm>;
    /// Presses the reset button of a VM of this host.
    fn reset_vm(&self, name: Name) -> Answer<'_, Vm>;
    /// Makes a copy of a VM of this host, here or on another one.
    fn clone_vm(&self, name: Name, request: VmClone, progress: watch::Sender<Progress>) -> Answer<'_, Vm>;
    /// Changes what a VM of this host may use.
    fn limit_vm(&self, name: Name, change: VmLimitsChange) -> Answer<'_, Vm>;
    /// Removes a VM of this host, by force also one that runs.
    fn delete_vm(&self, name: Name, force: bool) -> Answer<'_, ()>;
    /// Moves a VM of this host to another one.
    fn migrate_vm(
        &self,
        name: Name,
        request: VmMigrate,
        progress: watch::Sender<MigrationProgress>,
    ) -> Answer<'_, MigrationReport>;
    /// Takes no VMs any more, and moves those that run to other hosts.
    fn drain(&self) -> Answer<'_, DrainReport>;
    /// Takes VMs again.
    fn undrain(&self) -> Answer<'_, ()>;
    /// Ends the migration of a VM of this host.
    fn cancel_migration(&self, name: Name) -> Answer<'_, ()>;
    /// Says which copy of a VM runs.
    fn resolve_migration(&self, name: Name, request: VmResolve) -> Answer<'_, ()>;
    /// The console of a VM, wherever it is and goes.
    fn vm_console(&self, name: Name) -> Answer<'_, Session>;
    /// What the guest of a VM of this host wrote lately to its console.
    fn vm_console_history(&self, name: Name) -> Answer<'_, Vec<u8>>;
    /// Lends a file of this host, which `user` may read, to a drive.
    fn lend(&self, path: PathBuf, user: User) -> Answer<'_, Loan>;
    /// Undoes [`Self::lend`], if this host lent it.
    fn take_back(&self, loan: &Loan);
    /// Puts an image or a loan into the drive of a VM of this host.
    fn insert_cdrom(&self, name: Name, medium: CdromInsert) -> Answer<'_, Vm>;
    /// Empties the drive of a VM of this host.
    fn eject_cdrom(&self, name: Name) -> Answer<'_, Vm>;
    /// The display of a VM, wherever it is and goes.
    fn vm_display(&self, name: Name) -> Answer<'_, Session>;
    /// What the display of a VM of this host shows, as a PNG.
    fn vm_screenshot(&self, name: Name) -> Answer<'_, Vec<u8>>;

    /// The host that a request is for; nothing if it is this one or none is known.
    fn place(&self, target: Target) -> Answer<'_, Option<HostId>>;
    /// Has another host answer a request.
    fn forward(&self, host: HostId, request: Request) -> Answer<'_, Response>;

    /// Hosts that the swarm has admitted, by name.
    fn members(&self) -> Answer<'_, Vec<Member>>;
    /// Hosts that wait at this host.
    fn pending(&self) -> Answer<'_, Vec<PendingHost>>;
    /// Admits one of them, named by id or name.
    fn approve(&self, peer: String) -> Answer<'_, Member>;
    /// Makes a ticket.
    fn invite(&self, request: InviteRequest) -> Answer<'_, Invite>;
}

//! Live migration: what `overlay::migrate` decides, done to QEMU, to disks, to networks and to records.
//!
//! One task for each migration on each of its two hosts (`source`, `target`). They speak over a stream of their own;
//! memory and disk go from QEMU to QEMU through further streams, which end in Unix sockets in the VMs' directories.
//! No port is opened for any of it.

mod book;
mod definition;
mod hypervisor;
mod line;
mod report;
mod rest_of_memory;
mod source;
mod target;
mod valve;

pub use line::MIGRATION;

use super::moving::Move;
use super::vms::Vms;
use crate::control::model::{MigrationProgress, MigrationReport};
use crate::control::problem::{ApiError, ErrorCode};
use crate::entropy;
use crate::name::Name;
use crate::swarm::streams::{Inbound, Stream, Streams};
use anyhow::Context;
use book::Book;
use line::{Bridge, Heard, Purpose};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, oneshot, watch};
use virtuoso_engine::EngineHandle;
use virtuoso_overlay::ids::{HostId, VmId};
use virtuoso_overlay::migrate::{MigrationId, PostCopy, Record, Source, ToSource, ToTarget, Verdict};

/// What waits for the task of a migration.
const INBOX_MAX: usize = 256;

/// What the operator wants of a migration.
#[derive(Clone, Copy, Debug)]
pub struct MigrateOptions {
    /// Where the VM goes.
    pub to: HostId,
    /// When memory may be fetched later.
    pub post_copy: PostCopy,
    /// Bytes per second at most.
    pub bandwidth: Option<u64>,
}

/// The migrations of this host.
#[derive(Clone)]
pub struct Migrations(Arc<Shared>);

struct Shared {
    vms: Arc<Vms>,
    streams: Streams,
    engine: EngineHandle,
    book: Book,
    sessions: Mutex<BTreeMap<MigrationId, Session>>,
}

/// The way to a migration's task.
#[derive(Clone)]
struct Session {
    vm: VmId,
    peer: HostId,
    inbox: mpsc::Sender<Inbox>,
}

/// What a migration's task hears.
enum Inbox {
    /// There is a stream to the other host.
    Line(Box<Stream>),
    /// It could not be reached.
    NoLine,
    /// It says something.
    Said(Vec<u8>),
    /// A stream ended.
    Lost(u64),
    /// Nothing comes by a stream of memory that stands.
    MemoryDry,
    /// Something comes again.
    MemoryFlows,
    /// QEMU can go on sending memory, or why not.
    Way(anyhow::Result<(OwnedFd, Bridge)>),
    /// A copy is there, or why not.
    Prepared(anyhow::Result<target::Prepared>),
    /// The operator wants it to end, and hears why it can't.
    Cancel(oneshot::Sender<Result<(), &'static str>>),
    /// A guest that was told to run does, or why it can't.
    Begun(Result<(), String>),
    /// The operator decides, and hears why that changes nothing.
    Resolve(Verdict, oneshot::Sender<Result<(), &'static str>>),
}

/// The migrations that were under way when the agent ended, for [`Vms::open`].
///
/// # Errors
/// If their directory can't be read.
pub fn unfinished(state_dir: &Path) -> anyhow::Result<Vec<Move>> {
    let records = Book::open(state_dir.join("migrations"))?.load()?;
    Ok(records.into_iter().map(|record| Move { vm: record.vm, phase: record.phase }).collect())
}

impl Migrations {
    /// Goes on with what was under way, and takes part in new migrations.
    ///
    /// # Errors
    /// If the records can't be read.
    pub async fn start(
        vms: Arc<Vms>,
        streams: Streams,
        inbound: mpsc::Receiver<Inbound>,
        engine: EngineHandle,
    ) -> anyhow::Result<Self> {
        let book = Book::open(vms.parts.state_dir.join("migrations"))?;
        let records = book.load()?;
        let shared = Arc::new(Shared { vms, streams, engine, book, sessions: Mutex::default() });
        for record in records {
            shared.restore(record).await;
        }
        tokio::spawn(serve(shared.clone(), inbound));
        Ok(Self(shared))
    }

    /// Moves a VM of this host and waits until it is done. Dropping the future cancels.
    ///
    /// # Errors
    /// If it stays, with the reason.
    pub async fn migrate(
        &self,
        name: Name,
        options: MigrateOptions,
        progress: watch::Sender<MigrationProgress>,
    ) -> Result<MigrationReport, ApiError> {
        let id = MigrationId(entropy::bytes());
        let done = source::begin(&self.0, id, &name, options, progress).await?;
        let mut guard = CancelOnDrop { shared: self.0.clone(), id, is_armed: true };
        let outcome = done.await;
        guard.is_armed = false;
        let told = outcome.map_err(|_| ApiError::new(ErrorCode::Unavailable, "The agent is stopping"))?;
        told.map_err(|failure| ApiError::conflict(failure.explain(&name)))
    }

    /// Ends a VM's migration; the VM stays.
    ///
    /// # Errors
    /// If there is none, or it is too late.
    pub async fn cancel(&self, vm: VmId) -> Result<(), ApiError> {
        let told = self.ask(vm, Inbox::Cancel).await.ok_or_else(|| ApiError::conflict("The VM is not on its way"))?;
        told.map_err(|why| ApiError::conflict(format!("Too late: {why}")))
    }

    /// Says which copy of a VM runs, because the other host is gone for good.
    ///
    /// # Errors
    /// If no migration of it waits for that here.
    pub async fn resolve(&self, vm: VmId, verdict: Verdict) -> Result<(), ApiError> {
        let told = self.ask(vm, |reply| Inbox::Resolve(verdict, reply)).await;
        let told = told.ok_or_else(|| ApiError::conflict("No migration of the VM waits here"))?;
        told.map_err(|why| ApiError::conflict(format!("There is nothing to decide: {why}")))
    }

    /// Asks the migrations of a VM until one grants it: one that brought it here may still wait for the last word of a
    /// host that is gone, while it is about to leave again.
    async fn ask<T>(&self, vm: VmId, wish: impl Fn(oneshot::Sender<Result<(), T>>) -> Inbox) -> Option<Result<(), T>> {
        let mut last = None;
        for session in self.0.sessions_of(vm) {
            let (reply, answer) = oneshot::channel();
            session.inbox.send(wish(reply)).await.ok();
            match answer.await {
                Ok(Ok(())) => return Some(Ok(())),
                Ok(Err(why)) => last = Some(Err(why)),
                // It has just ended.
                Err(_) => {}
            }
        }
        last
    }

    /// The VM of this name whose copy waits on this host.
    pub fn waiting(&self, name: &Name) -> Option<VmId> {
        let sessions: Vec<VmId> = self.0.sessions().values().map(|session| session.vm).collect();
        let named = |vm: &VmId| self.0.vms.machine_or_copy(*vm).is_some_and(|machine| machine.spec().name == *name);
        sessions.into_iter().find(named)
    }
}

/// Why a migration has not ended well.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// The VM is where it was.
    Stayed(String),
    /// It is where it should go, and its guest has ended.
    Ended(String),
}

impl Failure {
    fn explain(&self, name: &Name) -> String {
        match self {
            Self::Stayed(why) => format!("VM {name} stays here: {why}"),
            Self::Ended(why) => format!("VM {name} is at the host that it was sent to, and does not run: {why}"),
        }
    }
}

/// Whoever asked for a migration and went away has cancelled it.
struct CancelOnDrop {
    shared: Arc<Shared>,
    id: MigrationId,
    is_armed: bool,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let session = self.shared.sessions().get(&self.id).cloned().filter(|_| self.is_armed);
        if let Some(session) = session {
            tokio::spawn(async move { session.inbox.send(Inbox::Cancel(oneshot::channel().0)).await });
        }
    }
}

impl Shared {
    fn sessions(&self) -> MutexGuard<'_, BTreeMap<MigrationId, Session>> {
        // No holder can panic half-way.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions_of(&self, vm: VmId) -> Vec<Session> {
        self.sessions().values().filter(|session| session.vm == vm).cloned().collect()
    }

    /// Makes a migration known; its inbox.
    fn enter(&self, id: MigrationId, vm: VmId, peer: HostId) -> (mpsc::Sender<Inbox>, mpsc::Receiver<Inbox>) {
        let (inbox, receiver) = mpsc::channel(INBOX_MAX);
        self.sessions().insert(id, Session { vm, peer, inbox: inbox.clone() });
        (inbox, receiver)
    }

    async fn restore(self: &Arc<Self>, record: Record) {
        if record.phase.is_source() {
            source::restore(self, record);
        } else {
            target::restore(self, record).await;
        }
    }

    /// Opens a stream for messages in the background.
    fn dial(self: &Arc<Self>, to: HostId, purpose: Purpose, id: MigrationId, inbox: mpsc::Sender<Inbox>) {
        let shared = self.clone();
        tokio::spawn(async move {
            let opened = line::open(&shared.streams, to, purpose, id).await;
            let told = match opened {
                Ok(stream) => Inbox::Line(Box::new(stream)),
                Err(_) => Inbox::NoLine,
            };
            inbox.send(told).await.ok();
        });
    }

    /// Writes a record without keeping the runtime from other work.
    async fn persist(&self, record: Record) -> anyhow::Result<()> {
        let book = self.book.clone();
        tokio::task::spawn_blocking(move || book.write(&record)).await.context("Writing a record broke off")?
    }
}

/// Serves the streams that other hosts open, until the agent stops.
async fn serve(shared: Arc<Shared>, mut inbound: mpsc::Receiver<Inbound>) {
    while let Some(Inbound { host, stream }) = inbound.recv().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            if let Err(error) = serve_one(&shared, host, stream).await {
                tracing::debug!(%host, "A stream of a migration ended: {error:#}");
            }
        });
    }
}

async fn serve_one(shared: &Arc<Shared>, host: HostId, mut stream: Stream) -> anyhow::Result<()> {
    let (purpose, id) = line::accept(&mut stream).await?;
    let session = shared.sessions().get(&id).cloned().filter(|session| session.peer == host);
    match (purpose, session) {
        (Purpose::FromSource | Purpose::FromTarget, Some(session)) => {
            session.inbox.send(Inbox::Line(Box::new(stream))).await.ok();
        }
        (Purpose::Memory | Purpose::MemoryAgain, Some(session)) => {
            let (stream, something) = Heard::new(stream);
            let taking = take_memory(shared, session.vm, purpose, stream);
            let watching = line::watch(&something, &session.inbox);
            tokio::pin!(taking);
            tokio::select! {
                taken = &mut taking => taken?,
                // QEMU has a last word to say when all of it is there.
                () = watching => taking.await?,
            }
        }
        (Purpose::Disk, Some(session)) => {
            let files = shared.vms.store.files(session.vm);
            line::join(&files.mirror_socket(), stream).await;
        }
        (Purpose::Console, Some(session)) => {
            if let Some(live) = shared.vms.machine_or_copy(session.vm).and_then(|machine| machine.live()) {
                line::take_parts(stream, &live.console).await?;
            }
        }
        (Purpose::FromSource, None) => {
            while let Ok(bytes) = line::receive(&mut stream).await {
                match ToTarget::decode(&bytes)? {
                    ToTarget::Offer(offer) if offer.id == id && !shared.sessions().contains_key(&id) => {
                        return target::begin(shared, host, offer, stream);
                    }
                    ToTarget::Offer(_) | ToTarget::Finish { .. } => {}
                    ToTarget::Go { .. } | ToTarget::Abort { .. } => {
                        line::send(&mut stream, &ToSource::unknown(id).encode()).await?;
                    }
                }
            }
        }
        (Purpose::FromTarget, None) => {
            while let Ok(bytes) = line::receive(&mut stream).await {
                if let Some(answer) = Source::answer_unknown(&ToSource::decode(&bytes)?) {
                    line::send(&mut stream, &answer.encode()).await?;
                }
            }
        }
        (Purpose::Memory | Purpose::MemoryAgain | Purpose::Disk | Purpose::Console, None) => {}
    }
    Ok(())
}

/// Has the QEMU here take a stream of memory, until it ends.
async fn take_memory(shared: &Shared, vm: VmId, purpose: Purpose, stream: Heard) -> anyhow::Result<()> {
    let socket = shared.vms.store.files(vm).memory_socket();
    if purpose == Purpose::Memory {
        line::join(&socket, stream).await;
        return Ok(());
    }
    let machine = shared.vms.machine_or_copy(vm).context("There is no such VM")?;
    let live = machine.live().context("It does not run")?;
    hypervisor::receive_again(&live, &machine.files).await?;
    tracing::info!(vm = %machine.spec().name, "The guest waits for memory, whose stream broke");
    line::join_again(&socket, stream).await
}

fn hex(id: MigrationId) -> String {
    id.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A time that does not come.
fn far() -> virtuoso_overlay::time::Instant {
    virtuoso_overlay::time::Instant(u64::MAX / 2)
}

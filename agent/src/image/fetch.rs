//! Fetches the chunks of one image from all hosts that have it, at once.
//!
//! One task looks after the providers; one worker for each talks to it. Workers take chunks from one queue whenever
//! there is room in their window, so a fast provider gives more than a slow one, and at the end idle workers ask again
//! for what a slow one still owes. A chunk counts when its digest is right; whoever sends a wrong one is not asked
//! again.

mod queue;
mod rate;
#[cfg(test)]
pub(super) mod tests;
mod worker;

use super::arrival::Placed;
use super::manifest::Manifest;
use super::{ImageError, ImageStore};
use crate::control::model::Progress;
use crate::entropy;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use queue::Queue;
use rate::Rate;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use virtuoso_overlay::ids::{Digest, HostId};
use worker::{Fault, Worker};

pub(super) use worker::read_answer;

/// Hosts that an image is fetched from at once. More would only compete for this host's own line.
const PROVIDERS_MAX: usize = 16;
/// How often new providers are looked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// A provider that failed is tried again after this time, doubled with each failure.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A reader to whom no host gave anything for so long is told: at 1 Mbit/s a chunk takes 2 s.
const STARVED_AFTER: Duration = Duration::from_secs(10);

/// A connection to a provider.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A stream to a provider, or why there is none.
pub type Opened = Result<Box<dyn Io>, String>;

/// A host with an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holder {
    /// The host.
    pub host: HostId,
    /// Whether it has all of the image. If not, it fetches it too.
    pub complete: bool,
}

/// Where images come from.
pub trait Providers: Send + Sync + 'static {
    /// Hosts that may have an image or fetch it, without this one.
    fn find(&self, image: Digest) -> BoxFuture<'_, Vec<Holder>>;
    /// A stream to one of them.
    fn open(&self, host: HostId) -> BoxFuture<'_, Opened>;
    /// Tells whenever a host has come, or come back.
    fn arrivals(&self) -> BoxStream<'static, ()>;
    /// What this host has has changed: an image begins to come, or is given up.
    fn changed(&self);
    /// A host gave something else than its digest says.
    fn lied(&self, host: HostId, image: Digest, what: Digest);
}

/// The fetching of one image.
pub(super) struct Fetch {
    shared: Arc<Shared>,
}

/// Whether what readers wait for comes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Supply {
    /// It comes, or nobody waits.
    Flowing,
    /// It does not come, and why.
    Lost(String),
}

/// What the workers share.
struct Shared {
    store: Arc<ImageStore>,
    providers: Arc<dyn Providers>,
    image: Digest,
    stored_bytes: u64,
    queue: Mutex<Queue>,
    /// The queue has changed.
    changed: Notify,
    rate: Rate,
    progress: watch::Sender<Progress>,
    supply: watch::Sender<Supply>,
    /// What went wrong last with each provider.
    troubles: Mutex<BTreeMap<HostId, String>>,
}

impl Shared {
    /// Each change is complete before the lock is released.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn troubles(&self) -> MutexGuard<'_, BTreeMap<HostId, String>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A chunk is here.
    fn arrived(&self, host: HostId, digest: &Digest) {
        self.troubles().remove(&host);
        if self.queue().arrived(digest, Instant::now()) {
            self.tell_progress();
            self.supply.send_if_modified(|supply| std::mem::replace(supply, Supply::Flowing) != Supply::Flowing);
            self.changed.notify_waiters();
        }
    }

    fn tell_progress(&self) {
        let done_bytes = self.stored_bytes.saturating_sub(self.queue().missing_bytes());
        self.progress.send_replace(Progress { done_bytes, total_bytes: self.stored_bytes });
    }

    fn why_nothing_comes(&self) -> String {
        let tried: Vec<_> = self.troubles().iter().map(|(host, error)| format!("{host}: {error}")).collect();
        match tried.as_slice() {
            [] => "no host has it".to_owned(),
            tried => format!("no host gives it ({})", tried.join("; ")),
        }
    }
}

/// When to ask a provider again.
#[derive(Default)]
struct Record {
    failures: u32,
    retry_at: Option<Instant>,
}

/// Somebody wants all of the image now. Without one, what nobody reads comes only in quiet times.
pub(super) struct Hurry(Arc<Shared>);

impl Drop for Hurry {
    fn drop(&mut self) {
        if self.0.queue().end_hurry() == 0 {
            self.0.rate.set(None);
        }
    }
}

impl Fetch {
    /// Fetches `missing` chunks of the image: those that are wanted first, the others in quiet times. Those that are
    /// `here` others may have.
    pub(super) fn new(
        store: Arc<ImageStore>,
        providers: Arc<dyn Providers>,
        manifest: &Manifest,
        missing: Vec<Placed>,
        here: Vec<Digest>,
    ) -> Self {
        let shared = Shared {
            store,
            providers,
            image: manifest.digest(),
            stored_bytes: distinct_bytes(manifest),
            queue: Mutex::new(Queue::new(missing, here, entropy::u64())),
            changed: Notify::new(),
            rate: Rate::default(),
            progress: watch::Sender::default(),
            supply: watch::Sender::new(Supply::Flowing),
            troubles: Mutex::default(),
        };
        shared.tell_progress();
        Self { shared: Arc::new(shared) }
    }

    /// Fetches all of it without a pause, `rate` bytes per second at most, as long as the result lives.
    pub(super) fn hurry(&self, rate: Option<u64>) -> Hurry {
        if rate.is_some() {
            self.shared.rate.set(rate);
        }
        self.shared.queue().begin_hurry();
        self.shared.changed.notify_waiters();
        Hurry(self.shared.clone())
    }

    /// What nobody reads may never come: there is no room for it.
    pub(super) fn only_on_demand(&self) {
        self.shared.queue().only_on_demand();
    }

    /// How much is here.
    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    /// The chunks that are here, in the order in which they came, without the first `known`.
    pub(super) fn here_after(&self, known: usize) -> Vec<Digest> {
        self.shared.queue().here_after(known).to_vec()
    }

    /// Whether what readers wait for comes.
    pub(super) fn supply(&self) -> watch::Receiver<Supply> {
        self.shared.supply.subscribe()
    }

    pub(super) fn missing_bytes(&self) -> u64 {
        self.shared.queue().missing_bytes()
    }

    /// Nothing will come for a while.
    pub(super) fn set_lost(&self, reason: &str) {
        self.shared.supply.send_replace(Supply::Lost(reason.to_owned()));
    }

    /// What is known of why nothing comes.
    pub(super) fn why_nothing_comes(&self) -> String {
        self.shared.why_nothing_comes()
    }

    /// Chunks that seemed to be here are not.
    pub(super) fn add_missing(&self, chunks: Vec<Placed>) {
        let mut queue = self.shared.queue();
        chunks.into_iter().for_each(|(digest, _, length)| queue.add(digest, length));
    }

    /// Waits until a chunk is here that somebody reads; `ahead` is likely to be read next.
    ///
    /// # Errors
    /// Why it does not come, once that is clear.
    pub(super) async fn want(&self, digest: Digest, length: usize, ahead: Vec<Digest>) -> Result<(), String> {
        let mut supply = self.shared.supply.subscribe();
        self.shared.queue().want(digest, length, ahead);
        self.shared.changed.notify_waiters();
        loop {
            // Before looking at the queue, so that no change is missed.
            let changed = self.shared.changed.notified();
            if !self.shared.queue().is_missing(&digest) {
                return Ok(());
            }
            if let Supply::Lost(reason) = &*supply.borrow_and_update() {
                return Err(reason.clone());
            }
            tokio::select! {
                () = changed => {}
                _ = supply.changed() => {}
            }
        }
    }

    /// Waits until something is missing.
    pub(super) async fn wanted(&self) {
        loop {
            let changed = self.shared.changed.notified();
            if self.shared.queue().missing_bytes() > 0 {
                return;
            }
            changed.await;
        }
    }

    /// Runs until every chunk is here. Dropping the future stops all work.
    ///
    /// # Errors
    /// If the store can't take more.
    pub(super) async fn run(&self) -> Result<(), ImageError> {
        let shared = self.shared.clone();
        let mut arrivals = shared.providers.arrivals();
        let (workers, hosts, records) = (JoinSet::new(), BTreeMap::new(), BTreeMap::new());
        let mut run = Run { shared, workers, hosts, records, liars: BTreeSet::new() };
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let changed = self.shared.changed.notified();
            let (missing_bytes, waiting_since) = {
                let queue = self.shared.queue();
                (queue.missing_bytes(), queue.waiting_since())
            };
            if missing_bytes == 0 {
                return Ok(());
            }
            let is_lost = *self.shared.supply.borrow() != Supply::Flowing;
            let starves_at = waiting_since.filter(|_| !is_lost).map(|since| since + STARVED_AFTER);
            tokio::select! {
                _ = look.tick() => run.look_for_providers().await,
                Some(()) = arrivals.next() => run.try_again().await,
                Some(ended) = run.workers.join_next_with_id() => run.on_ended(ended)?,
                () = sleep_until(starves_at) => self.set_lost(&self.why_nothing_comes()),
                () = changed => {}
            }
        }
    }
}

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetch").field("image", &self.shared.image).finish_non_exhaustive()
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Bytes of an image's chunks, each counted once.
fn distinct_bytes(manifest: &Manifest) -> u64 {
    let mut seen = BTreeSet::new();
    manifest.stored().filter(|(digest, _, _)| seen.insert(*digest)).map(|(_, _, length)| length as u64).sum()
}

struct Run {
    shared: Arc<Shared>,
    workers: JoinSet<Result<(), Fault>>,
    hosts: BTreeMap<Id, HostId>,
    records: BTreeMap<HostId, Record>,
    liars: BTreeSet<HostId>,
}

impl Run {
    async fn look_for_providers(&mut self) {
        let mut found = self.shared.providers.find(self.shared.image).await;
        found.sort_by_key(|holder| !holder.complete);
        let now = Instant::now();
        for Holder { host, complete } in found {
            let is_busy = self.hosts.values().any(|other| *other == host);
            let may_retry = self.records.get(&host).and_then(|record| record.retry_at).is_none_or(|at| at <= now);
            if is_busy || !may_retry || self.liars.contains(&host) || self.workers.len() >= PROVIDERS_MAX {
                continue;
            }
            let worker = Worker::new(self.shared.clone(), host, complete);
            let id = self.workers.spawn(worker.run()).id();
            self.hosts.insert(id, host);
        }
    }

    fn on_ended(&mut self, ended: Result<(Id, Result<(), Fault>), JoinError>) -> Result<(), ImageError> {
        let (id, result) = match ended {
            Ok(ended) => ended,
            Err(error) => (error.id(), Err(Fault::Stream(format!("it broke off: {error}")))),
        };
        let Some(host) = self.hosts.remove(&id) else { return Ok(()) };
        self.shared.queue().gave_up(host);
        self.shared.changed.notify_waiters();
        let error = match result {
            Ok(()) => return Ok(()),
            Err(Fault::Store(error)) => return Err(error),
            Err(Fault::Lie(chunk)) => {
                self.liars.insert(host);
                self.shared.providers.lied(host, self.shared.image, chunk);
                "it sent a wrong chunk".to_owned()
            }
            Err(Fault::Stream(error)) => error,
        };
        tracing::debug!(%host, image = %self.shared.image, error, "A provider failed");
        let record = self.records.entry(host).or_default();
        record.failures += 1;
        let wait = RETRY_MIN.saturating_mul(1 << record.failures.min(6)).min(RETRY_MAX);
        record.retry_at = Some(Instant::now() + wait);
        self.shared.troubles().insert(host, error);
        Ok(())
    }

    /// A host has come: perhaps one that could not be reached before.
    async fn try_again(&mut self) {
        self.records.clear();
        self.look_for_providers().await;
    }
}

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

use super::manifest::Manifest;
use super::{ImageError, ImageStore};
use crate::control::model::Progress;
use futures::future::BoxFuture;
use queue::Queue;
use rate::Rate;
use std::collections::{BTreeMap, BTreeSet};
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

/// A connection to a provider.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A stream to a provider, or why there is none.
pub type Opened = Result<Box<dyn Io>, String>;

/// Where images come from.
pub trait Providers: Send + Sync + 'static {
    /// Hosts that may have an image, without this one.
    fn find(&self, image: Digest) -> BoxFuture<'_, Vec<HostId>>;
    /// A stream to one of them.
    fn open(&self, host: HostId) -> BoxFuture<'_, Opened>;
    /// A host gave something else than its digest says.
    fn lied(&self, host: HostId, image: Digest, what: Digest);
}

/// The fetching of one image.
pub(super) struct Fetch {
    shared: Arc<Shared>,
    /// How long nothing may come before the fetch fails; for ever if absent.
    patience: Option<Duration>,
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
}

impl Shared {
    /// Each change is complete before the lock is released.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_progress(&self) {
        let done_bytes = self.stored_bytes.saturating_sub(self.queue().missing_bytes());
        self.progress.send_replace(Progress { done_bytes, total_bytes: self.stored_bytes });
    }
}

/// What a provider has done so far.
#[derive(Default)]
struct Record {
    failures: u32,
    retry_at: Option<Instant>,
    last_error: Option<String>,
}

impl Fetch {
    /// Fetches `missing` chunks of the image, `rate` bytes per second at most.
    pub(super) fn new(
        store: Arc<ImageStore>,
        providers: Arc<dyn Providers>,
        manifest: &Manifest,
        missing: Vec<(Digest, u64, usize)>,
        rate: Option<u64>,
        progress: watch::Sender<Progress>,
    ) -> Self {
        let shared = Shared {
            store,
            providers,
            image: manifest.digest(),
            stored_bytes: distinct_bytes(manifest),
            queue: Mutex::new(Queue::new(missing)),
            changed: Notify::new(),
            rate: Rate::new(rate),
            progress,
        };
        Self { shared: Arc::new(shared), patience: None }
    }

    /// Fails when nothing has come for so long.
    pub(super) fn with_patience(self, patience: Duration) -> Self {
        Self { patience: Some(patience), ..self }
    }

    /// Fetches what is wanted first, and the rest while nothing is.
    pub(super) fn on_demand(self) -> Self {
        self.shared.queue().set_on_demand();
        self
    }

    /// Waits until a chunk is here that somebody reads; `ahead` is likely to be read next.
    pub(super) async fn want(&self, digest: Digest, length: usize, ahead: Vec<Digest>) {
        self.shared.queue().want(digest, length, ahead);
        self.shared.changed.notify_waiters();
        loop {
            // Before looking at the queue, so that no change is missed.
            let changed = self.shared.changed.notified();
            if !self.shared.queue().is_missing(&digest) {
                return;
            }
            changed.await;
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
    pub(super) async fn run(&self) -> Result<(), ImageError> {
        let mut run = Run {
            shared: self.shared.clone(),
            workers: JoinSet::new(),
            hosts: BTreeMap::new(),
            records: BTreeMap::new(),
            liars: BTreeSet::new(),
        };
        self.shared.tell_progress();
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut missing, mut moved_at) = (u64::MAX, Instant::now());
        loop {
            let now_missing = self.shared.queue().missing_bytes();
            if now_missing == 0 {
                return Ok(());
            }
            if now_missing < missing {
                (missing, moved_at) = (now_missing, Instant::now());
            }
            if self.patience.is_some_and(|patience| moved_at.elapsed() >= patience) {
                return Err(run.why_nothing_comes());
            }
            tokio::select! {
                _ = look.tick() => run.look_for_providers().await,
                Some(ended) = run.workers.join_next_with_id() => run.on_ended(ended)?,
            }
        }
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
        let found = self.shared.providers.find(self.shared.image).await;
        let now = Instant::now();
        for host in found {
            let is_busy = self.hosts.values().any(|other| *other == host);
            let may_retry = self.records.get(&host).and_then(|record| record.retry_at).is_none_or(|at| at <= now);
            if is_busy || !may_retry || self.liars.contains(&host) || self.workers.len() >= PROVIDERS_MAX {
                continue;
            }
            let worker = Worker::new(self.shared.clone(), host);
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
        record.last_error = Some(error);
        Ok(())
    }

    fn why_nothing_comes(&self) -> ImageError {
        let tried =
            self.records.iter().filter_map(|(host, record)| Some(format!("{host}: {}", record.last_error.as_ref()?)));
        let tried: Vec<_> = tried.collect();
        let reason = match tried.as_slice() {
            [] => "no host has it".to_owned(),
            tried => format!("no host gives it ({}). What is here is kept: try again later", tried.join("; ")),
        };
        ImageError::Fetch { image: self.shared.image, reason }
    }
}

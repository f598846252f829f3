//! One VM in memory: its record, what it does now, and the ways to its process while there is one.

use super::console::Console;
use super::disk::Base;
use super::process::Process;
use super::qmp::{Event, Qmp};
use super::spec::Spec;
use super::stall::Stall;
use super::store::{Files, Record};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::{broadcast, mpsc, watch};
use virtuoso_overlay::table::VmState;
use virtuoso_overlay::time::Instant;
use virtuoso_overlay::vm::lifecycle::Failures;

/// A VM of this host.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) files: Files,
    /// Held while it changes from one state to another.
    pub(super) turn: tokio::sync::Mutex<()>,
    stall: Mutex<Stall>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    record: Record,
    state: VmState,
    live: Option<Live>,
    failures: Failures,
    /// The migration that it takes part in.
    mover: Option<mpsc::Sender<News>>,
    trouble: Option<Trouble>,
}

/// What the guest waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Its disk can't be used.
    Disk(String),
    /// Some of its memory is on another host, from where it does not come.
    Memory(String),
    /// It may run on another host, and only an operator can say.
    Verdict(String),
}

impl Trouble {
    /// Why, for the operator.
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Disk(reason) | Self::Memory(reason) | Self::Verdict(reason) => reason,
        }
    }
}

/// What a migration hears of a VM's process.
#[derive(Debug)]
pub(super) enum News {
    /// QEMU says something, and when.
    Said(Event, Instant),
    /// It ended.
    Ended,
}

/// A running process.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub(super) process: Arc<Process>,
    pub(super) qmp: Qmp,
    pub(super) console: Arc<Console>,
    /// The image below its disk, which is served as long as it runs.
    pub(super) base: Option<Base>,
    /// What QEMU tells.
    pub(super) events: broadcast::Sender<Event>,
    /// Its end is wanted: it is no crash.
    pub(super) ending: Arc<AtomicBool>,
    /// Why the agent ended it, against the operator's will: that is a crash.
    pub(super) doom: Arc<OnceLock<String>>,
    /// True when it has ended and all is cleaned up.
    pub(super) ended: watch::Receiver<bool>,
    /// Whether its guest is paused to move, and takes nothing that is typed.
    pub(super) held: Arc<watch::Sender<bool>>,
}

impl Machine {
    pub(super) fn new(files: Files, record: Record, state: VmState) -> Arc<Self> {
        let inner = Inner { record, state, live: None, failures: Failures::default(), mover: None, trouble: None };
        Arc::new(Self { files, turn: tokio::sync::Mutex::default(), stall: Mutex::default(), inner: Mutex::new(inner) })
    }

    pub(super) fn spec(&self) -> Spec {
        self.inner().record.spec.clone()
    }

    pub(super) fn record(&self) -> Record {
        self.inner().record.clone()
    }

    pub(super) fn state(&self) -> VmState {
        self.inner().state
    }

    pub(super) fn set_state(&self, state: VmState) {
        self.inner().state = state;
    }

    pub(super) fn live(&self) -> Option<Live> {
        self.inner().live.clone()
    }

    pub(super) fn set_live(&self, live: Option<Live>) {
        self.inner().live = live;
    }

    /// What the guest waits for, if that is known.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.inner().trouble.clone()
    }

    pub(super) fn set_trouble(&self, trouble: Option<Trouble>) {
        self.inner().trouble = trouble;
    }

    /// Has a migration hear what becomes of the process, or no longer.
    pub(super) fn set_mover(&self, mover: Option<mpsc::Sender<News>>) {
        self.inner().mover = mover;
    }

    /// Whether the VM takes part in a migration, which answers for its state then.
    pub(super) fn is_moving(&self) -> bool {
        self.inner().mover.is_some()
    }

    /// Tells the migration, if there is one.
    pub(super) fn tell_mover(&self, news: News) {
        if let Some(mover) = &self.inner().mover
            && let Err(error) = mover.try_send(news)
        {
            tracing::warn!("A migration misses what QEMU says: {error}");
        }
    }

    /// Changes the record, on disk first.
    pub(super) fn keep(&self, change: impl FnOnce(&mut Record)) -> anyhow::Result<()> {
        let mut record = self.record();
        change(&mut record);
        self.files.write(&record)?;
        self.inner().record = record;
        Ok(())
    }

    /// Whether it begins again after a failure.
    pub(super) fn begins_again(&self, now: Instant) -> bool {
        let mut inner = self.inner();
        let policy = inner.record.spec.policy();
        inner.failures.begins_again(now, policy)
    }

    /// What is known of its pauses; plain values.
    pub(super) fn stall(&self) -> MutexGuard<'_, Stall> {
        self.stall.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No holder can panic half-way.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    /// Ends the process.
    pub(super) fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
        self.process.kill();
    }

    /// Ends the process, because it can't go on.
    pub(super) fn end_for(&self, why: String) {
        // The first reason is the one.
        self.doom.set(why).ok();
        self.process.kill();
    }

    /// Keeps what is typed from a guest that is paused to move.
    pub(super) fn hold(&self) {
        self.held.send_replace(true);
        self.console.hold();
    }

    /// Lets the guest have what is typed.
    pub(super) fn release(&self) {
        self.held.send_replace(false);
        self.console.release();
    }

    /// Waits until it has ended and all is cleaned up.
    pub(super) async fn wait_ended(&mut self) {
        // The sender goes only after it has sent.
        self.ended.wait_for(|ended| *ended).await.ok();
    }
}

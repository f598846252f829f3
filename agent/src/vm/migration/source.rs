//! The task of a migration on the host that has the VM.

mod mend;
mod switch_over;

use super::super::machine::{Live, Machine, News, Trouble};
use super::definition::Definition;
use super::hypervisor::{self, Changes, Figures, SourceNews, Terms};
use super::line::{self, Bridge, Line, Patience, Purpose};
use super::report::{Counts, Times, milliseconds, sum};
use super::valve::Valve;
use super::{Failure, Inbox, MigrateOptions, Shared};
use crate::control::model::{MigrationProgress, MigrationReport};
use crate::control::problem::{ApiError, ErrorCode};
use crate::core::{Seat, vm_error};
use crate::events::EventKind;
use crate::name::Name;
use crate::nbd::Behind;
use crate::text::Text;
use crate::vm::qmp::QmpError;
use mend::Mending;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use virtuoso_overlay::ids::{HostId, Mac, NetworkId};
use virtuoso_overlay::migrate::{
    Arrival, MigrationId, Notice, Offer, Outcome, Phase, Record, Source, SourceEffect, SourceInput, ToSource, ToTarget,
};
use virtuoso_overlay::switch::MoveCounts;
use virtuoso_overlay::wire::attach::ConsolePart;

/// How often progress is told.
const TELL_INTERVAL: Duration = Duration::from_millis(250);
/// Time between two attempts to reach the other host.
const DIAL_INTERVAL: Duration = Duration::from_secs(1);
/// How long the target may take to say what it has counted. The move is done by then.
const COUNT_TIME_MAX: Duration = Duration::from_secs(2);
/// News of a process that wait: a migration has some dozens in all.
const NEWS_MAX: usize = 256;

/// Who waits for the result.
type Done = oneshot::Sender<Result<MigrationReport, Failure>>;

struct Task {
    shared: Arc<Shared>,
    id: MigrationId,
    peer: HostId,
    state: Source,
    machine: Arc<Machine>,
    inbox: mpsc::Receiver<Inbox>,
    sender: mpsc::Sender<Inbox>,
    news: mpsc::Receiver<News>,
    line: Option<Line>,
    lines: u64,
    dial_at: Option<tokio::time::Instant>,
    bandwidth: Option<u64>,
    seats: Vec<Seat>,
    networks: Vec<(NetworkId, Mac)>,
    /// What QEMU sends disk and memory by.
    bridges: Vec<Bridge>,
    /// In the way of the memory.
    valve: Valve,
    /// How long QEMU may wait for the target while the guest is paused. It answers nobody meanwhile.
    patience: Option<Patience>,
    /// Bytes of the disk's stream, and what of the disk is not at the target yet.
    disk_sent: Arc<AtomicU64>,
    behind: Option<Behind>,
    is_sending: bool,
    /// When QEMU is asked how far it is, and since when nobody was told.
    look_at: tokio::time::Instant,
    changes: Changes,
    told_at: Option<tokio::time::Instant>,
    is_finishing_mirror: bool,
    is_settling: bool,
    post_copy: bool,
    mending: Mending,
    /// The way of the console, and how much of it is sent.
    console: Option<(mpsc::Sender<ConsolePart>, u64)>,
    times: Times,
    counts: Counts,
    progress: watch::Sender<MigrationProgress>,
    done: Option<Done>,
    outcome: Option<Outcome>,
}

/// Begins to move a VM; the receiver hears how it ended.
pub(super) async fn begin(
    shared: &Arc<Shared>,
    id: MigrationId,
    name: &Name,
    options: MigrateOptions,
    progress: watch::Sender<MigrationProgress>,
) -> Result<oneshot::Receiver<Result<MigrationReport, Failure>>, ApiError> {
    let begun = shared.vms.now();
    let unreachable = |error: anyhow::Error| ApiError::new(ErrorCode::Unavailable, format!("{error:#}"));
    let stream = line::open(&shared.streams, options.to, Purpose::FromSource, id).await.map_err(unreachable)?;
    let (news_sender, news) = mpsc::channel(NEWS_MAX);
    let machine = shared.vms.begin_move(name, news_sender).await.map_err(vm_error)?;
    let spec = machine.spec();
    let offer = Offer {
        id,
        vm: spec.id.0,
        definition: Definition::of(&spec).encode()?,
        has_disk: spec.disk_bytes > 0,
        post_copy: options.post_copy,
    };
    let (sender, inbox) = shared.enter(id, spec.id.0, options.to);
    let (done, result) = oneshot::channel();
    let state = Source::new(shared.vms.now(), offer);
    let mut task = Task::new(shared.clone(), id, options.to, state, machine, (sender, inbox, news));
    task.line = Some(Line::start(stream, 0, task.sender.clone()));
    task.bandwidth = options.bandwidth;
    task.progress = progress;
    task.times = Times::new(begun);
    task.done = Some(done);
    tokio::spawn(task.run());
    Ok(result)
}

/// Goes on with a migration of an earlier agent.
pub(super) fn restore(shared: &Arc<Shared>, record: Record) {
    let Record { id, vm, peer, phase } = record;
    let Some(machine) = shared.vms.machine_or_copy(vm) else { return shared.book.remove(id) };
    let Some(state) = Source::restore(shared.vms.now(), id, phase) else { return };
    let (news_sender, news) = mpsc::channel(NEWS_MAX);
    machine.set_mover(Some(news_sender));
    let (sender, inbox) = shared.enter(id, vm, peer);
    let mut task = Task::new(shared.clone(), id, peer, state, machine, (sender, inbox, news));
    task.dial_at = Some(tokio::time::Instant::now());
    tokio::spawn(async move {
        if phase == Phase::Given {
            let left = match task.machine.live() {
                Some(live) => hypervisor::what_is_left(&live.qmp).await,
                None => SourceInput::Ended,
            };
            task.post_copy = left == SourceInput::PostCopyBegun;
            task.hear(left);
        }
        task.run().await;
    });
}

type Channels = (mpsc::Sender<Inbox>, mpsc::Receiver<Inbox>, mpsc::Receiver<News>);

impl Task {
    fn new(
        shared: Arc<Shared>,
        id: MigrationId,
        peer: HostId,
        state: Source,
        machine: Arc<Machine>,
        (sender, inbox, news): Channels,
    ) -> Self {
        let times = Times::new(shared.vms.now());
        Self {
            shared,
            id,
            peer,
            state,
            machine,
            inbox,
            sender,
            news,
            line: None,
            lines: 0,
            dial_at: None,
            bandwidth: None,
            seats: Vec::new(),
            networks: Vec::new(),
            bridges: Vec::new(),
            valve: Valve::default(),
            patience: None,
            disk_sent: Arc::default(),
            behind: None,
            is_sending: false,
            look_at: tokio::time::Instant::now(),
            changes: Changes::default(),
            told_at: None,
            is_finishing_mirror: false,
            is_settling: false,
            post_copy: false,
            mending: Mending::default(),
            console: None,
            times,
            counts: Counts::default(),
            progress: watch::Sender::default(),
            done: None,
            outcome: None,
        }
    }

    async fn run(mut self) {
        loop {
            while let Some(effect) = self.state.poll_effect() {
                self.carry_out(effect).await;
            }
            if self.state.is_done() {
                break;
            }
            let timer = self.shared.vms.parts.clock.deadline(self.state.poll_timeout().unwrap_or_else(super::far));
            let (is_dialling, dial_at) =
                (self.dial_at.is_some(), self.dial_at.unwrap_or_else(tokio::time::Instant::now));
            tokio::select! {
                Some(told) = self.inbox.recv() => self.on_inbox(told).await,
                Some(news) = self.news.recv() => self.on_news(&news).await,
                () = tokio::time::sleep_until(timer.into()) => self.hear(SourceInput::Timeout),
                () = tokio::time::sleep_until(dial_at), if is_dialling => {
                    self.dial_at = None;
                    self.shared.dial(self.peer, Purpose::FromSource, self.id, self.sender.clone());
                }
                () = tokio::time::sleep_until(self.look_at), if self.is_sending => self.follow_figures(false).await,
                () = tokio::time::sleep_until(self.mending.look_at), if self.post_copy => self.mend().await,
                settled = settled(&mut self.behind), if self.is_settling => self.on_settled(settled),
            }
        }
        self.tell_result().await;
        self.shared.sessions().remove(&self.id);
    }

    fn hear(&mut self, input: SourceInput) {
        let now = self.shared.vms.now();
        tracing::debug!(vm = %self.machine.spec().name, "Migration hears {input:?}");
        self.state.handle(now, input);
    }

    fn live(&self) -> Option<Live> {
        self.machine.live()
    }

    async fn on_inbox(&mut self, told: Inbox) {
        match told {
            Inbox::Line(stream) => {
                self.lines += 1;
                self.dial_at = None;
                self.mending.look_now();
                self.line = Some(Line::start(*stream, self.lines, self.sender.clone()));
                self.hear(SourceInput::PeerFound);
            }
            Inbox::NoLine => self.dial_at = Some(tokio::time::Instant::now() + DIAL_INTERVAL),
            Inbox::Lost(generation) if self.line.as_ref().is_some_and(|line| line.generation == generation) => {
                self.line = None;
                self.dial_at = Some(tokio::time::Instant::now());
                self.hear(SourceInput::PeerLost);
            }
            Inbox::Said(bytes) => self.on_message(&bytes),
            Inbox::Way(way) => self.on_way(way).await,
            Inbox::Cancel(reply) if self.state.is_cancellable() => {
                self.hear(SourceInput::Cancel);
                reply.send(Ok(())).ok();
            }
            Inbox::Cancel(reply) => {
                reply.send(Err("the target has it already, or it stays anyway")).ok();
            }
            Inbox::Resolve(verdict, reply) if self.state.is_resolvable() => {
                self.hear(SourceInput::Resolve(verdict));
                reply.send(Ok(())).ok();
            }
            Inbox::Resolve(_, reply) => {
                reply.send(Err("the other host is known to have the VM, or not to have it")).ok();
            }
            Inbox::Lost(_) | Inbox::Prepared(_) | Inbox::Begun(_) | Inbox::MemoryDry | Inbox::MemoryFlows => {}
        }
    }

    fn on_message(&mut self, bytes: &[u8]) {
        match ToSource::decode(bytes) {
            Ok(message) => {
                if matches!(message, ToSource::Taken { .. }) {
                    self.times.taken.get_or_insert_with(|| self.shared.vms.now());
                }
                self.hear(SourceInput::Said(message));
            }
            Err(error) => tracing::warn!(host = %self.peer, "Can't understand the target of a migration: {error}"),
        }
    }

    async fn on_news(&mut self, news: &News) {
        let live = self.live();
        match hypervisor::source_news(live.as_ref().map(|live| &live.qmp), news).await {
            SourceNews::Input(input) => {
                if let News::Said(_, at) = news {
                    self.times.see(&input, *at);
                }
                self.hear(input);
            }
            SourceNews::MemoryCut => self.mending.look_now(),
            SourceNews::MemoryFlows if self.is_sending => self.follow_figures(false).await,
            SourceNews::Pass if self.is_sending => self.follow_figures(true).await,
            SourceNews::MirrorEnded(None) if self.is_finishing_mirror => self.on_disk_whole().await,
            SourceNews::MirrorEnded(why) => {
                let why = why.unwrap_or_else(|| "it ended by itself".into());
                self.hear(SourceInput::Broken(format!("the disk could not be copied: {why}")));
            }
            SourceNews::MirrorStuck => {
                let Some(live) = live else { return };
                let why = hypervisor::why_stuck(&live.qmp).await;
                self.hear(SourceInput::Broken(format!("the disk could not be copied: {why}")));
            }
            SourceNews::MemoryFlows | SourceNews::Pass | SourceNews::Nothing => {}
        }
    }

    async fn on_disk_whole(&mut self) {
        let Some(live) = self.live() else { return };
        match hypervisor::release_mirror(&live.qmp).await {
            Ok(()) => self.is_settling = true,
            Err(error) => self.hear(SourceInput::Broken(error.to_string())),
        }
    }

    fn on_settled(&mut self, settled: io::Result<()>) {
        self.is_settling = false;
        self.hear(match settled {
            Ok(()) => SourceInput::DiskWhole,
            Err(error) => SourceInput::Broken(format!("the disk could not be copied: {error}")),
        });
    }

    /// Asks QEMU how far it is. When it `has_looked` anew what the guest has changed, what is left is just that.
    async fn follow_figures(&mut self, has_looked: bool) {
        let now = tokio::time::Instant::now();
        self.look_at = now + TELL_INTERVAL;
        let Some(live) = self.live() else { return };
        let Some(figures) = hypervisor::figures(&live.qmp).await else { return };
        self.look_at = now + hypervisor::next_look(&figures);
        self.counts.bytes.memory = figures.transferred;
        if has_looked && figures.rounds > 1 {
            self.changes.see(figures.remaining);
        }
        if self.times.closed.is_none() {
            self.valve.allow(hypervisor::allowance(&figures));
        }
        if self.changes.are_diverging(&figures) {
            self.hear(SourceInput::Diverging);
        } else if self.changes.are_converging(&figures) {
            self.hear(SourceInput::Converging);
        }
        if self.told_at.is_none_or(|at| now >= at + TELL_INTERVAL) {
            self.told_at = Some(now);
            self.tell_progress(figures);
        }
    }

    fn tell_progress(&self, figures: Figures) {
        self.progress.send_modify(|progress| {
            progress.disk_bytes = self.disk_sent.load(Ordering::Relaxed);
            progress.memory_bytes = figures.transferred;
            progress.remaining_bytes = figures.remaining;
            progress.rate_bytes_s = figures.rate;
            progress.dirty_bytes_s = figures.dirty;
            let gain = figures.rate.saturating_sub(figures.dirty);
            progress.estimate_s = figures.remaining.checked_div(gain);
        });
    }

    async fn carry_out(&mut self, effect: SourceEffect) {
        tracing::debug!(vm = %self.machine.spec().name, "Migration does {effect:?}");
        match effect {
            SourceEffect::Persist(phase) => self.persist(phase).await,
            SourceEffect::Forget => self.shared.book.remove(self.id),
            SourceEffect::Send(message) => self.say(&message),
            SourceEffect::Mirror => {
                let bridged = self.way_of_disk();
                self.try_qmp(bridged, async |live: Live, task: &Self| {
                    hypervisor::mirror(&live.qmp, &task.machine.files, task.bandwidth).await
                })
                .await;
            }
            SourceEffect::SendMemory { post_copy } => {
                self.is_sending = true;
                self.seats().await;
                self.begin_console();
                let terms = Terms { post_copy, bandwidth: self.bandwidth };
                let way = self.way_of_memory();
                let send = async |live: Live, _: &Self| hypervisor::send_memory(&live.qmp, way?, terms).await;
                self.try_qmp(Ok(()), send).await;
            }
            SourceEffect::BeginPostCopy => {
                self.post_copy = true;
                self.try_qmp(Ok(()), async |live: Live, _: &Self| hypervisor::begin_post_copy(&live.qmp).await).await;
            }
            SourceEffect::Pause => self.pause().await,
            SourceEffect::Unpause => self.unpause().await,
            SourceEffect::ClosePorts => {
                self.be_patient();
                self.close_ports().await;
            }
            SourceEffect::FinishMirror => {
                self.be_patient();
                self.is_finishing_mirror = true;
                self.try_qmp(Ok(()), async |live: Live, _: &Self| hypervisor::finish_mirror(&live.qmp).await).await;
            }
            SourceEffect::Continue => {
                self.be_patient();
                self.try_qmp(Ok(()), async |live: Live, _: &Self| hypervisor::go_on(&live.qmp).await).await;
            }
            SourceEffect::HandOver => self.hand_over().await,
            SourceEffect::TakeBack => self.take_back().await,
            SourceEffect::Erase => self.erase().await,
            SourceEffect::Tell(notice) => self.tell(&notice),
            SourceEffect::Done(outcome) => self.on_done(outcome),
        }
    }

    async fn persist(&mut self, phase: Phase) {
        let record = Record { id: self.id, vm: self.machine.spec().id.0, peer: self.peer, phase };
        if let Err(error) = self.shared.persist(record).await {
            tracing::warn!("Can't write what became of a migration: {error:#}");
            self.hear(SourceInput::NotPersisted(format!("the source could not write: {error:#}")));
        }
    }

    fn say(&mut self, message: &ToTarget) {
        if matches!(message, ToTarget::Go { .. }) {
            self.times.given.get_or_insert_with(|| self.shared.vms.now());
        }
        if let Some(line) = &self.line {
            line.say(message.encode());
        }
    }

    fn way_of_disk(&mut self) -> anyhow::Result<()> {
        let (socket, streams) = (self.machine.files.mirror_socket(), self.shared.streams.clone());
        let sent = self.disk_sent.clone();
        let (bridge, behind) = line::way_of_disk(&socket, streams, self.peer, self.id, sent)?;
        self.bridges.push(bridge);
        self.behind = Some(behind);
        Ok(())
    }

    fn way_of_memory(&mut self) -> io::Result<OwnedFd> {
        let (way, bridge, valve) = line::way_of_memory(self.shared.streams.clone(), self.peer, self.id)?;
        self.bridges.push(bridge);
        self.valve = valve;
        Ok(way)
    }

    /// Tells QEMU something; what it refuses breaks the migration.
    async fn try_qmp(
        &mut self,
        before: anyhow::Result<()>,
        call: impl AsyncFnOnce(Live, &Self) -> Result<(), QmpError>,
    ) {
        let result = match (before, self.live()) {
            (Err(error), _) => Err(format!("{error:#}")),
            (Ok(()), None) => Err("the VM's process is gone".into()),
            (Ok(()), Some(live)) => call(live, self).await.map_err(|error| error.to_string()),
        };
        if let Err(why) = result {
            self.hear(SourceInput::Broken(why));
        }
    }

    async fn erase(&mut self) {
        self.is_sending = false;
        if let Some(live) = self.live()
            && let Some(figures) = hypervisor::figures(&live.qmp).await
        {
            self.counts.bytes.memory = figures.transferred;
        }
        self.counts.bytes.disk = self.disk_sent.load(Ordering::Relaxed);
        self.counts.source = self.count().await;
        let networks = self.networks.clone();
        let end = self.shared.engine.cast(move |switch, now| {
            networks.into_iter().for_each(|(network, mac)| switch.end_copies(now.mono, network, mac));
        });
        // Without an engine the agent is stopping.
        end.await.ok();
        self.shared.vms.leave(&self.machine, self.peer).await;
    }

    async fn count(&self) -> MoveCounts {
        let networks = self.networks.clone();
        let counted = self
            .shared
            .engine
            .call(move |switch, _| sum(networks.iter().map(|(network, mac)| switch.move_counts(*network, *mac))));
        counted.await.unwrap_or_default()
    }

    fn tell(&self, notice: &Notice) {
        let spec = self.machine.spec();
        let (vm, name, to) = (spec.id, spec.name.to_string(), Text(self.peer));
        match notice {
            Notice::Step(step) => {
                tracing::info!(vm = name, to = %self.peer, "Migration: {}", step.name());
                self.progress.send_modify(|progress| progress.phase = step.name().into());
                let phase = step.name().to_owned();
                self.shared.vms.tell(EventKind::VmMigrating { vm, name, to, phase });
            }
            Notice::InDoubt => self.ask_for_verdict(
                "The host that the VM went to does not answer, and nobody knows whether it runs there. If that host is \
                 gone for good, it can go on here",
            ),
            Notice::Severed => self.ask_for_verdict(
                "The host that the VM runs on does not answer, before it has all of the VM's memory. If that host is \
                 gone for good, the VM can begin anew here from its disk, as that was when it left",
            ),
            Notice::Answered => {
                tracing::info!(vm = name, "The host that the VM runs on answers again");
                self.machine.set_trouble(None);
            }
            Notice::Starving | Notice::Fed | Notice::Shelved => {}
        }
    }

    fn ask_for_verdict(&self, what: &str) {
        let spec = self.machine.spec();
        let (vm, name, host) = (spec.id, spec.name.to_string(), Text(self.peer));
        let reason = format!("{what}: virtuoso vm migrate {name} --resolve here");
        tracing::warn!(vm = name, "{reason}");
        self.machine.set_trouble(Some(Trouble::Verdict(reason)));
        self.shared.vms.tell(EventKind::VmInDoubt { vm, name, host });
    }

    fn on_done(&mut self, outcome: Outcome) {
        let spec = self.machine.spec();
        let (vm, name) = (spec.id, spec.name.to_string());
        let failure = match &outcome {
            Outcome::Moved(_) => None,
            Outcome::Stayed(why) => {
                tracing::info!(vm = name, "A VM stays: {why}");
                self.shared.vms.tell(EventKind::VmStayed { vm, name, reason: why.clone() });
                Some(Failure::Stayed(why.clone()))
            }
            Outcome::Ended(why) => {
                tracing::warn!(vm = name, to = %self.peer, "A VM has ended on its way: {why}");
                let host = Text(self.peer);
                self.shared.vms.tell(EventKind::VmEnded { vm, name, host, reason: why.clone() });
                Some(Failure::Ended(why.clone()))
            }
        };
        if let Some(failure) = failure
            && let Some(done) = self.done.take()
        {
            done.send(Err(failure)).ok();
        }
        self.outcome = Some(outcome);
    }

    /// The last word to whoever asked, once the target has counted.
    async fn tell_result(&mut self) {
        let (Some(done), Some(Outcome::Moved(arrival))) = (self.done.take(), self.outcome.take()) else { return };
        let total = self.shared.vms.now().since(self.times.begun);
        self.counts.target = tokio::time::timeout(COUNT_TIME_MAX, self.await_counts()).await.unwrap_or_default();
        self.counts.source_later = self.count().await;
        let report = self.report(&arrival, total);
        self.shared.vms.tell(EventKind::VmMigrated { vm: self.machine.spec().id, report: report.clone() });
        done.send(Ok(report)).ok();
    }

    async fn await_counts(&mut self) -> MoveCounts {
        while let Some(told) = self.inbox.recv().await {
            let Inbox::Said(bytes) = told else { continue };
            if let Ok(ToSource::Counted { buffered, arrived, lost, .. }) = ToSource::decode(&bytes) {
                return MoveCounts { buffered, arrived, lost, forwarded: 0 };
            }
        }
        MoveCounts::default()
    }

    fn report(&self, arrival: &Arrival, total: Duration) -> MigrationReport {
        let Counts { source, target, bytes, .. } = self.counts;
        MigrationReport {
            name: self.machine.spec().name.to_string(),
            to: Text(self.peer),
            host_name: String::new(),
            total_ms: milliseconds(total),
            downtime_ms: milliseconds(self.times.downtime(arrival)),
            blackout_ms: milliseconds(self.times.blackout(arrival)),
            frames_forwarded: source.forwarded,
            frames_buffered: source.buffered + target.buffered,
            frames_lost: self.counts.lost(),
            frames_duplicated: self.counts.duplicated(),
            post_copy: self.post_copy,
            bytes,
        }
    }
}

/// Waits until the target has all of the disk that QEMU has written.
async fn settled(behind: &mut Option<Behind>) -> io::Result<()> {
    match behind {
        Some(behind) => behind.settled().await,
        None => Ok(()),
    }
}

//! The task of a migration on the host that gets the VM.

use super::super::machine::{Live, Machine, News};
use super::super::qmp::QmpError;
use super::definition::Definition;
use super::hypervisor;
use super::line::{Line, Purpose};
use super::report::sum;
use super::rest_of_memory;
use super::{Inbox, Shared};
use crate::core::Seat;
use crate::events::EventKind;
use crate::swarm::streams::Stream;
use crate::text::Text;
use anyhow::Context;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use virtuoso_overlay::claims::Claim;
use virtuoso_overlay::ids::{HostId, VmId};
use virtuoso_overlay::migrate::{
    MigrationId, Notice, Offer, Phase, PostCopy, Record, Target, TargetEffect, TargetInput, ToSource, ToTarget,
};

/// The source connects; only when it does not, this host tries.
const DIAL_INTERVAL: Duration = Duration::from_secs(3);
/// How long a guest that an earlier agent may have let run gets to say that it does. It may hang for memory.
const AGAIN_TIME_MAX: Duration = Duration::from_secs(1);
/// News of a process that wait.
const NEWS_MAX: usize = 256;

/// A copy that waits.
pub(super) struct Prepared {
    machine: Arc<Machine>,
    seats: Vec<Seat>,
    post_copy: bool,
}

struct Task {
    shared: Arc<Shared>,
    id: MigrationId,
    vm: VmId,
    peer: HostId,
    state: Target,
    offer: Option<Offer>,
    machine: Option<Arc<Machine>>,
    inbox: mpsc::Receiver<Inbox>,
    sender: mpsc::Sender<Inbox>,
    news: mpsc::Receiver<News>,
    news_sender: mpsc::Sender<News>,
    line: Option<Line>,
    lines: u64,
    dial_at: Option<tokio::time::Instant>,
    is_preparing: bool,
    /// Where the guest is plugged in.
    seats: Vec<Seat>,
    claiming: Option<JoinHandle<Vec<Seat>>>,
    /// The guest is about to run before all of its memory is here, and not let by an earlier agent.
    is_fetching: bool,
    /// It is one of an earlier agent.
    is_restored: bool,
}

/// What a task hears by.
struct Channels {
    inbox: mpsc::Receiver<Inbox>,
    sender: mpsc::Sender<Inbox>,
    news: mpsc::Receiver<News>,
    news_sender: mpsc::Sender<News>,
}

/// Takes an offer.
pub(super) fn begin(shared: &Arc<Shared>, peer: HostId, offer: Offer, stream: Stream) -> anyhow::Result<()> {
    let (id, vm) = (offer.id, offer.vm);
    let mut state = Target::new(shared.vms.now(), id);
    // By the stream that the offer came with. However long the memory takes, only its loss is counted.
    state.handle(shared.vms.now(), TargetInput::PeerFound);
    let channels = Channels::open(shared, id, vm, peer);
    let mut task = Task::new(shared.clone(), id, vm, peer, state, channels);
    task.line = Some(Line::start(stream, 0, task.sender.clone()));
    task.offer = Some(offer);
    tokio::spawn(task.run());
    Ok(())
}

/// Goes on with a migration of an earlier agent. Waits for nothing that QEMU's main loop has to do: that may wait for
/// memory, for which the source can come as soon as this is done.
pub(super) async fn restore(shared: &Arc<Shared>, record: Record) {
    let Record { id, vm, peer, phase } = record;
    // Of a migration that it does not know, this host says that it has not taken the VM.
    let channels = Channels::open(shared, id, vm, peer);
    let machine = shared.vms.machine_or_copy(vm);
    let mut is_cut = false;
    if let Some(machine) = &machine {
        if phase == Phase::Preparing {
            machine.set_mover(Some(channels.news_sender.clone()));
        } else if let Some(live) = machine.live() {
            // First: what becomes of the memory from now on is news.
            rest_of_memory::follow(shared, machine, channels.news_sender.clone());
            is_cut = hypervisor::is_cut(&live.qmp, &machine.files).await;
        }
    }
    let shared = shared.clone();
    tokio::spawn(async move {
        let live = machine.as_ref().and_then(|machine| machine.live());
        let is_whole = match &live {
            Some(live) => hypervisor::is_whole(&live.qmp, phase == Phase::Taken).await,
            None => false,
        };
        let Some(state) = Target::restore(shared.vms.now(), id, phase, is_whole) else { return };
        let mut task = Task::new(shared, id, vm, peer, state, channels);
        if let Some(live) = live.filter(|_| phase == Phase::Taken) {
            task.look_after_memory(&live, is_cut).await;
        }
        task.machine = machine;
        task.is_restored = true;
        task.dial_at = Some(tokio::time::Instant::now());
        task.run().await;
    });
}

impl Channels {
    /// The other host finds the migration from now on.
    fn open(shared: &Shared, id: MigrationId, vm: VmId, peer: HostId) -> Self {
        let (sender, inbox) = shared.enter(id, vm, peer);
        let (news_sender, news) = mpsc::channel(NEWS_MAX);
        Self { inbox, sender, news, news_sender }
    }
}

impl Task {
    fn new(
        shared: Arc<Shared>,
        id: MigrationId,
        vm: VmId,
        peer: HostId,
        state: Target,
        Channels { inbox, sender, news, news_sender }: Channels,
    ) -> Self {
        let (offer, machine, line) = (None, None, None);
        let (lines, dial_at) = (0, None);
        Self {
            shared,
            id,
            vm,
            peer,
            state,
            offer,
            machine,
            inbox,
            sender,
            news,
            news_sender,
            line,
            lines,
            dial_at,
            is_preparing: false,
            seats: Vec::new(),
            claiming: None,
            is_fetching: false,
            is_restored: false,
        }
    }

    /// Of a guest that an earlier agent has let run, whose stream of memory `is_cut` if it had one.
    async fn look_after_memory(&mut self, live: &Live, is_cut: bool) {
        if is_cut || hypervisor::is_fetching(&live.qmp).await {
            self.hear(TargetInput::Loaded { is_whole: false });
        }
        if is_cut {
            self.hear(TargetInput::MemoryCut);
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
            let due = self.state.poll_timeout().unwrap_or_else(super::far);
            let timer = self.shared.vms.parts.clock.deadline(due);
            let (is_dialling, dial_at) =
                (self.dial_at.is_some(), self.dial_at.unwrap_or_else(tokio::time::Instant::now));
            tokio::select! {
                Some(told) = self.inbox.recv() => self.on_inbox(told).await,
                Some(news) = self.news.recv() => {
                    if let Some(input) = hypervisor::target_news(&news) {
                        self.is_fetching |= input == TargetInput::Loaded { is_whole: false };
                        self.hear(input);
                    }
                }
                () = tokio::time::sleep_until(timer.into()) => self.hear(TargetInput::Timeout),
                () = tokio::time::sleep_until(dial_at), if is_dialling => {
                    self.dial_at = None;
                    self.shared.dial(self.peer, Purpose::FromTarget, self.id, self.sender.clone());
                }
            }
        }
        self.shared.sessions().remove(&self.id);
    }

    fn hear(&mut self, input: TargetInput) {
        let now = self.shared.vms.now();
        tracing::debug!(vm = %self.vm, "Migration hears {input:?}");
        self.state.handle(now, input);
    }

    async fn on_inbox(&mut self, told: Inbox) {
        match told {
            Inbox::Line(stream) => {
                self.lines += 1;
                self.dial_at = None;
                self.line = Some(Line::start(*stream, self.lines, self.sender.clone()));
                self.hear(TargetInput::PeerFound);
            }
            Inbox::NoLine => self.dial_at = Some(tokio::time::Instant::now() + DIAL_INTERVAL),
            Inbox::Lost(generation) if self.line.as_ref().is_some_and(|line| line.generation == generation) => {
                self.line = None;
                self.dial_at = Some(tokio::time::Instant::now() + DIAL_INTERVAL);
                self.hear(TargetInput::PeerLost);
            }
            Inbox::Said(bytes) => self.on_message(&bytes).await,
            Inbox::Prepared(Ok(prepared)) => {
                self.is_preparing = false;
                let post_copy = prepared.post_copy;
                self.machine = Some(prepared.machine);
                self.seats = prepared.seats;
                self.hear(TargetInput::Prepared { post_copy });
            }
            Inbox::Prepared(Err(error)) => {
                self.is_preparing = false;
                self.hear(TargetInput::Broken(format!("{error:#}")));
            }
            Inbox::Begun(Ok(())) => self.hear(TargetInput::Resumed),
            Inbox::Begun(Err(why)) => self.hear(TargetInput::NotResumed(why)),
            Inbox::MemoryDry => self.hear(TargetInput::MemoryDry),
            Inbox::MemoryFlows => self.hear(TargetInput::MemoryFlows),
            Inbox::Resolve(verdict, reply) if self.state.is_resolvable(verdict) => {
                self.hear(TargetInput::Resolve(verdict));
                reply.send(Ok(())).ok();
            }
            Inbox::Resolve(_, reply) => {
                reply.send(Err("the copy here runs, or has not got all that it needs")).ok();
            }
            Inbox::Cancel(reply) => {
                reply.send(Err("ask the host that the VM comes from")).ok();
            }
            Inbox::Lost(_) | Inbox::Way(_) => {}
        }
    }

    async fn on_message(&mut self, bytes: &[u8]) {
        match ToTarget::decode(bytes) {
            Ok(message) => {
                if matches!(message, ToTarget::Finish { .. }) {
                    self.tell_counts().await;
                }
                self.hear(TargetInput::Said(message));
            }
            Err(error) => tracing::warn!(host = %self.peer, "Can't understand the source of a migration: {error}"),
        }
    }

    /// What the source can't know for its report.
    async fn tell_counts(&self) {
        let Some(machine) = &self.machine else { return };
        let nics = machine.spec().nics;
        let Ok(addresses) = self.shared.vms.parts.sockets.addresses(&nics).await else { return };
        let counted = self
            .shared
            .engine
            .call(move |switch, _| sum(addresses.iter().map(|(network, mac)| switch.move_counts(*network, *mac))));
        let Ok(counts) = counted.await else { return };
        let (buffered, arrived, lost) = (counts.buffered, counts.arrived, counts.lost);
        self.say(&ToSource::Counted { id: self.id, buffered, arrived, lost });
    }

    fn say(&self, message: &ToSource) {
        if let Some(line) = &self.line {
            line.say(message.encode());
        }
    }

    async fn carry_out(&mut self, effect: TargetEffect) {
        tracing::debug!(vm = %self.vm, "Migration does {effect:?}");
        match effect {
            TargetEffect::Persist(phase) => {
                let record = Record { id: self.id, vm: self.vm, peer: self.peer, phase };
                if let Err(error) = self.shared.persist(record).await {
                    self.hear(TargetInput::NotPersisted(format!("the target could not write: {error:#}")));
                }
            }
            TargetEffect::Forget => self.shared.book.remove(self.id),
            TargetEffect::Send(message) => self.say(&message),
            TargetEffect::Prepare => self.prepare(),
            TargetEffect::Claim(handoffs) => self.claim(handoffs),
            TargetEffect::Resume => self.resume().await,
            TargetEffect::OpenPorts => self.open_ports().await,
            TargetEffect::Adopt => self.adopt().await,
            TargetEffect::Drop => {
                // A copy that is still being made is dropped when it is there.
                if let Some(machine) = self.finished_copy().await {
                    self.end_expectation(&machine).await;
                    self.shared.vms.erase(&machine).await;
                }
                self.hear(TargetInput::Dropped);
            }
            TargetEffect::Shelve => {
                if let Some(machine) = self.machine.take()
                    && let Err(error) = self.shared.vms.shelve(&machine).await
                {
                    tracing::warn!("Can't put a copy aside: {error:#}");
                }
                self.hear(TargetInput::Dropped);
            }
            TargetEffect::End(why) => {
                if let Some(live) = self.machine.as_ref().and_then(|machine| machine.live()) {
                    live.end_for(why);
                }
            }
            TargetEffect::Tell(notice) => self.tell(&notice).await,
        }
    }

    fn prepare(&mut self) {
        let Some(offer) = self.offer.clone() else { return };
        self.is_preparing = true;
        let (shared, news, inbox) = (self.shared.clone(), self.news_sender.clone(), self.sender.clone());
        let host = self.peer;
        tokio::spawn(async move {
            inbox.send(Inbox::Prepared(prepare(&shared, host, offer, news).await)).await.ok();
        });
    }

    async fn finished_copy(&mut self) -> Option<Arc<Machine>> {
        while self.is_preparing {
            match self.inbox.recv().await? {
                Inbox::Prepared(prepared) => {
                    self.is_preparing = false;
                    self.machine = prepared.ok().map(|prepared| prepared.machine);
                }
                Inbox::Line(stream) => {
                    self.lines += 1;
                    self.line = Some(Line::start(*stream, self.lines, self.sender.clone()));
                }
                _ => {}
            }
        }
        self.machine.take().or_else(|| self.shared.vms.machine_or_copy(self.vm))
    }

    /// Takes the guest's addresses and opens its ports while a record is written: before the guest runs, because it may
    /// have something to say at once.
    fn claim(&mut self, handoffs: Vec<Claim>) {
        let Some(spec) = self.machine.as_ref().map(|machine| machine.spec()) else { return };
        let (sockets, known) = (self.shared.vms.parts.sockets.clone(), std::mem::take(&mut self.seats));
        self.claiming = Some(tokio::spawn(async move {
            let seats = match known.is_empty() {
                // An earlier agent knew them.
                true => sockets.seats(&spec.nics).await.unwrap_or_else(|error| {
                    tracing::warn!(vm = %spec.name, "Can't find a VM's interfaces: {error}");
                    Vec::new()
                }),
                false => known,
            };
            for seat in &seats {
                let (taken, opened) = tokio::join!(seat.take_over(&handoffs), sockets.open(seat));
                if let Err(error) = taken {
                    tracing::warn!(vm = %spec.name, "Can't take an address over: {error}");
                }
                if let Err(error) = opened {
                    tracing::warn!(vm = %spec.name, "Can't let a guest speak: {error}");
                }
            }
            seats
        }));
    }

    async fn resume(&mut self) {
        if let Some(claiming) = self.claiming.take() {
            // It fails only if the runtime ends.
            self.seats = claiming.await.unwrap_or_default();
        }
        let Some(live) = self.machine.as_ref().and_then(|machine| machine.live()) else {
            return self.hear(TargetInput::NotResumed("the machine at the target ended".into()));
        };
        if self.is_restored {
            return self.resume_again(live).await;
        }
        let (events, later) = (live.events.subscribe(), live.events.subscribe());
        self.hear(TargetInput::Resuming);
        tokio::select! {
            biased;
            answer = live.qmp.run("cont") => match answer {
                Err(QmpError::Refused { reason, .. }) => self.hear(TargetInput::NotResumed(reason)),
                // Not waited for here: should the stream break meanwhile, somebody has to make another one.
                Ok(_) if self.is_fetching => {
                    let (inbox, live) = (self.sender.clone(), live.clone());
                    tokio::spawn(async move {
                        inbox.send(Inbox::Begun(rest_of_memory::await_begin(live, later).await)).await.ok();
                    });
                }
                // Without an answer it may have run.
                Ok(_) | Err(_) => self.hear(TargetInput::Resumed),
            },
            // It says so before it answers, for which it needs a processor besides the guest.
            Ok(()) = rest_of_memory::await_begin(live.clone(), events) => self.hear(TargetInput::Resumed),
        }
    }

    /// Has a guest run that an earlier agent may have let run.
    async fn resume_again(&mut self, live: Live) {
        // QEMU does so when it can, whether anybody waits for it or not.
        let told = tokio::spawn(async move { live.qmp.run("cont").await });
        match tokio::time::timeout(AGAIN_TIME_MAX, told).await {
            Ok(Ok(Err(QmpError::Refused { reason, .. }))) => self.hear(TargetInput::NotResumed(reason)),
            // Without an answer it may have run.
            Ok(_) | Err(_) => self.hear(TargetInput::Resumed),
        }
    }

    async fn open_ports(&mut self) {
        for seat in &self.seats {
            if let Err(error) = seat.welcome().await {
                tracing::warn!(vm = %self.vm, "Frames wait for a guest in vain: {error}");
            }
        }
        self.hear(TargetInput::Opened);
    }

    async fn end_expectation(&self, machine: &Machine) {
        // Without a core the agent is stopping.
        self.shared.vms.parts.sockets.end_expectation(&machine.spec().nics).await.ok();
    }

    async fn adopt(&self) {
        let Some(machine) = &self.machine else { return };
        let (sockets, nics) = (&self.shared.vms.parts.sockets, machine.spec().nics);
        if self.seats.is_empty() {
            // An agent that was started again may find it deaf.
            for seat in sockets.seats(&nics).await.unwrap_or_default() {
                seat.welcome().await.ok();
            }
        }
        // One that has ended has no addresses: they may be in use elsewhere by an operator's verdict.
        for nic in nics.iter().filter(|_| machine.live().is_some()) {
            if let Err(error) = sockets.claim(nic).await {
                tracing::warn!(vm = %machine.spec().name, "Can't claim an address: {error}");
            }
        }
        self.end_expectation(machine).await;
        if self.is_fetching {
            rest_of_memory::follow(&self.shared, machine, self.news_sender.clone());
        }
        self.shared.vms.adopt_copy(machine).await;
        if let Some(live) = machine.live() {
            hypervisor::forget_socket(&machine.files);
            // It answers only when it needs no memory itself.
            tokio::spawn(async move { hypervisor::close_arrival(&live.qmp).await });
        }
    }

    async fn tell(&self, notice: &Notice) {
        let Some(machine) = &self.machine else { return };
        let spec = machine.spec();
        let (vm, name) = (spec.id, spec.name.to_string());
        match notice {
            Notice::Step(step) => {
                tracing::info!(vm = name, from = %self.peer, "Migration: {}", step.name());
                self.shared.vms.tell(EventKind::VmArrived { vm, name, from: Text(self.peer) });
            }
            Notice::InDoubt => {
                tracing::warn!(
                    vm = name,
                    "The host that the VM comes from does not answer, and its copy here is whole. If that host is gone \
                     for good: virtuoso vm migrate {name} --resolve here --host THIS-HOST"
                );
                self.shared.vms.tell(EventKind::VmInDoubt { vm, name, host: Text(self.peer) });
            }
            Notice::Starving => {
                let reason = format!(
                    "it needs memory that is still at the host it came from ({}), and nothing comes from there. It goes \
                     on when that host is back. If it is gone for good, that memory is lost: virtuoso vm reset {name} \
                     begins the VM anew from its disk",
                    self.peer
                );
                self.shared.vms.starve(machine, Some(reason)).await;
            }
            Notice::Fed => self.shared.vms.starve(machine, None).await,
            // It is the source's to tell.
            Notice::Severed | Notice::Answered => {}
            Notice::Shelved => {
                let reason = "The copy that ran here was ended by a verdict at the host it came from".into();
                self.shared.vms.tell(EventKind::VmStayed { vm, name, reason });
            }
        }
    }
}

async fn prepare(
    shared: &Arc<Shared>,
    host: HostId,
    offer: Offer,
    news: mpsc::Sender<News>,
) -> anyhow::Result<Prepared> {
    let Definition { spec, .. } = Definition::decode(&offer.definition)?;
    anyhow::ensure!(spec.id.0 == offer.vm, "The definition is that of another VM");
    shared.vms.check_arrival().await?;
    let machine = shared.vms.receive(spec, news).await?;
    let ready = async {
        let seats = shared.vms.parts.sockets.expect(&machine.spec().nics, host).await?;
        // So that it takes less when the guest waits for it.
        let (book, taken) =
            (shared.book.clone(), Record { id: offer.id, vm: offer.vm, peer: host, phase: Phase::Taken });
        tokio::task::spawn_blocking(move || book.stage(&taken)).await.context("Writing a record broke off")??;
        let live = machine.live().ok_or_else(|| anyhow::anyhow!("QEMU ended at once"))?;
        let wants_post_copy = offer.post_copy != PostCopy::Never;
        let files = &machine.files;
        Ok((seats, hypervisor::await_arrival(&live.qmp, files, offer.has_disk, wants_post_copy).await?))
    };
    match ready.await {
        Ok((seats, post_copy)) => Ok(Prepared { machine, seats, post_copy }),
        Err(error) => {
            shared.vms.erase(&machine).await;
            Err(error)
        }
    }
}

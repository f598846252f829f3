//! The host that has the VM.

use super::{
    ASK_TIME, Arrival, DOUBT_TIME, LOST_TIME_MAX, MigrationId, Notice, OFFER_TIME_MAX, Offer, Outcome,
    PAUSE_AGAIN_TIME, PAUSE_TIME_MAX, Phase, PostCopy, SWITCH_TIME_MAX, Step, ToSource, ToTarget, Verdict, bounded,
};
use crate::claims::Claim;
use crate::time::Instant;
use std::collections::VecDeque;

/// One migration on the host that has the VM.
///
/// The caller carries the effects out in their order, each to its end before the next; what they lead to comes back as
/// inputs. An effect that fails is [`SourceInput::Broken`], unless it says otherwise.
#[derive(Clone, Debug)]
pub struct Source {
    id: MigrationId,
    state: State,
    has_disk: bool,
    post_copy: PostCopy,
    pause: Pause,
    is_stopped: bool,
    /// The target said that it has no copy.
    is_declined: bool,
    /// QEMU has nothing left to send.
    is_sent: bool,
    /// The target fetches some of the memory while the guest runs there.
    is_fetched: bool,
    /// QEMU and the guest in it are gone.
    is_dead: bool,
    /// The target has been silent for so long that the operator was asked.
    is_in_doubt: bool,
    /// That it was given up is not on the disk yet.
    is_unwritten: bool,
    /// Why it was given up.
    why: String,
    timers: Timers,
    effects: VecDeque<SourceEffect>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Offering,
    Mirroring,
    Sending,
    Draining,
    Switching,
    Given,
    /// The guest runs at the target, which fetches the rest of its memory here.
    Fetching(Arrival),
    Aborting,
    /// The guest runs here again; the target does not know yet.
    Aborted,
    Done,
}

/// What was done to let QEMU come to the last bytes of the memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pause {
    /// Nothing. After a guest was paused in vain, it is left alone until then.
    No { again: Instant },
    /// The guest is being paused, or is.
    Asked,
    /// So it is, and what is left is fetched while it runs at the target.
    PostCopy,
}

#[derive(Clone, Copy, Default, Debug)]
struct Timers {
    /// When the present step is given up.
    give_up: Option<Instant>,
    /// When a guest goes on that was paused too early.
    unpause: Option<Instant>,
    /// When the target is out of reach for too long.
    lost: Option<Instant>,
    /// When it is told again.
    ask: Option<Instant>,
    /// When the operator hears that it does not answer.
    doubt: Option<Instant>,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SourceInput {
    /// The target says something.
    Said(ToSource),
    /// There is a stream to the target.
    PeerFound,
    /// There is none any more.
    PeerLost,
    /// The disk is copied, but for what the guest goes on writing.
    DiskReady,
    /// So little of the memory is left that it can be sent while the guest is paused.
    Converging,
    /// The guest has just been paused.
    Stopped,
    /// QEMU waits before the last bytes.
    Paused,
    /// The target has all of the disk.
    DiskWhole,
    /// QEMU has written all of the memory, or in post-copy the last page was fetched.
    Sent,
    /// QEMU has written all but the pages that the target will fetch.
    PostCopyBegun,
    /// The memory does not come to an end by copying it again and again.
    Diverging,
    /// [`SourceEffect::Persist`] failed; what follows it has not been done.
    NotPersisted(String),
    /// Another effect or QEMU failed.
    Broken(String),
    /// Answers [`SourceEffect::HandOver`].
    HandedOver(Vec<Claim>),
    /// Answers [`SourceEffect::TakeBack`]: the guest runs again, or has none that could.
    TakenBack,
    /// QEMU ended.
    Ended,
    /// The operator wants it to end.
    Cancel,
    /// The operator says what became of the target.
    Resolve(Verdict),
    /// Time passed.
    Timeout,
}

/// What the caller must do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SourceEffect {
    /// Write to the disk, and wait until it is there; `NotPersisted` if it can't be.
    Persist(Phase),
    /// Nothing about this migration must be kept any more.
    Forget,
    /// Say something to the target, if there is a stream to it.
    Send(ToTarget),
    /// Copy the disk. Leads to `DiskReady`.
    Mirror,
    /// Copy the memory. Leads to `Stopped` and `Paused`.
    SendMemory {
        /// Whether it may be fetched later.
        post_copy: bool,
    },
    /// Hold frames for the guest, wait until it has those that are on their way to it, and pause it: QEMU loses what
    /// comes while it pauses the guest by itself. Leads to `Stopped`.
    Pause,
    /// Let the guest go on, and have its frames again, unless QEMU has come to the last bytes meanwhile.
    Unpause,
    /// Let the target fetch what it lacks. Leads to `Paused`.
    BeginPostCopy,
    /// Frames for the guest wait from now on.
    ClosePorts,
    /// Copy the rest of the disk and let go of the target's. Leads to `DiskWhole`.
    FinishMirror,
    /// Let QEMU write the last bytes. Leads to `Sent` or `PostCopyBegun`.
    Continue,
    /// Sign the guest's addresses over to the target. Leads to `HandedOver`.
    HandOver,
    /// End what runs of the migration and let the guest run here, with its addresses. Leads to `TakenBack`.
    TakeBack,
    /// Remove the VM from this host: its process, its disk, its definition.
    Erase,
    /// Tell the operator.
    Tell(Notice),
    /// Tell whoever asked for the migration.
    Done(Outcome),
}

impl Source {
    /// A migration that begins.
    pub fn new(now: Instant, offer: Offer) -> Self {
        let mut source = Self::in_state(offer.id, State::Offering);
        source.has_disk = offer.has_disk;
        source.post_copy = offer.post_copy;
        source.timers.give_up = Some(now + OFFER_TIME_MAX);
        source.effects.extend([
            SourceEffect::Persist(Phase::Trying),
            SourceEffect::Tell(Notice::Step(Step::Reserve)),
            SourceEffect::Send(ToTarget::Offer(offer)),
        ]);
        source
    }

    /// A migration that was under way when the agent ended. Nothing if `phase` is that of a target. Of a
    /// `Given` one the caller must say what the VM's process is: by `Sent`, `PostCopyBegun` or `Ended`.
    pub fn restore(now: Instant, id: MigrationId, phase: Phase) -> Option<Self> {
        let mut source = match phase {
            Phase::Given => Self::in_state(id, State::Given),
            Phase::Trying | Phase::Aborted => Self::in_state(id, State::Aborting),
            Phase::Preparing | Phase::Taken => return None,
        };
        if phase == Phase::Given {
            source.timers.doubt = Some(now + DOUBT_TIME);
        } else {
            source.why = "the agent was started again".into();
            source.effects.extend([SourceEffect::Persist(Phase::Aborted), SourceEffect::TakeBack]);
        }
        source.timers.ask = Some(now + ASK_TIME);
        Some(source)
    }

    fn in_state(id: MigrationId, state: State) -> Self {
        Self {
            id,
            state,
            has_disk: false,
            post_copy: PostCopy::Never,
            pause: Pause::No { again: Instant(0) },
            is_stopped: false,
            is_declined: false,
            is_sent: false,
            is_fetched: false,
            is_dead: false,
            is_in_doubt: false,
            is_unwritten: false,
            why: String::new(),
            timers: Timers::default(),
            effects: VecDeque::new(),
        }
    }

    /// What a host says to a target about a migration that it does not know: it never aborts one that it has forgotten.
    pub fn answer_unknown(message: &ToSource) -> Option<ToTarget> {
        match message {
            ToSource::Declined { .. } | ToSource::Counted { .. } => None,
            other => Some(ToTarget::Finish { id: other.id() }),
        }
    }

    /// Takes the next effect.
    pub fn poll_effect(&mut self) -> Option<SourceEffect> {
        self.effects.pop_front()
    }

    /// When [`SourceInput::Timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let Timers { give_up, unpause, lost, ask, doubt } = self.timers;
        [give_up, unpause, lost, ask, doubt].into_iter().flatten().min()
    }

    /// Whether nothing is left to do.
    pub fn is_done(&self) -> bool {
        self.state == State::Done && self.effects.is_empty()
    }

    /// Whether it can still be cancelled.
    pub const fn is_cancellable(&self) -> bool {
        self.is_trying()
    }

    /// Whether an operator may say what became of the target.
    pub const fn is_resolvable(&self) -> bool {
        matches!(self.state, State::Given) || (matches!(self.state, State::Fetching(_)) && self.is_in_doubt)
    }

    /// Whether the VM may run on this host, as far as the migration has a say in it.
    pub const fn is_ours(&self) -> bool {
        self.is_trying() || matches!(self.state, State::Aborting | State::Aborted)
    }

    /// Takes an input.
    pub fn handle(&mut self, now: Instant, input: SourceInput) {
        match input {
            SourceInput::Said(message) if message.id() == self.id => self.on_message(now, message),
            SourceInput::Said(_) => {}
            SourceInput::PeerFound => self.on_peer_found(now),
            SourceInput::PeerLost => self.on_peer_lost(now),
            SourceInput::DiskReady if self.state == State::Mirroring => self.send_memory(now),
            SourceInput::Converging if self.state == State::Sending => self.on_converging(now),
            SourceInput::Stopped if self.state == State::Sending => self.on_stopped(now),
            SourceInput::Paused if self.state == State::Sending => self.on_paused(now),
            SourceInput::DiskWhole if self.state == State::Draining => self.let_go(),
            SourceInput::Sent => self.on_sent(now),
            SourceInput::PostCopyBegun => self.on_post_copy(now),
            SourceInput::Diverging if self.state == State::Sending && self.post_copy == PostCopy::Auto => {
                self.begin_post_copy(now);
            }
            SourceInput::HandedOver(handoffs) if self.state == State::Given => {
                self.send(ToTarget::Go { id: self.id, handoffs });
            }
            SourceInput::TakenBack if self.state == State::Aborting => self.on_taken_back(),
            SourceInput::NotPersisted(why) => self.on_not_persisted(now, why),
            SourceInput::Broken(why) if self.is_trying() => self.abort(now, why),
            SourceInput::Ended => self.on_ended(now),
            SourceInput::Cancel if self.is_trying() => self.abort(now, "it was cancelled".into()),
            SourceInput::Resolve(verdict) if self.is_resolvable() => self.on_verdict(now, verdict),
            SourceInput::Timeout => self.on_timeout(now),
            SourceInput::DiskReady
            | SourceInput::Converging
            | SourceInput::Stopped
            | SourceInput::Paused
            | SourceInput::DiskWhole
            | SourceInput::Diverging
            | SourceInput::HandedOver(_)
            | SourceInput::TakenBack
            | SourceInput::Broken(_)
            | SourceInput::Resolve(_)
            | SourceInput::Cancel => {}
        }
    }

    const fn is_trying(&self) -> bool {
        matches!(self.state, State::Offering | State::Mirroring | State::Sending | State::Draining | State::Switching)
    }

    fn on_message(&mut self, now: Instant, message: ToSource) {
        match (message, self.state) {
            (ToSource::Ready { post_copy, .. }, State::Offering) => self.on_ready(now, post_copy),
            (ToSource::Taken { arrival, .. }, State::Given) => self.on_taken(now, arrival),
            (ToSource::Taken { arrival, .. }, State::Fetching(first)) => self.on_taken_again(now, first, arrival),
            // It took what was never given, by an operator's verdict there, while this host lives.
            (ToSource::Taken { .. }, State::Aborting | State::Aborted) => self.tell_abort(),
            (ToSource::Taken { .. }, _) if self.is_trying() => self.abort(now, "the target was told to run it".into()),
            (ToSource::Declined { why, .. }, State::Given) => self.on_declined(now, why),
            (ToSource::Declined { why, .. }, _) if self.is_trying() => self.on_declined(now, why),
            (ToSource::Declined { .. }, State::Aborting) => self.is_declined = true,
            (ToSource::Declined { .. }, State::Aborted) => self.forget(),
            (ToSource::Ask { .. }, State::Given) => self.effects.push_back(SourceEffect::HandOver),
            (ToSource::Ask { .. } | ToSource::Ready { .. }, State::Aborting | State::Aborted) => self.tell_abort(),
            (ToSource::Taken { .. }, State::Done) => self.send(ToTarget::Finish { id: self.id }),
            (
                ToSource::Ready { .. }
                | ToSource::Taken { .. }
                | ToSource::Ask { .. }
                | ToSource::Declined { .. }
                | ToSource::Counted { .. },
                _,
            ) => {}
        }
    }

    fn on_ready(&mut self, now: Instant, post_copy: bool) {
        self.effects.push_back(SourceEffect::Tell(Notice::Step(Step::Prepare)));
        self.timers.give_up = None;
        match (self.post_copy, post_copy) {
            (PostCopy::Now, false) => {
                return self.abort(now, "the target can't fetch memory while the guest runs (no userfaultfd)".into());
            }
            (PostCopy::Auto, false) => self.post_copy = PostCopy::Never,
            (PostCopy::Auto | PostCopy::Now | PostCopy::Never, _) => {}
        }
        if self.has_disk {
            self.state = State::Mirroring;
            self.effects.extend([SourceEffect::Tell(Notice::Step(Step::Disk)), SourceEffect::Mirror]);
        } else {
            self.send_memory(now);
        }
    }

    fn send_memory(&mut self, now: Instant) {
        self.state = State::Sending;
        let post_copy = self.post_copy != PostCopy::Never;
        self.effects.extend([SourceEffect::Tell(Notice::Step(Step::Memory)), SourceEffect::SendMemory { post_copy }]);
        if self.post_copy == PostCopy::Now {
            self.begin_post_copy(now);
        }
    }

    fn on_converging(&mut self, now: Instant) {
        if matches!(self.pause, Pause::No { again } if again <= now) {
            self.ask_to_pause(now, Pause::Asked);
        }
    }

    fn begin_post_copy(&mut self, now: Instant) {
        match self.pause {
            Pause::No { .. } => self.ask_to_pause(now, Pause::PostCopy),
            Pause::Asked => self.pause = Pause::PostCopy,
            Pause::PostCopy => return,
        }
        self.timers.unpause = None;
        self.effects.push_back(SourceEffect::BeginPostCopy);
    }

    fn ask_to_pause(&mut self, now: Instant, pause: Pause) {
        self.pause = pause;
        self.timers.give_up = Some(now + SWITCH_TIME_MAX);
        self.effects.push_back(SourceEffect::Pause);
    }

    fn on_stopped(&mut self, now: Instant) {
        self.is_stopped = true;
        self.timers.give_up = Some(now + SWITCH_TIME_MAX);
        self.timers.unpause = (self.pause == Pause::Asked).then(|| now + PAUSE_TIME_MAX);
        self.effects.extend([SourceEffect::ClosePorts, SourceEffect::Tell(Notice::Step(Step::SwitchOver))]);
    }

    /// More was left than it seemed: what the guest had changed meanwhile was not known yet.
    fn unpause(&mut self, now: Instant) {
        self.pause = Pause::No { again: now + PAUSE_AGAIN_TIME };
        self.timers.give_up = None;
        self.effects.extend([SourceEffect::Unpause, SourceEffect::Tell(Notice::Step(Step::Memory))]);
    }

    fn on_paused(&mut self, now: Instant) {
        if !self.is_stopped {
            // A guest that was paused before, as when its disk can't be read, is not stopped once more.
            self.on_stopped(now);
        }
        self.timers.give_up = Some(now + SWITCH_TIME_MAX);
        self.timers.unpause = None;
        self.state = State::Draining;
        if self.has_disk {
            self.effects.push_back(SourceEffect::FinishMirror);
        } else {
            self.let_go();
        }
    }

    /// The permission is written while QEMU sends the last bytes; nobody hears of it before they are sent. Whoever
    /// finds it after a crash in between asks the target, which never heard of it and declines.
    fn let_go(&mut self) {
        self.state = State::Switching;
        self.effects.extend([SourceEffect::Continue, SourceEffect::Persist(Phase::Given)]);
    }

    fn on_sent(&mut self, now: Instant) {
        self.is_sent = true;
        match self.state {
            State::Switching => self.give(now),
            State::Fetching(arrival) => self.finish(Outcome::Moved(arrival)),
            _ => {}
        }
    }

    fn on_post_copy(&mut self, now: Instant) {
        self.is_fetched = true;
        if self.state == State::Switching {
            self.give(now);
        }
    }

    /// All of the guest is on its way: from here on it is the target's to run.
    fn give(&mut self, now: Instant) {
        self.state = State::Given;
        self.timers = Timers { ask: Some(now + ASK_TIME), doubt: Some(now + DOUBT_TIME), ..Timers::default() };
        self.effects.push_back(SourceEffect::HandOver);
    }

    /// What is not on the disk was not given either: nothing that follows has been done.
    fn on_not_persisted(&mut self, now: Instant, why: String) {
        if self.state == State::Given && self.effects.front() == Some(&SourceEffect::HandOver) {
            self.effects.pop_front();
            self.abort(now, why);
        } else if self.is_trying() {
            self.effects.retain(|effect| !matches!(effect, SourceEffect::Send(ToTarget::Offer(_))));
            self.abort(now, why);
        } else {
            // The guest runs on meanwhile: whoever reads the older record asks the target, which has declined.
            self.is_unwritten = true;
        }
    }

    fn on_taken(&mut self, now: Instant, arrival: Arrival) {
        self.effects.push_back(SourceEffect::Tell(Notice::Step(Step::Resume)));
        self.on_taken_again(now, arrival, arrival);
    }

    /// The target says so each second, as long as memory is fetched. `first` is how the guest arrived.
    fn on_taken_again(&mut self, now: Instant, first: Arrival, last: Arrival) {
        if last.has_ended {
            self.finish(Outcome::Ended("its machine has ended there".into()));
        } else if self.is_sent || (self.is_dead && !self.is_fetched) {
            self.finish(Outcome::Moved(first));
        } else if self.is_dead {
            // Not before: what is here is the VM's last copy, should the target be gone too.
            let why = "the rest of its memory was lost when its machine here ended; it can begin anew from its disk";
            self.finish(Outcome::Ended(why.into()));
        } else {
            self.state = State::Fetching(first);
            if std::mem::take(&mut self.is_in_doubt) {
                self.effects.push_back(SourceEffect::Tell(Notice::Answered));
            }
            self.timers = Timers { doubt: Some(now + DOUBT_TIME), ..Timers::default() };
        }
    }

    fn finish(&mut self, outcome: Outcome) {
        self.state = State::Done;
        self.timers = Timers::default();
        self.effects.extend([SourceEffect::Erase, SourceEffect::Forget]);
        self.send(ToTarget::Finish { id: self.id });
        self.effects.extend([SourceEffect::Tell(Notice::Step(Step::Finish)), SourceEffect::Done(outcome)]);
    }

    fn on_declined(&mut self, now: Instant, why: String) {
        self.is_declined = true;
        self.abort(now, why);
    }

    fn abort(&mut self, now: Instant, why: String) {
        self.why = bounded(why);
        self.state = State::Aborting;
        self.timers = Timers { ask: Some(now + ASK_TIME), ..Timers::default() };
        self.effects.extend([SourceEffect::Persist(Phase::Aborted), SourceEffect::TakeBack]);
        if !self.is_declined {
            self.tell_abort();
        }
    }

    fn on_taken_back(&mut self) {
        self.state = State::Aborted;
        self.effects.push_back(SourceEffect::Done(Outcome::Stayed(self.why.clone())));
        if self.is_declined {
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.state = State::Done;
        self.timers = Timers::default();
        self.effects.push_back(SourceEffect::Forget);
    }

    fn on_ended(&mut self, now: Instant) {
        self.is_dead = true;
        if self.is_trying() {
            self.abort(now, "the VM ended".into());
        }
    }

    fn on_verdict(&mut self, now: Instant, verdict: Verdict) {
        match (verdict, self.state) {
            (Verdict::Here, State::Given) => self.abort(now, "the operator says that it runs here".into()),
            (Verdict::There, State::Given) => self.finish(Outcome::Moved(Arrival::default())),
            (Verdict::Here, State::Fetching(_)) => {
                self.abort(now, "the operator says that the host it ran on is gone".into());
            }
            (Verdict::There, State::Fetching(arrival)) => self.finish(Outcome::Moved(arrival)),
            (Verdict::Here | Verdict::There, _) => {}
        }
    }

    fn on_peer_found(&mut self, now: Instant) {
        self.timers.lost = None;
        self.ask(now);
    }

    fn on_peer_lost(&mut self, now: Instant) {
        if self.state == State::Offering {
            self.abort(now, "the target went away".into());
        } else if self.is_trying() {
            self.timers.lost = Some(now + LOST_TIME_MAX);
        }
    }

    /// Tells the target again what was decided.
    fn ask(&mut self, now: Instant) {
        match self.state {
            State::Given => self.effects.push_back(SourceEffect::HandOver),
            State::Aborting | State::Aborted if !self.is_declined => {
                if std::mem::take(&mut self.is_unwritten) {
                    self.effects.push_back(SourceEffect::Persist(Phase::Aborted));
                }
                self.tell_abort();
            }
            _ => return,
        }
        self.timers.ask = Some(now + ASK_TIME);
    }

    fn tell_abort(&mut self) {
        self.send(ToTarget::Abort { id: self.id, why: self.why.clone() });
    }

    fn on_timeout(&mut self, now: Instant) {
        let due = |timer: &mut Option<Instant>| timer.take_if(|at| *at <= now).is_some();
        if due(&mut self.timers.give_up) && self.is_trying() {
            let why = if self.state == State::Offering {
                format!("the target was not ready after {} s", OFFER_TIME_MAX.as_secs())
            } else {
                format!("the guest was paused for {} s", SWITCH_TIME_MAX.as_secs())
            };
            self.abort(now, why);
        }
        if due(&mut self.timers.unpause) && self.state == State::Sending {
            self.unpause(now);
        }
        if due(&mut self.timers.lost) && self.is_trying() {
            self.abort(now, format!("the target was out of reach for {} s", LOST_TIME_MAX.as_secs()));
        }
        if due(&mut self.timers.doubt) {
            self.on_doubt();
        }
        if due(&mut self.timers.ask) {
            self.ask(now);
        }
    }

    fn on_doubt(&mut self) {
        let notice = match self.state {
            State::Given => Notice::InDoubt,
            State::Fetching(_) => Notice::Severed,
            _ => return,
        };
        self.is_in_doubt = true;
        self.effects.push_back(SourceEffect::Tell(notice));
    }

    fn send(&mut self, message: ToTarget) {
        self.effects.push_back(SourceEffect::Send(message));
    }
}

//! The host that gets the VM.

use super::{
    ASK_TIME, Arrival, DOUBT_TIME, LOST_TIME_MAX, MigrationId, Notice, Phase, STARVING_TIME, Step, ToSource, ToTarget,
    Verdict, bounded,
};
use crate::claims::Claim;
use crate::time::Instant;
use std::collections::VecDeque;
use std::time::Duration;

/// One migration on the host that gets the VM.
///
/// The caller carries the effects out in their order, each to its end before the next; what they lead to comes back as
/// inputs.
#[derive(Clone, Debug)]
pub struct Target {
    id: MigrationId,
    state: State,
    /// Since when the VM may run here, and the addresses that were signed over with it.
    go: Option<(Instant, Vec<Claim>)>,
    post_copy: bool,
    /// An earlier agent may have let the guest run.
    may_have_run: bool,
    memory: Memory,
    /// The guest goes on before all of its memory is here, and since when it was told to.
    is_post_copy: bool,
    resuming: Option<Instant>,
    arrival: Arrival,
    why: String,
    timers: Timers,
    effects: VecDeque<TargetEffect>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Preparing,
    Receiving,
    /// All is here but the permission.
    Holding,
    Taking,
    Running,
    /// The source has nothing left of it; the last of the memory is on its way.
    Emptying,
    Dropping,
    Shelving,
    Done,
}

/// What the guest has of its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Memory {
    Whole,
    /// The rest of it comes.
    Fetched,
    /// Nothing of it has come for long, though its stream stands. The operator knows.
    Dry,
    /// The rest of it does not come.
    Cut {
        /// The operator knows.
        is_told: bool,
    },
}

#[derive(Clone, Copy, Default, Debug)]
struct Timers {
    lost: Option<Instant>,
    ask: Option<Instant>,
    doubt: Option<Instant>,
    /// When the operator hears that the guest hangs.
    starving: Option<Instant>,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TargetInput {
    /// The source says something.
    Said(ToTarget),
    /// There is a stream to the source.
    PeerFound,
    /// There is none any more.
    PeerLost,
    /// A machine waits for disk and memory.
    Prepared {
        /// Whether it can fetch memory while the guest runs.
        post_copy: bool,
    },
    /// All is here that the guest needs to run.
    Loaded {
        /// Also the memory that it may fetch while it runs.
        is_whole: bool,
    },
    /// Memory that the guest fetches while it runs comes no more: its stream broke.
    MemoryCut,
    /// Its stream stands, and nothing has come for [`STARVING_TIME`].
    MemoryDry,
    /// It comes again.
    MemoryFlows,
    /// [`TargetEffect::Persist`] failed; what follows it has not been done.
    NotPersisted(String),
    /// An effect or QEMU failed; the guest has not run.
    Broken(String),
    /// QEMU ended.
    Ended,
    /// Begins [`TargetEffect::Resume`]: QEMU is told to let the guest go on.
    Resuming,
    /// Answers [`TargetEffect::Resume`]: the guest runs, or may have run.
    Resumed,
    /// Answers [`TargetEffect::Resume`]: QEMU refuses, and the guest has not run.
    NotResumed(String),
    /// Answers [`TargetEffect::OpenPorts`].
    Opened,
    /// Answers [`TargetEffect::Drop`] and [`TargetEffect::Shelve`].
    Dropped,
    /// The operator says what became of the source.
    Resolve(Verdict),
    /// Time passed.
    Timeout,
}

/// What the caller must do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TargetEffect {
    /// Write to the disk, and wait until it is there; `NotPersisted` if it can't be.
    Persist(Phase),
    /// Nothing about this migration must be kept any more.
    Forget,
    /// Say something to the source, if there is a stream to it.
    Send(ToSource),
    /// Reserve room and start a machine that waits. Leads to `Prepared` or `Broken`.
    Prepare,
    /// Begin to claim the guest's addresses with what was signed over, so that what it sends passes.
    Claim(Vec<Claim>),
    /// Let the guest run, once its addresses are claimed.
    Resume,
    /// Let the frames pass that wait for the guest.
    OpenPorts,
    /// The VM is this host's from now on, like any other.
    Adopt,
    /// Remove the copy: process, disk, definition.
    Drop,
    /// End the copy, which has run, and keep its disk aside.
    Shelve,
    /// End the guest, for this reason: its memory can't come any more. The VM stays.
    End(String),
    /// Tell the operator.
    Tell(Notice),
}

impl Target {
    /// A migration that begins. Without [`TargetInput::PeerFound`] it is given up after a while.
    pub fn new(now: Instant, id: MigrationId) -> Self {
        let mut target = Self::in_state(id, State::Preparing);
        target.effects.extend([TargetEffect::Persist(Phase::Preparing), TargetEffect::Prepare]);
        target.timers.lost = Some(now + LOST_TIME_MAX);
        target
    }

    /// A migration that was under way when the agent ended. Nothing if `phase` is that of a source. `is_whole` says
    /// whether QEMU lives and has all that the guest needs.
    pub fn restore(now: Instant, id: MigrationId, phase: Phase, is_whole: bool) -> Option<Self> {
        let mut target = match phase {
            Phase::Preparing if is_whole => Self::in_state(id, State::Holding),
            Phase::Preparing => Self::in_state(id, State::Dropping),
            Phase::Taken if is_whole => Self::in_state(id, State::Taking),
            Phase::Taken => Self::in_state(id, State::Running),
            Phase::Trying | Phase::Given | Phase::Aborted => return None,
        };
        match target.state {
            State::Holding => target.hold(now),
            State::Taking => {
                target.may_have_run = true;
                target.effects.extend([TargetEffect::Claim(Vec::new()), TargetEffect::Resume]);
            }
            State::Running => {
                target.arrival.has_ended = true;
                target.run(now);
            }
            _ => target.drop_copy("the agent of the target was started again".into()),
        }
        Some(target)
    }

    fn in_state(id: MigrationId, state: State) -> Self {
        Self {
            id,
            state,
            go: None,
            post_copy: false,
            may_have_run: false,
            memory: Memory::Whole,
            is_post_copy: false,
            resuming: None,
            arrival: Arrival::default(),
            why: String::new(),
            timers: Timers::default(),
            effects: VecDeque::new(),
        }
    }

    /// Takes the next effect.
    pub fn poll_effect(&mut self) -> Option<TargetEffect> {
        self.effects.pop_front()
    }

    /// When [`TargetInput::Timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let Timers { lost, ask, doubt, starving } = self.timers;
        [lost, ask, doubt, starving].into_iter().flatten().min()
    }

    /// Whether nothing is left to do.
    pub fn is_done(&self) -> bool {
        self.state == State::Done && self.effects.is_empty()
    }

    /// Whether an operator may say what became of the source, with this verdict.
    pub const fn is_resolvable(&self, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Here => matches!(self.state, State::Holding),
            Verdict::There => self.is_waiting(),
        }
    }

    /// Whether the VM may run on this host.
    pub const fn is_ours(&self) -> bool {
        matches!(self.state, State::Taking | State::Running | State::Emptying)
    }

    /// Takes an input.
    pub fn handle(&mut self, now: Instant, input: TargetInput) {
        match input {
            TargetInput::Said(message) if message.id() == self.id => self.on_message(now, message),
            TargetInput::Said(_) => {}
            TargetInput::PeerFound => {
                self.timers.lost = None;
                self.ask(now);
            }
            TargetInput::PeerLost if matches!(self.state, State::Preparing | State::Receiving) => {
                self.timers.lost = Some(now + LOST_TIME_MAX);
            }
            TargetInput::Prepared { post_copy } if self.state == State::Preparing => {
                self.state = State::Receiving;
                self.post_copy = post_copy;
                self.send(ToSource::Ready { id: self.id, post_copy });
            }
            TargetInput::Loaded { is_whole } => self.on_loaded(now, is_whole),
            TargetInput::MemoryCut => self.on_cut(now),
            TargetInput::MemoryDry if (self.state, self.memory) == (State::Running, Memory::Fetched) => {
                self.memory = Memory::Dry;
                self.effects.push_back(TargetEffect::Tell(Notice::Starving));
            }
            TargetInput::MemoryFlows if self.memory != Memory::Whole => self.on_flow(Memory::Fetched),
            TargetInput::NotPersisted(why) => self.on_not_persisted(why),
            TargetInput::Broken(why) if self.is_waiting() => self.drop_copy(why),
            TargetInput::Ended => self.on_ended(now),
            TargetInput::Resuming => self.resuming = Some(now),
            TargetInput::Resumed if self.state == State::Taking => self.on_resumed(now),
            TargetInput::NotResumed(why) if self.state == State::Taking => self.on_not_resumed(now, why),
            TargetInput::Opened if self.state == State::Taking => self.on_opened(now),
            TargetInput::Dropped => self.on_dropped(),
            TargetInput::Resolve(verdict) if self.is_resolvable(verdict) => match verdict {
                Verdict::Here => self.take(),
                Verdict::There => self.drop_copy("the operator says that it runs at the source".into()),
            },
            TargetInput::Timeout => self.on_timeout(now),
            TargetInput::PeerLost
            | TargetInput::Prepared { .. }
            | TargetInput::MemoryDry
            | TargetInput::MemoryFlows
            | TargetInput::Broken(_)
            | TargetInput::Resumed
            | TargetInput::NotResumed(_)
            | TargetInput::Opened
            | TargetInput::Resolve(_) => {}
        }
    }

    /// A copy that has not run and may be dropped.
    const fn is_waiting(&self) -> bool {
        matches!(self.state, State::Preparing | State::Receiving | State::Holding)
    }

    fn on_message(&mut self, now: Instant, message: ToTarget) {
        match (message, self.state) {
            (ToTarget::Go { handoffs, .. }, State::Preparing | State::Receiving) => self.go = Some((now, handoffs)),
            (ToTarget::Go { handoffs, .. }, State::Holding) => {
                self.go = Some((now, handoffs));
                self.take();
            }
            (ToTarget::Go { .. }, State::Running) => self.tell_taken(now),
            (ToTarget::Abort { why, .. }, _) if self.is_waiting() => self.drop_copy(why),
            // The operator of the source decided otherwise while this host was out of its reach.
            (ToTarget::Abort { .. }, State::Running) => {
                self.state = State::Shelving;
                self.timers = Timers::default();
                self.why = "the copy that ran here was ended by a verdict at the source".into();
                self.effects.extend([TargetEffect::Shelve, TargetEffect::Tell(Notice::Shelved)]);
            }
            (ToTarget::Finish { .. }, State::Running) => self.on_finish(),
            (ToTarget::Finish { .. }, _) if self.is_waiting() => {
                self.drop_copy("the source knows nothing of it".into());
            }
            (ToTarget::Offer(_), State::Receiving | State::Preparing) => {}
            (ToTarget::Offer(_) | ToTarget::Go { .. } | ToTarget::Abort { .. } | ToTarget::Finish { .. }, _) => {}
        }
    }

    fn on_loaded(&mut self, now: Instant, is_whole: bool) {
        self.on_flow(if is_whole { Memory::Whole } else { Memory::Fetched });
        self.is_post_copy |= !is_whole;
        match (self.state, &self.go) {
            (State::Receiving, Some(_)) => {
                self.arrival.fetched_us = if is_whole { 0 } else { self.since_go(now) };
                self.take();
            }
            (State::Receiving, None) => self.hold(now),
            (State::Emptying, _) if is_whole => self.end(),
            _ => {}
        }
    }

    fn on_cut(&mut self, now: Instant) {
        let is_told = match self.memory {
            Memory::Fetched => false,
            Memory::Dry => true,
            Memory::Whole | Memory::Cut { .. } => return,
        };
        self.memory = Memory::Cut { is_told };
        match self.state {
            State::Running if !is_told => self.timers.starving = Some(now + STARVING_TIME),
            State::Emptying => self.end_starved(),
            _ => {}
        }
    }

    fn on_flow(&mut self, memory: Memory) {
        self.timers.starving = None;
        if matches!(self.memory, Memory::Dry | Memory::Cut { is_told: true }) {
            self.effects.push_back(TargetEffect::Tell(Notice::Fed));
        }
        self.memory = memory;
    }

    fn on_finish(&mut self) {
        self.timers = Timers::default();
        match self.memory {
            Memory::Whole => self.end(),
            Memory::Fetched | Memory::Dry => self.state = State::Emptying,
            Memory::Cut { .. } => self.end_starved(),
        }
    }

    /// The source has nothing of the memory left: the guest would hang for ever.
    fn end_starved(&mut self) {
        let why = "The rest of its memory is lost: its machine at the host that it came from has ended";
        self.effects.push_back(TargetEffect::End(why.into()));
        self.end();
    }

    /// Not before the memory is whole or the guest has ended: an agent that is started again sees to it too.
    fn end(&mut self) {
        self.state = State::Done;
        self.timers = Timers::default();
        self.effects.push_back(TargetEffect::Forget);
    }

    fn hold(&mut self, now: Instant) {
        self.state = State::Holding;
        self.timers = Timers { ask: Some(now + ASK_TIME), doubt: Some(now + DOUBT_TIME), ..Timers::default() };
        self.send(ToSource::Ask { id: self.id });
    }

    fn take(&mut self) {
        self.state = State::Taking;
        self.timers = Timers::default();
        let handoffs = self.go.as_mut().map(|(_, handoffs)| std::mem::take(handoffs)).unwrap_or_default();
        let claim = TargetEffect::Claim(handoffs);
        self.effects.extend([claim, TargetEffect::Persist(Phase::Taken), TargetEffect::Resume]);
    }

    fn on_not_persisted(&mut self, why: String) {
        match (self.state, self.effects.front()) {
            (State::Taking, Some(TargetEffect::Resume)) => {
                self.effects.pop_front();
                self.drop_copy(why);
            }
            (_, Some(TargetEffect::Prepare)) => {
                self.effects.pop_front();
                if self.state == State::Preparing {
                    self.drop_copy(why);
                }
            }
            _ => {}
        }
    }

    fn on_ended(&mut self, now: Instant) {
        if self.state == State::Taking && self.effects.contains(&TargetEffect::Resume) {
            let is_of_taking = |effect: &TargetEffect| match effect {
                TargetEffect::Claim(_) | TargetEffect::Resume => true,
                other => *other == TargetEffect::Persist(Phase::Taken),
            };
            self.effects.retain(|effect| !is_of_taking(effect));
            self.on_not_resumed(now, "the machine at the target ended".into());
        } else if self.is_waiting() {
            self.drop_copy("the machine at the target ended".into());
        } else {
            self.arrival.has_ended = true;
            self.memory = Memory::Whole;
            self.timers.starving = None;
            if self.state == State::Emptying {
                self.end();
            }
        }
    }

    /// A guest that was about to run and has not is still the source's.
    fn on_not_resumed(&mut self, now: Instant, why: String) {
        if self.may_have_run {
            self.arrival.has_ended = true;
            return self.run(now);
        }
        // Written first: a crash between must not look like a guest that has run.
        self.effects.push_back(TargetEffect::Persist(Phase::Preparing));
        self.drop_copy(why);
    }

    fn on_resumed(&mut self, now: Instant) {
        if let Some(since) = self.resuming.filter(|_| self.is_post_copy) {
            self.arrival.fetched_us += micros(now.since(since));
        }
        self.effects.push_back(TargetEffect::OpenPorts);
    }

    fn on_opened(&mut self, now: Instant) {
        self.arrival.opened_us = self.since_go(now);
        self.run(now);
    }

    fn run(&mut self, now: Instant) {
        self.state = State::Running;
        self.timers.starving = matches!(self.memory, Memory::Cut { .. }).then(|| now + STARVING_TIME);
        self.tell_taken(now);
        self.effects.extend([TargetEffect::Adopt, TargetEffect::Tell(Notice::Step(Step::Resume))]);
    }

    fn tell_taken(&mut self, now: Instant) {
        self.arrival.answered_us = self.since_go(now);
        self.timers.ask = Some(now + ASK_TIME);
        self.send(ToSource::Taken { id: self.id, arrival: self.arrival });
    }

    fn since_go(&self, now: Instant) -> u64 {
        micros(self.go.as_ref().map(|(at, _)| now.since(*at)).unwrap_or_default())
    }

    fn drop_copy(&mut self, why: String) {
        self.why = bounded(why);
        self.state = State::Dropping;
        self.timers = Timers::default();
        self.effects.push_back(TargetEffect::Drop);
    }

    fn on_dropped(&mut self) {
        if !matches!(self.state, State::Dropping | State::Shelving) {
            return;
        }
        self.state = State::Done;
        self.effects.push_back(TargetEffect::Forget);
        let why = std::mem::take(&mut self.why);
        self.send(ToSource::Declined { id: self.id, why });
    }

    fn ask(&mut self, now: Instant) {
        match self.state {
            // A source that has forgotten it says so.
            State::Receiving => return self.send(ToSource::Ready { id: self.id, post_copy: self.post_copy }),
            State::Holding => self.send(ToSource::Ask { id: self.id }),
            State::Running => self.tell_taken(now),
            _ => return,
        }
        self.timers.ask = Some(now + ASK_TIME);
    }

    fn on_timeout(&mut self, now: Instant) {
        let due = |timer: &mut Option<Instant>| timer.take_if(|at| *at <= now).is_some();
        if due(&mut self.timers.lost) && matches!(self.state, State::Preparing | State::Receiving) {
            self.drop_copy(format!("the source was out of reach for {} s", LOST_TIME_MAX.as_secs()));
        }
        if due(&mut self.timers.doubt) && self.state == State::Holding {
            self.effects.push_back(TargetEffect::Tell(Notice::InDoubt));
        }
        if due(&mut self.timers.starving) && self.memory == (Memory::Cut { is_told: false }) {
            self.memory = Memory::Cut { is_told: true };
            self.effects.push_back(TargetEffect::Tell(Notice::Starving));
        }
        if due(&mut self.timers.ask) {
            self.ask(now);
        }
    }

    fn send(&mut self, message: ToSource) {
        self.effects.push_back(TargetEffect::Send(message));
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

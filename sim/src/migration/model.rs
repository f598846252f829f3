//! Two hosts, their agents, the VM's processes and disks, and what is between them.

mod source_host;
mod strike;
mod target_host;

use super::fault::{Fault, Side};
use crate::rng::Rng;
use virtuoso_overlay::ids::VmId;
use virtuoso_overlay::migrate::{
    MigrationId, Offer, Phase, PostCopy, Source, SourceInput, Target, TargetInput, ToSource, ToTarget, Verdict,
};
use virtuoso_overlay::time::Instant;

const ID: MigrationId = MigrationId([1; 16]);
/// Lines of the trace that are kept.
const TRACE_MAX: usize = 3_000;
/// After so many turns without a happening, only a timer can make one.
const IDLE_TURNS: u64 = 64;
/// A step takes this long, so that timers run.
const STEP_US: u64 = 20_000;

/// What must never be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Violation {
    /// The guest runs on both hosts.
    TwoRunners,
    /// The guest runs with a memory or a disk that lacks what it wrote.
    LostWrite {
        /// What the guest has written.
        written: u64,
        /// What its memory knows of it.
        memory: u64,
        /// What its disk has of it.
        disk: u64,
    },
    /// Nothing runs, nobody crashed, and no operator was asked.
    NoRunner,
    /// Both hosts have the VM, or neither.
    Owners(usize),
    /// The guest's addresses are claimed by the wrong host.
    WrongClaim,
    /// A host remembers the migration for ever.
    NeverForgotten,
    /// A guest hangs for memory that is gone, and the operator does not know.
    Untold,
    /// The operator was told that a guest moved of whose memory the target never had all.
    FalseReport,
}

/// What a VM's process at the source does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Guest {
    Runs,
    /// Paused by its agent, while QEMU goes on sending.
    Stopped,
    /// Before the last bytes.
    Paused,
    /// All has been sent.
    Sent,
    /// All but some pages.
    PostCopy,
    /// At the target: memory is awaited.
    Incoming,
}

#[derive(Clone, Debug)]
struct Qemu {
    guest: Guest,
    /// What the guest's memory knows to be written.
    memory: u64,
    is_mirroring: bool,
    is_sending: bool,
    /// Its agent has paused the guest: QEMU does not let it go on by itself.
    is_held: bool,
    /// The target fetches memory, and has not got all of it.
    post_copy: bool,
    /// What it fetches does not come.
    is_cut: bool,
    /// Tells a process from another.
    life: u64,
}

#[derive(Clone, Debug, Default)]
struct Machine {
    is_up: bool,
    is_buried: bool,
    qemu: Option<Qemu>,
    /// What the disk has of what the guest wrote.
    disk: u64,
    /// Whether the VM is defined here.
    has_vm: bool,
    /// The target's copy is a VM like any other.
    is_adopted: bool,
    record: Option<Phase>,
    fails_write: bool,
    in_doubt: bool,
    /// The operator knows that the guest hangs.
    is_starving: bool,
}

/// Memory on its way.
#[derive(Clone, Debug)]
struct Pipe {
    memory: u64,
    post_copy: bool,
    to_life: u64,
}

/// Two hosts and one migration.
pub struct Lab {
    now: Instant,
    source: Machine,
    target: Machine,
    source_agent: Option<Source>,
    target_agent: Option<Target>,
    is_connected: bool,
    source_knows: bool,
    target_knows: bool,
    to_target: Vec<ToTarget>,
    to_source: Vec<ToSource>,
    pipe: Option<Pipe>,
    /// What the guest has written at all.
    written: u64,
    /// Who claimed the guest's addresses last.
    claimed_by: Side,
    /// The guest died with its host or its process.
    is_crashed: bool,
    /// All of the memory was at the target once.
    was_whole: bool,
    /// Whoever asked for the migration hears how it ends: the agent that they asked still lives.
    is_awaited: bool,
    has_disk: bool,
    wants_post_copy: bool,
    lives: u64,
    turn: u64,
    is_healed: bool,
    /// Turns in which nothing happened.
    idle: u64,
    faults: usize,
    failure: Option<Violation>,
    trace: Vec<String>,
}

impl Qemu {
    const fn new(guest: Guest, life: u64) -> Self {
        let (is_mirroring, is_sending, is_held) = (false, false, false);
        Self { guest, memory: 0, is_mirroring, is_sending, is_held, post_copy: false, is_cut: false, life }
    }
}

impl Machine {
    fn fetches(&self) -> bool {
        self.qemu.as_ref().is_some_and(|qemu| qemu.post_copy && !qemu.is_cut)
    }
}

impl Lab {
    /// A VM that runs, and a migration that begins.
    pub fn new(has_disk: bool, post_copy: u64) -> Self {
        let post_copy = [PostCopy::Never, PostCopy::Auto, PostCopy::Now][post_copy as usize % 3];
        let offer = Offer { id: ID, vm: VmId([2; 16]), definition: Vec::new(), has_disk, post_copy };
        let qemu = Qemu::new(Guest::Runs, 0);
        let now = Instant(1_000_000);
        Self {
            now,
            source: Machine { is_up: true, qemu: Some(qemu), has_vm: true, ..Machine::default() },
            target: Machine { is_up: true, ..Machine::default() },
            source_agent: Some(Source::new(now, offer)),
            target_agent: None,
            is_connected: true,
            source_knows: true,
            target_knows: false,
            to_target: Vec::new(),
            to_source: Vec::new(),
            pipe: None,
            written: 0,
            claimed_by: Side::Source,
            is_crashed: false,
            was_whole: false,
            is_awaited: true,
            has_disk,
            wants_post_copy: post_copy == PostCopy::Auto,
            lives: 1,
            turn: 0,
            is_healed: false,
            idle: 0,
            faults: 0,
            failure: None,
            trace: Vec::new(),
        }
    }

    /// What must never be, and was.
    pub const fn failure(&self) -> Option<&Violation> {
        self.failure.as_ref()
    }

    /// What happened.
    pub fn trace(&self) -> &[String] {
        &self.trace
    }

    /// How many faults struck.
    pub const fn faults(&self) -> usize {
        self.faults
    }

    /// Where the VM is.
    pub fn end(&self) -> &'static str {
        match (self.runs(Side::Source), self.runs(Side::Target)) {
            (true, _) => "source",
            (_, true) => "target",
            _ if self.is_crashed => "crashed",
            _ => "doubt",
        }
    }

    /// Whether nothing is left to do: but for telling a host that is gone for good, and for an operator's verdict.
    pub fn is_quiet(&self) -> bool {
        let source = self.source_agent.is_none() && self.source.record.is_none();
        let target = self.target_agent.is_none() && self.target.record.is_none();
        let is_settled = |record| match record {
            Some(Phase::Trying | Phase::Aborted) => self.runs(Side::Source) || self.is_crashed,
            Some(Phase::Taken) => self.target.is_adopted && (!self.is_cut() || self.target.is_starving),
            _ => false,
        };
        match (self.source.is_buried, self.target.is_buried) {
            (true, _) => target || is_settled(self.target.record),
            (_, true) => source || is_settled(self.source.record),
            _ => source && target,
        }
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        self.idle = 0;
        if self.trace.len() == TRACE_MAX {
            self.trace.remove(0);
        }
        let line = format!("{:>8.2} s {}", self.now.0 as f64 / 1e6, what());
        self.trace.push(line);
    }

    fn runs(&self, side: Side) -> bool {
        self.machine(side).qemu.as_ref().is_some_and(|qemu| qemu.guest == Guest::Runs)
    }

    /// Whether the guest at the target hangs for memory.
    fn is_cut(&self) -> bool {
        self.target.qemu.as_ref().is_some_and(|qemu| qemu.is_cut)
    }

    const fn machine(&self, side: Side) -> &Machine {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    const fn machine_mut(&mut self, side: Side) -> &mut Machine {
        match side {
            Side::Source => &mut self.source,
            Side::Target => &mut self.target,
        }
    }

    /// Something happens; what is drawn from `rng`.
    pub fn step(&mut self, rng: &mut Rng) {
        let which = rng.below(16);
        let pick = rng.next();
        self.act(which, pick);
    }

    /// Something happens; everything comes in turn.
    pub fn step_in_order(&mut self) {
        self.turn += 1;
        self.act(self.turn % 16, 0);
    }

    fn act(&mut self, which: u64, pick: u64) {
        self.now = Instant(self.now.0 + STEP_US);
        self.idle += 1;
        match which {
            0..=3 => self.source_works(),
            4..=7 => self.target_works(),
            8 => self.deliver_to_target(pick),
            9 => self.deliver_to_source(pick),
            10 => self.sending_goes_on(pick),
            11 => self.memory_arrives(),
            12 => self.guests_write(),
            13 => self.time_passes(),
            14 => self.connect(),
            _ => self.restart_agents(),
        }
        self.look();
    }

    /// No more faults: what was broken comes back, but for hosts that are gone for good.
    pub fn heal(&mut self) {
        self.is_healed = true;
        self.source.fails_write = false;
        self.target.fails_write = false;
    }

    fn tell_source(&mut self, input: SourceInput) {
        self.note(|| format!("source hears {input:?}"));
        if let Some(agent) = &mut self.source_agent {
            agent.handle(self.now, input);
        }
    }

    fn tell_target(&mut self, input: TargetInput) {
        self.note(|| format!("target hears {input:?}"));
        if let Some(agent) = &mut self.target_agent {
            agent.handle(self.now, input);
        }
    }

    fn deliver_to_target(&mut self, pick: u64) {
        if self.to_target.is_empty() || !self.target.is_up {
            return;
        }
        let message = self.to_target.remove(pick as usize % self.to_target.len());
        match &self.target_agent {
            Some(_) => self.tell_target(TargetInput::Said(message)),
            None if matches!(message, ToTarget::Offer(_)) => {
                self.target_agent = Some(Target::new(self.now, ID));
                self.target_knows = true;
            }
            None if matches!(message, ToTarget::Finish { .. }) => {}
            None => self.to_source.push(ToSource::unknown(ID)),
        }
    }

    fn deliver_to_source(&mut self, pick: u64) {
        if self.to_source.is_empty() || !self.source.is_up {
            return;
        }
        let message = self.to_source.remove(pick as usize % self.to_source.len());
        if self.source_agent.is_some() {
            self.tell_source(SourceInput::Said(message));
        } else {
            self.to_target.extend(Source::answer_unknown(&message));
        }
    }

    fn guests_write(&mut self) {
        for side in [Side::Source, Side::Target] {
            if self.runs(side) && !(side == Side::Target && self.is_cut()) {
                self.written += 1;
                let written = self.written;
                let has_disk = self.has_disk;
                let machine = self.machine_mut(side);
                machine.disk += 1;
                let disk = machine.disk;
                let Some(qemu) = &mut machine.qemu else { continue };
                qemu.memory += 1;
                let memory = qemu.memory;
                if memory != written || (has_disk && disk != written) {
                    self.fail(Violation::LostWrite { written, memory, disk });
                }
            }
        }
    }

    fn time_passes(&mut self) {
        let source = self.source_agent.as_ref().and_then(Source::poll_timeout);
        let target = self.target_agent.as_ref().and_then(Target::poll_timeout);
        // In peace nobody has to wait for a timer that nothing comes before.
        if self.is_healed
            && self.idle > IDLE_TURNS
            && let Some(next) = source.into_iter().chain(target).min()
        {
            self.now = self.now.max(next);
        }
        if source.is_some_and(|at| at <= self.now) {
            self.tell_source(SourceInput::Timeout);
        }
        if target.is_some_and(|at| at <= self.now) {
            self.tell_target(TargetInput::Timeout);
        }
    }

    fn connect(&mut self) {
        self.is_connected = self.source.is_up && self.target.is_up;
        if self.is_connected && self.source_agent.is_some() && !self.source_knows {
            self.source_knows = true;
            self.tell_source(SourceInput::PeerFound);
        }
        if self.is_connected && self.target_agent.is_some() && !self.target_knows {
            self.target_knows = true;
            self.tell_target(TargetInput::PeerFound);
        }
        if self.is_connected {
            self.memory_flows();
        }
    }

    /// An operator who was asked, and knows that the other host is gone for good.
    fn decide(&mut self) {
        if self.target.is_buried && self.source_agent.is_some() && std::mem::take(&mut self.source.in_doubt) {
            self.rely_on(Side::Source);
            self.tell_source(SourceInput::Resolve(Verdict::Here));
        }
        if self.source.is_buried && self.target_agent.is_some() && std::mem::take(&mut self.target.in_doubt) {
            self.rely_on(Side::Target);
            self.tell_target(TargetInput::Resolve(Verdict::Here));
        }
    }

    fn restart_agents(&mut self) {
        self.decide();
        if !self.source.is_up && !self.source.is_buried {
            self.source.is_up = true;
            self.source_agent = self.source.record.and_then(|phase| Source::restore(self.now, ID, phase));
            self.note(|| "source's agent is back".into());
            if self.source.record == Some(Phase::Given) {
                self.tell_source(match self.source.qemu.as_ref().map(|qemu| qemu.guest) {
                    Some(Guest::PostCopy) => SourceInput::PostCopyBegun,
                    Some(_) => SourceInput::Sent,
                    None => SourceInput::Ended,
                });
            }
        }
        if !self.target.is_up && !self.target.is_buried {
            self.target.is_up = true;
            let is_whole = self.target.qemu.as_ref().is_some_and(|qemu| qemu.guest != Guest::Incoming);
            self.target_agent = self.target.record.and_then(|phase| Target::restore(self.now, ID, phase, is_whole));
            self.note(|| "target's agent is back".into());
            self.tell_of_memory();
        }
    }

    fn fail(&mut self, violation: Violation) {
        self.failure.get_or_insert(violation);
    }

    /// What must hold at every moment.
    fn look(&mut self) {
        if self.runs(Side::Source) && self.runs(Side::Target) {
            self.fail(Violation::TwoRunners);
        }
        for side in [Side::Source, Side::Target] {
            let machine = self.machine(side);
            let running = machine.qemu.as_ref().filter(|qemu| qemu.guest == Guest::Runs);
            if let Some(memory) = running.map(|qemu| qemu.memory).filter(|memory| *memory != self.written) {
                let disk = machine.disk;
                self.fail(Violation::LostWrite { written: self.written, memory, disk });
            }
        }
    }

    /// What must hold when all faults are over and everybody had time.
    pub fn judge(&mut self) {
        if !self.is_quiet() {
            return self.fail(Violation::NeverForgotten);
        }
        let runners = usize::from(self.runs(Side::Source)) + usize::from(self.runs(Side::Target));
        if self.is_cut() && self.runs(Side::Target) && !(self.target.is_starving && self.source.is_buried) {
            return self.fail(Violation::Untold);
        }
        // A host that is gone for good with the one copy that was whole says enough.
        let is_buried_with = self.source.is_buried && self.target.qemu.is_none();
        if runners == 0 && !self.is_crashed && !is_buried_with {
            return self.fail(Violation::NoRunner);
        }
        let is_owner = |machine: &Machine| machine.has_vm && !machine.is_buried;
        let owners = usize::from(is_owner(&self.source)) + usize::from(is_owner(&self.target));
        let is_somebody_gone = self.source.is_buried || self.target.is_buried;
        if owners > 1 || (owners == 0 && !is_somebody_gone) {
            return self.fail(Violation::Owners(owners));
        }
        let runner = if self.runs(Side::Source) { Side::Source } else { Side::Target };
        if runners == 1 && self.claimed_by != runner {
            self.fail(Violation::WrongClaim);
        }
    }
}

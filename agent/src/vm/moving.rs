//! VMs that come from another host or go there: copies that may not run yet, or not any more. Which of them may run is
//! decided in `overlay::migrate`; what it says is done here.

use super::disk;
use super::error::VmError;
use super::launch::limit;
use super::machine::{Live, Machine, News, Trouble};
use super::process::Process;
use super::qmp::{Qmp, QmpError};
use super::spec::Spec;
use super::store::Record;
use super::supervisor::{clean_up, on_end};
use super::vms::Vms;
use crate::core::{Handle, Stopping};
use crate::events::EventKind;
use crate::name::Name;
use anyhow::Context;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use virtuoso_overlay::ids::{HostId, VmId};
use virtuoso_overlay::migrate::Phase;
use virtuoso_overlay::table::VmState;
use virtuoso_overlay::vm::lifecycle::Denied;
use virtuoso_overlay::vm::reservations::Reserved;

/// VMs that have left and are remembered: whoever looked at them comes at once.
const DEPARTURES_MAX: usize = 256;
/// How long QEMU may take to say what its guest does: it takes milliseconds, unless it waits for memory itself.
const LOOK_TIME_MAX: Duration = Duration::from_secs(1);
/// How long the row of a VM that has left may stay while none comes from its new host.
const ROW_TIME_MAX: Duration = Duration::from_secs(10);
/// How much later than this host another one may hear of that row: nobody says when all have.
const ROW_TIME_AFTER: Duration = Duration::from_secs(1);
/// How long QEMU may take to reset a machine: it takes milliseconds.
const RESET_TIME_MAX: Duration = Duration::from_secs(10);

/// A migration that was under way when the agent ended, as far as its VM is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    /// The VM.
    pub vm: VmId,
    /// What was decided.
    pub phase: Phase,
}

/// What was decided last of a VM that may have come here and be about to leave again.
pub(super) fn phase_of(moves: &[Move], vm: VmId) -> Option<Phase> {
    let phases = || moves.iter().filter(|moved| moved.vm == vm).map(|moved| moved.phase);
    // A copy that may not run comes before all others.
    phases().find(|phase| matches!(phase, Phase::Given | Phase::Preparing)).or_else(|| phases().next())
}

/// Tells of a VM that has left until its new host does: its name would else mean nothing in between.
async fn end_row(core: &Handle, vm: VmId) -> Result<(), Stopping> {
    let mut changes = core.call(|core| core.vm_changes()).await?;
    let told = async {
        while !core.call(move |core| core.is_told_elsewhere(vm)).await? && changes.changed().await.is_ok() {}
        Ok::<_, Stopping>(())
    };
    tokio::time::timeout(ROW_TIME_MAX, told).await.unwrap_or(Ok(()))?;
    tokio::time::sleep(ROW_TIME_AFTER).await;
    core.call(move |core| core.end_row(vm)).await
}

/// Resets a machine that waits for its state, which is none of the guest's business. QEMU looks at a medium's size when
/// the machine is reset and when the guest asks; a guest that has asked at the source does not ask again.
async fn reset(machine: &Machine, qmp: &Qmp) -> anyhow::Result<()> {
    let live = machine.live().context("QEMU ended")?;
    let mut events = live.events.subscribe();
    qmp.run("system_reset").await?;
    let is_reset = async {
        while events.recv().await?.event != "RESET" {}
        anyhow::Ok(())
    };
    tokio::time::timeout(RESET_TIME_MAX, is_reset).await.context("QEMU does not reset the machine")?
}

/// What QEMU says that the guest does. One that `may_fetch` memory from another host waits for it in its main loop and
/// does not answer: it runs until it needs what is not there yet.
pub(super) async fn status(qmp: &Qmp, may_fetch: bool) -> Result<String, QmpError> {
    let asked = qmp.run("query-status");
    let answer = match may_fetch {
        false => asked.await?,
        true => match tokio::time::timeout(LOOK_TIME_MAX, asked).await {
            Ok(answer) => answer?,
            Err(_) => return Ok("running".into()),
        },
    };
    Ok(answer["status"].as_str().unwrap_or_default().to_owned())
}

/// What a status means for a VM.
pub(super) fn state_of(status: &str) -> VmState {
    match status {
        // In post-copy, QEMU still reads devices when it was told to let the guest run, and does so in a moment.
        "running" | "inmigrate" => VmState::Running,
        _ => VmState::Paused,
    }
}

/// Where VMs of this host have gone, for those who look for them here.
#[derive(Debug, Default)]
pub(super) struct Departures(Mutex<VecDeque<(VmId, HostId)>>);

impl Departures {
    fn note(&self, vm: VmId, to: HostId) {
        let mut gone = self.gone();
        gone.retain(|(known, _)| *known != vm);
        gone.truncate(DEPARTURES_MAX - 1);
        gone.push_front((vm, to));
    }

    fn of(&self, vm: VmId) -> Option<HostId> {
        self.gone().iter().find(|(known, _)| *known == vm).map(|(_, to)| *to)
    }

    /// No holder can panic half-way.
    fn gone(&self) -> MutexGuard<'_, VecDeque<(VmId, HostId)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vms {
    /// A VM that is about to leave: from now on `mover` hears what its process does, and nobody else may change it.
    pub(super) async fn begin_move(&self, name: &Name, mover: mpsc::Sender<News>) -> anyhow::Result<Arc<Machine>> {
        let machine = self.find(name)?;
        let _turn = machine.turn.lock().await;
        let denied = |why| VmError::Denied { name: name.clone(), verb: "migrate", why };
        match machine.state() {
            VmState::Migrating => return Err(denied(Denied::Migrating).into()),
            VmState::Running if machine.live().is_some() => {}
            _ => return Err(denied(Denied::NotRunning).into()),
        }
        machine.set_mover(Some(mover));
        self.set_state(&machine, VmState::Migrating).await;
        Ok(machine.clone())
    }

    /// The VM is this host's own again, like any other; what its process does says in which state.
    pub(super) async fn end_move(self: &Arc<Self>, machine: &Arc<Machine>) {
        machine.set_mover(None);
        machine.set_trouble(None);
        let Some(live) = machine.live() else {
            on_end(self, machine, Some("It could not go on after it was on its way to another host".into())).await;
            if machine.begins_again(self.now()) {
                tracing::info!(vm = %machine.spec().name, "A VM that crashed begins again");
                self.start_in_background(machine.clone());
            }
            return;
        };
        live.release();
        self.look_at_guest(machine, &live).await;
    }

    /// The guest hangs for what is elsewhere, or no longer.
    pub(super) async fn starve(&self, machine: &Machine, why: Option<String>) {
        let (vm, name) = (machine.spec().id, machine.spec().name.to_string());
        let Some(live) = machine.live() else { return };
        machine.set_trouble(why.clone().map(Trouble::Memory));
        match why {
            Some(reason) => {
                tracing::warn!(vm = name, "A VM hangs: {reason}");
                self.tell(EventKind::VmPaused { vm, name, reason });
                // Its QEMU may not answer.
                self.set_state(machine, VmState::Paused).await;
            }
            None => {
                tracing::info!(vm = name, "A VM goes on: its memory comes again");
                self.tell(EventKind::VmResumed { vm, name });
                // An agent that was started again could not tell it.
                live.qmp.run("cont").await.ok();
                self.look_at_guest(machine, &live).await;
            }
        }
    }

    async fn look_at_guest(&self, machine: &Machine, live: &Live) {
        let status = status(&live.qmp, true).await.unwrap_or_default();
        self.set_state(machine, state_of(&status)).await;
    }

    /// Makes a copy of a VM that will get its disk and memory from another host.
    pub(super) async fn receive(
        self: &Arc<Self>,
        spec: Spec,
        mover: mpsc::Sender<News>,
    ) -> anyhow::Result<Arc<Machine>> {
        let (id, name) = (spec.id.0, spec.name.clone());
        anyhow::ensure!(!self.machines().contains_key(&id), "The VM is on this host already");
        let room = self.parts.core.call(|core| core.vm_room()).await?;
        let reserved = self.reservations().reserve(id, &name, spec.share(), room);
        let reserved = reserved.map_err(|refusal| VmError::NoRoom(name, refusal))?;
        anyhow::ensure!(reserved == Reserved::New, "Another migration brings this VM here already");
        let received = self.lay_out(&spec, mover).await;
        if received.is_err() {
            self.discard(id).await;
        }
        received
    }

    async fn lay_out(self: &Arc<Self>, spec: &Spec, mover: mpsc::Sender<News>) -> anyhow::Result<Arc<Machine>> {
        let _making = self.making.read().await;
        let files = self.store.create(spec.id.0)?;
        let base = disk::base(spec, &self.parts.images).await?;
        if spec.disk_bytes > 0 {
            disk::make(spec, &files, base.as_ref()).await?;
        }
        let record = Record { spec: spec.clone(), process: None, crash: None };
        files.write(&record)?;
        let machine = Machine::new(files, record, VmState::Migrating);
        machine.set_mover(Some(mover));
        self.copies().insert(spec.id.0, machine.clone());
        let launched = async {
            let qmp = self.launch_paused(&machine, spec, true).await?;
            if self.load_drive(&machine, &qmp).await {
                reset(&machine, &qmp).await?;
            }
            anyhow::Ok(limit(&qmp, spec).await?)
        };
        if let Err(error) = launched.await {
            self.end_process(&machine).await;
            self.close_drive(spec.id.0);
            clean_up(&machine);
            return Err(error);
        }
        Ok(machine)
    }

    /// The process of a copy of an earlier run. It claims no address and is not begun again.
    pub(super) async fn take_over_copy(self: &Arc<Self>, mut record: Record, phase: Phase) {
        let spec = record.spec.clone();
        self.reservations().restore(spec.id.0, &spec.name, spec.share());
        let process = record.process.map(Process::open).transpose().ok().flatten().flatten();
        if process.is_none() {
            record.process = None;
        }
        let machine = Machine::new(self.store.files(spec.id.0), record, VmState::Migrating);
        if phase == Phase::Given {
            self.machines().insert(spec.id.0, machine.clone());
        } else {
            self.copies().insert(spec.id.0, machine.clone());
        }
        let Some(process) = process else { return };
        // Until its migration listens, nobody does.
        machine.set_mover(Some(mpsc::channel(1).0));
        let process = Arc::new(process);
        let adopted = async {
            let base = disk::base(&spec, &self.parts.images).await?;
            self.follow(&machine, &process, base).await
        };
        match adopted.await {
            Ok(_) => self.resume_drive(&machine).await,
            // It is dropped in any case, and must not stay because nobody speaks to it.
            Err(error) if phase == Phase::Preparing => {
                tracing::debug!(vm = %spec.name, "The copy of a VM is not there any more: {error:#}");
                process.kill();
            }
            Err(error) => tracing::warn!(vm = %spec.name, "Can't take over the copy of a VM: {error:#}"),
        }
    }

    /// Ends a guest that hangs for memory of another host, and its monitor with it: this agent can't speak to it.
    pub(super) async fn give_up_arrival(self: &Arc<Self>, machine: &Arc<Machine>, process: &Process) {
        let why =
            "It hung for memory that was still at the host it came from when the agent was started again".to_owned();
        if let Some(mut live) = machine.live() {
            live.end_for(why);
            return live.wait_ended().await;
        }
        process.kill();
        process.ended().await;
        clean_up(machine);
        on_end(self, machine, Some(why)).await;
    }

    /// A VM of this host, or a copy of one.
    pub(super) fn machine_or_copy(&self, id: VmId) -> Option<Arc<Machine>> {
        let known = self.machines().get(&id).cloned();
        known.or_else(|| self.copies().get(&id).cloned())
    }

    /// A copy is the VM from now on, which runs on this host.
    pub(super) async fn adopt_copy(self: &Arc<Self>, machine: &Arc<Machine>) {
        let id = machine.spec().id.0;
        self.copies().remove(&id);
        self.machines().insert(id, machine.clone());
        if machine.live().is_some() {
            // At once: QEMU may not answer now, and who asks for the VM must not be sent to the host that it left.
            self.set_state(machine, VmState::Running).await;
        }
        self.end_move(machine).await;
    }

    /// Removes a VM that has left.
    pub(super) async fn leave(&self, machine: &Arc<Machine>, to: HostId) {
        let id = machine.spec().id.0;
        // First: those who watch it ask for it when its process has ended.
        self.departures.note(id, to);
        let core = self.parts.core.clone();
        // Without a core the agent is stopping.
        core.call(move |core| core.keep_row(id)).await.ok();
        self.erase(machine).await;
        tokio::spawn(async move { end_row(&core, id).await.ok() });
    }

    /// The host that a VM of this host went to, if it is remembered.
    pub(crate) fn went_to(&self, vm: VmId) -> Option<HostId> {
        self.departures.of(vm)
    }

    /// Removes a copy, or a VM that has left: its process, its disk, its definition.
    pub(super) async fn erase(&self, machine: &Arc<Machine>) {
        self.end_process(machine).await;
        let spec = machine.spec();
        self.close_drive(spec.id.0);
        self.parts.sockets.release(&spec.nics).await;
        self.discard(spec.id.0).await;
    }

    /// Ends a copy that has run and whose VM runs elsewhere; its files stay aside.
    pub(super) async fn shelve(&self, machine: &Arc<Machine>) -> anyhow::Result<()> {
        self.end_process(machine).await;
        let spec = machine.spec();
        self.close_drive(spec.id.0);
        self.parts.sockets.release(&spec.nics).await;
        let dir = machine.files.dir();
        let aside = self.parts.state_dir.join("shelved");
        std::fs::create_dir_all(&aside).with_context(|| format!("Can't create {}", aside.display()))?;
        let aside = aside.join(spec.id.to_string());
        std::fs::rename(dir, &aside).with_context(|| format!("Can't move {} to {}", dir.display(), aside.display()))?;
        tracing::warn!(vm = %spec.name, "The copy that ran here is kept in {}", aside.display());
        self.discard(spec.id.0).await;
        Ok(())
    }

    async fn end_process(&self, machine: &Arc<Machine>) {
        if let Some(mut live) = machine.live() {
            live.end();
            live.wait_ended().await;
        }
    }

    async fn discard(&self, id: VmId) {
        self.copies().remove(&id);
        self.forget(id).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_that_came_and_left_again_may_not_run() {
        let moved = |vm: u8, phase| Move { vm: VmId([vm; 16]), phase };
        let moves = [moved(1, Phase::Taken), moved(2, Phase::Trying), moved(1, Phase::Given)];
        assert_eq!(phase_of(&moves, VmId([1; 16])), Some(Phase::Given));
        assert_eq!(phase_of(&moves, VmId([2; 16])), Some(Phase::Trying));
        assert_eq!(phase_of(&moves, VmId([3; 16])), None);
    }
}

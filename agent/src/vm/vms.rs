//! All VMs of this host, and what can be done with them.

use super::cdrom::Drives;
use super::clone::{self, Offered, Offers, Token};
use super::console::Console;
use super::disk::{self, Base};
use super::error::VmError;
use super::limits::VmLimitsChange;
use super::machine::{Live, Machine};
use super::moving::{self, Departures, Move};
use super::process::{Process, last_words};
use super::qemu::{Accelerator, DISK_DEVICE};
use super::qmp::Qmp;
use super::spec::Spec;
use super::store::{Record, Store};
use super::supervisor::{clean_up, supervise};
use super::usage::{self, Meters, TotalUsage, Usage};
use super::{addresses, cgroup::Cgroup, monitor, names, stall};
use crate::clock::Clock;
use crate::control::model::Progress;
use crate::core::ports::Sockets;
use crate::core::vm_names::{Duplex, LostName, Names};
use crate::core::{Handle, ImageSource, Stopping};
use crate::disc::Discs;
use crate::events::{EventKind, EventLog};
use crate::facts::HostFacts;
use crate::name::Name;
use crate::text::Text;
use anyhow::Context;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, watch};
use virtuoso_overlay::ids::VmId;
use virtuoso_overlay::migrate::Phase;
use virtuoso_overlay::table::VmState;
use virtuoso_overlay::time::Instant;
use virtuoso_overlay::vm::lifecycle::{Denied, Step, Wish, decide};
use virtuoso_overlay::vm::reservations::{Reservations, Reserved};

/// Events of QEMU that a listener may be behind; it looks at QEMU itself when it missed some.
const EVENTS_KEPT: usize = 64;

/// A disk to fetch for a new VM, from a way to the host that has it.
pub type DiskSource = (Box<dyn Duplex>, Token);

/// What VMs are made of and with.
pub struct Parts {
    /// The state directory.
    pub state_dir: PathBuf,
    /// The core, for networks and tables.
    pub core: Handle,
    /// Plugs interfaces into networks.
    pub sockets: Sockets,
    /// Asks for names.
    pub names: Names,
    /// The images below VMs' disks.
    pub images: Arc<ImageSource>,
    /// What the operator may watch.
    pub events: EventLog,
    /// The clocks.
    pub clock: Clock,
    /// Files of users in drives.
    pub discs: Discs,
}

/// The VMs of this host.
pub struct Vms {
    pub(super) parts: Parts,
    pub(super) store: Store,
    pub(super) qemu: Result<PathBuf, String>,
    pub(super) accelerator: Accelerator,
    machines: Mutex<BTreeMap<VmId, Arc<Machine>>>,
    /// Copies of VMs that are on their way here.
    copies: Mutex<BTreeMap<VmId, Arc<Machine>>>,
    meters: Meters,
    offers: Arc<Offers>,
    /// VMs that are being made.
    coming: Mutex<BTreeMap<VmId, Spec>>,
    reservations: Mutex<Reservations>,
    /// Held for reading while VMs are made, whose images no other VM may use yet.
    pub(super) making: tokio::sync::RwLock<()>,
    pub(super) drives: Drives,
    pub(super) departures: Departures,
    /// Held while a state is told: the later one must not come first.
    telling: tokio::sync::Mutex<()>,
}

/// What can be shown of a VM.
pub(crate) struct ShownVm {
    pub(crate) console: Arc<Console>,
    /// Where its display is served.
    pub(crate) vnc: PathBuf,
    /// Whether the guest is paused to move.
    pub(crate) is_held: watch::Receiver<bool>,
}

/// A VM as its own host knows it.
#[derive(Clone, Debug)]
pub struct VmInfo {
    /// What it is.
    pub spec: Spec,
    /// Why its process ended, if that was not in order.
    pub crash: Option<String>,
    /// What it waits for, if that is known.
    pub trouble: Option<String>,
    /// What it uses, if it runs.
    pub usage: Option<Usage>,
    /// Bytes that its disk takes.
    pub disk_used_bytes: u64,
    /// Its process.
    pub pid: Option<u32>,
    /// Where its display is served.
    pub vnc: PathBuf,
}

impl Vms {
    /// Opens the VMs of earlier runs and takes over those whose process still lives. `moves` are the migrations that
    /// were under way.
    ///
    /// # Errors
    /// If their directory can't be used.
    pub async fn open(parts: Parts, facts: &HostFacts, moves: &[Move]) -> anyhow::Result<Arc<Self>> {
        let qemu = &facts.qemu;
        let vms = Arc::new(Self {
            store: Store::open(parts.state_dir.join("vms"))?,
            qemu: qemu.path.clone().filter(|_| qemu.usable).ok_or_else(|| qemu.why.clone()),
            accelerator: if facts.kvm.usable { Accelerator::Kvm } else { Accelerator::Tcg },
            machines: Mutex::default(),
            meters: Meters::default(),
            offers: Offers::open(parts.state_dir.join("copies"))?,
            copies: Mutex::default(),
            coming: Mutex::default(),
            reservations: Mutex::default(),
            making: tokio::sync::RwLock::default(),
            drives: Drives::default(),
            departures: Departures::default(),
            telling: tokio::sync::Mutex::default(),
            parts,
        });
        for record in vms.store.load()? {
            let phase = moving::phase_of(moves, record.spec.id.0);
            vms.take_over(record, phase).await;
        }
        vms.retain_bases().await;
        vms.publish().await;
        tokio::spawn(addresses::follow(Arc::downgrade(&vms), vms.parts.core.clone()));
        tokio::spawn(usage::follow(Arc::downgrade(&vms), vms.parts.clock));
        tokio::spawn(names::follow(Arc::downgrade(&vms), vms.parts.names.clone()));
        Ok(vms)
    }

    /// A VM of an earlier run.
    async fn take_over(self: &Arc<Self>, mut record: Record, phase: Option<Phase>) {
        if let Some(phase @ (Phase::Given | Phase::Preparing)) = phase {
            return self.take_over_copy(record, phase).await;
        }
        let spec = record.spec.clone();
        self.reservations().restore(spec.id.0, &spec.name, spec.share());
        let files = self.store.files(spec.id.0);
        let was_running = record.process.is_some();
        let process = match record.process.map(Process::open).transpose() {
            Ok(process) => process.flatten(),
            Err(error) => return tracing::warn!(vm = %spec.name, "A VM is left alone: {error:#}"),
        };
        if was_running && process.is_none() {
            let words = last_words(&files.log());
            record.crash = Some(format!("It ended while no agent ran. {words}").trim().to_owned());
            record.process = None;
        }
        let state = if record.crash.is_some() { VmState::Crashed } else { VmState::Stopped };
        let machine = Machine::new(files, record, state);
        self.machines().insert(spec.id.0, machine.clone());
        match process {
            Some(process) => {
                let process = Arc::new(process);
                // One that moves may be unplugged; it hears what is for groups when that ends.
                if phase.is_none()
                    && let Err(error) = self.parts.sockets.let_hear(&spec.nics).await
                {
                    tracing::warn!(vm = %spec.name, "A guest may not hear what is for groups: {error}");
                }
                let has_arrived = phase == Some(Phase::Taken);
                if let Err(error) = self.adopt(&machine, &process, has_arrived).await {
                    tracing::warn!(vm = %spec.name, "Can't take over the process of a VM: {error:#}");
                    if has_arrived {
                        self.give_up_arrival(&machine, &process).await;
                    }
                }
            }
            None if was_running => {
                clean_up(&machine);
                if machine.begins_again(self.now()) {
                    self.start_in_background(machine);
                }
            }
            None => {}
        }
    }

    /// Takes a running process over, of a VM that `has_arrived` and may fetch its memory still.
    async fn adopt(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        process: &Arc<Process>,
        has_arrived: bool,
    ) -> anyhow::Result<()> {
        let spec = machine.spec();
        for nic in &spec.nics {
            self.parts.sockets.claim(nic).await?;
        }
        // At the place where its QEMU waits for it.
        let base = disk::base(&spec, &self.parts.images).await?;
        let qmp = self.follow(machine, process, base).await?;
        self.resume_drive(machine).await;
        let status = moving::status(&qmp, has_arrived).await?;
        machine.set_state(moving::state_of(&status));
        if status == "io-error" {
            stall::follow(self, machine, None);
        }
        tracing::info!(vm = %spec.name, pid = process.mark().pid, "Took over a running VM");
        self.tell(EventKind::VmAdopted { vm: spec.id, name: spec.name.to_string() });
        Ok(())
    }

    /// Connects to a process and watches it from now on.
    pub(super) async fn follow(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        process: &Arc<Process>,
        base: Option<Base>,
    ) -> anyhow::Result<Qmp> {
        let (qmp, events) = monitor::connect(process, &machine.files.qmp_socket()).await?;
        let is_copy = machine.is_moving();
        let serial = machine.files.serial_socket();
        let connected = UnixStream::connect(&serial).await;
        let stream = connected.with_context(|| format!("Can't connect to {}", serial.display()))?;
        let console = Console::start(stream, is_copy);
        let held = Arc::new(watch::Sender::new(is_copy));
        let (end, ended) = watch::channel(false);
        let ending = Arc::new(AtomicBool::new(false));
        let events_told = broadcast::Sender::new(EVENTS_KEPT);
        let live = Live {
            process: process.clone(),
            qmp: qmp.clone(),
            console,
            base,
            events: events_told,
            ending,
            doom: Arc::default(),
            ended,
            held,
        };
        machine.set_live(Some(live.clone()));
        tokio::spawn(supervise(self.clone(), machine.clone(), live, events, end));
        Ok(qmp)
    }

    /// Makes a VM, `disk` its disk if that is not new; `start` runs it too. The same VM again is no error: it is there.
    /// If it can't be made or started, nothing of it stays.
    ///
    /// # Errors
    /// If there is no room, or something that it needs is not there.
    pub async fn create(self: &Arc<Self>, spec: Spec, disk: Option<DiskSource>, start: bool) -> anyhow::Result<()> {
        // A caller who goes away must not leave half a VM.
        let vms = self.clone();
        tokio::spawn(async move { vms.create_now(spec, disk, start).await }).await.context("Making a VM broke off")?
    }

    async fn create_now(self: &Arc<Self>, spec: Spec, disk: Option<DiskSource>, start: bool) -> anyhow::Result<()> {
        let (id, name, medium) = (spec.id.0, spec.name.clone(), spec.cdrom.clone());
        let room = self.parts.core.call(|core| core.vm_room()).await?;
        let reserved = self.reservations().reserve(id, &name, spec.share(), room);
        match reserved {
            Ok(Reserved::New) => {}
            Ok(Reserved::Before) => return Ok(()),
            Err(refusal) => {
                self.retain_bases().await;
                return Err(VmError::NoRoom(name, refusal).into());
            }
        }
        let made = self.make_under_its_name(spec, disk, start).await;
        self.coming().remove(&id);
        match made {
            Ok(()) => self.publish().await,
            Err(_) => {
                self.forget(id).await;
                medium.iter().for_each(|medium| self.give_back(medium));
            }
        }
        made
    }

    async fn make_under_its_name(
        self: &Arc<Self>,
        spec: Spec,
        disk: Option<DiskSource>,
        start: bool,
    ) -> anyhow::Result<()> {
        let promised = self.parts.names.claim(&spec.name, spec.id.0).await?;
        self.coming().insert(spec.id.0, spec.clone());
        self.publish().await;
        let made = self.make(spec, disk, start).await;
        // A VM that is not made needs no name: dropping the promise ends it.
        if made.is_ok() {
            promised.keep().await;
        }
        made
    }

    async fn make(self: &Arc<Self>, spec: Spec, disk: Option<DiskSource>, start: bool) -> anyhow::Result<()> {
        let _making = self.making.read().await;
        let files = self.store.create(spec.id.0)?;
        // Held from here on, so that the VM finds its image when it is started.
        let base = disk::base(&spec, &self.parts.images).await?;
        match disk {
            Some((stream, token)) => clone::fetch(stream, token, &files.disk(), spec.disk_bytes).await?,
            None if spec.disk_bytes > 0 => disk::make(&spec, &files, base.as_ref()).await?,
            None => {}
        }
        let (id, name) = (spec.id, spec.name.to_string());
        let record = Record { spec, process: None, crash: None };
        files.write(&record)?;
        let machine = Machine::new(files, record, VmState::Stopped);
        self.machines().insert(id.0, machine.clone());
        self.parts.names.check(id.0).await?;
        if start {
            self.start_machine(&machine).await?;
        }
        self.tell(EventKind::VmCreated { vm: id, name });
        Ok(())
    }

    /// Removes all of a VM that does not run. What is in its drive is lent on: it may have left with the VM.
    pub(super) async fn forget(&self, id: VmId) {
        self.machines().remove(&id);
        let files = self.store.files(id);
        if files.dir().exists()
            && let Err(error) = files.remove()
        {
            tracing::warn!("{error:#}");
        }
        self.reservations().release(id);
        self.publish().await;
        self.retain_bases().await;
    }

    /// Lets go of images that no VM uses.
    async fn retain_bases(&self) {
        let _alone = self.making.write().await;
        let copies: Vec<_> = self.copies().values().cloned().collect();
        let used = self.all().iter().chain(&copies).flat_map(|machine| machine.spec().images()).collect();
        disk::retain_bases(&self.parts.images, used).await;
    }

    /// Ends a VM: by its power button, and by force if `patience` runs out or is none.
    ///
    /// # Errors
    /// If it is unknown or on its way to another host.
    pub async fn stop(&self, name: &Name, patience: Option<Duration>) -> anyhow::Result<()> {
        let machine = self.find(name)?;
        let wish = if patience.is_some() { Wish::Stop } else { Wish::Kill };
        let pressed = {
            let _turn = machine.turn.lock().await;
            let step = self.step(&machine, wish, "stop")?;
            match (step, machine.live()) {
                (Step::Nothing, _) | (_, None) => return Ok(()),
                (Step::PowerDown, Some(live)) => match live.qmp.run("system_powerdown").await {
                    Ok(_) => true,
                    Err(error) => {
                        tracing::info!(vm = %name, "The power button does not work: {error}");
                        false
                    }
                },
                (_, Some(_)) => false,
            }
        };
        let Some(mut live) = machine.live() else { return Ok(()) };
        if let Some(patience) = patience.filter(|_| pressed)
            && tokio::time::timeout(patience, live.wait_ended()).await.is_ok()
        {
            return Ok(());
        }
        live.end();
        live.wait_ended().await;
        Ok(())
    }

    /// Removes a VM and its disk; by `force` also one that runs.
    ///
    /// # Errors
    /// If it runs.
    pub async fn delete(&self, name: &Name, force: bool) -> anyhow::Result<()> {
        if force {
            self.stop(name, None).await?;
        }
        let machine = self.find(name)?;
        let _turn = machine.turn.lock().await;
        self.step(&machine, Wish::Delete, "delete")?;
        let spec = machine.spec();
        self.parts.sockets.release(&spec.nics).await;
        self.forget(spec.id.0).await;
        spec.cdrom.iter().for_each(|medium| self.give_back(medium));
        self.tell(EventKind::VmDeleted { vm: spec.id, name: spec.name.to_string() });
        Ok(())
    }

    /// Gives a VM another name, because its own is that of a VM elsewhere.
    pub(super) async fn rename(&self, lost: LostName) -> anyhow::Result<()> {
        let Some(machine) = self.machines().get(&lost.vm).cloned() else { return Ok(()) };
        let _turn = machine.turn.lock().await;
        let (from, to): (Name, Name) = (machine.spec().name, lost.name.parse()?);
        machine.keep(|record| record.spec.name = to.clone())?;
        let spec = machine.spec();
        self.reservations().restore(spec.id.0, &to, spec.share());
        tracing::warn!(%from, %to, kept_by = %lost.to, "Two VMs had one name: this host's has another one now");
        let (from, to) = (from.to_string(), to.to_string());
        self.tell(EventKind::VmRenamed { vm: spec.id, from, to, kept_by: Text(lost.to) });
        self.publish().await;
        Ok(())
    }

    /// What the guest of a VM that runs wrote lately to its console.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn console_history(&self, name: &Name) -> anyhow::Result<Vec<u8>> {
        Ok(self.live(name, "show the console of")?.1.console.history().await)
    }

    /// What can be shown of a VM, or of a copy of one that is on its way here.
    pub(crate) fn shown(&self, id: VmId) -> Option<ShownVm> {
        let machine = self.machine_or_copy(id)?;
        let Live { console, held, .. } = machine.live()?;
        Some(ShownVm { console, vnc: machine.files.vnc_socket(), is_held: held.subscribe() })
    }

    /// A VM that runs, with its process; `verb` says what for.
    pub(super) fn live(&self, name: &Name, verb: &'static str) -> anyhow::Result<(Arc<Machine>, Live)> {
        let machine = self.find(name)?;
        let why = Denied::NotRunning;
        let live = machine.live().ok_or_else(|| VmError::Denied { name: name.clone(), verb, why })?;
        Ok((machine, live))
    }

    /// What a VM of this host is.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn spec(&self, name: &Name) -> anyhow::Result<Spec> {
        Ok(self.find(name)?.spec())
    }

    /// Copies a VM's disk as it is now, for other hosts to fetch; also if the VM runs.
    ///
    /// # Errors
    /// If there is no such VM here, or no room for the copy.
    pub async fn offer_disk(&self, name: &Name, progress: watch::Sender<Progress>) -> anyhow::Result<Offered> {
        self.offers.make(self.find(name)?, progress).await
    }

    /// Copies of disks that other hosts may fetch.
    pub fn offers(&self) -> Arc<Offers> {
        self.offers.clone()
    }

    /// Changes what a VM may use, now and from now on.
    ///
    /// # Errors
    /// If there is no such VM here, or this machine can't limit it.
    pub async fn limit(&self, name: &Name, change: VmLimitsChange) -> anyhow::Result<()> {
        let machine = self.find(name)?;
        let _turn = machine.turn.lock().await;
        self.check_staying(&machine, "change")?;
        let limits = machine.spec().limits.changed(change);
        if let Some(fault) = limits.fault() {
            return Err(VmError::Invalid(fault).into());
        }
        let spec = Spec { limits, ..machine.spec() };
        if let Some(live) = machine.live() {
            if change.cpu_percent.is_some() {
                let group = Cgroup::of(&spec);
                let needed = || VmError::Missing("A limit of processor time needs control groups".into());
                anyhow::ensure!(!group.is_empty(), needed());
                group.limit()?;
            }
            if spec.disk_bytes > 0 {
                limits.throttle(&live.qmp, DISK_DEVICE).await?;
            }
        }
        machine.keep(|record| record.spec.limits = limits)
    }

    /// What is known of a VM here.
    ///
    /// # Errors
    /// If there is none of that name.
    pub async fn info(&self, name: &Name) -> anyhow::Result<VmInfo> {
        let machine = self.find(name)?;
        let (record, live) = (machine.record(), machine.live());
        let process = live.map(|live| live.process);
        Ok(VmInfo {
            spec: record.spec,
            crash: record.crash,
            trouble: machine.trouble().map(|trouble| trouble.reason().to_owned()),
            usage: usage::usage(&self.meters, &machine).await,
            disk_used_bytes: usage::disk_bytes(&machine),
            pid: process.map(|process| process.mark().pid),
            vnc: machine.files.vnc_socket(),
        })
    }

    pub(super) fn step(&self, machine: &Machine, wish: Wish, verb: &'static str) -> anyhow::Result<Step> {
        let denied = |why| VmError::Denied { name: machine.spec().name, verb, why };
        Ok(decide(machine.state(), wish).map_err(denied)?)
    }

    /// Refuses to change a VM whose definition is on its way to another host.
    pub(super) fn check_staying(&self, machine: &Machine, verb: &'static str) -> Result<(), VmError> {
        match machine.state() {
            VmState::Migrating => Err(VmError::Denied { name: machine.spec().name, verb, why: Denied::Migrating }),
            _ => Ok(()),
        }
    }

    /// Sets a VM's state and tells the swarm.
    pub(super) async fn set_state(&self, machine: &Machine, state: VmState) {
        machine.set_state(state);
        if matches!(state, VmState::Stopped | VmState::Crashed) {
            self.parts.sockets.release(&machine.spec().nics).await;
        }
        self.publish().await;
    }

    /// Whether this host takes VMs of others.
    pub(super) async fn check_arrival(&self) -> anyhow::Result<()> {
        let is_draining = self.parts.core.call(|core| core.is_draining()).await?;
        anyhow::ensure!(!is_draining, "The host is being drained: it takes no VMs");
        Ok(())
    }

    /// Makes the tables say what there is.
    pub async fn publish(&self) {
        let _telling = self.telling.lock().await;
        let mut vms: BTreeMap<_, _> =
            self.all().iter().map(|machine| (machine.spec().id.0, (machine.spec(), machine.state()))).collect();
        vms.extend(self.coming().iter().map(|(id, spec)| (*id, (spec.clone(), VmState::Creating))));
        let vms = vms.into_values().collect();
        let held = self.reservations().total();
        // Without a core the agent is stopping.
        self.parts.core.call(move |core| core.set_vms(vms, held)).await.ok();
    }

    pub(super) fn meters(&self) -> &Meters {
        &self.meters
    }

    pub(super) async fn tell_usage(&self, total: TotalUsage) -> Result<(), Stopping> {
        self.parts.core.call(move |core| core.set_usage(total)).await
    }

    pub(super) fn tell(&self, event: EventKind) {
        self.parts.events.emit(event);
    }

    pub(super) fn now(&self) -> Instant {
        self.parts.clock.mono()
    }

    pub(super) fn find(&self, name: &Name) -> anyhow::Result<Arc<Machine>> {
        let found = self.all().into_iter().find(|machine| machine.spec().name == *name);
        Ok(found.ok_or_else(|| VmError::NotFound(name.clone()))?)
    }

    pub(super) fn copies(&self) -> MutexGuard<'_, BTreeMap<VmId, Arc<Machine>>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn all(&self) -> Vec<Arc<Machine>> {
        self.machines().values().cloned().collect()
    }

    /// No holder can panic half-way; the same holds for the reservations.
    pub(super) fn machines(&self) -> MutexGuard<'_, BTreeMap<VmId, Arc<Machine>>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn coming(&self) -> MutexGuard<'_, BTreeMap<VmId, Spec>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn reservations(&self) -> MutexGuard<'_, Reservations> {
        self.reservations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

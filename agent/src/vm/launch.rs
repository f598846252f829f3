//! How a VM's process is started: QEMU with all that it is given by descriptor, its guest stopped until it may run.

use super::cgroup;
use super::disk::{self, Base};
use super::error::VmError;
use super::limits::VmLimits;
use super::machine::{Machine, Trouble};
use super::process::{Process, last_words};
use super::qemu::{DISK_DEVICE, Launch};
use super::qmp::{Qmp, QmpError};
use super::spec::{Boot, Spec};
use super::supervisor::clean_up;
use super::vms::Vms;
use super::{initrd, seed};
use crate::events::EventKind;
use crate::name::Name;
use anyhow::Context;
use std::fs::Permissions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use virtuoso_overlay::table::VmState;
use virtuoso_overlay::vm::lifecycle::{Step, Wish};

impl Vms {
    /// Starts a VM that does not run.
    ///
    /// # Errors
    /// If QEMU does not start it.
    pub async fn start(self: &Arc<Self>, name: &Name) -> anyhow::Result<()> {
        let (vms, machine) = (self.clone(), self.find(name)?);
        tokio::spawn(async move { vms.start_machine(&machine).await }).await.context("Starting a VM broke off")?
    }

    /// Presses a VM's reset button. One that hangs for memory that does not come has none that works: it begins anew.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn reset(self: &Arc<Self>, name: &Name) -> anyhow::Result<()> {
        let machine = self.find(name)?;
        let turn = machine.turn.lock().await;
        self.step(&machine, Wish::Reset, "reset")?;
        let mut live = machine.live().context("The VM is ending")?;
        if matches!(machine.trouble(), Some(Trouble::Memory(_))) {
            drop(turn);
            live.end();
            live.wait_ended().await;
            return self.start(name).await;
        }
        live.qmp.run("system_reset").await?;
        Ok(())
    }

    pub(super) fn start_in_background(self: &Arc<Self>, machine: Arc<Machine>) {
        let vms = self.clone();
        tokio::spawn(async move {
            if let Err(error) = vms.start_machine(&machine).await {
                tracing::warn!(vm = %machine.spec().name, "{error:#}");
            }
        });
    }

    pub(super) async fn start_machine(self: &Arc<Self>, machine: &Arc<Machine>) -> anyhow::Result<()> {
        let _turn = machine.turn.lock().await;
        let spec = machine.spec();
        if self.step(machine, Wish::Start, "start")? == Step::Nothing {
            return Ok(());
        }
        let launched = self.launch(machine, &spec).await;
        if launched.is_err() {
            self.parts.sockets.release(&spec.nics).await;
            clean_up(machine);
        }
        launched?;
        tracing::info!(vm = %spec.name, "A VM runs");
        self.tell(EventKind::VmStarted { vm: spec.id, name: spec.name.to_string() });
        Ok(())
    }

    async fn launch(self: &Arc<Self>, machine: &Arc<Machine>, spec: &Spec) -> anyhow::Result<()> {
        let qmp = self.launch_paused(machine, spec, false).await?;
        self.load_drive(machine, &qmp).await;
        // The guest begins only now: its first words find their reader.
        if let Err(error) = begin(&qmp, spec).await {
            if let Some(live) = machine.live() {
                self.abandon(machine, &live.process).await?;
            }
            return Err(error.into());
        }
        self.set_state(machine, VmState::Running).await;
        Ok(())
    }

    /// Starts a process whose guest does not run yet; if it `is_incoming`, its memory comes from another host.
    pub(super) async fn launch_paused(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        spec: &Spec,
        is_incoming: bool,
    ) -> anyhow::Result<Qmp> {
        let base = disk::base(spec, &self.parts.images).await?;
        let process = Arc::new(self.spawn(machine, spec, base.as_ref(), is_incoming).await?);
        let mark = process.mark();
        let running = async {
            machine.keep(|record| {
                record.process = Some(mark);
                record.crash = None;
            })?;
            cgroup::confine(spec, mark.pid)?;
            self.follow(machine, &process, base).await
        };
        let qmp = tokio::select! {
            qmp = running => qmp,
            exit = process.ended() => {
                let words = last_words(&machine.files.log());
                let words = if words.is_empty() { format!("{exit:?}") } else { words };
                Err(VmError::DidNotStart { name: spec.name.clone(), words }.into())
            }
        };
        if qmp.is_err() {
            self.abandon(machine, &process).await?;
        }
        qmp
    }

    /// Ends a process that did not get as far as a guest.
    async fn abandon(&self, machine: &Arc<Machine>, process: &Process) -> anyhow::Result<()> {
        match machine.live() {
            Some(mut live) => {
                live.end();
                live.wait_ended().await;
            }
            None => process.kill(),
        }
        machine.keep(|record| record.process = None)
    }

    /// Starts QEMU with all that it is given by descriptor.
    async fn spawn(
        &self,
        machine: &Arc<Machine>,
        spec: &Spec,
        base: Option<&Base>,
        is_incoming: bool,
    ) -> anyhow::Result<Process> {
        let qemu = self.qemu.clone().map_err(VmError::Missing)?;
        let files = &machine.files;
        let mut inherited: Vec<OwnedFd> = Vec::new();
        for path in [files.qmp_socket(), files.serial_socket()] {
            inherited.push(listen(&path)?);
        }
        for nic in &spec.nics {
            inherited.push(match is_incoming {
                true => self.parts.sockets.prepare(nic).await?,
                false => self.parts.sockets.plug(nic).await?,
            });
        }
        let fds: Vec<_> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
        let launch = Launch {
            spec,
            files,
            accelerator: self.accelerator,
            qmp: fds[0],
            serial: fds[1],
            taps: fds[2..].to_vec(),
            initrd: initrd_of(machine, spec)?,
            base: base.map(|base| base.path()),
            seed: match &spec.boot {
                Boot::Image { .. } if !spec.ssh_keys.is_empty() => Some(seed::make(spec, files.dir()).await?),
                Boot::Image { .. } | Boot::Kernel { .. } | Boot::Disk => None,
            },
            is_incoming,
        };
        Process::spawn(&qemu, &launch.arguments(), &inherited, &files.log())
    }
}

/// Lets the guest run, within its limits.
async fn begin(qmp: &Qmp, spec: &Spec) -> Result<(), QmpError> {
    limit(qmp, spec).await?;
    qmp.run("cont").await.map(drop)
}

/// Limits the traffic of a guest's disk.
pub(super) async fn limit(qmp: &Qmp, spec: &Spec) -> Result<(), QmpError> {
    if spec.disk_bytes > 0 && spec.limits != VmLimits::default() {
        spec.limits.throttle(qmp, DISK_DEVICE).await?;
    }
    Ok(())
}

/// A listening socket for QEMU to serve. Because it listens before QEMU is there, nobody has to wait for it.
fn listen(path: &Path) -> anyhow::Result<OwnedFd> {
    // A process that was killed leaves its sockets.
    std::fs::remove_file(path).ok();
    let listener = UnixListener::bind(path).with_context(|| format!("Can't listen on {}", path.display()))?;
    let closed = std::fs::set_permissions(path, Permissions::from_mode(0o600));
    closed.with_context(|| format!("Can't set the rights of {}", path.display()))?;
    Ok(listener.into())
}

fn initrd_of(machine: &Machine, spec: &Spec) -> anyhow::Result<Option<PathBuf>> {
    let Boot::Kernel { initrd: Some(original), .. } = &spec.boot else { return Ok(None) };
    if spec.ssh_keys.is_empty() {
        return Ok(None);
    }
    let path = machine.files.initrd();
    initrd::write(spec, original, &path)?;
    Ok(Some(path))
}

//! The CD-ROM drive of a VM, which reads its medium by NBD from this agent.
//!
//! QEMU knows only a socket in the VM's directory. So it need not care where the medium is, and waits for the next
//! agent when this one ends.

use super::machine::Machine;
use super::medium::Medium;
use super::qemu::DRIVE;
use super::qmp::{Qmp, QmpError};
use super::spec::Spec;
use super::vms::Vms;
use crate::disc::{Gone, PATIENCE, RemoteDisc};
use crate::events::EventKind;
use crate::image::{InUse, Pull, Served};
use crate::name::Name;
use crate::nbd;
use anyhow::Context;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::task::AbortHandle;
use virtuoso_overlay::ids::VmId;

/// QEMU's name of what is in the drive.
const NODE: &str = "cdrom0";
/// Seconds that QEMU waits for the next agent before reads fail. A guest gives a drive 30 s before it resets it.
const RECONNECT_S: u32 = 20;

/// The media that are served to drives.
#[derive(Default)]
pub(super) struct Drives(Mutex<BTreeMap<VmId, Serving>>);

/// One medium, as long as it is served.
enum Serving {
    Disc {
        _server: DiscServer,
    },
    /// By the server that all VMs with this image share.
    Image {
        _server: InUse<Served>,
    },
}

/// Serves a file to one drive.
struct DiscServer {
    tasks: [AbortHandle; 2],
    socket: PathBuf,
}

/// A medium that can be read.
enum Opened {
    Disc(Arc<RemoteDisc>, Gone),
    Image(InUse<Served>),
}

impl Drop for DiscServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        // Of a VM that is removed it is gone already.
        std::fs::remove_file(&self.socket).ok();
    }
}

impl Drives {
    /// Ends the serving of a VM's medium.
    fn close(&self, vm: VmId) {
        self.served().remove(&vm);
    }

    /// No holder can panic half-way.
    fn served(&self) -> MutexGuard<'_, BTreeMap<VmId, Serving>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vms {
    /// Puts a medium into the drive of a VM, in place of what is in it.
    ///
    /// # Errors
    /// If it can't be read, or QEMU does not take it.
    pub async fn insert_medium(self: &Arc<Self>, name: &Name, medium: Medium) -> anyhow::Result<()> {
        let (vms, machine) = (self.clone(), self.find(name)?);
        // A caller who goes away must not leave the tray open.
        let inserting = tokio::spawn(async move { vms.insert_now(&machine, medium).await });
        inserting.await.context("Inserting a medium broke off")?
    }

    async fn insert_now(self: &Arc<Self>, machine: &Arc<Machine>, medium: Medium) -> anyhow::Result<()> {
        let _turn = machine.turn.lock().await;
        self.check_staying(machine, "change the drive of")?;
        let opened = self.open_medium(&medium).await?;
        self.empty(machine).await?;
        if let Some(live) = machine.live() {
            let loaded = async {
                let socket = self.serve(machine, opened)?;
                load(&live.qmp, &socket).await
            };
            if let Err(error) = loaded.await {
                self.drives.close(machine.spec().id.0);
                return Err(error);
            }
        }
        let source = medium.source();
        machine.keep(|record| record.spec.cdrom = Some(medium))?;
        let Spec { id, name, .. } = machine.spec();
        tracing::info!(vm = %name, source, "A medium is in the drive");
        self.tell(EventKind::CdromInserted { vm: id, name: name.to_string(), source });
        Ok(())
    }

    /// Takes out what is in the drive of a VM, whether the guest uses it or not.
    ///
    /// # Errors
    /// If QEMU does not give it.
    pub async fn eject_medium(self: &Arc<Self>, name: &Name) -> anyhow::Result<()> {
        let (vms, machine) = (self.clone(), self.find(name)?);
        let ejecting = tokio::spawn(async move {
            let _turn = machine.turn.lock().await;
            vms.check_staying(&machine, "change the drive of")?;
            vms.empty(&machine).await
        });
        ejecting.await.context("Ejecting a medium broke off")?
    }

    /// Takes out what is in the drive, and gives it back.
    async fn empty(&self, machine: &Machine) -> anyhow::Result<()> {
        let Spec { id, name, cdrom, .. } = machine.spec();
        let Some(medium) = cdrom else { return Ok(()) };
        if let Some(live) = machine.live() {
            unload(&live.qmp).await?;
        }
        self.drives.close(id.0);
        machine.keep(|record| record.spec.cdrom = None)?;
        self.give_back(&medium);
        self.tell(EventKind::CdromEjected { vm: id, name: name.to_string(), source: medium.source() });
        Ok(())
    }

    /// Tells the host of a medium that it is not needed any more.
    pub(super) fn give_back(&self, medium: &Medium) {
        if let Medium::Disc { key, host, .. } = medium {
            self.parts.discs.give_back(host.0, key.0);
        }
    }

    /// Loads the drive of a VM whose guest is about to begin. Without its medium the VM starts with an empty drive.
    /// Whether there is one in it.
    pub(super) async fn load_drive(self: &Arc<Self>, machine: &Arc<Machine>, qmp: &Qmp) -> bool {
        let Some(medium) = machine.spec().cdrom else { return false };
        let loaded = async {
            let opened = tokio::time::timeout(PATIENCE, self.open_medium(&medium)).await;
            let opened = opened.with_context(|| format!("{} takes too long to open", medium.source()))??;
            let socket = self.serve(machine, opened)?;
            load(qmp, &socket).await
        };
        if let Err(error) = loaded.await {
            self.drives.close(machine.spec().id.0);
            self.note_loss(machine, &medium, &format!("{error:#}"));
            return false;
        }
        true
    }

    /// Serves the drive of a VM that runs since an earlier agent: QEMU connects again by itself.
    pub(super) async fn resume_drive(self: &Arc<Self>, machine: &Arc<Machine>) {
        let Some(medium) = machine.spec().cdrom else { return };
        let resumed = async {
            let opened = match &medium {
                Medium::Disc { key, host, size_bytes, .. } => {
                    let (disc, gone) =
                        RemoteDisc::resume(self.parts.discs.way_to(host.0), key.0, *size_bytes, PATIENCE);
                    Opened::Disc(disc, gone)
                }
                Medium::Image { .. } => self.open_medium(&medium).await?,
            };
            self.serve(machine, opened)
        };
        if let Err(error) = resumed.await {
            // The guest gets errors from its drive; its disk and its network are as they were.
            tracing::warn!(vm = %machine.spec().name, "Can't serve the drive of a VM: {error:#}");
        }
    }

    /// Ends the serving of the medium of a VM that has ended. It is served again when the VM starts.
    pub(super) fn close_drive(&self, vm: VmId) {
        self.drives.close(vm);
    }

    async fn open_medium(&self, medium: &Medium) -> anyhow::Result<Opened> {
        match medium {
            Medium::Disc { key, host, path, size_bytes } => {
                let opened = RemoteDisc::open(self.parts.discs.way_to(host.0), key.0, PATIENCE).await;
                let (disc, gone) = opened.with_context(|| format!("Can't read {path} of host {host}"))?;
                anyhow::ensure!(disc.file_bytes() == *size_bytes, "{path} of host {host} has another size now");
                Ok(Opened::Disc(disc, gone))
            }
            Medium::Image { name, digest, .. } => {
                let (image, name) = (digest.0, name.clone());
                let pull = Pull { image, name, size_bytes: None, rate: None, patience: Pull::PATIENCE };
                Ok(Opened::Image(self.parts.images.serve(pull).await?))
            }
        }
    }

    /// Serves a medium to QEMU, and empties the drive if it is lost; where.
    fn serve(self: &Arc<Self>, machine: &Arc<Machine>, opened: Opened) -> anyhow::Result<PathBuf> {
        let id = machine.spec().id.0;
        let (serving, socket) = match opened {
            Opened::Disc(disc, gone) => {
                let server = self.serve_disc(machine, disc, gone)?;
                let socket = server.socket.clone();
                (Serving::Disc { _server: server }, socket)
            }
            Opened::Image(server) => {
                let socket = server.path().to_owned();
                (Serving::Image { _server: server }, socket)
            }
        };
        let replaced = self.drives.served().insert(id, serving);
        debug_assert!(replaced.is_none(), "the drive was emptied before");
        Ok(socket)
    }

    fn serve_disc(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        disc: Arc<RemoteDisc>,
        gone: Gone,
    ) -> anyhow::Result<DiscServer> {
        let socket = machine.files.cdrom_socket();
        let listener = nbd::bind(&socket).with_context(|| format!("Can't listen on {}", socket.display()))?;
        let server = tokio::spawn(nbd::listen(listener, disc));
        let (vms, machine) = (self.clone(), machine.clone());
        let watcher = tokio::spawn(async move {
            if let Ok(why) = gone.await {
                // In a task of its own: taking the medium out ends this one.
                tokio::spawn(async move { vms.lose(&machine, &why).await });
            }
        });
        Ok(DiscServer { tasks: [server.abort_handle(), watcher.abort_handle()], socket })
    }

    /// Empties a drive whose medium is lost.
    async fn lose(self: Arc<Self>, machine: &Arc<Machine>, why: &str) {
        let _turn = machine.turn.lock().await;
        let Spec { id, name, cdrom, .. } = machine.spec();
        if let Some(live) = machine.live()
            && let Err(error) = unload(&live.qmp).await
        {
            tracing::warn!(vm = %name, "Can't empty a drive: {error:#}");
        }
        self.drives.close(id.0);
        if let Some(medium) = cdrom {
            self.note_loss(machine, &medium, why);
        }
    }

    fn note_loss(&self, machine: &Machine, medium: &Medium, why: &str) {
        let Spec { id, name, .. } = machine.spec();
        tracing::info!(vm = %name, source = medium.source(), "The medium in the drive is lost: {why}");
        if let Err(error) = machine.keep(|record| record.spec.cdrom = None) {
            tracing::warn!(vm = %name, "Can't keep what is in a drive: {error:#}");
        }
        let (name, source, reason) = (name.to_string(), medium.source(), why.to_owned());
        self.tell(EventKind::CdromLost { vm: id, name, source, reason });
    }
}

/// Puts what is served at `socket` into the drive, which must be empty.
async fn load(qmp: &Qmp, socket: &Path) -> anyhow::Result<()> {
    let server = json!({"type": "unix", "path": socket});
    let node = json!({"driver": "nbd", "node-name": NODE, "read-only": true, "server": server, "export": "",
        "reconnect-delay": RECONNECT_S});
    qmp.run_with("blockdev-add", node).await?;
    let inserted = async {
        qmp.run_with("blockdev-open-tray", json!({"id": DRIVE, "force": true})).await?;
        qmp.run_with("blockdev-insert-medium", json!({"id": DRIVE, "node-name": NODE})).await?;
        qmp.run_with("blockdev-close-tray", json!({"id": DRIVE})).await
    };
    let inserted = inserted.await;
    if inserted.is_err() {
        unload(qmp).await?;
    }
    inserted?;
    Ok(())
}

/// Takes out what is in the drive, by force: a guest may have locked the tray. An empty drive stays so.
async fn unload(qmp: &Qmp) -> anyhow::Result<()> {
    qmp.run_with("blockdev-open-tray", json!({"id": DRIVE, "force": true})).await?;
    qmp.run_with("blockdev-remove-medium", json!({"id": DRIVE})).await?;
    qmp.run_with("blockdev-close-tray", json!({"id": DRIVE})).await?;
    match qmp.run_with("blockdev-del", json!({"node-name": NODE})).await {
        // There was none.
        Ok(_) | Err(QmpError::Refused { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

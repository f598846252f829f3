//! Clones of VMs: a new VM with a copy of another one's disk, here or on another host.

use super::backend::Agent;
use super::vm_names::Duplex;
use super::vm_verbs::vm_error;
use crate::control::model::{BootDevice, Progress, Vm, VmClone, VmCreate, VmDiskOffer};
use crate::control::problem::ApiError;
use crate::entropy;
use crate::name::Name;
use crate::swarm::streams::{Inbound, StreamKind};
use crate::text::Text;
use crate::vm::{Boot, DiskSource, Offers, Spec};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// Copies of disks.
pub const VM_DISK: StreamKind = StreamKind::new("vm-disk");

/// Bytes on their way between two tasks of this agent.
const PIPE_BYTES: usize = 256 << 10;

impl Agent {
    /// Makes a copy of a VM of this host where it is wanted. Its disk is copied as it is now; dropping the future
    /// leaves nothing of it.
    pub(super) async fn clone_here(
        &self,
        source: Name,
        wanted: VmClone,
        progress: watch::Sender<Progress>,
    ) -> Result<Vm, ApiError> {
        let spec = self.vms.spec(&source).map_err(vm_error)?;
        let host = wanted.host.clone();
        let (here, host) = self
            .core
            .call(move |core| {
                let me = core.me();
                Ok::<_, ApiError>((me, host.as_deref().map_or(Ok(me), |host| core.host_named(host))?))
            })
            .await??;
        let mut request = request(&spec, wanted);
        if spec.disk_bytes > 0 {
            let offered = self.vms.offer_disk(&source, progress).await.map_err(vm_error)?;
            let token = format!("{:032x}", u128::from_be_bytes(offered.token));
            request.disk = Some(VmDiskOffer { host: Text(here), token, digest: spec.image().map(Text) });
            // The copy stays until the other host has made its VM of it.
            let made = self.make_on(host, here, request).await;
            drop(offered);
            return made;
        }
        self.make_on(host, here, request).await
    }

    /// A way to the disk of a new VM.
    pub(super) async fn disk_source(&self, offer: &VmDiskOffer) -> Result<DiskSource, ApiError> {
        let token = u128::from_str_radix(&offer.token, 16).map_err(|_| ApiError::invalid("A disk has no such name"))?;
        let me = self.core.call(|core| core.me()).await?;
        let host = offer.host.0;
        let stream: Box<dyn Duplex> = if host == me {
            let (near, far) = tokio::io::duplex(PIPE_BYTES);
            tokio::spawn(serve(self.vms.offers(), far));
            Box::new(near)
        } else {
            let opened = self.streams.open(host, VM_DISK).await;
            Box::new(opened.map_err(|error| ApiError::conflict(format!("Can't fetch the disk: {error}")))?)
        };
        Ok((stream, token.to_be_bytes()))
    }
}

/// The same VM under another name; its id and addresses follow from the request's own id.
fn request(spec: &Spec, wanted: VmClone) -> VmCreate {
    let (kernel, initrd, append) = match spec.boot.clone() {
        Boot::Kernel { kernel, initrd, append, .. } => (Some(kernel), initrd, append),
        Boot::Image(_) | Boot::Disk => (None, None, String::new()),
    };
    let number = || format!("{:016x}{:016x}", entropy::u64(), entropy::u64());
    VmCreate {
        name: wanted.name,
        request: Some(wanted.request.unwrap_or_else(number)),
        vcpus: spec.vcpus,
        memory_bytes: spec.memory_bytes,
        disk_bytes: spec.disk_bytes,
        // What is in the drive is lent to that one alone.
        cdrom: None,
        image: spec.base().map(|image| image.name.clone()),
        kernel,
        initrd,
        append,
        boot: spec.cdrom_first.then_some(BootDevice::Cdrom),
        networks: spec.nics.iter().map(|nic| nic.network.clone()).collect(),
        spoofing: spec.nics.iter().any(|nic| nic.spoofing),
        labels: spec.labels.clone(),
        ssh_keys: spec.ssh_keys.clone(),
        restart: spec.restart,
        limits: spec.limits,
        stopped: wanted.stopped,
        host: None,
        best: false,
        host_labels: Vec::new(),
        disk: None,
    }
}

async fn serve(offers: Arc<Offers>, stream: impl Duplex) {
    if let Err(error) = offers.serve(stream).await {
        tracing::debug!("The copy of a disk was not fetched: {error:#}");
    }
}

/// Gives copies of disks to other hosts until the agent stops.
pub async fn serve_disks(offers: Arc<Offers>, mut inbound: mpsc::Receiver<Inbound>) {
    while let Some(Inbound { stream, .. }) = inbound.recv().await {
        tokio::spawn(serve(offers.clone(), stream));
    }
}

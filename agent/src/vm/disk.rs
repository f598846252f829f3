//! A VM's own disk: a qcow2 file, empty or on top of an image that it never changes. QEMU reads the image from this
//! agent, wherever it is.

use super::error::VmError;
use super::spec::{BaseImage, Spec};
use super::store::Files;
use crate::core::ImageSource;
use crate::image::{InUse, Pull, Served};
use anyhow::Context;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use tokio::process::Command;
use virtuoso_overlay::ids::Digest;

/// An image below VMs' disks, as a server that QEMU reads it from.
pub(super) type Base = InUse<Served>;

/// The image below a VM's disk, here or elsewhere; only the list of its chunks must be had.
pub(super) async fn base(spec: &Spec, images: &Arc<ImageSource>) -> anyhow::Result<Option<Base>> {
    let Some(BaseImage { name, digest }) = spec.base().cloned() else { return Ok(None) };
    let pull = Pull { image: digest.0, name, size_bytes: None, rate: None, patience: Pull::PATIENCE };
    Ok(Some(images.serve(pull).await?))
}

/// Lets go of images that no VM uses.
pub(super) async fn retain_bases(images: &Arc<ImageSource>, used: BTreeSet<Digest>) {
    let store = images.images.clone();
    let retained = tokio::task::spawn_blocking(move || store.retain_held(&used)).await;
    if let Ok(Err(error)) = retained {
        tracing::warn!("Can't let go of images that no VM uses: {error:#}");
    }
}

/// Makes a VM's disk. What is below it, QEMU is told when it starts: the file names no other.
pub(super) async fn make(spec: &Spec, files: &Files, base: Option<&Base>) -> anyhow::Result<()> {
    if let (Some(base), Some(image)) = (base, spec.base()) {
        let (image_bytes, image) = (base.size_bytes(), image.name.clone());
        let small = VmError::SmallDisk { image, image_bytes, disk_bytes: spec.disk_bytes };
        anyhow::ensure!(spec.disk_bytes >= image_bytes, small);
    }
    make_file(&files.disk(), spec.disk_bytes).await
}

/// Makes an empty disk.
pub(super) async fn make_file(path: &Path, disk_bytes: u64) -> anyhow::Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]);
    command.arg(path).arg(disk_bytes.to_string()).kill_on_drop(true);
    let output = match command.output().await {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let missing = "VMs with disks need qemu-img on their host: install qemu-utils";
            return Err(VmError::Missing(missing.into()).into());
        }
        other => other.context("Can't run qemu-img")?,
    };
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    anyhow::ensure!(output.status.success(), "qemu-img can't make {}: {complaint}", path.display());
    Ok(())
}

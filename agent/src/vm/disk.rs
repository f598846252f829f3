//! A VM's own disk: a qcow2 file, empty or on top of an image that it never changes.

use super::error::VmError;
use super::spec::Spec;
use super::store::Files;
use crate::image::ImageStore;
use crate::name::Name;
use anyhow::Context;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::process::Command;
use tokio::sync::watch;
use virtuoso_overlay::ids::Digest;

/// Images as plain files, for QEMU to read below the disks of VMs.
#[derive(Debug)]
pub(super) struct Bases {
    dir: PathBuf,
    images: Arc<ImageStore>,
    /// Held while files come and go.
    turn: tokio::sync::Mutex<()>,
}

impl Bases {
    pub(super) fn new(dir: PathBuf, images: Arc<ImageStore>) -> Self {
        Self { dir, images, turn: tokio::sync::Mutex::default() }
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(format!("{digest}.raw"))
    }

    /// The image as a file, written at its first use.
    pub(super) async fn get(&self, name: &Name, digest: Digest) -> anyhow::Result<PathBuf> {
        let _turn = self.turn.lock().await;
        let path = self.path(digest);
        if path.exists() {
            return Ok(path);
        }
        std::fs::create_dir_all(&self.dir).with_context(|| format!("Can't create {}", self.dir.display()))?;
        // Whole or not at all: a file under its own name is complete.
        let unfinished = path.with_extension("unfinished");
        if unfinished.exists() {
            std::fs::remove_file(&unfinished).with_context(|| format!("Can't remove {}", unfinished.display()))?;
        }
        self.images.export(name.clone(), unfinished.clone(), watch::Sender::default()).await?;
        std::fs::rename(&unfinished, &path).with_context(|| format!("Can't create {}", path.display()))?;
        Ok(path)
    }

    /// Removes the files of images that no VM uses.
    pub(super) async fn retain(&self, used: impl Fn(Digest) -> bool) {
        let _turn = self.turn.lock().await;
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let digest = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            if !digest.is_some_and(&used)
                && let Err(error) = std::fs::remove_file(&path)
            {
                tracing::warn!("Can't remove {}: {error}", path.display());
            }
        }
    }
}

/// Makes a VM's disk.
pub(super) async fn make(spec: &Spec, files: &Files, base: Option<&Path>) -> anyhow::Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]);
    if let Some(base) = base {
        command.args(["-F", "raw", "-b"]).arg(base);
    }
    command.arg(files.disk()).arg(spec.disk_bytes.to_string()).kill_on_drop(true);
    let output = match command.output().await {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let missing = "VMs with disks need qemu-img on their host: install qemu-utils";
            return Err(VmError::Missing(missing.into()).into());
        }
        other => other.context("Can't run qemu-img")?,
    };
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    anyhow::ensure!(output.status.success(), "qemu-img can't make {}: {complaint}", files.disk().display());
    Ok(())
}

//! Images that VMs of this host use, running or not. Their lists of chunks stand in `held/`, which keeps what is here
//! of them from the sweep, whatever becomes of their names.

use super::manifest::Manifest;
use super::{ImageError, ImageStore};
use anyhow::Context;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::PoisonError;
use virtuoso_overlay::ids::Digest;

impl ImageStore {
    /// Keeps what is here of an image, and what comes, until [`Self::retain_held`] lets go of it.
    pub(super) fn hold(&self, manifest: &Manifest) -> Result<(), ImageError> {
        let path = self.held_path(manifest.digest());
        if Manifest::read(&path, manifest.digest()).is_err() {
            // A sweep that has begun does not know of it.
            let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            self.write_manifest(manifest, &path)?;
            self.sync()?;
        }
        self.sweep_if_due()?;
        Ok(())
    }

    /// Lets go of all images but those in `used` and those that are served now.
    ///
    /// # Errors
    /// If the store's files can't be read or removed.
    pub fn retain_held(&self, used: &BTreeSet<Digest>) -> anyhow::Result<()> {
        let held = self.held().context("Can't read which images VMs use")?;
        let unused: Vec<Digest> =
            held.into_iter().filter(|image| !used.contains(image) && !self.served.has(*image)).collect();
        for image in &unused {
            let path = self.held_path(*image);
            fs::remove_file(&path).with_context(|| format!("Can't remove {}", path.display()))?;
        }
        if unused.is_empty() { Ok(()) } else { self.sweep() }
    }

    /// Images that VMs use.
    pub(super) fn held(&self) -> std::io::Result<BTreeSet<Digest>> {
        let mut held = BTreeSet::new();
        for entry in fs::read_dir(self.dir.join("held"))? {
            held.extend(entry?.file_name().to_str().and_then(|name| name.parse::<Digest>().ok()));
        }
        Ok(held)
    }

    pub(super) fn held_path(&self, image: Digest) -> PathBuf {
        self.dir.join("held").join(image.to_string())
    }
}

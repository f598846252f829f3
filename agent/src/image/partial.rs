//! Images that are being fetched. Their manifests wait in `partial/`, which keeps what is here of them from the sweep
//! and lets a fetch go on after a restart.

use super::chunk::{self, write_file};
use super::manifest::Manifest;
use super::{ImageError, ImageStore, StoredImage};
use crate::name::Name;
use anyhow::{Context, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;
use virtuoso_overlay::ids::Digest;

/// What nobody has gone on fetching for so long is removed at start, and what a crash of the machine has torn.
const ABANDONED_AFTER: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Space that images leave free, so that state files can still be written.
pub(super) const SPACE_KEPT_BYTES: u64 = 64 << 20;

impl ImageStore {
    /// The manifest of an image that is here or on its way; blocks on the disk.
    pub(super) fn find_manifest(&self, image: Digest) -> Option<Manifest> {
        let paths = [self.manifest_path(image), self.partial_path(image), self.held_path(image)];
        paths.iter().find_map(|path| Manifest::read(path, image).ok())
    }

    /// The same in its encoding.
    pub(super) fn encoded_manifest(&self, image: Digest) -> anyhow::Result<Vec<u8>> {
        Ok(self.find_manifest(image).context("No such image here")?.encode())
    }

    /// Whether all of an image is here, under whatever name.
    pub fn has(&self, image: Digest) -> bool {
        self.names().values().any(|stored| stored.digest == image && stored.sizes.is_some())
    }

    /// Protects what is here of an image, and what comes, from now until it is named or discarded.
    pub(super) fn begin_partial(&self, manifest: &Manifest) -> Result<(), ImageError> {
        {
            // A sweep that has begun does not know of it.
            let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            self.write_manifest(manifest, &self.partial_path(manifest.digest()))?;
        }
        Ok(self.sweep_if_due()?)
    }

    /// Puts a list of chunks in its place, whole or not at all.
    pub(super) fn write_manifest(&self, manifest: &Manifest, path: &Path) -> Result<(), ImageError> {
        let number = self.imports.fetch_add(1, Ordering::Relaxed);
        let unfinished = self.dir.join("tmp").join(format!("manifest-{number}"));
        let encoded = manifest.encode();
        let written = write_file(&unfinished, &encoded).context("Can't write the list of chunks");
        written.map_err(|error| {
            fs::remove_file(&unfinished).ok();
            self.explain_space(error, encoded.len() as u64)
        })?;
        fs::rename(&unfinished, path).with_context(|| format!("Can't create {}", path.display()))?;
        Ok(())
    }

    /// Keeps a chunk of an image that is being fetched. Its content was checked.
    pub(super) fn keep_chunk(&self, digest: Digest, content: &[u8]) -> Result<(), ImageError> {
        debug_assert_eq!(chunk::digest(content), digest);
        let number = self.imports.fetch_add(1, Ordering::Relaxed);
        let unfinished = self.dir.join("tmp").join(format!("chunk-{number}"));
        let kept = write_file(&unfinished, content).and_then(|()| self.chunks.adopt(digest, &unfinished));
        kept.context("Can't write a chunk").map_err(|error| {
            fs::remove_file(&unfinished).ok();
            self.explain_space(error, content.len() as u64)
        })
    }

    /// Names an image of which every chunk is here.
    pub(super) fn complete_partial(&self, manifest: &Manifest, name: &Name) -> Result<StoredImage, ImageError> {
        let named = self.name_partial(manifest, name);
        self.sweep_if_due()?;
        named
    }

    fn name_partial(&self, manifest: &Manifest, name: &Name) -> Result<StoredImage, ImageError> {
        let image = manifest.digest();
        let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        Self::check_name(&self.names(), name, image)?;
        self.sync()?;
        self.write_manifest(manifest, &self.manifest_path(image))?;
        self.sync()?;
        let stored = self.set_name(name, manifest)?;
        self.remove_partial(image)?;
        Ok(stored)
    }

    /// Removes what is here of an image that is not to be fetched any more.
    pub(super) fn discard_partial(&self, image: Digest) -> anyhow::Result<()> {
        self.remove_partial(image)?;
        self.sweep()
    }

    fn remove_partial(&self, image: Digest) -> anyhow::Result<()> {
        let path = self.partial_path(image);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("Can't remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Images that are being fetched, or were when the agent ended.
    pub(super) fn partials(&self) -> std::io::Result<BTreeSet<Digest>> {
        let mut partials = BTreeSet::new();
        for entry in fs::read_dir(self.dir.join("partial"))? {
            partials.extend(entry?.file_name().to_str().and_then(|name| name.parse::<Digest>().ok()));
        }
        Ok(partials)
    }

    /// Removes what was given up long ago; the sweep does the rest.
    pub(super) fn remove_abandoned(&self) -> anyhow::Result<()> {
        let read = self.partials().context("Can't read which images were being fetched")?;
        for image in read {
            let path = self.partial_path(image);
            let age = fs::metadata(&path).ok().and_then(|metadata| metadata.modified().ok()?.elapsed().ok());
            let is_whole = Manifest::read(&path, image).is_ok();
            if !is_whole || age.is_some_and(|age| age > ABANDONED_AFTER) {
                fs::remove_file(&path).with_context(|| format!("Can't remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    pub(super) fn partial_path(&self, image: Digest) -> PathBuf {
        self.dir.join("partial").join(image.to_string())
    }
}

impl chunk::Chunks {
    /// Reads a chunk whose length only its file knows, and fails if it is not what its digest says.
    pub(super) fn read_any(&self, digest: Digest) -> anyhow::Result<Vec<u8>> {
        let path = self.path(digest);
        let length = fs::metadata(&path).with_context(|| format!("Can't open {}", path.display()))?.len();
        ensure!(length <= super::CHUNK_BYTES as u64, "{} is longer than a chunk", path.display());
        self.read(digest, usize::try_from(length).unwrap_or_default())
    }
}

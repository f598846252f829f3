//! Removes what no name leads to: manifests first, then chunks. No counters that could be wrong after a crash: what is
//! in use is what the names say.

use super::ImageStore;
use anyhow::Context;
use std::collections::BTreeSet;
use std::fs;
use std::sync::TryLockError;
use std::sync::atomic::Ordering;
use virtuoso_overlay::ids::Digest;

impl ImageStore {
    /// Sweeps now, or after the last of the imports and checks that are under way.
    pub(super) fn sweep(&self) -> anyhow::Result<()> {
        // Set before the attempt: whoever holds the gate looks at it after letting go.
        self.sweep_due.swap(true, Ordering::SeqCst);
        let _gate = match self.gate.try_write() {
            Ok(gate) => gate,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        self.sweep_due.store(false, Ordering::SeqCst);
        let mut images: BTreeSet<Digest> = self.names().values().map(|stored| stored.digest).collect();
        self.sweep_manifests(&images).context("Can't remove lists of chunks that no image needs")?;
        images.extend(self.partials().context("Can't read which images are being fetched")?);
        images.extend(self.held().context("Can't read which images VMs use")?);
        let Some(chunks) = self.chunks_of(&images) else {
            tracing::warn!("An image is damaged: space of removed images is not freed until it is removed too");
            return Ok(());
        };
        let removed = self.chunks.retain(|digest| chunks.contains(&digest));
        let removed = removed.context("Can't remove chunks that no image needs")?;
        tracing::debug!(removed, kept = chunks.len(), "Swept chunks");
        Ok(())
    }

    /// Does what a sweep that came while the gate was held left to be done.
    pub(super) fn sweep_if_due(&self) -> anyhow::Result<()> {
        if self.sweep_due.load(Ordering::SeqCst) { self.sweep() } else { Ok(()) }
    }

    fn sweep_manifests(&self, images: &BTreeSet<Digest>) -> std::io::Result<()> {
        for entry in fs::read_dir(self.dir.join("manifests"))? {
            let entry = entry?;
            let digest = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if digest.is_some_and(|digest| !images.contains(&digest)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// All chunks in use; `None` if that can't be told, because a manifest is damaged. Its chunks may still serve when
    /// it is restored.
    fn chunks_of(&self, images: &BTreeSet<Digest>) -> Option<BTreeSet<Digest>> {
        let mut chunks = BTreeSet::new();
        for digest in images {
            let manifest = self.find_manifest(*digest)?;
            chunks.extend(manifest.stored().map(|(chunk, _, _)| chunk));
        }
        Some(chunks)
    }
}

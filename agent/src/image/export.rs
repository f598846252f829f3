//! An image becomes a file again: raw, with holes where it has zeros. And how much of an image is its own.

use super::import::{OnStep, step};
use super::{ImageError, ImageStore};
use crate::name::Name;
use anyhow::Context;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::PoisonError;
use virtuoso_overlay::ids::Digest;

impl ImageStore {
    /// Writes an image to a new file at `path`; if that fails, there is none.
    pub(super) fn export_blocking(&self, name: &Name, path: &Path, on_step: OnStep<'_>) -> Result<(), ImageError> {
        let exported = {
            // A removal meanwhile must not take chunks away.
            let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            let wrong = |error: std::io::Error| ImageError::Target { path: path.into(), reason: error.to_string() };
            let file = File::create_new(path).map_err(wrong)?;
            let written = self.write_content(name, &file, on_step);
            let written =
                written.and_then(|()| file.sync_all().context("Can't make the file durable").map_err(Into::into));
            written.inspect_err(|_| _ = fs::remove_file(path)).map_err(|error| match error {
                ImageError::Store(error) => ImageError::Target { path: path.into(), reason: format!("{error:#}") },
                other => other,
            })
        };
        self.sweep_if_due()?;
        exported
    }

    fn write_content(&self, name: &Name, file: &File, on_step: OnStep<'_>) -> Result<(), ImageError> {
        let manifest = self.manifest(name)?;
        file.set_len(manifest.size_bytes()).context("Can't set its length")?;
        let (mut done_bytes, total_bytes) = (0, manifest.stored_bytes());
        for (digest, offset, length) in manifest.stored() {
            let damaged = |error| ImageError::Damaged { name: name.clone(), reason: format!("{error:#}") };
            let content = self.chunks.read(digest, length).map_err(damaged)?;
            file.write_all_at(&content, offset).context("Can't write")?;
            done_bytes += length as u64;
            step(on_step, done_bytes, total_bytes)?;
        }
        Ok(())
    }

    /// Bytes that would be free without the image: those of chunks that no other image has.
    pub(super) fn unique_bytes(&self, name: &Name) -> Result<u64, ImageError> {
        let own = self.manifest(name)?;
        let mut unique: BTreeMap<Digest, usize> = own.stored().map(|(chunk, _, length)| (chunk, length)).collect();
        let image = own.digest();
        let others: Vec<Digest> = self.names().values().map(|stored| stored.digest).filter(|d| *d != image).collect();
        for other in others.into_iter().filter_map(|other| self.find_manifest(other)) {
            for (chunk, _, _) in other.stored() {
                unique.remove(&chunk);
            }
        }
        Ok(unique.values().map(|length| *length as u64).sum())
    }
}

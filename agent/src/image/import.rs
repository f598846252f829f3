//! A file becomes an image: read once, chunk by chunk; what the store has not yet goes to `tmp`, and takes its place
//! when all of it is durable.

use super::chunk::{self, sync_file_system, write_file};
use super::convert::{convert, is_qcow2};
use super::manifest::{CHUNK_BYTES, IMAGE_BYTES_MAX, Manifest, ZEROS, chunk_bytes};
use super::partial::SPACE_KEPT_BYTES;
use super::unpack::Packing;
use super::{ImageError, ImageStore, StoredImage};
use crate::control::model::Progress;
use crate::disk;
use crate::name::Name;
use anyhow::{Context, anyhow};
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use virtuoso_overlay::ids::Digest;

/// Told after each step; says whether to go on.
pub(super) type OnStep<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// The file to import.
struct Source {
    file: File,
    path: PathBuf,
    before: Metadata,
    size_bytes: u64,
}

impl ImageStore {
    /// Imports the content of the raw or qcow2 file, compressed or not, at `path` under `name`. The same content under
    /// the same name is no error.
    pub(super) fn import_blocking(
        &self,
        path: &Path,
        name: &Name,
        on_step: OnStep<'_>,
    ) -> Result<StoredImage, ImageError> {
        let imported = {
            // From the first chunk that is found in the store until the manifest names it, no sweep may remove it.
            let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            let number = self.imports.fetch_add(1, Ordering::Relaxed);
            let unfinished = self.dir.join("tmp").join(number.to_string());
            let imported = self.import_any(&unfinished, path, name, on_step);
            // Not by a destructor: after a panic the files tell what happened, and the next start removes them.
            if let Err(error) = fs::remove_dir_all(&unfinished)
                && error.kind() != ErrorKind::NotFound
            {
                tracing::debug!(path = %unfinished.display(), %error, "Unfinished import not removed");
            }
            imported
        };
        if imported.is_err() || self.sweep_due.load(Ordering::SeqCst) {
            self.sweep()?;
        }
        imported
    }

    fn import_any(
        &self,
        unfinished: &Path,
        path: &Path,
        name: &Name,
        on_step: OnStep<'_>,
    ) -> Result<StoredImage, ImageError> {
        let Some(packing) = Packing::of(path) else { return self.import_plain(unfinished, path, name, on_step) };
        let plain = unfinished.with_extension("plain");
        let unpacked = packing.unpack(path, &plain, on_step);
        let imported = unpacked.and_then(|()| self.import_plain(unfinished, &plain, name, on_step));
        // There is none if the tool is missing; the next start removes what stays.
        fs::remove_file(&plain).ok();
        imported.map_err(|error| match error {
            // The user knows nothing of the other file.
            ImageError::Source { reason, .. } => ImageError::Source { path: path.into(), reason },
            other => other,
        })
    }

    fn import_plain(
        &self,
        unfinished: &Path,
        path: &Path,
        name: &Name,
        on_step: OnStep<'_>,
    ) -> Result<StoredImage, ImageError> {
        if !is_qcow2(path)? {
            return self.import_into(unfinished, path, name, on_step);
        }
        let raw = unfinished.with_extension("raw");
        let converted = convert(path, &raw, on_step);
        let imported = converted.and_then(|()| self.import_into(unfinished, &raw, name, on_step));
        // There is none if the conversion could not begin; the next start removes what stays.
        fs::remove_file(&raw).ok();
        imported
    }

    fn import_into(
        &self,
        unfinished: &Path,
        path: &Path,
        name: &Name,
        on_step: OnStep<'_>,
    ) -> Result<StoredImage, ImageError> {
        let mut source = Source::open(path)?;
        self.check_space(&source)?;
        let no_space = |error: anyhow::Error| self.explain(error, &source.before, source.size_bytes);
        fs::create_dir(unfinished).context("Can't create a directory in the image store").map_err(no_space)?;
        let (manifest, new) = self.read_chunks(&mut source, unfinished, on_step)?;
        source.check_unchanged()?;
        Self::check_name(&self.names(), name, manifest.digest())?;
        self.commit(&manifest, &new, unfinished, on_step)?;
        self.set_name(name, &manifest)
    }

    /// Reads the source and writes chunks that the store lacks. The list has each of those once.
    fn read_chunks(
        &self,
        source: &mut Source,
        unfinished: &Path,
        on_step: OnStep<'_>,
    ) -> Result<(Manifest, Vec<Digest>), ImageError> {
        let (mut chunks, mut new, mut new_bytes) = (Vec::new(), Vec::new(), 0);
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut offset = 0;
        while offset < source.size_bytes {
            let content = &mut buffer[..chunk_bytes(source.size_bytes, offset)];
            source.read(content)?;
            let digest = chunk::digest(content);
            if digest != ZEROS
                && self
                    .write_if_new(digest, content, unfinished)
                    .map_err(|error| self.explain(error, &source.before, source.size_bytes - offset))?
            {
                new.push(digest);
                new_bytes += content.len() as u64;
            }
            chunks.push(digest);
            offset += content.len() as u64;
            step(on_step, offset, source.size_bytes)?;
        }
        let manifest = Manifest::new(source.size_bytes, chunks).map_err(|error| source.wrong(error))?;
        // What is new is still beside the chunks.
        self.check_quota(new_bytes)?;
        Ok((manifest, new))
    }

    /// Whether the chunk was written. One in the store is read, so that an import also mends what is damaged there.
    fn write_if_new(&self, digest: Digest, content: &[u8], unfinished: &Path) -> anyhow::Result<bool> {
        if self.chunks.read(digest, content.len()).is_ok() {
            return Ok(false);
        }
        match write_file(&unfinished.join(digest.to_string()), content) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(anyhow!(error).context("Can't write a chunk")),
        }
    }

    /// Puts all in place: chunks, then the manifest, each durable before the next refers to it.
    fn commit(
        &self,
        manifest: &Manifest,
        new: &[Digest],
        unfinished: &Path,
        on_step: OnStep<'_>,
    ) -> Result<(), ImageError> {
        let size = manifest.size_bytes();
        let encoded = unfinished.join("manifest");
        let written = write_file(&encoded, &manifest.encode()).context("Can't write the list of chunks");
        written.map_err(|error| self.explain_space(error, 0))?;
        self.sync().map_err(|error| self.explain_space(error, 0))?;
        for digest in new {
            step(on_step, size, size)?;
            let adopted = self.chunks.adopt(*digest, &unfinished.join(digest.to_string()));
            adopted.context("Can't put a chunk in its place")?;
        }
        self.sync()?;
        step(on_step, size, size)?;
        let path = self.manifest_path(manifest.digest());
        fs::rename(&encoded, &path).with_context(|| format!("Can't create {}", path.display()))?;
        self.sync()?;
        step(on_step, size, size)
    }

    pub(super) fn sync(&self) -> anyhow::Result<()> {
        sync_file_system(&self.dir).context("Can't make the image durable")
    }

    /// Refuses before the work what would fail in its middle.
    fn check_space(&self, source: &Source) -> Result<(), ImageError> {
        let needed_bytes = needed_bytes(&source.before, source.size_bytes);
        let free_bytes = disk::free_bytes(&self.dir)?.saturating_sub(SPACE_KEPT_BYTES);
        if needed_bytes <= free_bytes {
            return Ok(());
        }
        Err(ImageError::NoSpace { dir: self.dir.clone(), needed_bytes, free_bytes })
    }

    /// A full disk in the middle of the work, or another error.
    fn explain(&self, error: anyhow::Error, source: &Metadata, left_bytes: u64) -> ImageError {
        self.explain_space(error, needed_bytes(source, left_bytes))
    }

    pub(super) fn explain_space(&self, error: anyhow::Error, needed_bytes: u64) -> ImageError {
        let full = |kind| matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        if !error.downcast_ref::<io::Error>().is_some_and(|error| full(error.kind())) {
            return error.into();
        }
        let free_bytes = disk::free_bytes(&self.dir).unwrap_or_default();
        ImageError::NoSpace { dir: self.dir.clone(), needed_bytes, free_bytes }
    }
}

/// What a source takes at most: holes in a sparse file are zeros and take nothing.
fn needed_bytes(source: &Metadata, size_bytes: u64) -> u64 {
    if source.is_file() { size_bytes.min(source.blocks().saturating_mul(512)) } else { size_bytes }
}

pub(super) fn step(on_step: OnStep<'_>, done_bytes: u64, total_bytes: u64) -> Result<(), ImageError> {
    match on_step(Progress { done_bytes, total_bytes }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ImageError::Cancelled),
    }
}

impl Source {
    fn open(path: &Path) -> Result<Self, ImageError> {
        let wrong = |reason: String| ImageError::Source { path: path.into(), reason };
        // Opening a pipe that nobody writes to must not block the agent.
        let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let mut file = opened.map_err(|error| wrong(error.to_string()))?;
        let before = file.metadata().map_err(|error| wrong(error.to_string()))?;
        if !before.is_file() && !before.file_type().is_block_device() {
            return Err(wrong("it is neither a file nor a block device".into()));
        }
        // A block device has no length of its own.
        let size = file.seek(SeekFrom::End(0)).and_then(|size| file.rewind().map(|()| size));
        let size_bytes = size.map_err(|error| wrong(error.to_string()))?;
        match size_bytes {
            0 => Err(wrong("it is empty".into())),
            1..=IMAGE_BYTES_MAX => Ok(Self { file, path: path.into(), before, size_bytes }),
            _ => Err(wrong("it is larger than 1TiB".into())),
        }
    }

    fn read(&mut self, content: &mut [u8]) -> Result<(), ImageError> {
        self.file.read_exact(content).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => self.wrong("it became shorter while it was read"),
            _ => self.wrong(error),
        })
    }

    /// A disk of a running VM is no image.
    fn check_unchanged(&self) -> Result<(), ImageError> {
        let now = self.file.metadata().map_err(|error| self.wrong(error))?;
        let state = |metadata: &Metadata| (metadata.len(), metadata.mtime(), metadata.mtime_nsec());
        if state(&now) == state(&self.before) { Ok(()) } else { Err(self.wrong("it changed while it was read")) }
    }

    fn wrong(&self, reason: impl ToString) -> ImageError {
        ImageError::Source { path: self.path.clone(), reason: reason.to_string() }
    }
}

//! The image store: immutable images by digest, made of chunks by digest, under names of this host.
//!
//! On disk, below one directory:
//! - `chunks/ab/abcd..`: one chunk's bytes, named by their BLAKE3 digest; shared by all images.
//! - `manifests/<digest>`: size and chunk digests of an image (see [`manifest`]); the name is its checksum.
//! - `partial/<digest>`: the same of an image that is being fetched from other hosts.
//! - `held/<digest>`: the same of an image that VMs use, all of it here or not.
//! - `names.json`: names to digests.
//! - `nbd/`: sockets at which hypervisors read images.
//! - `tmp/`: what is being written. Emptied at start.
//!
//! Each step leaves a usable store: a chunk is renamed into place when it is complete, a manifest after its chunks are
//! durable, a name after its manifest. What a crash leaves without a name is removed at the next start, save what was
//! being fetched: that goes on where it was.

mod arrival;
mod chunk;
mod convert;
mod export;
mod fetch;
mod held;
mod import;
mod job;
pub mod manifest;
mod partial;
mod per_image;
mod provide;
mod pull;
mod quota;
mod serve;
mod sweep;
pub(crate) mod talk;
mod unpack;
mod verify;

use crate::control::problem::{ApiError, ErrorCode};
use crate::name::Name;
use crate::size::ByteSize;
use crate::state::sealed::{self, Kind};
use crate::text::Text;
use anyhow::Context;
use arrival::Arrival;
use chunk::Chunks;
use manifest::Manifest;
use per_image::PerImage;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::Semaphore;
use virtuoso_overlay::ids::Digest;

pub use fetch::{Holder, Opened, Providers, Supply};
pub use manifest::CHUNK_BYTES;
pub use per_image::InUse;
pub use provide::provide;
pub use pull::Pull;
pub use serve::{OnComplete, Served};
pub use verify::Verification;

/// Names in one store: each costs a line in `names.json`, which is rewritten with every change.
pub const NAMES_MAX: usize = 4096;

/// Imports and checks at once: each keeps a core and the disk busy.
const JOBS_MAX: usize = 2;

const NAMES: Kind = Kind { name: "names.json", version: 1 };

/// This host's images.
#[derive(Debug)]
pub struct ImageStore {
    dir: PathBuf,
    chunks: Chunks,
    names: Mutex<BTreeMap<Name, Stored>>,
    /// Held for reading by whoever relies on chunks that no manifest protects yet, for writing by the sweep.
    gate: RwLock<()>,
    /// A sweep was wanted while the gate was held.
    sweep_due: AtomicBool,
    /// The agent is stopping: what is being fetched is kept for its next run.
    closing: AtomicBool,
    /// Pulls under way.
    claims: pull::Claims,
    /// What is being fetched, or can be again.
    arrivals: PerImage<Arrival>,
    /// What hypervisors read.
    served: PerImage<Served>,
    /// Makes files in `tmp` distinct.
    imports: AtomicU64,
    jobs: Semaphore,
    /// What all chunks may take.
    limit_bytes: AtomicU64,
}

/// What the store knows about the image behind a name.
#[derive(Clone, Copy, Debug)]
struct Stored {
    digest: Digest,
    /// `None` if its manifest is missing or damaged.
    sizes: Option<Sizes>,
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    size_bytes: u64,
    stored_bytes: u64,
}

/// An image of this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredImage {
    /// Its name here.
    pub name: Name,
    /// Its digest.
    pub digest: Digest,
    /// Bytes that a VM sees; 0 if `damaged`.
    pub size_bytes: u64,
    /// Bytes of its chunks, shared ones counted in full; 0 if `damaged`.
    pub stored_bytes: u64,
    /// Its list of chunks is missing or wrong: not to be advertised.
    pub damaged: bool,
}

/// Why the store did not do something.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ImageError {
    /// No image of that name here.
    #[error("No image `{0}` on this host")]
    NotFound(Name),
    /// The name stands for other content.
    #[error("There is an image `{0}` with other content: remove it first, or choose another name")]
    NameTaken(Name),
    /// The store is full of names.
    #[error("The store has {NAMES_MAX} images, its most: remove some first")]
    TooMany,
    /// The file can't be imported.
    #[error("Can't import {}: {reason}", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The image can't be exported.
    #[error("Can't export to {}: {reason}", path.display())]
    Target {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The disk is too small.
    #[error(
        "No space for the image in {}: it needs {}, {} is free", dir.display(), ByteSize(*needed_bytes).rounded(),
        ByteSize(*free_bytes).rounded()
    )]
    NoSpace {
        /// The store.
        dir: PathBuf,
        /// What the image may take.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// The owner lends less.
    #[error(
        "Images may take {} on this host (`limits.disk` without the disks of VMs), and take {}: there is no room for {} \
         more. Remove images, or raise the limit",
        ByteSize(*limit_bytes).rounded(), ByteSize(*used_bytes).rounded(), ByteSize(*needed_bytes).rounded()
    )]
    Quota {
        /// What they may take.
        limit_bytes: u64,
        /// What they take.
        used_bytes: u64,
        /// What was wanted.
        needed_bytes: u64,
    },
    /// The list of an image's chunks is missing or wrong.
    #[error("Image `{name}` is damaged: {reason}. Remove it and import it again")]
    Damaged {
        /// The image.
        name: Name,
        /// What is wrong.
        reason: String,
    },
    /// VMs need it.
    #[error("VMs of this host use image `{0}`: delete them first (`virtuoso vm list` shows all)")]
    InUse(Name),
    /// The image can't be fetched.
    #[error("Can't fetch image {image}: {reason}")]
    Fetch {
        /// The image.
        image: Digest,
        /// Why not.
        reason: String,
    },
    /// The caller changed its mind.
    #[error("Cancelled: the store is as it was")]
    Cancelled,
    /// The store's files can't be used.
    #[error("{0:#}")]
    Store(Arc<anyhow::Error>),
}

impl ImageStore {
    /// Opens or creates the store in `dir` and removes what a crash left. Blocks on the disk.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        let unfinished = dir.join("tmp");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).with_context(|| format!("Can't empty {}", unfinished.display()))?;
        }
        // Sockets of an agent that was killed.
        let sockets = dir.join("nbd");
        if sockets.exists() {
            fs::remove_dir_all(&sockets).with_context(|| format!("Can't empty {}", sockets.display()))?;
        }
        for part in ["tmp", "chunks", "manifests", "partial", "held", "nbd"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).with_context(|| format!("Can't create {}", path.display()))?;
        }
        let store = Self {
            dir: dir.into(),
            chunks: Chunks::new(dir.join("chunks")),
            names: Mutex::default(),
            gate: RwLock::default(),
            sweep_due: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            claims: pull::Claims::default(),
            arrivals: PerImage::default(),
            served: PerImage::default(),
            imports: AtomicU64::new(0),
            jobs: Semaphore::new(JOBS_MAX),
            limit_bytes: AtomicU64::new(u64::MAX),
        };
        store.load_names()?;
        store.remove_abandoned()?;
        store.sweep()?;
        Ok(store)
    }

    /// Keeps what is being fetched, for the next run to go on with.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// This host's images, by name.
    pub fn list(&self) -> Vec<StoredImage> {
        self.names().iter().map(|(name, stored)| stored.image(name)).collect()
    }

    /// One image.
    pub fn get(&self, name: &Name) -> Result<StoredImage, ImageError> {
        let names = self.names();
        names.get(name).map(|stored| stored.image(name)).ok_or_else(|| ImageError::NotFound(name.clone()))
    }

    /// Forgets a name; chunks that no other image needs go.
    fn remove_blocking(&self, name: &Name) -> Result<(), ImageError> {
        {
            let mut names = self.names();
            let mut left = names.clone();
            let gone = left.remove(name).ok_or_else(|| ImageError::NotFound(name.clone()))?;
            let is_last = left.values().all(|other| other.digest != gone.digest);
            if is_last && self.held().context("Can't read which images VMs use")?.contains(&gone.digest) {
                return Err(ImageError::InUse(name.clone()));
            }
            self.write_names(&left)?;
            *names = left;
        }
        Ok(self.sweep()?)
    }

    /// Gives an image whose manifest is in place its name.
    fn set_name(&self, name: &Name, manifest: &Manifest) -> Result<StoredImage, ImageError> {
        let stored = Stored { digest: manifest.digest(), sizes: Some(Sizes::of(manifest)) };
        let mut names = self.names();
        Self::check_name(&names, name, stored.digest)?;
        let mut more = names.clone();
        more.insert(name.clone(), stored);
        self.write_names(&more)?;
        *names = more;
        Ok(stored.image(name))
    }

    fn check_name(names: &BTreeMap<Name, Stored>, name: &Name, digest: Digest) -> Result<(), ImageError> {
        match names.get(name) {
            Some(stored) if stored.digest != digest => Err(ImageError::NameTaken(name.clone())),
            None if names.len() >= NAMES_MAX => Err(ImageError::TooMany),
            Some(_) | None => Ok(()),
        }
    }

    /// The manifest of the image `name`.
    fn manifest(&self, name: &Name) -> Result<Manifest, ImageError> {
        let digest = self.get(name)?.digest;
        let damaged = |error: anyhow::Error| ImageError::Damaged { name: name.clone(), reason: format!("{error:#}") };
        Manifest::read(&self.manifest_path(digest), digest).map_err(damaged)
    }

    fn manifest_path(&self, digest: Digest) -> PathBuf {
        self.dir.join("manifests").join(digest.to_string())
    }

    fn load_names(&self) -> anyhow::Result<()> {
        let path = self.dir.join(NAMES.name);
        let Some(json) = sealed::read(&path, &NAMES)? else { return Ok(()) };
        let read: BTreeMap<Name, Text<Digest>> = serde_json::from_slice(&json)
            .map_err(|error| sealed::Unreadable { path, reason: sealed::Reason::Content(error.to_string()) })?;
        let load = |(name, Text(digest)): (Name, Text<Digest>)| {
            let manifest = Manifest::read(&self.manifest_path(digest), digest);
            if let Err(error) = &manifest {
                tracing::warn!(%name, %digest, error = format!("{error:#}"), "Image is damaged: remove and import it again");
            }
            (name, Stored { digest, sizes: manifest.ok().as_ref().map(Sizes::of) })
        };
        *self.names() = read.into_iter().map(load).collect();
        Ok(())
    }

    fn write_names(&self, names: &BTreeMap<Name, Stored>) -> anyhow::Result<()> {
        let texts: BTreeMap<&Name, Text<Digest>> =
            names.iter().map(|(name, stored)| (name, stored.digest.into())).collect();
        let json = serde_json::to_vec_pretty(&texts).context("Can't encode the names of images")?;
        sealed::write(&self.dir.join(NAMES.name), &NAMES, &json)
    }

    /// The map is replaced as a whole, so it is true even if a holder panicked.
    fn names(&self) -> MutexGuard<'_, BTreeMap<Name, Stored>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stored {
    fn image(&self, name: &Name) -> StoredImage {
        StoredImage {
            name: name.clone(),
            digest: self.digest,
            size_bytes: self.sizes.map_or(0, |sizes| sizes.size_bytes),
            stored_bytes: self.sizes.map_or(0, |sizes| sizes.stored_bytes),
            damaged: self.sizes.is_none(),
        }
    }
}

impl Sizes {
    fn of(manifest: &Manifest) -> Self {
        Self { size_bytes: manifest.size_bytes(), stored_bytes: manifest.stored_bytes() }
    }
}

impl From<anyhow::Error> for ImageError {
    fn from(error: anyhow::Error) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        let code = match &error {
            ImageError::NotFound(_) => ErrorCode::NotFound,
            ImageError::NameTaken(_) | ImageError::TooMany | ImageError::Cancelled | ImageError::InUse(_) => {
                ErrorCode::Conflict
            }
            ImageError::Source { .. } | ImageError::Target { .. } => ErrorCode::InvalidRequest,
            ImageError::NoSpace { .. } | ImageError::Quota { .. } => ErrorCode::NoSpace,
            ImageError::Damaged { .. } => ErrorCode::Damaged,
            ImageError::Fetch { .. } => ErrorCode::Unavailable,
            ImageError::Store(_) => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests;

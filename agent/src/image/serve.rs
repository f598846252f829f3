//! An image as a disk before all of it is here: what is read is fetched first, a little ahead of the reader, and the
//! rest when the reader is quiet.
//!
//! A read never fails. Without a provider it waits, as a disk does whose bus is busy, until one returns.

use super::fetch::{Fetch, Providers};
use super::manifest::{CHUNK_BYTES, Manifest, ZEROS};
use super::pull::{Claim, Pull};
use super::{ImageError, ImageStore, StoredImage};
use crate::control::model::Progress;
use crate::nbd;
use anyhow::Context;
use futures::future::BoxFuture;
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use virtuoso_overlay::ids::Digest;

/// Chunks that are fetched ahead of a reader.
const AHEAD: u64 = 3;
/// Chunks that are kept in memory: hypervisors read a chunk in pieces.
const CACHED_MAX: usize = 16;
/// After trouble with the disk, fetching waits so long.
const TROUBLE_PAUSE: Duration = Duration::from_secs(10);

/// Called when all of an image is here.
pub type OnComplete = Box<dyn FnOnce(StoredImage) -> BoxFuture<'static, ()> + Send>;

/// An image that hypervisors can read. Dropping it closes the socket.
#[derive(Debug)]
pub struct Served {
    path: PathBuf,
    tasks: [AbortHandle; 2],
}

impl Served {
    /// The NBD server's Unix socket; its default export is the image.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        fs::remove_file(&self.path).ok();
    }
}

impl ImageStore {
    /// Serves an image that is here or elsewhere to hypervisors on this host. What is not here is fetched; once all of
    /// it is, the image has its name here, and `on_complete` is called. What is here when it is dropped stays.
    ///
    /// # Errors
    /// If no host gives the list of its chunks, or it is being pulled.
    pub async fn serve_nbd(
        self: &Arc<Self>,
        pull: Pull,
        providers: Arc<dyn Providers>,
        on_complete: OnComplete,
    ) -> Result<Served, ImageError> {
        let image = pull.image;
        let is_here = self.has(image);
        // Nobody else fetches it, and nothing of it goes, as long as it is served.
        let claim = Claim::new(self, image)?.keeping();
        let manifest = self.get_manifest(&pull, &providers).await?;
        let missing = match is_here {
            true => Vec::new(),
            false => {
                let manifest = manifest.clone();
                self.blocking(move |store| store.begin_partial(&manifest)).await?
            }
        };
        let (progress, _) = watch::channel(Progress::default());
        let fetch = Fetch::new(self.clone(), providers, &manifest, missing, pull.rate, progress).on_demand();
        let fetch = Arc::new(fetch);
        let path = self.dir.join("nbd").join(format!("{}.sock", &image.to_string()[..16]));
        let listener = nbd::bind(&path).with_context(|| format!("Can't listen on {}", path.display()))?;
        let name = pull.name.to_string();
        let cached = Mutex::default();
        let disk = Disk { store: self.clone(), manifest: manifest.clone(), name, fetch: fetch.clone(), cached };
        let store = self.clone();
        let fetching = tokio::spawn(async move {
            let _claim = claim;
            run_until_here(&fetch).await;
            if !is_here {
                match store.blocking(move |store| store.complete_partial(&manifest, &pull.name)).await {
                    Ok(stored) => on_complete(stored).await,
                    Err(error) => tracing::warn!(%image, "An image is here, but has no name here: {error}"),
                }
            }
            // A chunk that the disk loses later is fetched again.
            loop {
                fetch.wanted().await;
                run_until_here(&fetch).await;
            }
        });
        let serving = tokio::spawn(nbd::listen(listener, Arc::new(disk)));
        Ok(Served { path, tasks: [fetching.abort_handle(), serving.abort_handle()] })
    }
}

async fn run_until_here(fetch: &Fetch) {
    while let Err(error) = fetch.run().await {
        tracing::warn!("Fetching an image pauses: {error}");
        tokio::time::sleep(TROUBLE_PAUSE).await;
    }
}

/// An image to be read.
struct Disk {
    store: Arc<ImageStore>,
    manifest: Manifest,
    name: String,
    fetch: Arc<Fetch>,
    cached: Mutex<VecDeque<(Digest, Arc<Vec<u8>>)>>,
}

impl nbd::Disk for Disk {
    fn name(&self) -> &str {
        &self.name
    }

    fn size_bytes(&self) -> u64 {
        self.manifest.size_bytes()
    }

    fn piece_bytes(&self) -> u32 {
        CHUNK_BYTES as u32
    }

    /// Reads as soon as all of it is here; never fails.
    async fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut content = vec![0; length];
        let mut done = 0;
        while done < length {
            let at = offset + done as u64;
            let within = usize::try_from(at % CHUNK_BYTES as u64).expect("less than a chunk");
            let count = (CHUNK_BYTES - within).min(length - done);
            let (digest, chunk_length) = self.manifest.chunk_at(at);
            if digest != ZEROS {
                let chunk = self.chunk(digest, chunk_length, at).await;
                content[done..done + count].copy_from_slice(&chunk[within..within + count]);
            }
            done += count;
        }
        Ok(content)
    }
}

impl Disk {
    async fn chunk(&self, digest: Digest, length: usize, at: u64) -> Arc<Vec<u8>> {
        if let Some(chunk) = self.cached(&digest) {
            return chunk;
        }
        loop {
            let store = self.store.clone();
            let read = tokio::task::spawn_blocking(move || store.chunks.read(digest, length).ok()).await;
            if let Ok(Some(content)) = read {
                let chunk = Arc::new(content);
                let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
                cached.truncate(CACHED_MAX - 1);
                cached.push_front((digest, chunk.clone()));
                return chunk;
            }
            let ahead =
                (1..=AHEAD).map(|n| at + n * CHUNK_BYTES as u64).take_while(|at| *at < self.manifest.size_bytes());
            let ahead = ahead.map(|at| self.manifest.chunk_at(at).0).filter(|digest| *digest != ZEROS).collect();
            self.fetch.want(digest, length, ahead).await;
        }
    }

    fn cached(&self, digest: &Digest) -> Option<Arc<Vec<u8>>> {
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.iter().find(|(known, _)| known == digest).map(|(_, chunk)| chunk.clone())
    }
}

#[cfg(test)]
mod tests;

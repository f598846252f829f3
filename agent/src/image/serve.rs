//! An image as a disk before all of it is here: what is read is fetched first, a little ahead of the reader, and the
//! rest when the reader is quiet.
//!
//! A read waits until its content is here. If nobody gives it for too long, it fails; [`Served::supply`] tells when it
//! is worth to be tried again.

use super::arrival::Arrival;
use super::fetch::{Fetch, Providers, Supply};
use super::manifest::{CHUNK_BYTES, Manifest, ZEROS};
use super::pull::Pull;
use super::{ImageError, ImageStore, InUse, StoredImage};
use crate::nbd;
use anyhow::Context;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::VecDeque;
use std::io;
use std::iter;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use virtuoso_overlay::ids::Digest;

/// Chunks that are fetched ahead of a reader.
const AHEAD: u64 = 3;
/// Chunks that are kept in memory: hypervisors read a chunk in pieces.
const CACHED_MAX: usize = 16;
/// Chunks of one request that are read at once.
const READS_MAX: usize = 4;
/// What [`ZEROS`] stands for.
static ZERO_CHUNK: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];

/// Called when all of an image is here.
pub type OnComplete = Box<dyn FnOnce(StoredImage) -> BoxFuture<'static, ()> + Send>;

/// An image that hypervisors can read. Dropping it ends their connections.
#[derive(Debug)]
pub struct Served {
    path: PathBuf,
    size_bytes: u64,
    arrival: InUse<Arrival>,
    tasks: [AbortHandle; 2],
}

impl Served {
    /// The NBD server's Unix socket; its default export is the image. The same for each run of the agent.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the image.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether what is read comes. While it does not, reads fail.
    pub fn supply(&self) -> watch::Receiver<Supply> {
        self.arrival.fetch().supply()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // The socket's file stays: the next one to serve the image may have replaced it already.
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl ImageStore {
    /// Serves an image that is here or elsewhere to hypervisors on this host; all of them share one server. What is not
    /// here is fetched; once all of it is, the image has its name here, and `on_complete` is called. What is here stays
    /// until [`Self::retain_held`] lets go of it.
    ///
    /// # Errors
    /// If no host gives the list of its chunks.
    pub async fn serve_nbd(
        self: &Arc<Self>,
        pull: Pull,
        providers: Arc<dyn Providers>,
        on_complete: OnComplete,
    ) -> Result<InUse<Served>, ImageError> {
        let image = pull.image;
        self.served.get(image, self.begin_serving(pull, providers, on_complete)).await
    }

    async fn begin_serving(
        self: &Arc<Self>,
        pull: Pull,
        providers: Arc<dyn Providers>,
        on_complete: OnComplete,
    ) -> Result<Served, ImageError> {
        let image = pull.image;
        let is_here = self.has(image);
        let manifest = self.get_manifest(&pull, &providers).await?;
        let held = manifest.clone();
        self.blocking(move |store| store.hold(&held)).await?;
        let arrival = self.arrive(&manifest, &pull.name, providers).await?;
        let needed_bytes = arrival.fetch().missing_bytes();
        if let Err(error) = self.blocking(move |store| store.check_free(needed_bytes)).await {
            tracing::warn!(%image, "Of an image only what VMs read is fetched: {error}");
            arrival.fetch().only_on_demand();
        }
        let path = self.dir.join("nbd").join(format!("{}.sock", &image.to_string()[..16]));
        let listener = nbd::bind(&path).with_context(|| format!("Can't listen on {}", path.display()))?;
        let disk = Disk {
            store: self.clone(),
            name: pull.name.to_string(),
            fetch: arrival.fetch().clone(),
            whole: (0..manifest.size_bytes().div_ceil(CHUNK_BYTES as u64)).map(|_| AtomicBool::new(false)).collect(),
            manifest: manifest.clone(),
            cached: Mutex::default(),
        };
        let (store, coming) = (self.clone(), arrival.clone());
        let naming = tokio::spawn(async move {
            coming.here().await;
            if is_here {
                return;
            }
            match store.blocking(move |store| store.complete_partial(&manifest, &pull.name)).await {
                Ok(stored) => on_complete(stored).await,
                Err(error) => tracing::warn!(%image, "An image is here, but has no name here: {error}"),
            }
        });
        let size_bytes = nbd::Disk::size_bytes(&disk);
        let serving = tokio::spawn(nbd::listen(listener, Arc::new(disk)));
        Ok(Served { path, size_bytes, arrival, tasks: [naming.abort_handle(), serving.abort_handle()] })
    }
}

/// An image to be read.
struct Disk {
    store: Arc<ImageStore>,
    manifest: Manifest,
    name: String,
    fetch: Arc<Fetch>,
    /// For each place of a chunk, whether it was found whole there: that costs most of a read, so it is asked once.
    whole: Vec<AtomicBool>,
    cached: Mutex<VecDeque<(Digest, Bytes)>>,
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

    /// Reads as soon as all of it is here, or fails when it is clear that it does not come.
    async fn read(&self, offset: u64, length: usize) -> io::Result<Vec<Bytes>> {
        let end = offset + length as u64;
        let starts = iter::successors(Some(offset), |at| Some((at / CHUNK_BYTES as u64 + 1) * CHUNK_BYTES as u64));
        let pieces = starts.take_while(|at| *at < end).map(|at| self.piece(at, end));
        stream::iter(pieces).buffered(READS_MAX).map_err(io::Error::other).try_collect().await
    }
}

impl Disk {
    /// What is at `at`, up to the end of its chunk or to `end`.
    async fn piece(&self, at: u64, end: u64) -> Result<Bytes, String> {
        let within = usize::try_from(at % CHUNK_BYTES as u64).expect("less than a chunk");
        let until = usize::try_from(end - at).map_or(CHUNK_BYTES, |left| CHUNK_BYTES.min(within + left));
        let (digest, length) = self.manifest.chunk_at(at);
        let chunk = match digest {
            ZEROS => Bytes::from_static(&ZERO_CHUNK),
            digest => self.chunk(digest, length, at).await?,
        };
        Ok(chunk.slice(within..until))
    }

    async fn chunk(&self, digest: Digest, length: usize, at: u64) -> Result<Bytes, String> {
        if let Some(chunk) = self.cached(&digest) {
            return Ok(chunk);
        }
        let place = usize::try_from(at / CHUNK_BYTES as u64).expect("there is an entry for each chunk in memory");
        let whole = &self.whole[place];
        loop {
            let (store, is_whole) = (self.store.clone(), whole.load(Ordering::Relaxed));
            let read = tokio::task::spawn_blocking(move || match is_whole {
                true => store.chunks.read_again(digest, length).ok(),
                false => store.chunks.read(digest, length).ok(),
            });
            if let Ok(Some(content)) = read.await {
                whole.store(true, Ordering::Relaxed);
                let chunk = Bytes::from(content);
                let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
                cached.truncate(CACHED_MAX - 1);
                cached.push_front((digest, chunk.clone()));
                return Ok(chunk);
            }
            whole.store(false, Ordering::Relaxed);
            let ahead =
                (1..=AHEAD).map(|n| at + n * CHUNK_BYTES as u64).take_while(|at| *at < self.manifest.size_bytes());
            let ahead = ahead.map(|at| self.manifest.chunk_at(at).0).filter(|digest| *digest != ZEROS).collect();
            self.fetch.want(digest, length, ahead).await?;
        }
    }

    fn cached(&self, digest: &Digest) -> Option<Bytes> {
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.iter().find(|(known, _)| known == digest).map(|(_, chunk)| chunk.clone())
    }
}

#[cfg(test)]
mod tests;

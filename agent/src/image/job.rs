//! The store's long work off the async threads: bounded, with progress, cancelled when its future is dropped.

use super::{ImageError, ImageStore, StoredImage, Verification};
use crate::control::model::Progress;
use crate::name::Name;
use anyhow::anyhow;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;

/// Steps of progress that are told: finer ones would only make work for the caller.
const STEPS: u64 = 200;

/// Cancels the work when it is dropped.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl ImageStore {
    /// Imports the content of the file at `path` under `name`.
    pub async fn import(
        self: &Arc<Self>,
        path: PathBuf,
        name: Name,
        progress: watch::Sender<Progress>,
    ) -> Result<StoredImage, ImageError> {
        self.job(progress, move |store, on_step| store.import_blocking(&path, &name, on_step)).await
    }

    /// Writes an image to a new file.
    pub async fn export(
        self: &Arc<Self>,
        name: Name,
        path: PathBuf,
        progress: watch::Sender<Progress>,
    ) -> Result<(), ImageError> {
        self.job(progress, move |store, on_step| store.export_blocking(&name, &path, on_step)).await
    }

    /// Bytes of an image that no other image of this host shares.
    pub async fn unique(self: &Arc<Self>, name: Name) -> Result<u64, ImageError> {
        self.blocking(move |store| store.unique_bytes(&name)).await
    }

    /// Reads and hashes each chunk of an image.
    pub async fn verify(
        self: &Arc<Self>,
        name: Name,
        progress: watch::Sender<Progress>,
    ) -> Result<Verification, ImageError> {
        self.job(progress, move |store, on_step| store.verify_blocking(&name, on_step)).await
    }

    /// Removes an image; chunks that no other image needs go, now or when the work under way is done.
    pub async fn remove(self: &Arc<Self>, name: Name) -> Result<(), ImageError> {
        let store = Arc::clone(self);
        let removed = tokio::task::spawn_blocking(move || store.remove_blocking(&name)).await;
        removed.map_err(|error| anyhow!("The removal broke off: {error}"))?
    }

    async fn job<T: Send + 'static>(
        self: &Arc<Self>,
        progress: watch::Sender<Progress>,
        work: impl FnOnce(&Self, super::import::OnStep<'_>) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, ImageError> {
        let _turn = self.jobs.acquire().await.expect("the semaphore is never closed");
        let cancelled = Arc::new(AtomicBool::new(false));
        let _cancel = CancelOnDrop(Arc::clone(&cancelled));
        let store = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let mut told_bytes = 0;
            work(&store, &mut |now: Progress| {
                if now.done_bytes.saturating_sub(told_bytes) > now.total_bytes / STEPS {
                    told_bytes = now.done_bytes;
                    progress.send_replace(now);
                }
                if cancelled.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        });
        done.await.map_err(|error| anyhow!("The work on the image broke off: {error}"))?
    }
}

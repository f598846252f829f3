//! An image that comes, or has come, from other hosts. A pull and any number of disks share one: what one of them
//! fetches is there for all.

use super::fetch::{Fetch, Providers};
use super::manifest::Manifest;
use super::{ImageError, ImageStore, InUse};
use crate::name::Name;
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use virtuoso_overlay::ids::Digest;
use virtuoso_overlay::table::ImageRow;

/// After trouble with the store, fetching waits so long.
const TROUBLE_PAUSE: Duration = Duration::from_secs(10);

/// The fetching of one image, for all who want it. Dropping it stops the fetching.
pub(super) struct Arrival {
    fetch: Arc<Fetch>,
    state: watch::Receiver<State>,
    task: AbortHandle,
    row: ImageRow,
}

/// How far it is.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// Something is missing.
    Fetching,
    /// The store can't take more; it is tried again after a pause.
    Failed(ImageError),
    /// All of it is here.
    Here,
}

/// A chunk: its digest, where it stands first, and its length.
pub(super) type Placed = (Digest, u64, usize);

impl Arrival {
    pub(super) fn fetch(&self) -> &Arc<Fetch> {
        &self.fetch
    }

    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Waits until all of it is here.
    pub(super) async fn here(&self) {
        // The task that tells ends only with this.
        self.state().wait_for(|state| matches!(state, State::Here)).await.ok();
    }
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrival").field("row", &self.row).finish_non_exhaustive()
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ImageStore {
    /// The arrival of an image whose chunks no sweep may remove, because its list of chunks is in the store.
    pub(super) async fn arrive(
        self: &Arc<Self>,
        manifest: &Manifest,
        name: &Name,
        providers: Arc<dyn Providers>,
    ) -> Result<InUse<Arrival>, ImageError> {
        let image = manifest.digest();
        let row =
            ImageRow { digest: image, name: name.to_string(), size_bytes: manifest.size_bytes(), complete: false };
        let source = providers.clone();
        let begin = async {
            let (kept, missing) = match self.has(image) {
                true => (Vec::new(), Vec::new()),
                false => {
                    let manifest = manifest.clone();
                    self.blocking(move |store| Ok(store.look_for_chunks(&manifest))).await?
                }
            };
            let here = kept.iter().map(|(chunk, _, _)| *chunk).collect();
            let fetch = Arc::new(Fetch::new(self.clone(), source, manifest, missing, here));
            let (told, state) = watch::channel(State::Fetching);
            let task = tokio::spawn(run(self.clone(), fetch.clone(), kept, told)).abort_handle();
            Ok::<_, ImageError>(Arrival { fetch, state, task, row })
        };
        let arrival = self.arrivals.get(image, begin).await?;
        // Others may fetch from here what has come.
        providers.changed();
        Ok(arrival)
    }

    /// Images that are being fetched, as this host tells of them.
    pub fn coming(&self) -> Vec<ImageRow> {
        self.arrivals.map(|arrival| arrival.row.clone())
    }

    /// The fetching of an image, if it is under way.
    pub(super) fn find_fetch(&self, image: Digest) -> Option<Weak<Fetch>> {
        let found = self.arrivals.map(|arrival| (arrival.row.digest == image).then(|| Arc::downgrade(&arrival.fetch)));
        found.into_iter().flatten().next()
    }

    /// The chunks that seem to be here, and those that are not. Whether the former are whole, reading them tells: with
    /// a large image that takes longer than a VM should wait for its disk.
    fn look_for_chunks(&self, manifest: &Manifest) -> (Vec<Placed>, Vec<Placed>) {
        let mut seen = BTreeSet::new();
        let distinct = manifest.stored().filter(|(chunk, _, _)| seen.insert(*chunk));
        distinct.partition(|(chunk, _, length)| {
            fs::metadata(self.chunks.path(*chunk)).is_ok_and(|metadata| metadata.len() == *length as u64)
        })
    }
}

/// Fetches until all is here and whole, and again whatever the disk loses later.
async fn run(store: Arc<ImageStore>, fetch: Arc<Fetch>, mut unread: Vec<Placed>, state: watch::Sender<State>) {
    loop {
        if let Err(error) = fetch.run().await {
            tracing::warn!("Fetching an image pauses: {error}");
            fetch.set_lost(&error.to_string());
            state.send_replace(State::Failed(error));
            tokio::time::sleep(TROUBLE_PAUSE).await;
            state.send_replace(State::Fetching);
            continue;
        }
        // A crash of the machine may have left chunks that are not whole.
        let damaged = find_damaged(&store, std::mem::take(&mut unread)).await;
        if !damaged.is_empty() {
            tracing::info!(chunks = damaged.len(), "Chunks of an image are damaged: they are fetched again");
            fetch.add_missing(damaged);
            continue;
        }
        state.send_replace(State::Here);
        fetch.wanted().await;
    }
}

async fn find_damaged(store: &Arc<ImageStore>, unread: Vec<Placed>) -> Vec<Placed> {
    let find = move |store: &ImageStore| {
        let is_damaged = |(chunk, _, length): &Placed| store.chunks.read(*chunk, *length).is_err();
        Ok(unread.into_iter().filter(is_damaged).collect())
    };
    // It fails only when the agent is stopping.
    store.blocking(find).await.unwrap_or_default()
}

//! Makes an image of other hosts one of this host: the list of its chunks first, then the chunks, then its name.

use super::arrival::{Arrival, State};
use super::fetch::{self, Holder, Providers};
use super::manifest::{IMAGE_BYTES_MAX, Manifest, encoded_bytes_of};
use super::talk::write_message;
use super::{ImageError, ImageStore, StoredImage};
use crate::control::model::Progress;
use crate::name::Name;
use anyhow::anyhow;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::Instant;
use virtuoso_overlay::ids::{Digest, HostId};
use virtuoso_overlay::wire::image::ImageRequest;

/// A list of chunks has this long to come; the largest takes 11 s at 100 Mbit/s.
const MANIFEST_TIME_MAX: Duration = Duration::from_secs(60);

/// Hosts that are asked for a list of chunks at once: one of them may be gone.
const MANIFESTS_MAX: usize = 2;
/// If none gave it, they are asked again after this time, or when a host comes.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// What to pull.
#[derive(Debug, Clone)]
pub struct Pull {
    /// The image.
    pub image: Digest,
    /// The name it gets here.
    pub name: Name,
    /// Its size, if a row tells it.
    pub size_bytes: Option<u64>,
    /// Bytes per second at most.
    pub rate: Option<u64>,
    /// The pull fails when nothing has come for so long.
    pub patience: Duration,
}

impl Pull {
    /// A host that restarts is back by then.
    pub const PATIENCE: Duration = Duration::from_secs(60);
}

impl ImageStore {
    /// Fetches an image from the hosts that have it. If it is being fetched already, for a VM or another pull, this one
    /// joins. Dropping the future cancels: then, as on a full disk, nothing of it stays that nobody else wants. When
    /// providers are lost or the agent ends, the next pull goes on where this one was.
    pub async fn pull(
        self: &Arc<Self>,
        pull: Pull,
        providers: Arc<dyn Providers>,
        progress: watch::Sender<Progress>,
    ) -> Result<StoredImage, ImageError> {
        Self::check_name(&self.names(), &pull.name, pull.image)?;
        let manifest = self.get_manifest(&pull, &providers).await?;
        let mut claim = {
            let (store, manifest, told) = (self.clone(), manifest.clone(), providers.clone());
            self.blocking(move |_| Claim::new(&store, &manifest, told)).await?
        };
        let arrival = self.arrive(&manifest, &pull.name, providers).await?;
        let needed_bytes = arrival.fetch().missing_bytes();
        self.blocking(move |store| store.check_free(needed_bytes)).await?;
        let fetched = wait(&arrival, &pull, &progress).await;
        claim.keep = matches!(fetched, Err(ImageError::Fetch { .. }));
        fetched?;
        let named = self.blocking(move |store| store.complete_partial(&manifest, &pull.name)).await?;
        claim.keep = true;
        Ok(named)
    }

    pub(super) async fn get_manifest(
        self: &Arc<Self>,
        pull: &Pull,
        providers: &Arc<dyn Providers>,
    ) -> Result<Manifest, ImageError> {
        let image = pull.image;
        if let Some(manifest) = self.blocking(move |store| Ok(store.find_manifest(image))).await? {
            return Ok(manifest);
        }
        let bytes_max = encoded_bytes_of(pull.size_bytes.unwrap_or(IMAGE_BYTES_MAX).clamp(1, IMAGE_BYTES_MAX));
        let mut arrivals = providers.arrivals();
        let deadline = Instant::now() + pull.patience;
        loop {
            let holders = providers.find(image).await;
            let ask = |holder: Holder| ask_manifest_soon(providers.clone(), holder.host, image, bytes_max).boxed();
            let asking: Vec<BoxFuture<'static, _>> = holders.into_iter().map(ask).collect();
            let mut answers = futures::stream::iter(asking).buffer_unordered(MANIFESTS_MAX);
            let mut problems = Vec::new();
            while let Some((host, answer)) = answers.next().await {
                match answer {
                    Ok(manifest) => return Ok(manifest),
                    Err(problem) => problems.push(format!("{host}: {problem}")),
                }
            }
            if problems.is_empty() {
                return Err(ImageError::Fetch { image, reason: "no host has it".into() });
            }
            if Instant::now() >= deadline {
                let reason = format!("no host gives the list of its chunks ({})", problems.join("; "));
                return Err(ImageError::Fetch { image, reason });
            }
            // One that has just come back may have been asked on a connection that is gone.
            tokio::time::timeout(RETRY_AFTER, arrivals.next()).await.ok();
        }
    }

    pub(super) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, ImageError> {
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.map_err(|error| anyhow!("The work on the image broke off: {error}"))?
    }
}

async fn ask_manifest_soon(
    providers: Arc<dyn Providers>,
    host: HostId,
    image: Digest,
    bytes_max: u64,
) -> (HostId, Result<Manifest, String>) {
    let asked = tokio::time::timeout(MANIFEST_TIME_MAX, ask_manifest(&providers, host, image, bytes_max)).await;
    (host, asked.unwrap_or_else(|_| Err("it does not answer".into())))
}

async fn ask_manifest(
    providers: &Arc<dyn Providers>,
    host: HostId,
    image: Digest,
    bytes_max: u64,
) -> Result<Manifest, String> {
    let mut stream = providers.open(host).await?;
    let ask = async {
        write_message(&mut stream, &ImageRequest::Manifest(image).encode()).await?;
        stream.flush().await?;
        fetch::read_answer(&mut stream, bytes_max).await
    };
    let encoded = ask.await.map_err(|error| error.to_string())?.ok_or("it has it no more")?;
    Manifest::decode(&encoded, image).map_err(|error| {
        providers.lied(host, image, image);
        error.to_string()
    })
}

/// Waits until all of an image is here, in a hurry.
async fn wait(arrival: &Arrival, pull: &Pull, progress: &watch::Sender<Progress>) -> Result<(), ImageError> {
    let fetch = arrival.fetch();
    let _hurry = fetch.hurry(pull.rate);
    let (mut state, mut now) = (arrival.state(), fetch.progress());
    loop {
        progress.send_replace(*now.borrow_and_update());
        match &*state.borrow_and_update() {
            State::Fetching => {}
            State::Failed(error) => return Err(error.clone()),
            State::Here => return Ok(()),
        }
        let news = async {
            tokio::select! {
                _ = state.changed() => {}
                _ = now.changed() => {}
            }
        };
        if tokio::time::timeout(pull.patience, news).await.is_err() && fetch.missing_bytes() > 0 {
            let reason = format!("{}. What is here is kept: try again later", fetch.why_nothing_comes());
            return Err(ImageError::Fetch { image: pull.image, reason });
        }
    }
}

/// Pulls under way of each image.
#[derive(Debug, Default)]
pub(super) struct Claims(Mutex<BTreeMap<Digest, usize>>);

/// A pull's share in what is here of an image: when the last one ends, that goes, unless it is to be kept.
struct Claim {
    store: Arc<ImageStore>,
    image: Digest,
    told: Arc<dyn Providers>,
    /// Whether what is here of the image stays.
    keep: bool,
}

impl Claim {
    /// Blocks on the disk.
    fn new(store: &Arc<ImageStore>, manifest: &Manifest, told: Arc<dyn Providers>) -> Result<Self, ImageError> {
        let image = manifest.digest();
        let mut claims = store.claims.0.lock().unwrap_or_else(PoisonError::into_inner);
        store.begin_partial(manifest)?;
        *claims.entry(image).or_default() += 1;
        Ok(Self { store: store.clone(), image, told, keep: false })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let (store, image, told) = (self.store.clone(), self.image, self.told.clone());
        let keep = self.keep || store.closing.load(Ordering::Relaxed);
        let end = move || {
            let mut claims = store.claims.0.lock().unwrap_or_else(PoisonError::into_inner);
            let left = claims.get(&image).map_or(0, |count| count - 1);
            if left > 0 {
                claims.insert(image, left);
                return;
            }
            claims.remove(&image);
            if !keep && let Err(error) = store.discard_partial(image) {
                tracing::warn!(%image, "What was fetched of an image stays until the next start: {error:#}");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                tokio::task::spawn_blocking(end).await.ok();
                told.changed();
            })),
            Err(_) => end(),
        }
    }
}

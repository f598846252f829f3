//! Makes an image of other hosts one of this host: the list of its chunks first, then the chunks, then its name.

use super::fetch::{self, Fetch, Providers};
use super::manifest::{IMAGE_BYTES_MAX, Manifest, encoded_bytes_of};
use super::talk::write_message;
use super::{ImageError, ImageStore, StoredImage};
use crate::control::model::Progress;
use crate::name::Name;
use anyhow::anyhow;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use virtuoso_overlay::ids::{Digest, HostId};
use virtuoso_overlay::wire::image::ImageRequest;

/// A list of chunks has this long to come; the largest takes 11 s at 100 Mbit/s.
const MANIFEST_TIME_MAX: Duration = Duration::from_secs(60);

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
    /// Fetches an image from the hosts that have it. Dropping the future cancels: then, as on a full disk, nothing of
    /// it stays. When providers are lost or the agent ends, the next pull goes on where this one was.
    pub async fn pull(
        self: &Arc<Self>,
        pull: Pull,
        providers: Arc<dyn Providers>,
        progress: watch::Sender<Progress>,
    ) -> Result<StoredImage, ImageError> {
        Self::check_name(&self.names(), &pull.name, pull.image)?;
        let mut claim = Claim::new(self, pull.image)?;
        let manifest = self.get_manifest(&pull, &providers).await?;
        let missing = self.blocking({
            let manifest = manifest.clone();
            move |store| store.begin_partial(&manifest)
        });
        let fetched = match missing.await {
            Ok(missing) => {
                let fetch = Fetch::new(self.clone(), providers, &manifest, missing, pull.rate, progress);
                fetch.with_patience(pull.patience).run().await
            }
            Err(error) => Err(error),
        };
        match fetched {
            Err(error @ ImageError::Fetch { .. }) => {
                claim.keep = true;
                return Err(error);
            }
            other => other?,
        }
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
        let mut problems = Vec::new();
        for host in providers.find(image).await {
            let asked = tokio::time::timeout(MANIFEST_TIME_MAX, ask_manifest(providers, host, image, bytes_max)).await;
            match asked.unwrap_or_else(|_| Err("it does not answer".into())) {
                Ok(manifest) => return Ok(manifest),
                Err(problem) => problems.push(format!("{host}: {problem}")),
            }
        }
        let reason = match problems.as_slice() {
            [] => "no host has it".to_owned(),
            problems => format!("no host gives the list of its chunks ({})", problems.join("; ")),
        };
        Err(ImageError::Fetch { image, reason })
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

/// Images that are being fetched.
#[derive(Debug, Default)]
pub(super) struct Claims(Mutex<BTreeSet<Digest>>);

/// The right to fetch an image. Two fetches of one would take each other's chunks away when they end.
pub(super) struct Claim {
    store: Arc<ImageStore>,
    image: Digest,
    /// Whether what is here of the image stays.
    keep: bool,
}

impl Claim {
    pub(super) fn new(store: &Arc<ImageStore>, image: Digest) -> Result<Self, ImageError> {
        let is_new = store.claims.0.lock().unwrap_or_else(PoisonError::into_inner).insert(image);
        if is_new { Ok(Self { store: store.clone(), image, keep: false }) } else { Err(ImageError::Busy(image)) }
    }
}

impl Claim {
    /// What is here of the image stays when the claim ends.
    pub(super) fn keeping(self) -> Self {
        let mut claim = self;
        claim.keep = true;
        claim
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let (store, image) = (self.store.clone(), self.image);
        let keep = self.keep || store.closing.load(Ordering::Relaxed);
        let end = move || {
            if !keep && let Err(error) = store.discard_partial(image) {
                tracing::warn!(%image, "What was fetched of an image stays until the next start: {error:#}");
            }
            store.claims.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&image);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !keep => drop(runtime.spawn_blocking(end)),
            _ => end(),
        }
    }
}

//! Gives other members what they ask for of the images that are here, chunk by chunk.

use super::ImageStore;
use super::talk::{read_message, write_message};
use crate::swarm::streams::Inbound;
use anyhow::Context;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::{Semaphore, mpsc};
use virtuoso_overlay::wire::image::{ImageAnswer, ImageRequest};

/// Streams that are served at once: each may hold a chunk in memory.
const SERVED_MAX: usize = 256;
/// A stream on which nobody asks, or takes the answers, is closed after this time.
const IDLE_TIME_MAX: Duration = Duration::from_secs(120);

/// Serves streams until there are no more.
pub async fn provide(store: Arc<ImageStore>, mut inbound: mpsc::Receiver<Inbound>) {
    let places = Arc::new(Semaphore::new(SERVED_MAX));
    while let Some(Inbound { host, stream }) = inbound.recv().await {
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::debug!(%host, "Too many streams of images: refused");
            continue;
        };
        let store = store.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(&store, stream).await {
                tracing::debug!(%host, "A stream of an image ended: {error:#}");
            }
            drop(place);
        });
    }
}

/// Answers questions until the other side has no more.
pub(super) async fn answer(store: &Arc<ImageStore>, stream: impl AsyncRead + AsyncWrite) -> anyhow::Result<()> {
    let (reading, writing) = tokio::io::split(stream);
    let (mut reading, mut writing) = (BufReader::new(reading), BufWriter::new(writing));
    loop {
        let question = tokio::time::timeout(IDLE_TIME_MAX, read_message(&mut reading)).await;
        let Some(question) = question.context("Nobody asks")?? else { return Ok(()) };
        let request = ImageRequest::decode(&question)?;
        let content = read_content(store, request).await?;
        let send = async {
            match content {
                Some(content) => {
                    write_message(&mut writing, &ImageAnswer::Content(content.len() as u64).encode()).await?;
                    writing.write_all(&content).await?;
                }
                None => write_message(&mut writing, &ImageAnswer::Missing.encode()).await?,
            }
            writing.flush().await
        };
        tokio::time::timeout(IDLE_TIME_MAX, send).await.context("Nobody takes the answer")??;
    }
}

async fn read_content(store: &Arc<ImageStore>, request: ImageRequest) -> anyhow::Result<Option<Vec<u8>>> {
    let store = store.clone();
    let read = tokio::task::spawn_blocking(move || match request {
        ImageRequest::Manifest(image) => store.encoded_manifest(image),
        ImageRequest::Chunk(chunk) => store.chunks.read_any(chunk),
    });
    match read.await.context("Reading an image broke off")? {
        Ok(content) => Ok(Some(content)),
        Err(error) => {
            tracing::debug!(?request, "Not given: {error:#}");
            Ok(None)
        }
    }
}

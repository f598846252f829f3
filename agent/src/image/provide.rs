//! Gives other members what they ask for of the images that are here, chunk by chunk.

use super::ImageStore;
use super::talk::{read_message, write_message};
use crate::swarm::streams::Inbound;
use anyhow::Context;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::{Semaphore, mpsc};
use virtuoso_overlay::ids::Digest;
use virtuoso_overlay::wire::image::{CHUNK_LIST_BYTES_MAX, ImageAnswer, ImageRequest};

/// Streams that are served at once: each may hold a chunk in memory.
const SERVED_MAX: usize = 256;
/// A stream on which nobody asks, or takes the answers, is closed after this time.
const IDLE_TIME_MAX: Duration = Duration::from_secs(120);
/// Between two lists of chunks that have come, to one host.
const TELL_INTERVAL: Duration = Duration::from_millis(50);

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
        if let ImageRequest::Follow(image) = request {
            return tell_what_comes(store, image, &mut writing).await;
        }
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

/// Tells which chunks of an image are here, until all are or nobody listens.
async fn tell_what_comes(
    store: &Arc<ImageStore>,
    image: Digest,
    writing: &mut (impl AsyncWrite + Unpin),
) -> anyhow::Result<()> {
    let Some(fetch) = store.find_fetch(image).filter(|_| !store.has(image)) else {
        let all = if store.has(image) { ImageAnswer::Content(0) } else { ImageAnswer::Missing };
        write_message(writing, &all.encode()).await?;
        return Ok(writing.flush().await?);
    };
    let Some(mut progress) = fetch.upgrade().map(|fetch| fetch.progress()) else { return Ok(()) };
    let mut told = 0;
    loop {
        progress.borrow_and_update();
        // Not kept while it waits: a fetch ends with those who want its image.
        let Some((here, all)) = fetch.upgrade().map(|fetch| (fetch.here_after(told), fetch.missing_bytes() == 0))
        else {
            return Ok(());
        };
        told += here.len();
        let send = async {
            for list in here.chunks(CHUNK_LIST_BYTES_MAX as usize / size_of::<Digest>()) {
                let list: Vec<u8> = list.iter().flat_map(|chunk| chunk.0).collect();
                write_message(writing, &ImageAnswer::Content(list.len() as u64).encode()).await?;
                writing.write_all(&list).await?;
            }
            if all {
                write_message(writing, &ImageAnswer::Content(0).encode()).await?;
            }
            writing.flush().await
        };
        tokio::time::timeout(IDLE_TIME_MAX, send).await.context("Nobody listens")??;
        if all || progress.changed().await.is_err() {
            return Ok(());
        }
        // A few chunks at once are told in one message.
        tokio::time::sleep(TELL_INTERVAL).await;
    }
}

async fn read_content(store: &Arc<ImageStore>, request: ImageRequest) -> anyhow::Result<Option<Vec<u8>>> {
    let store = store.clone();
    let read = tokio::task::spawn_blocking(move || match request {
        ImageRequest::Manifest(image) => store.encoded_manifest(image),
        ImageRequest::Chunk(chunk) => store.chunks.read_any(chunk),
        ImageRequest::Follow(_) => anyhow::bail!("A list of what comes is no single answer"),
    });
    match read.await.context("Reading an image broke off")? {
        Ok(content) => Ok(Some(content)),
        Err(error) => {
            tracing::debug!(?request, "Not given: {error:#}");
            Ok(None)
        }
    }
}

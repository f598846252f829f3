//! Talks to one provider: several questions under way, answers checked as they come.

use super::queue::STEAL_AFTER;
use super::{Io, Shared};
use crate::image::talk::{read_content, read_message, write_message};
use crate::image::{ImageError, chunk};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::Instant;
use virtuoso_overlay::ids::{Digest, HostId};
use virtuoso_overlay::wire::image::{CHUNK_LIST_BYTES_MAX, ImageAnswer, ImageRequest};

/// Questions under way: 2 MiB of chunks fill a path of 300 Mbit/s with 50 ms of round trip.
const WINDOW: usize = 8;
/// A provider that owes an answer for so long is given up. At 1 Mbit/s a whole window takes 17 s.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);

/// Why a worker ended early.
pub(super) enum Fault {
    /// The provider can't be reached, or does not answer, or has not what is asked.
    Stream(String),
    /// It sent a chunk that is not what its digest says.
    Lie(Digest),
    /// The store can't take more.
    Store(ImageError),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Stream(format!("the stream broke: {error}"))
    }
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    host: HostId,
    /// It has all of the image.
    complete: bool,
    asked: VecDeque<(Digest, usize)>,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, host: HostId, complete: bool) -> Self {
        Self { shared, host, complete, asked: VecDeque::new() }
    }

    /// Asks until nothing is missing.
    pub(super) async fn run(self) -> Result<(), Fault> {
        if self.complete {
            return self.talk().await;
        }
        let (shared, host) = (self.shared.clone(), self.host);
        shared.queue().begin_offers(host);
        tokio::select! {
            ended = self.talk() => ended,
            fault = follow(&shared, host) => Err(fault),
        }
    }

    async fn talk(mut self) -> Result<(), Fault> {
        let stream = self.shared.providers.open(self.host).await.map_err(Fault::Stream)?;
        let (mut reading, mut writing) = tokio::io::split(stream);
        loop {
            // Before looking at the queue, so that no change is missed.
            let shared = self.shared.clone();
            let changed = shared.changed.notified();
            self.ask(&mut writing).await?;
            if !self.asked.is_empty() {
                self.hear(&mut reading).await?;
            } else if self.shared.queue().missing_bytes() == 0 {
                return Ok(());
            } else {
                // All is asked of others. If they are too slow, it is this one's turn.
                tokio::time::timeout(STEAL_AFTER, changed).await.ok();
            }
        }
    }

    async fn ask(&mut self, writing: &mut WriteHalf<Box<dyn Io>>) -> Result<(), Fault> {
        while self.asked.len() < WINDOW {
            let next = self.shared.queue().next(self.host, Instant::now());
            let Some((digest, length, is_urgent)) = next else { break };
            self.asked.push_back((digest, length));
            // Somebody waits for it: the limit is for what comes on the side.
            if !is_urgent {
                self.shared.rate.take(length).await;
            }
            write_message(writing, &ImageRequest::Chunk(digest).encode()).await?;
        }
        Ok(writing.flush().await?)
    }

    async fn hear(&mut self, reading: &mut ReadHalf<Box<dyn Io>>) -> Result<(), Fault> {
        let Some((digest, length)) = self.asked.pop_front() else { return Ok(()) };
        let answer = tokio::time::timeout(ANSWER_TIME_MAX, read_answer(reading, length as u64)).await;
        let slow = |_| Fault::Stream(format!("no chunk came in {} s", ANSWER_TIME_MAX.as_secs()));
        let content = answer.map_err(slow)??.ok_or_else(|| Fault::Stream("it has not all of the image".into()))?;
        let shared = self.shared.clone();
        let kept = tokio::task::spawn_blocking(move || {
            if content.len() != length || chunk::digest(&content) != digest {
                return Err(Fault::Lie(digest));
            }
            // The other host that was asked for it may have been faster.
            shared.store.keep_chunk(digest, &content).map_err(Fault::Store)
        });
        kept.await.map_err(|error| Fault::Stream(format!("keeping a chunk broke off: {error}")))??;
        self.shared.arrived(self.host, &digest);
        Ok(())
    }
}

/// Hears which chunks a host has that fetches the image too. Ends when that can't be heard any more.
async fn follow(shared: &Shared, host: HostId) -> Fault {
    let hear = async {
        let mut stream = shared.providers.open(host).await.map_err(Fault::Stream)?;
        write_message(&mut stream, &ImageRequest::Follow(shared.image).encode()).await?;
        stream.flush().await?;
        loop {
            let list = read_answer(&mut stream, CHUNK_LIST_BYTES_MAX).await?;
            let list = list.ok_or_else(|| Fault::Stream("it does not fetch the image any more".into()))?;
            if list.is_empty() {
                return Ok(());
            }
            let (digests, _) = list.as_chunks();
            shared.queue().add_offers(host, digests.iter().copied().map(Digest));
            shared.changed.notify_waiters();
        }
    };
    match hear.await {
        Ok(()) => {
            shared.queue().end_offers(host);
            shared.changed.notify_waiters();
            std::future::pending().await
        }
        Err(fault) => fault,
    }
}

/// The content that a provider sends, or none if it has it not.
pub(in crate::image) async fn read_answer(
    reading: &mut (impl tokio::io::AsyncRead + Unpin),
    length_max: u64,
) -> io::Result<Option<Vec<u8>>> {
    let head = read_message(reading).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    match ImageAnswer::decode(&head).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))? {
        ImageAnswer::Missing => Ok(None),
        ImageAnswer::Content(length) if length <= length_max => Ok(Some(read_content(reading, length).await?)),
        ImageAnswer::Content(length) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("{length} bytes are more than {length_max}")))
        }
    }
}

//! The discs of this host: files that its users lend to drives, open as long as a drive may want them, also over
//! restarts of the agent.

use super::opened::{self, Identity, User};
use crate::clock;
use crate::entropy;
use crate::image::talk::{read_message, write_message};
use crate::state::StateDir;
use crate::state::sealed::Kind;
use crate::swarm::streams::Inbound;
use crate::text::Text;
use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::{Semaphore, mpsc};
use virtuoso_overlay::ids::DiscKey;
use virtuoso_overlay::wire::disc::{DISC_READ_BYTES_MAX, DiscAnswer, DiscRequest};

/// Discs at once: each is an open file.
const DISCS_MAX: usize = 64;
/// Streams that are served at once: each may hold one read in memory.
const SERVED_MAX: usize = 128;
/// A drive asks every few seconds whether its shelf lives.
const IDLE_TIME_MAX: Duration = Duration::from_secs(60);
/// A disc that no drive has read for so long is forgotten: a VM that is off may want it again.
const UNUSED_TIME_MAX: Duration = Duration::from_secs(14 * 24 * 3600);

/// The discs, as they are kept.
const DISCS: Kind = Kind { name: "discs", version: 1 };

/// The shelf of this host.
#[derive(Debug)]
pub struct Shelf {
    state: Arc<StateDir>,
    discs: Mutex<BTreeMap<DiscKey, Entry>>,
}

/// A disc that was just lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disc {
    /// What opens it.
    pub key: DiscKey,
    /// The file's size.
    pub size_bytes: u64,
}

#[derive(Debug, Clone)]
struct Entry {
    file: Arc<File>,
    saved: Saved,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    key: Text<DiscKey>,
    path: PathBuf,
    user: User,
    identity: Identity,
    /// Seconds since 1970.
    used_s: u64,
}

impl Shelf {
    /// The discs of earlier runs. What can't be opened any more, or has changed, is told and forgotten.
    ///
    /// # Errors
    /// If the list of discs can't be read.
    pub fn open(state: Arc<StateDir>) -> anyhow::Result<Arc<Self>> {
        let saved: Vec<Saved> = state.read_json(&DISCS)?.unwrap_or_default();
        let mut discs = BTreeMap::new();
        for saved in saved.into_iter().filter(|saved| !saved.is_forgotten()) {
            match opened::open(&saved.path, &saved.user) {
                Ok((file, identity)) if identity == saved.identity => {
                    discs.insert(saved.key.0, Entry { file: Arc::new(file), saved });
                }
                Ok(_) => tracing::warn!(path = %saved.path.display(), "A file in a VM's drive has changed: taken out"),
                Err(error) => tracing::warn!("A file in a VM's drive is taken out: {error:#}"),
            }
        }
        Ok(Arc::new(Self { state, discs: Mutex::new(discs) }))
    }

    /// Opens a file as `user` and keeps it for a drive.
    ///
    /// # Errors
    /// If the user may not read it, or there are too many discs.
    pub fn lend(&self, path: &Path, user: User) -> anyhow::Result<Disc> {
        let (file, identity) = opened::open(path, &user)?;
        let key = DiscKey(entropy::bytes());
        let saved = Saved { key: Text(key), path: path.into(), user, identity, used_s: clock::wall().0 };
        let mut discs = self.discs();
        discs.retain(|_, entry| !entry.saved.is_forgotten());
        ensure!(discs.len() < DISCS_MAX, "{DISCS_MAX} files of this host are in drives already: eject one");
        discs.insert(key, Entry { file: Arc::new(file), saved });
        if let Err(error) = self.save(&discs) {
            discs.remove(&key);
            return Err(error);
        }
        Ok(Disc { key, size_bytes: identity.size_bytes })
    }

    /// Forgets a disc.
    pub fn take_back(&self, key: DiscKey) {
        let mut discs = self.discs();
        if discs.remove(&key).is_some()
            && let Err(error) = self.save(&discs)
        {
            tracing::warn!("A disc that was given back is still on the list: {error:#}");
        }
    }

    /// Answers other members until there are no more streams.
    pub async fn serve(self: Arc<Self>, mut inbound: mpsc::Receiver<Inbound>) {
        let places = Arc::new(Semaphore::new(SERVED_MAX));
        while let Some(Inbound { host, stream }) = inbound.recv().await {
            let Ok(place) = places.clone().try_acquire_owned() else {
                tracing::debug!(%host, "Too many streams of discs: refused");
                continue;
            };
            let shelf = self.clone();
            tokio::spawn(async move {
                if let Err(error) = shelf.answer(stream).await {
                    tracing::debug!(%host, "A stream of a disc ended: {error:#}");
                }
                drop(place);
            });
        }
    }

    /// Answers questions until the other side has no more.
    pub(super) async fn answer(&self, stream: impl AsyncRead + AsyncWrite) -> anyhow::Result<()> {
        let (reading, writing) = tokio::io::split(stream);
        let (mut reading, mut writing) = (BufReader::new(reading), BufWriter::new(writing));
        let mut open: Option<DiscKey> = None;
        loop {
            let question = tokio::time::timeout(IDLE_TIME_MAX, read_message(&mut reading)).await;
            let Some(question) = question.context("Nobody asks")?? else { return Ok(()) };
            let (head, content) = match DiscRequest::decode(&question)? {
                DiscRequest::Open(key) => {
                    open = Some(key);
                    (self.use_disc(key).map_or(DiscAnswer::Unknown, DiscAnswer::Opened), Vec::new())
                }
                DiscRequest::GiveBack(key) => {
                    self.take_back(key);
                    (DiscAnswer::GivenBack, Vec::new())
                }
                DiscRequest::Read { offset, length } => {
                    // Looked up each time: a disc that was taken back can't be read any more.
                    match open.and_then(|key| self.discs().get(&key).cloned()) {
                        Some(entry) => read(entry, offset, length).await?,
                        None => (DiscAnswer::Unknown, Vec::new()),
                    }
                }
            };
            let send = async {
                write_message(&mut writing, &head.encode()).await?;
                writing.write_all(&content).await?;
                writing.flush().await
            };
            tokio::time::timeout(IDLE_TIME_MAX, send).await.context("Nobody takes the answer")??;
        }
    }

    /// Notes that a drive has opened a disc; its size.
    fn use_disc(&self, key: DiscKey) -> Option<u64> {
        let mut discs = self.discs();
        let entry = discs.get_mut(&key)?;
        entry.saved.used_s = clock::wall().0;
        let size_bytes = entry.saved.identity.size_bytes;
        if let Err(error) = self.save(&discs) {
            tracing::warn!("Can't note that a disc is used: {error:#}");
        }
        Some(size_bytes)
    }

    fn save(&self, discs: &BTreeMap<DiscKey, Entry>) -> anyhow::Result<()> {
        let saved: Vec<&Saved> = discs.values().map(|entry| &entry.saved).collect();
        self.state.write_json(&DISCS, &saved)
    }

    /// No holder can panic half-way.
    fn discs(&self) -> MutexGuard<'_, BTreeMap<DiscKey, Entry>> {
        self.discs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Saved {
    fn is_forgotten(&self) -> bool {
        clock::wall().0.saturating_sub(self.used_s) > UNUSED_TIME_MAX.as_secs()
    }
}

async fn read(entry: Entry, offset: u64, length: u32) -> anyhow::Result<(DiscAnswer, Vec<u8>)> {
    let is_within = offset.checked_add(length.into()).is_some_and(|end| end <= entry.saved.identity.size_bytes);
    if length > DISC_READ_BYTES_MAX || !is_within {
        bail!("A read of {length} bytes at {offset} is not within the disc");
    }
    if length == 0 {
        return Ok((DiscAnswer::Content(0), Vec::new()));
    }
    let reading = tokio::task::spawn_blocking(move || {
        let mut content = vec![0; length as usize];
        entry.file.read_exact_at(&mut content, offset).map(|()| content)
    });
    match reading.await.context("Reading a disc broke off")? {
        Ok(content) => Ok((DiscAnswer::Content(length), content)),
        Err(error) => {
            tracing::info!(offset, "A disc can't be read: {error}");
            Ok((DiscAnswer::Unreadable, Vec::new()))
        }
    }
}

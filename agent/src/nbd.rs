//! Read-only disks for hypervisors on this host: the NBD protocol on a Unix socket. Where the content comes from, a
//! [`Disk`] knows. [`Ahead`] carries the protocol to a server elsewhere.
//!
//! Fixed newstyle negotiation and simple replies, which every client knows. Reads run side by side: one that waits for
//! another host does not hold up the next.

mod ahead;
mod negotiation;

pub(crate) use ahead::{Ahead, Behind};

use bytes::Bytes;
use negotiation::negotiate;
use socket2::SockRef;
use std::fs::{self, Permissions};
use std::future::Future;
use std::io::{self, IoSlice};
use std::iter;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;

/// Clients of one disk at once: the VMs of a host that have it.
const CLIENTS_MAX: usize = 256;
/// Reads of one client at once; more wait in the socket.
const READS_MAX: usize = 16;
/// Bytes of one request, as the protocol recommends.
const REQUEST_BYTES_MAX: u32 = 32 << 20;
/// Bytes on their way to one client: it reads while the next answer is written. The kernel may allow less.
const SENT_BYTES_MAX: usize = 1 << 20;

/// Numbers that the protocol gives to errors.
#[derive(Clone, Copy)]
enum Failure {
    None = 0,
    NotPermitted = 1,
    InputOutput = 5,
    Invalid = 22,
    NotSupported = 95,
}

/// What clients read.
pub(crate) trait Disk: Send + Sync + 'static {
    /// The export's name; it is also the default export.
    fn name(&self) -> &str;

    /// The disk's size.
    fn size_bytes(&self) -> u64;

    /// The size of the pieces in which it is best read: a power of two.
    fn piece_bytes(&self) -> u32;

    /// Reads bytes that are within the disk, in pieces one after the other; an error becomes an input/output error of
    /// the client.
    fn read(&self, offset: u64, length: usize) -> impl Future<Output = io::Result<Vec<Bytes>>> + Send;
}

/// A socket for clients of the agent's own user. One of an agent that was killed is replaced.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    fs::remove_file(path).ok();
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves all clients until it is dropped.
pub(crate) async fn listen(listener: UnixListener, disk: Arc<impl Disk>) {
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("Can't accept a client of a disk: {error}");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        // With a smaller one it is only slower.
        SockRef::from(&stream).set_send_buffer_size(SENT_BYTES_MAX).ok();
        let disk = disk.clone();
        clients.spawn(async move {
            if let Err(error) = serve(stream, disk).await {
                tracing::debug!("A client of a disk went away: {error}");
            }
            drop(place);
        });
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Send + 'static, disk: Arc<impl Disk>) -> io::Result<()> {
    let (reading, mut writing) = tokio::io::split(stream);
    let mut reading = BufReader::new(reading);
    if !negotiate(&mut reading, &mut writing, &*disk).await? {
        return Ok(());
    }
    let writing = Arc::new(Mutex::new(writing));
    let places = Arc::new(Semaphore::new(READS_MAX));
    let mut reads = JoinSet::new();
    loop {
        let request = Request::read(&mut reading).await?;
        while reads.try_join_next().is_some() {}
        let failure = match request.kind {
            READ if request.is_within(disk.size_bytes()) => {
                let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
                let (disk, writing) = (disk.clone(), writing.clone());
                reads.spawn(async move {
                    let (failure, content) = match disk.read(request.offset, request.length as usize).await {
                        Ok(content) => (Failure::None, content),
                        Err(error) => {
                            tracing::debug!(offset = request.offset, "A disk can't be read: {error}");
                            (Failure::InputOutput, Vec::new())
                        }
                    };
                    // A client that is gone shows when its next request is read.
                    reply(&mut *writing.lock().await, request.cookie, failure as u32, &content).await.ok();
                    drop(place);
                });
                continue;
            }
            READ => Failure::Invalid,
            WRITE => {
                discard(&mut reading, request.length).await?;
                Failure::NotPermitted
            }
            DISCONNECT => return Ok(()),
            FLUSH => Failure::None,
            _ => Failure::NotSupported,
        };
        reply(&mut *writing.lock().await, request.cookie, failure as u32, &[]).await?;
    }
}

struct Request {
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    length: u32,
}

impl Request {
    async fn read(reading: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        if reading.read_u32().await? != REQUEST_MAGIC {
            return Err(invalid("not a request"));
        }
        let (flags, kind) = (reading.read_u16().await?, reading.read_u16().await?);
        let (cookie, offset) = (reading.read_u64().await?, reading.read_u64().await?);
        Ok(Self { flags, kind, cookie, offset, length: reading.read_u32().await? })
    }

    fn encode(&self) -> [u8; 28] {
        let mut bytes = [0; 28];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// The bytes that it is about.
    fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.length.into())
    }

    fn is_within(&self, size_bytes: u64) -> bool {
        let end = self.offset.checked_add(self.length.into());
        (1..=REQUEST_BYTES_MAX).contains(&self.length) && end.is_some_and(|end| end <= size_bytes)
    }
}

/// The content goes from where it is to the socket.
async fn reply(writing: &mut (impl AsyncWrite + Unpin), cookie: u64, error: u32, content: &[Bytes]) -> io::Result<()> {
    let mut head = [0; 16];
    head[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
    head[4..8].copy_from_slice(&error.to_be_bytes());
    head[8..].copy_from_slice(&cookie.to_be_bytes());
    let mut parts: Vec<_> = iter::once(&head[..]).chain(content.iter().map(Bytes::as_ref)).map(IoSlice::new).collect();
    let mut left = &mut parts[..];
    while !left.is_empty() {
        match writing.write_vectored(left).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => IoSlice::advance_slices(&mut left, count),
        }
    }
    writing.flush().await
}

async fn discard(reading: &mut (impl AsyncRead + Unpin), length: u32) -> io::Result<()> {
    if length > REQUEST_BYTES_MAX {
        return Err(invalid("a request that is too long"));
    }
    tokio::io::copy(&mut reading.take(length.into()), &mut tokio::io::sink()).await.map(drop)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
pub(crate) mod tests;

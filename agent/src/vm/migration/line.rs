//! Streams of a migration between its two hosts. The first byte and the id behind it say what a stream is: messages of
//! the source to the target, of the target to the source, or raw bytes that a QEMU sends to the other.

use super::super::console::Console;
use super::Inbox;
use super::valve::{Valve, Valved};
use crate::nbd::{Ahead, Behind};
use crate::swarm::streams::{Stream, StreamKind, Streams};
use anyhow::{Context as _, bail};
use socket2::SockRef;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use virtuoso_overlay::ids::HostId;
use virtuoso_overlay::migrate::{MESSAGE_BYTES_MAX, MigrationId, STARVING_TIME};
use virtuoso_overlay::wire::attach::ConsolePart;

/// Migrations of VMs.
pub const MIGRATION: StreamKind = StreamKind::new("migration");

/// Messages that wait for a stream. There are a handful in a migration.
const OUTGOING_MAX: usize = 64;
/// Time in which whoever opens a stream must say what it is.
const HEADER_TIME_MAX: Duration = Duration::from_secs(10);
/// Parts of a console that wait: there are two.
const PARTS_MAX: usize = 2;
/// What the target says when its QEMU waits for memory again.
const READY: u8 = b'+';
/// Bytes that are carried in one go. QEMU takes them for sent while they wait here.
const COPY_BYTES: usize = 128 << 10;
/// Bytes that wait in the socket of a QEMU that sends; the kernel doubles it, for what it needs itself.
const PIPE_BYTES: usize = 96 << 10;

/// What a stream carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// Messages, opened by the source.
    FromSource,
    /// Messages, opened by the target.
    FromTarget,
    /// Memory and devices.
    Memory,
    /// Memory that is still fetched, after its stream broke.
    MemoryAgain,
    /// A disk, as NBD.
    Disk,
    /// What the console shows, and what was typed.
    Console,
}

/// The way to the other host while there is one.
#[derive(Debug)]
pub(super) struct Line {
    outgoing: mpsc::Sender<Vec<u8>>,
    /// Tells it from those before.
    pub(super) generation: u64,
}

impl Purpose {
    const ALL: [(u8, Self); 6] = [
        (b'S', Self::FromSource),
        (b'T', Self::FromTarget),
        (b'M', Self::Memory),
        (b'R', Self::MemoryAgain),
        (b'D', Self::Disk),
        (b'C', Self::Console),
    ];
}

/// Opens a stream for a migration.
pub(super) async fn open(streams: &Streams, to: HostId, what: Purpose, id: MigrationId) -> anyhow::Result<Stream> {
    let mut stream = streams.open(to, MIGRATION).await.context("Can't reach the other host")?;
    let byte = Purpose::ALL.iter().find(|(_, purpose)| *purpose == what).map(|(byte, _)| *byte).unwrap_or_default();
    let header = [&[byte][..], &id.0].concat();
    stream.write_all(&header).await.context("The other host went away")?;
    stream.flush().await.context("The other host went away")?;
    Ok(stream)
}

/// Reads what a stream is that another host opened.
pub(super) async fn accept(stream: &mut Stream) -> anyhow::Result<(Purpose, MigrationId)> {
    let mut header = [0; 17];
    let read = tokio::time::timeout(HEADER_TIME_MAX, stream.read_exact(&mut header)).await;
    read.context("It says nothing")?.context("It broke")?;
    let purpose = Purpose::ALL.iter().find(|(byte, _)| *byte == header[0]).context("It is of an unknown kind")?.1;
    let mut id = [0; 16];
    id.copy_from_slice(&header[1..]);
    Ok((purpose, MigrationId(id)))
}

/// Reads one message.
pub(super) async fn receive(stream: &mut (impl AsyncReadExt + Unpin)) -> anyhow::Result<Vec<u8>> {
    let length = stream.read_u32().await? as usize;
    if length > MESSAGE_BYTES_MAX {
        bail!("A message of {length} bytes is too large");
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Writes one message.
pub(super) async fn send(stream: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) -> anyhow::Result<()> {
    stream.write_u32(u32::try_from(bytes.len())?).await?;
    stream.write_all(bytes).await?;
    Ok(stream.flush().await?)
}

impl Line {
    /// Carries messages both ways until the stream ends, which the inbox hears.
    pub(super) fn start(stream: Stream, generation: u64, inbox: mpsc::Sender<Inbox>) -> Self {
        let (outgoing, mut to_send) = mpsc::channel::<Vec<u8>>(OUTGOING_MAX);
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(stream);
            let reading = async {
                while let Ok(bytes) = receive(&mut read).await {
                    if inbox.send(Inbox::Said(bytes)).await.is_err() {
                        return;
                    }
                }
            };
            let writing = async {
                while let Some(bytes) = to_send.recv().await {
                    if send(&mut write, &bytes).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = reading => {}
                () = writing => {}
            }
            inbox.send(Inbox::Lost(generation)).await.ok();
        });
        Self { outgoing, generation }
    }

    /// Sends a message; one that does not fit is lost, as all may be.
    pub(super) fn say(&self, bytes: Vec<u8>) {
        if let Err(error) = self.outgoing.try_send(bytes) {
            tracing::debug!("A message about a migration is lost: {error}");
        }
    }
}

/// Sends parts of a console until the last one.
pub(super) fn send_parts(streams: Streams, to: HostId, id: MigrationId) -> mpsc::Sender<ConsolePart> {
    let (sender, mut parts) = mpsc::channel::<ConsolePart>(PARTS_MAX);
    tokio::spawn(async move {
        let sent = async {
            let mut stream = open(&streams, to, Purpose::Console, id).await?;
            while let Some(part) = parts.recv().await {
                send(&mut stream, &part.encode()).await?;
            }
            anyhow::Ok(stream.shutdown().await?)
        };
        if let Err(error) = sent.await {
            tracing::debug!("A console stays behind: {error:#}");
        }
    });
    sender
}

/// Takes parts of a console until the last one.
pub(super) async fn take_parts(mut stream: Stream, console: &Console) -> anyhow::Result<()> {
    loop {
        let part = ConsolePart::decode(&receive(&mut stream).await?)?;
        console.take_part(&part);
        if part.is_last {
            return Ok(());
        }
    }
}

/// A stream between the QEMUs of both hosts. It ends when this is dropped, and each of them hears so: one that waits
/// for a host that is gone would else hang until the link to it times out, and its guest with it.
#[derive(Debug)]
pub(super) struct Bridge(AbortHandle);

impl Drop for Bridge {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Ends bridges after a time, unless it is dropped before.
#[derive(Debug)]
pub(super) struct Patience(AbortHandle);

impl Patience {
    pub(super) fn start(bridges: &[Bridge], time: Duration) -> Self {
        let ends: Vec<AbortHandle> = bridges.iter().map(|bridge| bridge.0.clone()).collect();
        let waiting = tokio::spawn(async move {
            tokio::time::sleep(time).await;
            ends.iter().for_each(AbortHandle::abort);
        });
        Self(waiting.abort_handle())
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A socket to which a QEMU of this host connects once, to write to a disk of the other host; and what of that is not
/// there yet. What is sent is added to `sent`, in bytes.
pub(super) fn way_of_disk(
    socket: &Path,
    streams: Streams,
    to: HostId,
    id: MigrationId,
    sent: Arc<AtomicU64>,
) -> anyhow::Result<(Bridge, Behind)> {
    std::fs::remove_file(socket).ok();
    let listener = UnixListener::bind(socket).with_context(|| format!("Can't listen on {}", socket.display()))?;
    let socket = socket.to_owned();
    let (ahead, behind) = Ahead::new();
    let carrying = tokio::spawn(async move {
        let accepted = tokio::time::timeout(HEADER_TIME_MAX, listener.accept()).await;
        std::fs::remove_file(&socket).ok();
        let Ok(Ok((qemu, _))) = accepted else { return };
        let carried = async {
            let stream = open(&streams, to, Purpose::Disk, id).await?;
            anyhow::Ok(ahead.carry(qemu, Counted { stream, written: sent }).await?)
        };
        if let Err(error) = carried.await {
            tracing::debug!("The stream of a disk ended: {error:#}");
        }
    });
    Ok((Bridge(carrying.abort_handle()), behind))
}

/// One end of a connection for a QEMU of this host, to speak with one of the other host. Little waits in it: QEMU takes
/// that for sent, and pauses the guest too early.
pub(super) fn way_of_memory(streams: Streams, to: HostId, id: MigrationId) -> io::Result<(OwnedFd, Bridge, Valve)> {
    let (ours, theirs) = pipe()?;
    let (ours, valve) = Valved::new(ours);
    let carrying = tokio::spawn(async move {
        match open(&streams, to, Purpose::Memory, id).await {
            Ok(stream) => carry(ours, stream).await,
            Err(error) => tracing::debug!("A stream of a migration can't be opened: {error:#}"),
        }
    });
    Ok((theirs, Bridge(carrying.abort_handle()), valve))
}

/// The same for what the target still fetches, once its QEMU waits for it: until then this host's is told nothing.
/// QEMU before 8.2 never comes back from a way that breaks before both have found each other by it.
pub(super) async fn way_of_memory_again(
    streams: &Streams,
    to: HostId,
    id: MigrationId,
) -> anyhow::Result<(OwnedFd, Bridge)> {
    let mut stream = open(streams, to, Purpose::MemoryAgain, id).await?;
    let answered = tokio::time::timeout(HEADER_TIME_MAX, stream.read_u8()).await;
    let answer = answered.context("The target does not answer")?.context("The target is not ready")?;
    anyhow::ensure!(answer == READY, "The target says something else");
    let (ours, theirs) = pipe()?;
    let carrying = tokio::spawn(carry(ours, stream));
    Ok((theirs, Bridge(carrying.abort_handle())))
}

fn pipe() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    SockRef::from(&theirs).set_send_buffer_size(PIPE_BYTES)?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}

/// Joins a stream that came from the other host with the socket of the QEMU here, which takes one.
pub(super) async fn join(socket: &Path, stream: impl AsyncRead + AsyncWrite + Unpin) {
    match UnixStream::connect(socket).await {
        Ok(qemu) => {
            std::fs::remove_file(socket).ok();
            carry(qemu, stream).await;
        }
        Err(error) => tracing::debug!("Nobody waits at {}: {error}", socket.display()),
    }
}

/// The same for a QEMU that waits for memory again, when the other one begins to speak.
pub(super) async fn join_again(socket: &Path, stream: impl AsyncRead + AsyncWrite + Unpin) -> anyhow::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_u8(READY).await?;
    stream.flush().await?;
    anyhow::ensure!(!stream.fill_buf().await?.is_empty(), "The source has nothing to say");
    join(socket, stream).await;
    Ok(())
}

async fn carry(mut qemu: impl AsyncRead + AsyncWrite + Unpin, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let carried = tokio::io::copy_bidirectional_with_sizes(&mut qemu, &mut stream, COPY_BYTES, COPY_BYTES).await;
    if let Err(error) = carried {
        tracing::debug!("A stream of a migration ended: {error}");
    }
}

/// A stream of memory to a target, which says when something comes.
pub(super) struct Heard {
    stream: Stream,
    something: Arc<Notify>,
}

impl Heard {
    pub(super) fn new(stream: Stream) -> (Self, Arc<Notify>) {
        let something = Arc::new(Notify::new());
        (Self { stream, something: something.clone() }, something)
    }
}

/// Tells a migration when nothing comes for long, and when something does again, as long as there is one.
pub(super) async fn watch(something: &Notify, inbox: &mpsc::Sender<Inbox>) {
    let mut is_dry = false;
    while !inbox.is_closed() {
        let comes = tokio::time::timeout(STARVING_TIME, something.notified()).await.is_ok();
        // Again and again: nobody may have been waiting for it the first time.
        let told = match (is_dry, comes) {
            (_, false) => inbox.send(Inbox::MemoryDry).await,
            (true, true) => inbox.send(Inbox::MemoryFlows).await,
            (false, true) => Ok(()),
        };
        // The migration may be done.
        told.ok();
        is_dry = !comes;
    }
}

impl AsyncRead for Heard {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.something.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Heard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A stream that counts what is written to it.
struct Counted {
    stream: Stream,
    written: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.written.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

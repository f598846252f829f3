//! A VM's serial console: what the guest wrote lately, what it writes now for everybody who watches, and the way in.

use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;

/// Bytes of the past that a watcher gets first: a guest's boot.
const HISTORY_BYTES: usize = 64 << 10;
/// Pieces of output that a slow watcher may be behind; it then misses some, and the guest never waits.
const PIECES_MAX: usize = 256;
/// Pieces of input that wait for the guest.
const INPUT_MAX: usize = 64;
/// Bytes of one piece.
const PIECE_BYTES: usize = 4096;

/// One VM's console. It serves watchers until it is ended.
#[derive(Debug)]
pub struct Console {
    shared: Arc<Shared>,
    input: mpsc::Sender<Bytes>,
    reader: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    output: Mutex<Output>,
}

#[derive(Debug)]
struct Output {
    history: VecDeque<u8>,
    /// Gone when the console has ended.
    live: Option<broadcast::Sender<Bytes>>,
}

impl Console {
    /// Serves the serial port behind `stream`.
    pub(super) fn start(stream: UnixStream) -> Arc<Self> {
        let (read, write) = stream.into_split();
        let (live, _) = broadcast::channel(PIECES_MAX);
        let output = Output { history: VecDeque::new(), live: Some(live) };
        let shared = Arc::new(Shared { output: Mutex::new(output) });
        let (input, inbox) = mpsc::channel(INPUT_MAX);
        let reader = tokio::spawn(read_guest(read, shared.clone()));
        tokio::spawn(write_guest(write, inbox));
        Arc::new(Self { shared, input, reader: Mutex::new(Some(reader)) })
    }

    /// Lets watchers go. QEMU must have ended, and what became of the VM be known: they ask for it next.
    pub(super) async fn end(&self) {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(reader) = reader
            && let Err(error) = reader.await
        {
            tracing::debug!("Reading a console broke off: {error}");
        }
        self.shared.output().live = None;
    }

    /// What the guest wrote lately.
    pub fn history(&self) -> Vec<u8> {
        self.shared.output().history.iter().copied().collect()
    }

    /// Shows the console to one watcher, who may also type, until it goes or the console ends.
    pub async fn watch(&self, stream: impl AsyncRead + AsyncWrite + Send + 'static) {
        let (history, live) = {
            let output = self.shared.output();
            let history: Vec<u8> = output.history.iter().copied().collect();
            (history, output.live.as_ref().map(broadcast::Sender::subscribe))
        };
        let (mut read, mut write) = tokio::io::split(stream);
        let show = async {
            write.write_all(&history).await?;
            let Some(mut live) = live else { return write.shutdown().await };
            loop {
                match live.recv().await {
                    Ok(piece) => write.write_all(&piece).await?,
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return write.shutdown().await,
                }
                write.flush().await?;
            }
        };
        let hear = async {
            let mut buffer = vec![0; PIECE_BYTES];
            loop {
                match read.read(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(length) => {
                        if self.input.send(Bytes::copy_from_slice(&buffer[..length])).await.is_err() {
                            // QEMU is gone: what comes is the end.
                            return std::future::pending().await;
                        }
                    }
                }
            }
        };
        tokio::select! {
            shown = show => if let Err(error) = shown {
                tracing::debug!("A console watcher is gone: {error}");
            },
            () = hear => {}
        }
    }
}

impl Shared {
    /// A poisoned lock means that a push panicked, which it can't.
    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn read_guest(mut read: OwnedReadHalf, shared: Arc<Shared>) {
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(length @ 1..) = read.read(&mut buffer).await {
        let mut output = shared.output();
        output.history.extend(&buffer[..length]);
        let surplus = output.history.len().saturating_sub(HISTORY_BYTES);
        output.history.drain(..surplus);
        if let Some(live) = &output.live {
            // Nobody may be watching.
            live.send(Bytes::copy_from_slice(&buffer[..length])).ok();
        }
    }
}

async fn write_guest(mut write: OwnedWriteHalf, mut inbox: mpsc::Receiver<Bytes>) {
    while let Some(piece) = inbox.recv().await {
        if write.write_all(&piece).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn watchers_get_the_past_and_the_present_and_may_type() {
        let (qemu, ours) = UnixStream::pair().unwrap();
        let (mut guest_reads, mut guest_writes) = qemu.into_split();
        let console = Console::start(ours);
        guest_writes.write_all(b"login: ").await.unwrap();
        while console.history().is_empty() {
            tokio::task::yield_now().await;
        }
        let mut watchers = Vec::new();
        for _ in 0..2 {
            let (mut near, far) = tokio::io::duplex(1024);
            let console = console.clone();
            tokio::spawn(async move { console.watch(far).await });
            let mut past = [0; 7];
            near.read_exact(&mut past).await.unwrap();
            assert_eq!(&past, b"login: ");
            watchers.push(near);
        }
        watchers[0].write_all(b"root\n").await.unwrap();
        let mut typed = [0; 5];
        guest_reads.read_exact(&mut typed).await.unwrap();
        assert_eq!(&typed, b"root\n");
        guest_writes.write_all(b"# ").await.unwrap();
        drop((guest_reads, guest_writes));
        console.end().await;
        for mut near in watchers {
            let mut rest = String::new();
            near.read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest, "# ");
        }
    }

    #[tokio::test]
    async fn the_past_is_bounded() {
        let (mut qemu, ours) = UnixStream::pair().unwrap();
        let console = Console::start(ours);
        qemu.write_all(&vec![b'x'; HISTORY_BYTES * 2]).await.unwrap();
        drop(qemu);
        console.end().await;
        assert_eq!(console.history().len(), HISTORY_BYTES);
    }
}

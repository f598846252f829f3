//! A valve in the way that a guest's memory takes. QEMU gets rid of no more than the agent allows, so it can't come to
//! the end of it unseen, where it would pause the guest by itself.

use futures::task::AtomicWaker;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};

/// Every byte that comes.
pub(super) const ALL: u64 = u64::MAX;

/// What measures the way. A new one is open.
#[derive(Clone, Debug, Default)]
pub(super) struct Valve(Arc<State>);

#[derive(Debug)]
struct State {
    /// Bytes that may still be read.
    credit: AtomicU64,
    reader: AtomicWaker,
}

/// A way that is shut until this is gone.
#[derive(Debug)]
pub(super) struct Shut(Valve);

impl Default for State {
    fn default() -> Self {
        Self { credit: AtomicU64::new(ALL), reader: AtomicWaker::new() }
    }
}

impl Valve {
    /// Lets so many bytes be read from now on, whatever was left of those before.
    pub(super) fn allow(&self, bytes: u64) {
        self.0.credit.store(bytes, Ordering::SeqCst);
        self.0.reader.wake();
    }

    /// Lets nothing more be read. What was read before goes on.
    pub(super) fn shut(&self) -> Shut {
        self.allow(0);
        Shut(self.clone())
    }
}

impl State {
    /// So many were read.
    fn spend(&self, bytes: usize) {
        let left = |credit: u64| (credit != ALL).then(|| credit.saturating_sub(bytes as u64));
        // Nothing changes while it is open.
        self.credit.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).ok();
    }
}

impl Drop for Shut {
    fn drop(&mut self) {
        self.0.allow(ALL);
    }
}

/// A stream from which is read what its valve allows.
#[derive(Debug)]
pub(super) struct Valved<S> {
    stream: Take<S>,
    valve: Valve,
}

impl<S: AsyncRead> Valved<S> {
    pub(super) fn new(stream: S) -> (Self, Valve) {
        let valve = Valve::default();
        (Self { stream: stream.take(0), valve: valve.clone() }, valve)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Valved<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let state = &*this.valve.0;
        // First, so that what is allowed meanwhile is heard.
        state.reader.register(cx.waker());
        let credit = state.credit.load(Ordering::SeqCst);
        if credit == 0 {
            return Poll::Pending;
        }
        this.stream.set_limit(credit);
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        state.spend(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Valved<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn nothing_is_read_while_it_is_shut_and_all_of_it_afterwards() {
        let (mut writer, reader) = tokio::io::duplex(64);
        let (mut reader, valve) = Valved::new(reader);
        let shut = valve.shut();
        writer.write_all(b"pages").await.unwrap();
        let reading = tokio::spawn(async move {
            let mut bytes = [0; 5];
            reader.read_exact(&mut bytes).await.map(|_| bytes)
        });
        tokio::task::yield_now().await;
        assert!(!reading.is_finished());
        drop(shut);
        assert_eq!(reading.await.unwrap().unwrap(), *b"pages");
    }

    #[tokio::test]
    async fn no_more_is_read_than_is_allowed() {
        let (mut writer, reader) = tokio::io::duplex(64);
        let (mut reader, valve) = Valved::new(reader);
        writer.write_all(b"more than that").await.unwrap();
        drop(writer);
        valve.allow(4);
        let mut bytes = Vec::new();
        assert!(futures::poll!(pin!(reader.read_to_end(&mut bytes))).is_pending());
        assert_eq!(bytes, b"more");
        valve.allow(3);
        assert!(futures::poll!(pin!(reader.read_to_end(&mut bytes))).is_pending());
        assert_eq!(bytes, b"more th");
        drop(valve.shut());
        reader.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes, b"more than that");
    }
}

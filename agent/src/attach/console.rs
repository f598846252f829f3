//! A console on the side of whoever looks: it goes on where it was, wherever the VM is.

use super::way::{Attached, Way};
use super::{Duplex, read_answer, request};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Notify;
use virtuoso_overlay::vm::console::Unconfirmed;
use virtuoso_overlay::wire::attach::{AttachAnswer, AttachRequest, Place};

/// Bytes that are typed and not confirmed yet, at most: far more than a paste.
const UNCONFIRMED_MAX: usize = 16 << 10;
/// What a watcher sees where something may be missing.
const GAP: &[u8] = b"\r\n[virtuoso: connected again; what the guest wrote meanwhile may be missing]\r\n";

/// One watcher.
struct Watcher {
    seen: Place,
    read: ReadHalf<Box<dyn Duplex>>,
    write: WriteHalf<Box<dyn Duplex>>,
    typed: Typed,
}

/// What was typed and is not confirmed.
#[derive(Default)]
struct Typed {
    unconfirmed: Mutex<Unconfirmed>,
    /// There is room again.
    room: Notify,
}

/// How a stream to the VM's host ended.
enum Ended {
    /// The watcher is gone.
    Left,
    /// The VM does not run there any more, and all is told.
    InOrder,
    /// The stream broke: nobody knows what became of what is not confirmed.
    Broken,
}

/// Serves a watcher until it goes or the VM ends.
pub(super) async fn run(mut way: Way, attached: Attached, watcher: Box<dyn Duplex>) {
    let (read, write) = tokio::io::split(watcher);
    let mut watcher = Watcher { seen: attached.place, read, write, typed: Typed::default() };
    let mut stream = attached.stream;
    loop {
        match watcher.carry(stream).await {
            Ended::Left => return,
            Ended::InOrder => {}
            // What may have gone to the guest must not go to it twice.
            Ended::Broken => drop(watcher.typed.unconfirmed().take()),
        }
        let wanted = AttachRequest::Console { vm: way.vm, seen: Some(watcher.seen) };
        let Some(Attached { stream: next, place }) = way.again(&wanted).await else { break };
        if place != watcher.seen && watcher.write.write_all(GAP).await.is_err() {
            return;
        }
        (watcher.seen, stream) = (place, next);
    }
    watcher.write.shutdown().await.ok();
}

impl Watcher {
    async fn carry(&mut self, stream: Box<dyn Duplex>) -> Ended {
        let Self { seen, read, write, typed } = self;
        let (mut from_host, mut to_host) = tokio::io::split(stream);
        tokio::select! {
            ended = show(&mut from_host, write, seen, typed) => ended,
            ended = hear(read, &mut to_host, typed) => ended,
        }
    }
}

async fn show(
    from_host: &mut (impl AsyncRead + Unpin),
    watcher: &mut (impl AsyncWrite + Unpin),
    seen: &mut Place,
    typed: &Typed,
) -> Ended {
    loop {
        match read_answer(from_host).await {
            Ok(AttachAnswer::Output(output)) => {
                seen.position += output.len() as u64;
                if watcher.write_all(&output).await.is_err() || watcher.flush().await.is_err() {
                    return Ended::Left;
                }
            }
            Ok(AttachAnswer::Accepted(count)) => {
                if !typed.unconfirmed().confirm(count) {
                    return Ended::Broken;
                }
                typed.room.notify_one();
            }
            Ok(AttachAnswer::End) => return Ended::InOrder,
            Ok(AttachAnswer::Opened(_) | AttachAnswer::Gone(_)) | Err(_) => return Ended::Broken,
        }
    }
}

/// Sends what is typed, first of all what an earlier host has not taken.
async fn hear(watcher: &mut (impl AsyncRead + Unpin), to_host: &mut (impl AsyncWrite + Unpin), typed: &Typed) -> Ended {
    let again = typed.unconfirmed().clone().take();
    if !again.is_empty() && request(to_host, &AttachRequest::Input(again)).await.is_err() {
        // What the host says last is the end.
        return std::future::pending().await;
    }
    let mut buffer = vec![0; 4096];
    loop {
        while typed.unconfirmed().len() + buffer.len() > UNCONFIRMED_MAX {
            typed.room.notified().await;
        }
        let Ok(length @ 1..) = watcher.read(&mut buffer).await else { return Ended::Left };
        typed.unconfirmed().push(&buffer[..length]);
        if request(to_host, &AttachRequest::Input(buffer[..length].to_vec())).await.is_err() {
            return std::future::pending().await;
        }
    }
}

impl Typed {
    /// No holder can panic half-way.
    fn unconfirmed(&self) -> MutexGuard<'_, Unconfirmed> {
        self.unconfirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The side of the VM's host: what its guest shows, and what is typed, which is confirmed when it is certain that the
//! guest gets it.

use super::{Duplex, answer, read_request};
use crate::swarm::streams::Inbound;
use crate::vm::{Console, Shown, Vms};
use anyhow::bail;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use virtuoso_overlay::wire::attach::{ATTACH_PIECE_BYTES_MAX, AttachAnswer, AttachRequest, Place};

/// Streams of other hosts that are served at once.
const STREAMS_MAX: usize = 256;
/// How long a stream may take to say what it is for.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);

/// Answers other members until there are no more streams.
pub async fn serve(vms: Arc<Vms>, mut inbound: mpsc::Receiver<Inbound>) {
    let places = Arc::new(Semaphore::new(STREAMS_MAX));
    while let Some(Inbound { host, stream }) = inbound.recv().await {
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::debug!(%host, "Too many consoles and displays: refused");
            continue;
        };
        let vms = vms.clone();
        tokio::spawn(async move {
            if let Err(error) = answer_one(&vms, stream).await {
                tracing::debug!(%host, "A console or display ended: {error:#}");
            }
            drop(place);
        });
    }
}

/// Shows what the first message asks for.
pub(super) async fn answer_one(vms: &Vms, mut stream: impl Duplex) -> anyhow::Result<()> {
    let asked = tokio::time::timeout(REQUEST_TIME_MAX, read_request(&mut stream)).await??;
    let vm = match &asked {
        AttachRequest::Console { vm, .. } | AttachRequest::Display { vm } => *vm,
        AttachRequest::Input(_) => bail!("The first message says nothing of a VM"),
    };
    let Some(shown) = vms.shown(vm) else {
        return answer(&mut stream, &AttachAnswer::Gone(vms.went_to(vm))).await;
    };
    match asked {
        AttachRequest::Console { seen, .. } => show_console(&shown.console, seen, stream).await,
        AttachRequest::Display { .. } | AttachRequest::Input(_) => match UnixStream::connect(&shown.vnc).await {
            Ok(server) => show_display(server, shown.is_held, stream).await,
            Err(error) => {
                tracing::debug!("Can't connect to {}: {error}", shown.vnc.display());
                answer(&mut stream, &AttachAnswer::Gone(None)).await
            }
        },
    }
}

async fn show_console(console: &Console, seen: Option<Place>, stream: impl Duplex) -> anyhow::Result<()> {
    let (mut read, mut write) = tokio::io::split(stream);
    let place = console.place(seen).await;
    answer(&mut write, &AttachAnswer::Opened(place)).await?;
    let accepted = AtomicU32::new(0);
    tokio::select! {
        shown = write_console(console, place, &accepted, &mut write) => shown,
        heard = read_console(console, &accepted, &mut read) => heard,
    }
}

async fn write_console(
    console: &Console,
    mut place: Place,
    accepted: &AtomicU32,
    write: &mut (impl AsyncWrite + Unpin),
) -> anyhow::Result<()> {
    let mut changes = console.changes();
    loop {
        changes.borrow_and_update();
        // In this order: what was accepted before the end is told before it.
        let shown = console.show(place, ATTACH_PIECE_BYTES_MAX);
        let count = accepted.swap(0, Ordering::SeqCst);
        if count > 0 {
            answer(write, &AttachAnswer::Accepted(count)).await?;
        }
        match shown {
            Shown::Output(begin, output) => {
                place = Place { position: begin.position + output.len() as u64, ..begin };
                answer(write, &AttachAnswer::Output(output)).await?;
            }
            Shown::Nothing => {
                if changes.changed().await.is_err() {
                    return Ok(());
                }
            }
            Shown::End => {
                answer(write, &AttachAnswer::End).await?;
                return Ok(write.shutdown().await?);
            }
        }
    }
}

async fn read_console(
    console: &Console,
    accepted: &AtomicU32,
    read: &mut (impl AsyncRead + Unpin),
) -> anyhow::Result<()> {
    let mut changes = console.changes();
    loop {
        let AttachRequest::Input(input) = read_request(read).await? else { bail!("A second request") };
        let mut rest = &input[..];
        while !rest.is_empty() {
            changes.borrow_and_update();
            match console.type_in(rest, accepted) {
                0 => changes.changed().await?,
                taken => rest = &rest[taken..],
            }
        }
    }
}

/// Joins a viewer with QEMU's server. While the guest is paused to move, nothing more is taken: QEMU would drop it.
async fn show_display(server: UnixStream, is_held: watch::Receiver<bool>, stream: impl Duplex) -> anyhow::Result<()> {
    let (mut read, mut write) = tokio::io::split(stream);
    let (mut from_server, mut to_server) = server.into_split();
    answer(&mut write, &AttachAnswer::Opened(Place { past: 0, position: 0 })).await?;
    let (accepted, news) = (AtomicU32::new(0), Notify::new());
    let show = async {
        let mut buffer = vec![0; ATTACH_PIECE_BYTES_MAX];
        loop {
            let read = tokio::select! {
                read = from_server.read(&mut buffer) => Some(read),
                () = news.notified() => None,
            };
            let count = accepted.swap(0, Ordering::SeqCst);
            if count > 0 {
                answer(&mut write, &AttachAnswer::Accepted(count)).await?;
            }
            match read {
                None => {}
                Some(Ok(length @ 1..)) => {
                    answer(&mut write, &AttachAnswer::Output(buffer[..length].to_vec())).await?;
                }
                Some(Ok(_) | Err(_)) => {
                    answer(&mut write, &AttachAnswer::End).await?;
                    return anyhow::Ok(write.shutdown().await?);
                }
            }
        }
    };
    let hear = async {
        let mut is_held = is_held;
        loop {
            let AttachRequest::Input(input) = read_request(&mut read).await? else { bail!("A second request") };
            if is_held.wait_for(|is_held| !is_held).await.is_err() || to_server.write_all(&input).await.is_err() {
                // The server is gone: what it wrote last is the end.
                return std::future::pending().await;
            }
            accepted.fetch_add(u32::try_from(input.len())?, Ordering::SeqCst);
            news.notify_one();
        }
    };
    tokio::select! {
        shown = show => shown,
        heard = hear => heard,
    }
}

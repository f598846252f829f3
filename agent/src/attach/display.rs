//! A display on the side of whoever looks: it shakes hands with the viewer once, and with QEMU wherever the VM is.

use super::way::{Attached, Way};
use super::{Duplex, read_answer, request};
use anyhow::{Context, bail, ensure};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Notify;
use virtuoso_overlay::vm::rfb::{ClientMessages, Greeting, Relay, ServerInit, Welcome};
use virtuoso_overlay::wire::attach::{ATTACH_PIECE_BYTES_MAX, AttachAnswer, AttachRequest};

/// How long either side may take to shake hands.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(20);
/// Servers that may go away while they are greeted, one after the other.
const ATTEMPTS_MAX: usize = 4;

/// One viewer.
struct Viewer {
    read: ReadHalf<Box<dyn Duplex>>,
    write: WriteHalf<Box<dyn Duplex>>,
    /// What it says and is not a whole message yet.
    heard: ClientMessages,
    shared: Shared,
}

/// What both directions work with.
struct Shared {
    relay: Mutex<Relay>,
    /// There is room for more on its way to the server.
    room: Notify,
}

/// A server, shaken hands with.
struct Server {
    stream: Box<dyn Duplex>,
    init: ServerInit,
    /// What it said behind that.
    rest: Vec<u8>,
    /// Bytes of the handshake that are not confirmed yet.
    owed: u32,
}

/// How a server ended.
enum Ended {
    /// The viewer is gone.
    Left,
    /// The VM does not run there any more, and all is told.
    InOrder,
    /// The stream broke.
    Broken,
}

/// Serves a viewer until it goes or the VM ends.
pub(super) async fn run(mut way: Way, attached: Attached, viewer: Box<dyn Duplex>) {
    if let Err(error) = relay(&mut way, attached, viewer).await {
        tracing::debug!(vm = %way.vm, "A viewer of a display can't go on: {error:#}");
    }
}

async fn relay(way: &mut Way, attached: Attached, stream: Box<dyn Duplex>) -> anyhow::Result<()> {
    let mut server = greet(attached.stream).await?;
    let mut viewer = Viewer::welcome(stream, &server.init).await?;
    let mut told = Vec::new();
    loop {
        viewer.shared.relay().hear(&server.rest);
        viewer.write.write_all(&std::mem::take(&mut server.rest)).await?;
        let in_order = match viewer.carry(server, std::mem::take(&mut told)).await {
            Ended::Left => return Ok(()),
            Ended::InOrder => true,
            Ended::Broken => false,
        };
        let mut seen = Vec::new();
        viewer.shared.relay().end(in_order, &mut seen)?;
        viewer.write.write_all(&seen).await?;
        viewer.write.flush().await?;
        let Some(next) = next_server(way).await? else { break };
        server = next;
        seen.clear();
        viewer.shared.relay().begin(&server.init, &mut told, &mut seen)?;
        viewer.write.write_all(&seen).await?;
    }
    Ok(viewer.write.shutdown().await?)
}

/// The VM's server after the last one has gone; nothing if the VM does not run any more.
async fn next_server(way: &mut Way) -> anyhow::Result<Option<Server>> {
    let wanted = AttachRequest::Display { vm: way.vm };
    let mut attempts = 0;
    while let Some(attached) = way.again(&wanted).await {
        match greet(attached.stream).await {
            Ok(server) => return Ok(Some(server)),
            // It may have gone again.
            Err(error) if attempts < ATTEMPTS_MAX => tracing::debug!("A display does not greet: {error:#}"),
            Err(error) => return Err(error),
        }
        attempts += 1;
    }
    Ok(None)
}

/// Shakes hands with a server.
async fn greet(mut stream: Box<dyn Duplex>) -> anyhow::Result<Server> {
    let greeted = async {
        let (mut greeting, mut owed) = (Greeting::default(), 0);
        loop {
            let said = match read_answer(&mut stream).await? {
                AttachAnswer::Output(said) => said,
                AttachAnswer::Accepted(count) => {
                    owed -= i64::from(count);
                    continue;
                }
                _ => bail!("The display has gone"),
            };
            let mut answer = Vec::new();
            if let Some(init) = greeting.hear(&said, &mut answer)? {
                return Ok((init, greeting.rest(), u32::try_from(owed)?));
            }
            owed += answer.len() as i64;
            if !answer.is_empty() {
                request(&mut stream, &AttachRequest::Input(answer)).await?;
            }
        }
    };
    let greeted = tokio::time::timeout(HANDSHAKE_TIME_MAX, greeted).await;
    let (init, rest, owed) = greeted.context("The display does not greet")??;
    Ok(Server { stream, init, rest, owed })
}

impl Viewer {
    /// Shakes hands with a viewer.
    async fn welcome(stream: Box<dyn Duplex>, init: &ServerInit) -> anyhow::Result<Self> {
        let (mut read, mut write) = tokio::io::split(stream);
        let (mut welcome, mut answer) = Welcome::new();
        let welcomed = async {
            let mut buffer = [0; 256];
            loop {
                write.write_all(&std::mem::take(&mut answer)).await?;
                write.flush().await?;
                let length = read.read(&mut buffer).await?;
                ensure!(length > 0, "It went away");
                if welcome.hear(&buffer[..length], &mut answer)? {
                    answer.extend(init.encode());
                    write.write_all(&answer).await?;
                    return anyhow::Ok(write.flush().await?);
                }
            }
        };
        tokio::time::timeout(HANDSHAKE_TIME_MAX, welcomed).await.context("The viewer does not greet")??;
        let mut heard = ClientMessages::default();
        heard.hear(&welcome.rest());
        let shared = Shared { relay: Mutex::new(Relay::new(init)?), room: Notify::new() };
        Ok(Self { read, write, heard, shared })
    }

    /// Carries what both say; `told` goes to the server first.
    async fn carry(&mut self, server: Server, told: Vec<u8>) -> Ended {
        let Self { read, write, heard, shared } = self;
        let (mut from_server, mut to_server) = tokio::io::split(server.stream);
        tokio::select! {
            ended = show(&mut from_server, server.owed, write, shared) => ended,
            ended = hear(read, heard, &mut to_server, told, shared) => ended,
        }
    }
}

async fn show(
    from_server: &mut (impl AsyncRead + Unpin),
    mut owed: u32,
    viewer: &mut (impl AsyncWrite + Unpin),
    shared: &Shared,
) -> Ended {
    loop {
        match read_answer(from_server).await {
            Ok(AttachAnswer::Output(output)) => {
                shared.relay().hear(&output);
                if viewer.write_all(&output).await.is_err() || viewer.flush().await.is_err() {
                    return Ended::Left;
                }
            }
            Ok(AttachAnswer::Accepted(count)) => {
                let greeting = count.min(owed);
                owed -= greeting;
                if !shared.relay().confirm(count - greeting) {
                    return Ended::Broken;
                }
                shared.room.notify_one();
            }
            Ok(AttachAnswer::End) => return Ended::InOrder,
            Ok(AttachAnswer::Opened(_) | AttachAnswer::Gone(_)) | Err(_) => return Ended::Broken,
        }
    }
}

async fn hear(
    viewer: &mut (impl AsyncRead + Unpin),
    heard: &mut ClientMessages,
    to_server: &mut (impl AsyncWrite + Unpin),
    mut told: Vec<u8>,
    shared: &Shared,
) -> Ended {
    let mut buffer = vec![0; 4096];
    loop {
        for piece in std::mem::take(&mut told).chunks(ATTACH_PIECE_BYTES_MAX) {
            if request(to_server, &AttachRequest::Input(piece.to_vec())).await.is_err() {
                // What the server says last is the end.
                return std::future::pending().await;
            }
        }
        loop {
            while !shared.relay().has_room() {
                shared.room.notified().await;
            }
            match heard.next_message() {
                Ok(Some(message)) => match shared.relay().send(message) {
                    Ok(bytes) => told.extend(bytes),
                    Err(error) => return refuse(&error),
                },
                Ok(None) => break,
                Err(error) => return refuse(&error),
            }
        }
        if told.is_empty() {
            match viewer.read(&mut buffer).await {
                Ok(length @ 1..) => heard.hear(&buffer[..length]),
                Ok(_) | Err(_) => return Ended::Left,
            }
        }
    }
}

fn refuse(error: &virtuoso_overlay::vm::rfb::RfbError) -> Ended {
    tracing::debug!("Can't understand a viewer: {error}");
    Ended::Left
}

impl Shared {
    /// No holder can panic half-way.
    fn relay(&self) -> MutexGuard<'_, Relay> {
        self.relay.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

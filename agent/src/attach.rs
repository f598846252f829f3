//! Consoles and displays of VMs for users of any host, also while the VM moves.
//!
//! Whoever looks is served by his own host ([`Attachments`]), which has one stream to the VM's host ([`serve`]). When
//! that stream ends, his host finds the VM again (`way`) and goes on there: a console where it was, a display by
//! another handshake that the viewer does not see.

mod console;
mod display;
mod host;
mod way;

pub use host::serve;
pub use way::Attachments;

use crate::swarm::streams::StreamKind;
use anyhow::{Context, bail, ensure};
use futures::future::BoxFuture;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use virtuoso_overlay::ids::HostId;
use virtuoso_overlay::wire::attach::{ATTACH_MESSAGE_BYTES_MAX, AttachAnswer, AttachRequest, Place};

/// Consoles and displays.
pub const ATTACH: StreamKind = StreamKind::new("attach");

/// How long a host may take to answer the first message: it waits for the past of a VM that has just come.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// A connection of whoever looks.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Serves a connection until it ends or the VM does.
pub type Session = Box<dyn FnOnce(Box<dyn Duplex>) -> BoxFuture<'static, ()> + Send>;

async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<Vec<u8>> {
    let length = stream.read_u32().await? as usize;
    ensure!(length <= ATTACH_MESSAGE_BYTES_MAX, "A message of {length} bytes is too long");
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<AttachRequest> {
    AttachRequest::decode(&read_message(stream).await?).context("Can't understand a request")
}

async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<AttachAnswer> {
    AttachAnswer::decode(&read_message(stream).await?).context("Can't understand an answer")
}

/// The answer to the first message: where output begins, or where the VM went.
async fn answer_of(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<Result<Place, Option<HostId>>> {
    match tokio::time::timeout(ANSWER_TIME_MAX, read_answer(stream)).await.context("It does not answer")?? {
        AttachAnswer::Opened(place) => Ok(Ok(place)),
        AttachAnswer::Gone(went_to) => Ok(Err(went_to)),
        other => bail!("The answer makes no sense: {other:?}"),
    }
}

async fn write_message(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> anyhow::Result<()> {
    let length = u32::try_from(message.len()).context("A message is too long")?;
    stream.write_all(&[&length.to_be_bytes()[..], message].concat()).await?;
    Ok(stream.flush().await?)
}

async fn request(stream: &mut (impl AsyncWrite + Unpin), message: &AttachRequest) -> anyhow::Result<()> {
    write_message(stream, &message.encode()).await
}

async fn answer(stream: &mut (impl AsyncWrite + Unpin), message: &AttachAnswer) -> anyhow::Result<()> {
    write_message(stream, &message.encode()).await
}

//! Discs: files of a user's machine in the CD-ROM drives of VMs on other hosts.
//!
//! The host that has the file keeps it on its shelf ([`Shelf`]) until the drive gives it back. The host of the VM reads
//! it over one stream (`RemoteDisc`), a little ahead of the guest. Between the two stands a key that only these hosts
//! know: whoever has it may read the disc.

mod opened;
mod remote;
mod shelf;

pub use opened::User;
pub(crate) use remote::{Gone, PATIENCE, RemoteDisc};
pub use shelf::{Disc, Shelf};

use crate::image::talk::{read_message, write_message};
use crate::swarm::streams::{StreamKind, Streams};
use anyhow::{Context, bail};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream};
use virtuoso_overlay::ids::{DiscKey, HostId};
use virtuoso_overlay::wire::disc::{DiscAnswer, DiscRequest};

/// Streams of discs.
pub const DISC: StreamKind = StreamKind::new("disc");

/// How long giving back may take.
const GIVE_BACK_TIME_MAX: Duration = Duration::from_secs(20);
/// Bytes between two ends in one process.
const DUPLEX_BYTES: usize = 512 << 10;

/// A connection to a shelf.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Connects to the shelf that a disc is on, as often as needed.
pub(crate) type Connect = Arc<dyn Fn() -> BoxFuture<'static, io::Result<Box<dyn Duplex>>> + Send + Sync>;

/// The shelves of all hosts.
#[derive(Clone)]
pub struct Discs {
    /// This host.
    pub me: HostId,
    /// Its own shelf.
    pub shelf: Arc<Shelf>,
    /// The way to others.
    pub streams: Streams,
}

impl Discs {
    /// The way to the shelf of `host`.
    pub(crate) fn way_to(&self, host: HostId) -> Connect {
        let discs = self.clone();
        Arc::new(move || {
            let discs = discs.clone();
            async move {
                if host == discs.me {
                    return Ok(Box::new(near(&discs.shelf)) as Box<dyn Duplex>);
                }
                let stream = discs.streams.open(host, DISC).await.map_err(io::Error::other)?;
                Ok(Box::new(stream) as Box<dyn Duplex>)
            }
            .boxed()
        })
    }

    /// Tells a host that a disc of it is not needed any more. If it can't be told, it keeps the disc for some days.
    pub(crate) fn give_back(&self, host: HostId, key: DiscKey) {
        let connect = self.way_to(host);
        tokio::spawn(async move {
            match tokio::time::timeout(GIVE_BACK_TIME_MAX, give_back(&connect, key)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::info!(%host, "A disc could not be given back: {error:#}"),
                Err(error) => tracing::info!(%host, "A disc could not be given back: {error}"),
            }
        });
    }
}

/// This host's own shelf.
fn near(shelf: &Arc<Shelf>) -> DuplexStream {
    let (near, far) = tokio::io::duplex(DUPLEX_BYTES);
    let shelf = shelf.clone();
    tokio::spawn(async move {
        if let Err(error) = shelf.answer(far).await {
            tracing::debug!("A stream of a disc ended: {error:#}");
        }
    });
    near
}

async fn give_back(connect: &Connect, key: DiscKey) -> anyhow::Result<()> {
    let mut stream = connect().await?;
    write_message(&mut stream, &DiscRequest::GiveBack(key).encode()).await?;
    stream.flush().await?;
    let answer = read_message(&mut stream).await?.context("There is no answer")?;
    match DiscAnswer::decode(&answer)? {
        DiscAnswer::GivenBack => Ok(()),
        other => bail!("The answer makes no sense: {other:?}"),
    }
}

#[cfg(test)]
mod tests;

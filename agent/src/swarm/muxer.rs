//! One QUIC connection of the control plane as libp2p sees it: a source of bidirectional streams.

use super::address::{canonical, quic_address};
use super::outflow::Outflow;
use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncWrite, FutureExt};
use libp2p::PeerId;
use libp2p::core::StreamMuxer;
use libp2p::core::muxing::StreamMuxerEvent;
use quinn::rustls::pki_types::CertificateDer;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

type Opening = BoxFuture<'static, Result<(quinn::SendStream, quinn::RecvStream), quinn::ConnectionError>>;

/// The streams of one connection.
pub(super) struct Muxer {
    connection: quinn::Connection,
    outflow: Arc<Outflow>,
    /// Where the peer was when libp2p last heard of it.
    remote: SocketAddr,
    inbound: Option<Opening>,
    outbound: Option<Opening>,
}

impl Muxer {
    /// Takes a connection whose handshake is done, and names the peer that its certificate proves.
    pub(super) fn new(connection: quinn::Connection) -> io::Result<(PeerId, Self)> {
        let peer = proven_peer(&connection)?;
        let remote = canonical(connection.remote_address());
        let outflow = Arc::new(Outflow::new(connection.clone()));
        Ok((peer, Self { connection, outflow, remote, inbound: None, outbound: None }))
    }

    fn substream(
        &self,
        opened: Result<(quinn::SendStream, quinn::RecvStream), quinn::ConnectionError>,
    ) -> io::Result<Substream> {
        let (send, receive) = opened?;
        Ok(Substream { send, receive, outflow: self.outflow.clone() })
    }
}

/// The TLS verifier has checked the certificate already; this reads the name out of it.
fn proven_peer(connection: &quinn::Connection) -> io::Result<PeerId> {
    let identity = connection.peer_identity().ok_or_else(|| invalid("The peer sent no certificate"))?;
    let chain: Box<Vec<CertificateDer<'static>>> =
        identity.downcast().map_err(|_| invalid("The peer's identity is no certificate"))?;
    let end = chain.first().ok_or_else(|| invalid("The peer's certificate chain is empty"))?;
    let certificate =
        libp2p_tls::certificate::parse(end).map_err(|e| invalid(&format!("Bad certificate of the peer: {e}")))?;
    Ok(certificate.peer_id())
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl StreamMuxer for Muxer {
    type Substream = Substream;
    type Error = io::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Substream>> {
        let connection = self.connection.clone();
        let opening = self.inbound.get_or_insert_with(|| async move { connection.accept_bi().await }.boxed());
        let opened = ready!(opening.poll_unpin(cx));
        self.inbound = None;
        Poll::Ready(self.substream(opened))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Substream>> {
        let connection = self.connection.clone();
        let opening = self.outbound.get_or_insert_with(|| async move { connection.open_bi().await }.boxed());
        let opened = ready!(opening.poll_unpin(cx));
        self.outbound = None;
        Poll::Ready(self.substream(opened))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.close(0u32.into(), b"");
        Poll::Ready(Ok(()))
    }

    /// A client may roam. QUIC gives no event for it, so the address is compared whenever streams make progress.
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        let remote = canonical(self.connection.remote_address());
        if remote == self.remote {
            return Poll::Pending;
        }
        self.remote = remote;
        Poll::Ready(Ok(StreamMuxerEvent::AddressChange(quic_address(remote))))
    }
}

/// One bidirectional stream.
pub(super) struct Substream {
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    outflow: Arc<Outflow>,
}

impl AsyncRead for Substream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        self.receive.poll_read(cx, into).map_err(io::Error::from)
    }
}

impl AsyncWrite for Substream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.outflow.adapt();
        Pin::new(&mut self.send).poll_write(cx, bytes).map_err(io::Error::from)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Finishing twice is no error to libp2p.
    fn poll_close(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.send.finish().unwrap_or_default();
        Poll::Ready(Ok(()))
    }
}

//! libp2p over the QUIC endpoint that shares its UDP port with the data plane.
//!
//! Compatible on the wire with stock libp2p-quic. What it can't do that stock does: open its own sockets. The
//! socket is given, and data-plane packets never reach it.

use super::address::{canonical, quic_address, quic_parts};
use super::listen_addresses::{Change, ListenAddresses};
use super::muxer::Muxer;
use super::outflow::BulkWindows;
use anyhow::Context as _;
use futures::FutureExt;
use futures::future::BoxFuture;
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::core::{Endpoint as Role, Transport};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Handshakes of peers that run at once. One costs about a millisecond of CPU and 100 kB until it ends.
const HANDSHAKES_MAX: usize = 64;
/// Above this many, a peer must first prove that it receives at the address it sends from.
const HANDSHAKES_UNPROVEN_MAX: usize = 16;
/// A handshake takes two round trips; a retry one more.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(8);
/// A silent connection is dead after this long: two keep-alives may be lost.
const IDLE_TIME_MAX: Duration = Duration::from_secs(20);
/// Holds NAT bindings (30 s is the shortest seen) at the price of two small packets.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(6);
/// Streams that a peer may hold open: each protocol needs a few.
const STREAMS_MAX: u32 = 256;
/// What a peer may send on one stream before it is read: the largest response of a sync request fits.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// The same for all streams of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
const ALPN: &[u8] = b"libp2p";

type Upgrade = BoxFuture<'static, io::Result<(PeerId, Muxer)>>;
type Accepting = BoxFuture<'static, Option<quinn::Incoming>>;

/// The control plane's half of the UDP port.
pub(super) struct OnePort {
    endpoint: quinn::Endpoint,
    local: SocketAddr,
    keypair: Keypair,
    parameters: Arc<quinn::TransportConfig>,
    handshakes: Arc<Semaphore>,
    listener: Option<(ListenerId, ListenAddresses)>,
    accepting: Option<Accepting>,
    waker: Option<Waker>,
}

impl OnePort {
    /// An endpoint on a given socket. Needs a tokio runtime.
    pub(super) fn new(
        socket: Arc<dyn quinn::AsyncUdpSocket>,
        config: quinn::EndpointConfig,
        keypair: Keypair,
    ) -> anyhow::Result<Self> {
        let local = socket.local_addr().context("Can't read the local address of the UDP socket")?;
        let parameters = Arc::new(parameters());
        let server = server_config(&keypair, Arc::clone(&parameters))?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime)
            .context("Can't start the QUIC endpoint of the control plane")?;
        Ok(Self {
            endpoint,
            local,
            keypair,
            parameters,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            listener: None,
            accepting: None,
            waker: None,
        })
    }

    /// The endpoint, for an orderly end.
    pub(super) fn endpoint(&self) -> quinn::Endpoint {
        self.endpoint.clone()
    }

    /// A new certificate per dial keeps no TLS state between peers, and binds the handshake to the expected one.
    fn client_config(&self, expected: Option<PeerId>) -> io::Result<quinn::ClientConfig> {
        let mut tls = libp2p_tls::make_client_config(&self.keypair, expected).map_err(io::Error::other)?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.key_log = Arc::new(rustls::NoKeyLog {});
        let crypto = QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::clone(&self.parameters));
        Ok(config)
    }

    /// Decides about a peer that wants in: a handshake, a proof of its address first, or a refusal.
    fn admit(&self, incoming: quinn::Incoming) -> Option<(Upgrade, SocketAddr)> {
        let remote = canonical(incoming.remote_address());
        let running = HANDSHAKES_MAX - self.handshakes.available_permits();
        if running >= HANDSHAKES_UNPROVEN_MAX && incoming.may_retry() && !incoming.remote_address_validated() {
            if incoming.retry().is_err() {
                tracing::debug!(%remote, "Retry was not possible");
            }
            return None;
        }
        let Ok(permit) = Arc::clone(&self.handshakes).try_acquire_owned() else {
            tracing::debug!(%remote, "Too many handshakes: refused");
            incoming.refuse();
            return None;
        };
        Some((handshake(incoming, permit), remote))
    }

    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Upgrade, SocketAddr)>> {
        loop {
            let endpoint = self.endpoint.clone();
            let accepting = self.accepting.get_or_insert_with(|| async move { endpoint.accept().await }.boxed());
            let Poll::Ready(accepted) = accepting.poll_unpin(cx) else { return Poll::Pending };
            self.accepting = None;
            let Some(incoming) = accepted else { return Poll::Ready(None) };
            if let Some(admitted) = self.admit(incoming) {
                return Poll::Ready(Some(admitted));
            }
        }
    }
}

fn handshake(incoming: quinn::Incoming, permit: OwnedSemaphorePermit) -> Upgrade {
    async move {
        let _permit = permit;
        let connecting = incoming.accept()?;
        finish(connecting).await
    }
    .boxed()
}

async fn finish(connecting: quinn::Connecting) -> io::Result<(PeerId, Muxer)> {
    let connection = tokio::time::timeout(HANDSHAKE_TIME_MAX, connecting)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "No answer to the QUIC handshake"))??;
    Muxer::new(connection)
}

fn parameters() -> quinn::TransportConfig {
    let mut parameters = quinn::TransportConfig::default();
    parameters
        .max_concurrent_uni_streams(0u32.into())
        .max_concurrent_bidi_streams(STREAMS_MAX.into())
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(KEEP_ALIVE_INTERVAL))
        .max_idle_timeout(Some(IDLE_TIME_MAX.try_into().expect("20 s fit a QUIC time")))
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(CONNECTION_WINDOW_BYTES.into())
        .congestion_controller_factory(Arc::new(BulkWindows))
        .allow_spin(false);
    parameters
}

fn server_config(keypair: &Keypair, parameters: Arc<quinn::TransportConfig>) -> anyhow::Result<quinn::ServerConfig> {
    let mut tls = libp2p_tls::make_server_config(keypair).context("Can't make the host's TLS certificate")?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    // libp2p-tls honours SSLKEYLOGFILE: the environment must not be able to leak session keys.
    tls.key_log = Arc::new(rustls::NoKeyLog {});
    let crypto = QuicServerConfig::try_from(tls).context("The TLS configuration does not fit QUIC")?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(parameters);
    config.max_incoming(HANDSHAKES_MAX);
    Ok(config)
}

impl Transport for OnePort {
    type Output = (PeerId, Muxer);
    type Error = io::Error;
    type ListenerUpgrade = Upgrade;
    type Dial = Upgrade;

    /// Starts to accept and to announce. There is one socket, hence one listener; `address` must be of QUIC's form.
    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        if quic_parts(&address).is_none() {
            return Err(TransportError::MultiaddrNotSupported(address));
        }
        if self.listener.is_some() {
            return Err(TransportError::Other(io::Error::other("The UDP port has its listener already")));
        }
        self.listener = Some((id, ListenAddresses::new(self.local)));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.listener.take_if(|(own, _)| *own == id).is_some()
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Upgrade, TransportError<io::Error>> {
        let Some((socket, peer)) = quic_parts(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let reachable = self.local.is_ipv6() || socket.is_ipv4();
        if socket.port() == 0 || socket.ip().is_unspecified() || !reachable {
            return Err(TransportError::MultiaddrNotSupported(address));
        }
        if options.role == Role::Listener {
            return Err(TransportError::Other(io::Error::other("Hole punching is not supported")));
        }
        let config = self.client_config(peer).map_err(TransportError::Other)?;
        let endpoint = self.endpoint.clone();
        // Nothing is sent before the future runs: libp2p holds back the addresses that it likes less.
        let dial = async move {
            let connecting = endpoint.connect_with(config, socket, "l").map_err(io::Error::other)?;
            finish(connecting).await
        };
        Ok(dial.boxed())
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Upgrade, io::Error>> {
        let Some((listener_id, addresses)) = &mut self.listener else {
            self.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let listener_id = *listener_id;
        match addresses.poll_change(cx) {
            Poll::Ready(Change::Added(at)) => {
                return Poll::Ready(TransportEvent::NewAddress { listener_id, listen_addr: quic_address(at) });
            }
            Poll::Ready(Change::Removed(at)) => {
                return Poll::Ready(TransportEvent::AddressExpired { listener_id, listen_addr: quic_address(at) });
            }
            Poll::Pending => {}
        }
        match self.poll_incoming(cx) {
            Poll::Ready(Some((upgrade, remote))) => Poll::Ready(TransportEvent::Incoming {
                listener_id,
                upgrade,
                local_addr: quic_address(self.local),
                send_back_addr: quic_address(remote),
            }),
            Poll::Ready(None) => {
                self.listener = None;
                Poll::Ready(TransportEvent::ListenerClosed { listener_id, reason: Ok(()) })
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

//! All ways to another host's control plane: QUIC on the shared UDP port, or TCP with Noise and Yamux; names by DNS.

use super::oneport::OnePort;
use anyhow::Context as _;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::dummy::DummyTransport;
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, OrTransport, PortUse, TransportError, TransportEvent};
use libp2p::core::{Transport, upgrade};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId, dns, noise, tcp, yamux};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// TCP, Noise and Yamux together take four round trips.
const TCP_SETUP_TIME_MAX: Duration = Duration::from_secs(10);

/// The UDP port: a socket and the QUIC endpoint's parameters that belong to it.
pub struct Port {
    /// Receives every packet of the port that is the control plane's.
    pub socket: Arc<dyn quinn::AsyncUdpSocket>,
    /// Connection ids and the reset key.
    pub config: quinn::EndpointConfig,
}

impl Port {
    /// A UDP socket that the control plane has for itself. Needs a tokio runtime.
    pub fn plain(at: SocketAddr) -> anyhow::Result<Self> {
        use quinn::Runtime;
        let socket = std::net::UdpSocket::bind(at).with_context(|| format!("Can't bind UDP {at}"))?;
        let socket = quinn::TokioRuntime.wrap_udp_socket(socket).with_context(|| format!("Can't use UDP {at}"))?;
        Ok(Self { socket, config: quinn::EndpointConfig::default() })
    }
}

/// The transport of a host, and the QUIC endpoint inside it.
pub fn build(port: Port, keypair: &Keypair) -> anyhow::Result<(Boxed<(PeerId, StreamMuxerBox)>, quinn::Endpoint)> {
    let quic = OnePort::new(port.socket, port.config, keypair.clone())?;
    let endpoint = quic.endpoint();
    let quic = quic.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let noise = noise::Config::new(keypair).context("Can't make the host's Noise key")?;
    let tcp = NewPort(tcp::tokio::Transport::new(tcp::Config::default()))
        .upgrade(upgrade::Version::V1)
        .authenticate(noise)
        .multiplex(yamux::Config::default())
        .timeout(TCP_SETUP_TIME_MAX)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let both = OrTransport::new(quic, tcp).map(|either, _| either.into_inner());
    Ok((with_names(both.boxed())?, endpoint))
}

/// A machine without a usable resolver configuration can still dial IP addresses.
fn with_names(transport: Boxed<(PeerId, StreamMuxerBox)>) -> anyhow::Result<Boxed<(PeerId, StreamMuxerBox)>> {
    let probe = dns::tokio::Transport::system(DummyTransport::<()>::new());
    if let Err(error) = probe {
        tracing::warn!(%error, "No resolver configuration: bootstrap addresses with names can't be dialled");
        let (config, options) = (dns::ResolverConfig::default(), dns::ResolverOpts::default());
        return Ok(dns::tokio::Transport::custom(transport, config, options).boxed());
    }
    let transport = dns::tokio::Transport::system(transport).context("Can't read the resolver configuration")?;
    Ok(transport.boxed())
}

/// Dials from a fresh port. A dial from the listening port fails while an old connection lingers in TIME_WAIT.
struct NewPort<T>(T);

impl<T: Transport + Unpin> Transport for NewPort<T> {
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = T::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<T::Error>> {
        self.0.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.0.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<T::Dial, TransportError<T::Error>> {
        self.0.dial(address, DialOpts { port_use: PortUse::New, ..options })
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<T::ListenerUpgrade, T::Error>> {
        Pin::new(&mut self.0).poll(cx)
    }
}

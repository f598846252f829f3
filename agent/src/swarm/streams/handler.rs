//! Streams of one connection: accepts those that are served here, and asks for those that are wished.

use super::lease::Lease;
use super::{Inbound, Offer, OpenError, Refusal, Request, Shared, Stream, StreamKind};
use crate::swarm::address::host_of;
use libp2p::core::upgrade::{InboundUpgrade, ReadyUpgrade, UpgradeInfo};
use libp2p::swarm::handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{ConnectionHandler, ConnectionHandlerEvent, ConnectionId, StreamUpgradeError, SubstreamProtocol};
use libp2p::{PeerId, StreamProtocol};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::oneshot;

/// A stream to open on this connection. Its place is taken.
#[derive(Debug)]
pub struct Open {
    protocol: StreamProtocol,
    pending: Pending,
}

/// Who waits for it. Dropping it tells that the connection is gone.
#[derive(Debug)]
pub struct Pending {
    kind: StreamKind,
    /// Until it is answered.
    asked: Option<Asked>,
}

#[derive(Debug)]
struct Asked {
    lease: Lease,
    reply: oneshot::Sender<Result<Stream, Refusal>>,
}

impl Open {
    pub(super) fn new(request: Request, protocol: StreamProtocol, lease: Lease) -> Self {
        let Request { kind, reply, .. } = request;
        Self { protocol, pending: Pending { kind, asked: Some(Asked { lease, reply }) } }
    }
}

/// The streams of one connection.
pub struct Handler {
    shared: Arc<Shared>,
    peer: PeerId,
    connection: ConnectionId,
    wished: VecDeque<Open>,
}

/// The protocols that are served now.
pub struct Offers(Arc<Vec<Offer>>);

impl UpgradeInfo for Offers {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        let served = self.0.iter().filter(|offer| !offer.to.is_closed());
        served.map(|offer| offer.protocol.clone()).collect::<Vec<_>>().into_iter()
    }
}

impl InboundUpgrade<libp2p::Stream> for Offers {
    type Output = (libp2p::Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: libp2p::Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

impl Handler {
    pub(super) fn new(shared: Arc<Shared>, peer: PeerId, connection: ConnectionId) -> Self {
        Self { shared, peer, connection, wished: VecDeque::new() }
    }

    /// Passes a stream on to who serves it. Without room it is dropped, which resets it.
    fn accept(&self, stream: libp2p::Stream, protocol: &StreamProtocol) {
        let Some(host) = host_of(&self.peer) else { return };
        let Some(lease) = self.shared.leases.take(self.peer, self.connection) else {
            return tracing::debug!(%host, %protocol, "Too many streams of one host: reset");
        };
        let offers = self.shared.offers();
        let Some(offer) = offers.iter().find(|offer| offer.protocol == *protocol) else { return };
        let inbound = Inbound { host, stream: Stream { inner: stream, _lease: lease } };
        if offer.to.try_send(inbound).is_err() {
            tracing::debug!(%host, %protocol, "Too many streams wait: reset");
        }
    }
}

impl Pending {
    /// Whoever asked may have gone away meanwhile; then the stream is dropped.
    fn answer(&mut self, result: Result<libp2p::Stream, OpenError>) {
        let Some(Asked { lease, reply }) = self.asked.take() else { return };
        let failed = Some(lease.connection());
        let answer = match result {
            Ok(inner) => Ok(Stream { inner, _lease: lease }),
            Err(why @ (OpenError::Lost(_) | OpenError::Timeout)) => Err(Refusal { why, failed }),
            Err(why) => Err(why.into()),
        };
        reply.send(answer).ok();
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.answer(Err(OpenError::Lost("it was closed".into())));
    }
}

/// The end of the chain: what is above it says only that the connection was lost.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    anyhow::Chain::new(error).next_back().map(ToString::to_string).unwrap_or_default()
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = Infallible;
    type InboundProtocol = Offers;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Pending;

    fn listen_protocol(&self) -> SubstreamProtocol<Offers> {
        SubstreamProtocol::new(Offers(self.shared.offers()), ())
    }

    fn connection_keep_alive(&self) -> bool {
        !self.wished.is_empty()
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Pending, Infallible>> {
        // Polled after each event, so nothing else has to wake it.
        let Some(Open { protocol, pending }) = self.wished.pop_front() else { return Poll::Pending };
        let protocol = SubstreamProtocol::new(ReadyUpgrade::new(protocol), pending);
        Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol })
    }

    fn on_behaviour_event(&mut self, wish: Open) {
        self.wished.push_back(wish);
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol, (), Pending>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, protocol), ..
            }) => {
                self.accept(stream, &protocol);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, mut info }) => {
                info.answer(Ok(protocol));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { mut info, error }) => {
                let error = match error {
                    StreamUpgradeError::Timeout => OpenError::Timeout,
                    StreamUpgradeError::NegotiationFailed => OpenError::Unserved(info.kind.name()),
                    StreamUpgradeError::Io(error) => OpenError::Lost(root_cause(&error)),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                info.answer(Err(error));
            }
            _ => {}
        }
    }
}

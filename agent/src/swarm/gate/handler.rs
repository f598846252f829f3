//! The gate on one connection.

use super::upgrade::{GateUpgrade, Upgraded};
use libp2p::StreamProtocol;
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound, ListenUpgradeError,
    ProtocolSupport, UpgradeInfoSend,
};
use libp2p::swarm::{ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError, SubstreamProtocol};
use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::task::{Context, Poll};

/// Knocks that may time out: a lossy path gets more than one chance, a peer that never answers does not.
const KNOCKS_MAX: u8 = 3;

/// The behaviour's orders.
pub enum ToGate<H: ConnectionHandler> {
    /// The peer is a member: this handler may serve it.
    Open { handler: Box<H>, protocol: StreamProtocol },
    /// It no longer is.
    Close,
    /// For the handler behind the gate.
    Inner(H::FromBehaviour),
}

/// The connection's reports.
#[derive(Debug)]
pub enum FromGate<E> {
    /// Both sides are open.
    Opened,
    /// Of the handler behind the gate.
    Inner(E),
}

impl<H: ConnectionHandler> fmt::Debug for ToGate<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { protocol, .. } => f.debug_tuple("Open").field(protocol).finish(),
            Self::Close => f.write_str("Close"),
            Self::Inner(event) => event.fmt(f),
        }
    }
}

/// What an outbound stream is for.
pub enum Purpose<I> {
    Knock,
    Inner(I),
}

/// Closed until the behaviour opens it.
pub struct GateHandler<H> {
    open: Option<Open<H>>,
}

struct Open<H> {
    inner: H,
    protocol: StreamProtocol,
    remote_open: bool,
    knocks_left: u8,
    knock_due: bool,
    reports: VecDeque<Report>,
}

/// What to tell the rest of the connection, in this order, when the other side turns out to be open.
enum Report {
    Opened,
    Protocols(ProtocolSupport),
}

impl<H> Default for GateHandler<H> {
    fn default() -> Self {
        Self { open: None }
    }
}

impl<H: ConnectionHandler> Open<H> {
    fn new(inner: H, protocol: StreamProtocol) -> Self {
        let (remote_open, reports) = (false, VecDeque::new());
        Self { inner, protocol, remote_open, knocks_left: KNOCKS_MAX - 1, knock_due: true, reports }
    }

    /// An open gate offers what ours offers. Kademlia starts only when it is told so; the list that identify sent
    /// before the other side opened does not have it. Taking the names back first makes the news reach the handler
    /// even if identify was faster.
    fn on_remote_open(&mut self) {
        if std::mem::replace(&mut self.remote_open, true) {
            return;
        }
        let offered = self.inner.listen_protocol();
        let names: HashSet<_> = UpgradeInfoSend::protocol_info(offered.upgrade())
            .filter_map(|name| StreamProtocol::try_from_owned(name.as_ref().to_owned()).ok())
            .collect();
        self.reports.push_back(Report::Protocols(ProtocolSupport::Removed(names.clone())));
        self.reports.push_back(Report::Protocols(ProtocolSupport::Added(names)));
        self.reports.push_back(Report::Opened);
    }

    fn on_knock_failed(&mut self, timed_out: bool) {
        if timed_out && !self.remote_open && self.knocks_left > 0 {
            self.knocks_left -= 1;
            self.knock_due = true;
        }
    }
}

type Inbound<H> = GateUpgrade<<H as ConnectionHandler>::InboundProtocol>;
type Outbound<H> = GateUpgrade<<H as ConnectionHandler>::OutboundProtocol>;
type OutboundInfo<H> = Purpose<<H as ConnectionHandler>::OutboundOpenInfo>;

impl<H: ConnectionHandler> ConnectionHandler for GateHandler<H> {
    type FromBehaviour = ToGate<H>;
    type ToBehaviour = FromGate<H::ToBehaviour>;
    type InboundProtocol = Inbound<H>;
    type OutboundProtocol = Outbound<H>;
    type InboundOpenInfo = Option<H::InboundOpenInfo>;
    type OutboundOpenInfo = OutboundInfo<H>;

    fn listen_protocol(&self) -> SubstreamProtocol<Inbound<H>, Self::InboundOpenInfo> {
        match &self.open {
            None => SubstreamProtocol::new(GateUpgrade { knock: None, inner: None }, None),
            Some(open) => {
                let knock = Some(open.protocol.clone());
                let offered = open.inner.listen_protocol().map_info(Some);
                offered.map_upgrade(|inner| GateUpgrade { knock, inner: Some(inner) })
            }
        }
    }

    fn connection_keep_alive(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.inner.connection_keep_alive())
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Outbound<H>, OutboundInfo<H>, Self::ToBehaviour>> {
        let Some(open) = &mut self.open else { return Poll::Pending };
        if std::mem::take(&mut open.knock_due) {
            let upgrade = GateUpgrade { knock: Some(open.protocol.clone()), inner: None };
            let protocol = SubstreamProtocol::new(upgrade, Purpose::Knock);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        if let Some(report) = open.reports.pop_front() {
            return Poll::Ready(match report {
                Report::Opened => ConnectionHandlerEvent::NotifyBehaviour(FromGate::Opened),
                Report::Protocols(support) => ConnectionHandlerEvent::ReportRemoteProtocols(support),
            });
        }
        if !open.remote_open {
            return Poll::Pending;
        }
        open.inner.poll(cx).map(|event| match event {
            ConnectionHandlerEvent::OutboundSubstreamRequest { protocol } => {
                let protocol = protocol
                    .map_upgrade(|inner| GateUpgrade { knock: None, inner: Some(inner) })
                    .map_info(Purpose::Inner);
                ConnectionHandlerEvent::OutboundSubstreamRequest { protocol }
            }
            ConnectionHandlerEvent::ReportRemoteProtocols(support) => {
                ConnectionHandlerEvent::ReportRemoteProtocols(support)
            }
            ConnectionHandlerEvent::NotifyBehaviour(event) => {
                ConnectionHandlerEvent::NotifyBehaviour(FromGate::Inner(event))
            }
            _ => unreachable!("the pinned libp2p-swarm has no other handler event"),
        })
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Option<Self::ToBehaviour>> {
        match &mut self.open {
            Some(open) => open.inner.poll_close(cx).map(|event| event.map(FromGate::Inner)),
            None => Poll::Ready(None),
        }
    }

    fn on_behaviour_event(&mut self, event: ToGate<H>) {
        match (event, &mut self.open) {
            (ToGate::Open { handler, protocol }, _) => self.open = Some(Open::new(*handler, protocol)),
            (ToGate::Close, _) => self.open = None,
            (ToGate::Inner(event), Some(open)) => open.inner.on_behaviour_event(event),
            (ToGate::Inner(_), None) => {}
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Inbound<H>, Outbound<H>, Self::InboundOpenInfo, OutboundInfo<H>>,
    ) {
        let Some(open) = &mut self.open else { return };
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, info }) => {
                // A wrapped protocol's stream proves an open gate as well as a knock does.
                open.on_remote_open();
                if let (Upgraded::Inner(protocol), Some(info)) = (protocol, info) {
                    let event = FullyNegotiatedInbound { protocol, info };
                    open.inner.on_connection_event(ConnectionEvent::FullyNegotiatedInbound(event));
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) => {
                open.on_remote_open();
                if let (Upgraded::Inner(protocol), Purpose::Inner(info)) = (protocol, info) {
                    let event = FullyNegotiatedOutbound { protocol, info };
                    open.inner.on_connection_event(ConnectionEvent::FullyNegotiatedOutbound(event));
                }
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: Purpose::Inner(info), error }) => {
                let event = DialUpgradeError { info, error };
                open.inner.on_connection_event(ConnectionEvent::DialUpgradeError(event));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: Purpose::Knock, error }) => {
                open.on_knock_failed(!matches!(error, StreamUpgradeError::NegotiationFailed));
            }
            ConnectionEvent::ListenUpgradeError(ListenUpgradeError { info: Some(info), error }) => {
                let event = ListenUpgradeError { info, error };
                open.inner.on_connection_event(ConnectionEvent::ListenUpgradeError(event));
            }
            ConnectionEvent::AddressChange(change) => {
                open.inner.on_connection_event(ConnectionEvent::AddressChange(change));
            }
            ConnectionEvent::LocalProtocolsChange(change) => {
                open.inner.on_connection_event(ConnectionEvent::LocalProtocolsChange(change));
            }
            ConnectionEvent::RemoteProtocolsChange(change) => {
                open.inner.on_connection_event(ConnectionEvent::RemoteProtocolsChange(change));
            }
            _ => {}
        }
    }
}

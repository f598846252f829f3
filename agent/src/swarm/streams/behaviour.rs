//! Finds a connection for each wished stream.

use super::handler::{Handler, Open};
use super::{OpenError, Request, Requests, Shared};
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, DialError, DialFailure, FromSwarm, NetworkBehaviour, NotifyHandler, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use virtuoso_overlay::ids::SwarmId;

/// Wishes that wait for a connection.
const WAITING_MAX: usize = 1_024;

/// A stream is wished to this peer, which is not connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted(pub PeerId);

/// The streams of a swarm.
pub struct Behaviour {
    swarm: SwarmId,
    shared: Arc<Shared>,
    requests: mpsc::Receiver<Request>,
    /// Each with whether it is QUIC, which is taken first.
    connections: HashMap<PeerId, Vec<(ConnectionId, bool)>>,
    waiting: HashMap<PeerId, Vec<Request>>,
    commands: VecDeque<ToSwarm<Wanted, Open>>,
}

impl Behaviour {
    /// For the members of `swarm`.
    pub fn new(swarm: SwarmId, requests: Requests) -> Self {
        let Requests { shared, receiver } = requests;
        shared.enter(swarm);
        Self {
            swarm,
            shared,
            requests: receiver,
            connections: HashMap::new(),
            waiting: HashMap::new(),
            commands: VecDeque::new(),
        }
    }

    /// Gives up on what waits for a peer.
    pub fn refuse(&mut self, peer: &PeerId, error: &OpenError) {
        for request in self.waiting.remove(peer).unwrap_or_default() {
            request.reply.send(Err(error.clone().into())).ok();
        }
    }

    fn on_request(&mut self, request: Request) {
        let peer = request.peer;
        match self.connections.get(&peer).and_then(|connections| best(connections, &request.failed)) {
            Some(connection) => self.open(connection, request),
            None => self.wait(peer, request),
        }
    }

    fn open(&mut self, connection: ConnectionId, request: Request) {
        let Some(lease) = self.shared.leases.take(request.peer, connection) else {
            request.reply.send(Err(OpenError::TooMany.into())).ok();
            return;
        };
        let (peer_id, protocol) = (request.peer, request.kind.protocol(self.swarm));
        let event = Open::new(request, protocol, lease);
        self.commands.push_back(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::One(connection), event });
    }

    fn wait(&mut self, peer: PeerId, request: Request) {
        self.waiting.retain(|_, requests| {
            requests.retain(|request| !request.reply.is_closed());
            !requests.is_empty()
        });
        if self.waiting.values().map(Vec::len).sum::<usize>() >= WAITING_MAX {
            request.reply.send(Err(OpenError::TooMany.into())).ok();
            return;
        }
        self.waiting.entry(peer).or_default().push(request);
        self.commands.push_back(ToSwarm::GenerateEvent(Wanted(peer)));
    }

    fn on_opened(&mut self, peer: PeerId, connection: ConnectionId, is_quic: bool) {
        self.connections.entry(peer).or_default().push((connection, is_quic));
        for request in self.waiting.remove(&peer).unwrap_or_default() {
            self.open(connection, request);
        }
    }

    fn on_closed(&mut self, peer: PeerId, connection: ConnectionId) {
        let Some(connections) = self.connections.get_mut(&peer) else { return };
        connections.retain(|(id, _)| *id != connection);
        if !connections.is_empty() {
            return;
        }
        self.connections.remove(&peer);
        // What waits has met this connection, because of which nobody was dialled.
        if self.waiting.contains_key(&peer) {
            self.commands.push_back(ToSwarm::GenerateEvent(Wanted(peer)));
        }
    }

    fn on_dial_failure(&mut self, failure: &DialFailure<'_>) {
        let Some(peer) = failure.peer_id else { return };
        // A dial that was not begun, because another one runs, says nothing.
        if matches!(failure.error, DialError::DialPeerConditionFalse(_)) || self.connections.contains_key(&peer) {
            return;
        }
        self.refuse(&peer, &OpenError::Unreachable(failure.error.to_string()));
    }
}

/// QUIC before TCP, then the newest: of a host that was started again, the older ones are dead.
fn best(connections: &[(ConnectionId, bool)], failed: &[ConnectionId]) -> Option<ConnectionId> {
    let usable = || connections.iter().rev().filter(|(connection, _)| !failed.contains(connection));
    let quic = usable().find(|(_, is_quic)| *is_quic);
    quic.or_else(|| usable().next()).map(|(connection, _)| *connection)
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Wanted;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.shared.clone(), peer, id))
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.shared.clone(), peer, id))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(opened) => {
                let is_quic = opened.endpoint.get_remote_address().iter().any(|part| part == Protocol::QuicV1);
                self.on_opened(opened.peer_id, opened.connection_id, is_quic);
            }
            FromSwarm::ConnectionClosed(closed) => self.on_closed(closed.peer_id, closed.connection_id),
            FromSwarm::DialFailure(failure) => self.on_dial_failure(&failure),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Wanted, THandlerInEvent<Self>>> {
        loop {
            if let Some(command) = self.commands.pop_front() {
                return Poll::Ready(command);
            }
            match self.requests.poll_recv(cx) {
                Poll::Ready(Some(request)) => self.on_request(request),
                // Nobody is left who could wish for a stream.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

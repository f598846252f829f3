//! Protocols for members only.
//!
//! [`Gated`] wraps a behaviour and hides it from every peer that is no admitted member: on a stranger's connection
//! its protocols are neither offered, accepted nor dialled, and the behaviour does not know of the connection.
//! When the peer is admitted, the behaviour is told of the connection as if it had just been made.
//!
//! Both sides admit each other at different moments, and protocols such as gossipsub give up on a connection for
//! good when the other side refuses their first stream. So a side that has opened its gate *knocks* with a stream
//! of the gate's own protocol, which only an open gate accepts. Whoever opens last knocks successfully, and both
//! sides know from that stream that the other is open; only then the wrapped protocols start.
//!
//! A peer that makes another connection although it has one for a while has most likely lost that one, for instance
//! because it was started again: what protocols know of it from there is no longer true, and of a second connection
//! they take no notice. So the new one stays closed until the older ones are gone, and the peer is then a new one.

mod handler;
#[cfg(test)]
mod tests;
mod upgrade;

use super::members::Members;
use handler::{FromGate, GateHandler, ToGate};
use libp2p::core::transport::{ListenerId, PortUse};
use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::swarm::behaviour::{ConnectionEstablished, ExternalAddrConfirmed, NewListenAddr};
use libp2p::swarm::{
    CloseConnection, ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler,
    THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use std::collections::{HashMap, HashSet, VecDeque};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Connections that are made within this time are of two hosts that dialled each other at once.
pub(super) const TOGETHER_TIME: Duration = Duration::from_secs(2);

/// What a gate reports.
#[derive(Debug)]
pub enum Event<E> {
    /// Both sides of this connection have opened their gates.
    Opened {
        /// The member.
        peer: PeerId,
        /// The connection.
        connection: ConnectionId,
    },
    /// The wrapped behaviour's event.
    Inner(E),
}

/// A behaviour that exists for members only.
pub struct Gated<B: NetworkBehaviour> {
    /// None until the host belongs to a swarm.
    inner: Option<Inner<B>>,
    members: Members,
    connections: HashMap<ConnectionId, Connection>,
    commands: VecDeque<ToSwarm<Event<B::ToSwarm>, THandlerInEvent<Self>>>,
    listening: HashSet<(ListenerId, Multiaddr)>,
    external: HashSet<Multiaddr>,
    waker: Option<Waker>,
}

struct Inner<B> {
    behaviour: B,
    /// The gate's own protocol, which names the swarm.
    protocol: StreamProtocol,
}

struct Connection {
    peer: PeerId,
    endpoint: ConnectedPoint,
    since: Instant,
    /// Whether the wrapped behaviour knows of the connection.
    open: bool,
}

impl<B: NetworkBehaviour> Gated<B> {
    /// A gate with nothing behind it yet.
    pub fn new(members: Members) -> Self {
        Self {
            inner: None,
            members,
            connections: HashMap::new(),
            commands: VecDeque::new(),
            listening: HashSet::new(),
            external: HashSet::new(),
            waker: None,
        }
    }

    /// Puts `behaviour` behind the gate and opens it for the members that are connected already.
    pub fn install(&mut self, mut behaviour: B, protocol: StreamProtocol) {
        for (listener_id, addr) in &self.listening {
            behaviour.on_swarm_event(FromSwarm::NewListenAddr(NewListenAddr { listener_id: *listener_id, addr }));
        }
        for addr in &self.external {
            behaviour.on_swarm_event(FromSwarm::ExternalAddrConfirmed(ExternalAddrConfirmed { addr }));
        }
        self.inner = Some(Inner { behaviour, protocol });
        let members: Vec<_> = self.connections.values().map(|c| c.peer).collect();
        for peer in members {
            self.on_standing_changed(peer);
        }
    }

    /// The wrapped behaviour, once installed.
    pub fn inner_mut(&mut self) -> Option<&mut B> {
        self.inner.as_mut().map(|inner| &mut inner.behaviour)
    }

    /// The wrapped behaviour, once installed.
    pub fn inner(&self) -> Option<&B> {
        self.inner.as_ref().map(|inner| &inner.behaviour)
    }

    /// Opens the gate to a peer that became a member; disconnects one that ceased to be.
    pub fn on_standing_changed(&mut self, peer: PeerId) {
        let admitted = self.members.contains_peer(&peer);
        let connections: Vec<_> =
            self.connections.iter().filter(|(_, c)| c.peer == peer && c.open != admitted).map(|(id, _)| *id).collect();
        for id in connections {
            if admitted {
                if !self.is_late(id) {
                    self.open(id);
                }
            } else {
                self.notify(peer, id, ToGate::Close);
                self.close(peer, id);
            }
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Whether there is an open connection to the same peer that is much older.
    fn is_late(&self, id: ConnectionId) -> bool {
        let Some(new) = self.connections.get(&id) else { return false };
        let older = |c: &Connection| c.open && c.peer == new.peer && c.since + TOGETHER_TIME <= new.since;
        self.connections.values().any(older)
    }

    /// Tells the wrapped behaviour of a connection and hands its handler to the connection's gate.
    fn open(&mut self, id: ConnectionId) {
        let Some(inner) = &mut self.inner else { return };
        let Some(connection) = self.connections.get(&id) else { return };
        let (peer, endpoint) = (connection.peer, connection.endpoint.clone());
        let other_established = open_connections(&self.connections, &peer);
        let handler = match make_handler(&mut inner.behaviour, id, peer, &endpoint) {
            Ok(handler) => handler,
            Err(cause) => {
                tracing::debug!(%peer, %cause, "A member protocol refuses the connection");
                return self.close(peer, id);
            }
        };
        inner.behaviour.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
            peer_id: peer,
            connection_id: id,
            endpoint: &endpoint,
            failed_addresses: &[],
            other_established,
        }));
        let protocol = inner.protocol.clone();
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.open = true;
        }
        self.notify(peer, id, ToGate::Open { handler: Box::new(handler), protocol });
    }

    fn notify(&mut self, peer_id: PeerId, id: ConnectionId, event: THandlerInEvent<Self>) {
        self.commands.push_back(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::One(id), event });
    }

    fn close(&mut self, peer_id: PeerId, id: ConnectionId) {
        self.commands.push_back(ToSwarm::CloseConnection { peer_id, connection: CloseConnection::One(id) });
    }

    fn on_closed(&mut self, closed: ConnectionClosed<'_>) {
        let Some(connection) = self.connections.remove(&closed.connection_id) else { return };
        if !connection.open {
            return;
        }
        let remaining_established = open_connections(&self.connections, &connection.peer);
        if let Some(inner) = &mut self.inner {
            let closed = ConnectionClosed { remaining_established, ..closed };
            inner.behaviour.on_swarm_event(FromSwarm::ConnectionClosed(closed));
        }
        self.on_standing_changed(connection.peer);
    }

    fn remember_address(&mut self, event: &FromSwarm<'_>) {
        match event {
            FromSwarm::NewListenAddr(e) => _ = self.listening.insert((e.listener_id, e.addr.clone())),
            FromSwarm::ExpiredListenAddr(e) => _ = self.listening.remove(&(e.listener_id, e.addr.clone())),
            FromSwarm::ListenerClosed(e) => self.listening.retain(|(id, _)| *id != e.listener_id),
            FromSwarm::ExternalAddrConfirmed(e) => _ = self.external.insert(e.addr.clone()),
            FromSwarm::ExternalAddrExpired(e) => _ = self.external.remove(e.addr),
            _ => {}
        }
    }
}

fn open_connections(connections: &HashMap<ConnectionId, Connection>, peer: &PeerId) -> usize {
    connections.values().filter(|c| c.open && c.peer == *peer).count()
}

fn make_handler<B: NetworkBehaviour>(
    behaviour: &mut B,
    id: ConnectionId,
    peer: PeerId,
    endpoint: &ConnectedPoint,
) -> Result<THandler<B>, ConnectionDenied> {
    match endpoint {
        ConnectedPoint::Dialer { address, role_override, port_use } => {
            behaviour.handle_established_outbound_connection(id, peer, address, *role_override, *port_use)
        }
        ConnectedPoint::Listener { local_addr, send_back_addr } => {
            behaviour.handle_established_inbound_connection(id, peer, local_addr, send_back_addr)
        }
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for Gated<B> {
    type ConnectionHandler = GateHandler<THandler<B>>;
    type ToSwarm = Event<B::ToSwarm>;

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        match &mut self.inner {
            Some(inner) => inner.behaviour.handle_pending_outbound_connection(id, peer, addresses, role),
            None => Ok(Vec::new()),
        }
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(GateHandler::default())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(GateHandler::default())
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.remember_address(&event);
        match event {
            FromSwarm::ConnectionEstablished(e) => {
                let (peer, endpoint, since) = (e.peer_id, e.endpoint.clone(), Instant::now());
                let connection = Connection { peer, endpoint, since, open: false };
                self.connections.insert(e.connection_id, connection);
                self.on_standing_changed(e.peer_id);
            }
            FromSwarm::ConnectionClosed(closed) => self.on_closed(closed),
            FromSwarm::AddressChange(change) => {
                let Some(connection) = self.connections.get_mut(&change.connection_id) else { return };
                connection.endpoint = change.new.clone();
                if let (true, Some(inner)) = (connection.open, &mut self.inner) {
                    inner.behaviour.on_swarm_event(event);
                }
            }
            // The wrapped behaviour never heard of a connection that failed while being accepted.
            FromSwarm::ListenFailure(_) => {}
            _ => {
                if let Some(inner) = &mut self.inner {
                    inner.behaviour.on_swarm_event(event);
                }
            }
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: THandlerOutEvent<Self>) {
        if !self.connections.get(&connection).is_some_and(|c| c.open) {
            return;
        }
        match event {
            FromGate::Opened => {
                self.commands.push_back(ToSwarm::GenerateEvent(Event::Opened { peer, connection }));
            }
            FromGate::Inner(event) => {
                if let Some(inner) = &mut self.inner {
                    inner.behaviour.on_connection_handler_event(peer, connection, event);
                }
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some(command) = self.commands.pop_front() {
            return Poll::Ready(command);
        }
        self.waker = Some(cx.waker().clone());
        let Some(inner) = &mut self.inner else { return Poll::Pending };
        inner.behaviour.poll(cx).map(|command| command.map_out(Event::Inner).map_in(ToGate::Inner))
    }
}

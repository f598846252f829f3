//! How many connections strangers may have: in all, and from one address.

use super::address::{host_of, ip_of};
use super::members::Members;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    dummy,
};
use libp2p::{Multiaddr, PeerId};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::task::{Context, Poll};

/// Inbound handshakes at once, of both transports: the QUIC side has its own, tighter bound.
const PENDING_MAX: usize = 128;
/// Of these from one address. A site behind one NAT may start all its hosts at once; those refused come again.
const PENDING_PER_ADDRESS_MAX: usize = 32;
/// Connections of strangers, which idle out after a minute. Each may be a host that waits for approval.
const STRANGERS_MAX: usize = 128;
/// Of these from one address.
const STRANGERS_PER_ADDRESS_MAX: usize = 32;
/// All inbound connections, of members too: the connection manager trims members only after they came.
const INBOUND_MAX: usize = 1_024;
/// Connections from one peer: two when both dial at once, and as many while an old one lingers.
const PER_PEER_MAX: usize = 4;

/// Why a connection is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("Too many connections are being made")]
    Pending,
    #[error("Too many connections are being made from {0}")]
    PendingFrom(IpAddr),
    #[error("Too many connections")]
    Inbound,
    #[error("Too many strangers are connected")]
    Strangers,
    #[error("Too many strangers are connected from {0}")]
    StrangersFrom(IpAddr),
    #[error("Too many connections of one peer")]
    Peer,
    #[error("The peer's key is not Ed25519: it can't be a host")]
    Key,
}

/// Refuses what is too much. Has no protocol.
pub struct Limits {
    members: Members,
    pending: HashMap<ConnectionId, Option<IpAddr>>,
    inbound: HashMap<ConnectionId, (PeerId, Option<IpAddr>)>,
}

impl Limits {
    /// Members are bounded only together.
    pub(super) fn new(members: Members) -> Self {
        Self { members, pending: HashMap::new(), inbound: HashMap::new() }
    }

    fn check_pending(&self, ip: Option<IpAddr>) -> Result<(), Refusal> {
        if self.pending.len() >= PENDING_MAX {
            return Err(Refusal::Pending);
        }
        let from_there = self.pending.values().filter(|from| **from == ip).count();
        match ip {
            Some(ip) if from_there >= PENDING_PER_ADDRESS_MAX => Err(Refusal::PendingFrom(ip)),
            _ => Ok(()),
        }
    }

    fn check_established(&self, peer: &PeerId, ip: Option<IpAddr>) -> Result<(), Refusal> {
        if host_of(peer).is_none() {
            return Err(Refusal::Key);
        }
        if self.inbound.len() >= INBOUND_MAX {
            return Err(Refusal::Inbound);
        }
        if self.inbound.values().filter(|(other, _)| other == peer).count() >= PER_PEER_MAX {
            return Err(Refusal::Peer);
        }
        if self.members.contains_peer(peer) {
            return Ok(());
        }
        let strangers = || self.inbound.values().filter(|(other, _)| !self.members.contains_peer(other));
        if strangers().count() >= STRANGERS_MAX {
            return Err(Refusal::Strangers);
        }
        let from_there = strangers().filter(|(_, from)| *from == ip).count();
        match ip {
            Some(ip) if from_there >= STRANGERS_PER_ADDRESS_MAX => Err(Refusal::StrangersFrom(ip)),
            _ => Ok(()),
        }
    }
}

impl NetworkBehaviour for Limits {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let ip = ip_of(remote);
        self.check_pending(ip).map_err(ConnectionDenied::new)?;
        self.pending.insert(id, ip);
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.pending.remove(&id);
        let ip = ip_of(remote);
        self.check_established(&peer, ip).map_err(ConnectionDenied::new)?;
        self.inbound.insert(id, (peer, ip));
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        match host_of(&peer) {
            Some(_) => Ok(dummy::ConnectionHandler),
            None => Err(ConnectionDenied::new(Refusal::Key)),
        }
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionClosed(closed) => _ = self.inbound.remove(&closed.connection_id),
            // Also what another behaviour refused after this one had agreed.
            FromSwarm::ListenFailure(failure) => {
                self.pending.remove(&failure.connection_id);
                self.inbound.remove(&failure.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::address::peer_of;
    use virtuoso_overlay::ids::HostId;

    fn id(n: usize) -> ConnectionId {
        ConnectionId::new_unchecked(n)
    }

    fn from(n: usize) -> Multiaddr {
        format!("/ip4/10.0.0.{n}/udp/1/quic-v1").parse().unwrap()
    }

    fn host(n: usize) -> HostId {
        let mut id = [1; 32];
        id[..8].copy_from_slice(&n.to_be_bytes());
        HostId(id)
    }

    fn establish(limits: &mut Limits, n: usize, host: HostId, remote: &Multiaddr) -> bool {
        let here = from(250);
        limits.handle_established_inbound_connection(id(n), peer_of(&host), &here, remote).is_ok()
    }

    #[test]
    fn pending_connections_are_bounded_per_address_and_in_all() {
        let mut limits = Limits::new(Members::default());
        let mut pend =
            |n: usize, remote: &Multiaddr| limits.handle_pending_inbound_connection(id(n), &from(250), remote).is_ok();
        assert_eq!((0..100).filter(|n| pend(*n, &from(1))).count(), PENDING_PER_ADDRESS_MAX);
        assert_eq!((100..400).filter(|n| pend(*n, &from(n / 10))).count(), PENDING_MAX - PENDING_PER_ADDRESS_MAX);
    }

    #[test]
    fn strangers_are_bounded_and_members_come_in() {
        let members = Members::default();
        let mut limits = Limits::new(members.clone());
        assert_eq!((0..100).filter(|n| establish(&mut limits, *n, host(*n), &from(1))).count(), 32);
        assert_eq!((100..400).filter(|n| establish(&mut limits, *n, host(*n), &from(n / 10))).count(), 96);
        members.set(host(1_000), true);
        assert!(establish(&mut limits, 1_000, host(1_000), &from(1)));
        let more = (1_001..1_100).filter(|n| establish(&mut limits, *n, host(1_000), &from(1))).count();
        assert_eq!(more + 1, PER_PEER_MAX);
    }

    #[test]
    fn keys_of_other_kinds_are_refused() {
        let mut limits = Limits::new(Members::default());
        let foreign = PeerId::random();
        let result = limits.handle_established_inbound_connection(id(1), foreign, &from(1), &from(2));
        assert!(result.is_err_and(|denied| denied.downcast::<Refusal>().is_ok()));
    }
}

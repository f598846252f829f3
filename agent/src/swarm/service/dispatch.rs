//! From libp2p's events to the agent's.

use super::event::Protocol;
use super::{AdmitId, Event, GossipId, PROVIDERS_ENOUGH, Reply, SwarmService, SyncId};
use crate::swarm::address::{host_of, is_dialable, is_loopback};
use crate::swarm::behaviour::{BehaviourEvent, MemberProtocolsEvent};
use crate::swarm::connections::ADDRESSES_MAX;
use crate::swarm::gate;
use crate::swarm::streams::{OpenError, Wanted};
use libp2p::core::ConnectedPoint;
use libp2p::kad::store::RecordStore;
use libp2p::kad::{self, GetProvidersOk, QueryResult};
use libp2p::multiaddr::Protocol as Part;
use libp2p::request_response::{self, Message};
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, TransportError, gossipsub, identify, mdns, ping};
use std::collections::BTreeMap;
use virtuoso_overlay::ids::HostId;

/// Addresses under which peers saw this host. Each NAT mapping is one; more are not worth telling.
const CANDIDATES_MAX: usize = 64;

type RequestEvent = request_response::Event<Vec<u8>, Vec<u8>>;

impl SwarmService {
    pub(super) fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_established(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                tracing::debug!(peer = %peer_id, connection = %connection_id, ?cause, "Connection closed");
                self.on_closed(&peer_id, connection_id, cause.is_some_and(|cause| is_broken(&cause)));
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                self.on_dial_error(connection_id, peer_id, &error);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(from = %send_back_addr, %error, "An incoming connection failed");
            }
            SwarmEvent::NewListenAddr { address, .. } => self.events.push_back(Event::ListenAddress(address)),
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.events.push_back(Event::ListenAddressGone(address));
            }
            SwarmEvent::Dialing { .. } => self.stop_wandering(),
            SwarmEvent::NewExternalAddrCandidate { address } => self.on_candidate(address),
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "Trouble with a listening socket"),
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                tracing::warn!(?addresses, ?reason, "A listening socket is closed");
            }
            _ => {}
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Identify(identify::Event::Received { peer_id, connection_id, info }) => {
                self.on_identified(&peer_id, connection_id, info);
            }
            BehaviourEvent::Identify(_) => {}
            BehaviourEvent::Ping(event) => self.on_ping(event),
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => self.on_discovered(found),
            BehaviourEvent::Mdns(mdns::Event::Expired(_)) => {}
            BehaviourEvent::Admit(event) => self.on_admit(event),
            BehaviourEvent::Members(gate::Event::Opened { peer, connection }) => self.on_ready(peer, connection),
            BehaviourEvent::Members(gate::Event::Inner(event)) => match event {
                MemberProtocolsEvent::Kad(event) => self.on_kad(event),
                MemberProtocolsEvent::Gossip(event) => self.on_gossip(event),
                MemberProtocolsEvent::Sync(event) => self.on_sync(event),
                MemberProtocolsEvent::Streams(Wanted(peer)) => self.on_stream_wanted(peer),
            },
            BehaviourEvent::Limits(never) => match never {},
        }
    }

    fn on_established(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let Some(host) = host_of(&peer) else { return };
        let (now, member) = (self.now(), self.members.contains(&host));
        let (address, dialled) = (endpoint.get_remote_address().clone(), endpoint.is_dialer());
        let address = crate::swarm::address::without_peer(address);
        self.bootstrap.opened(id);
        let is_first = self.peers.opened(peer, host, id, address.clone(), dialled, now);
        if member {
            self.connections.opened(id, host, &address, dialled, now);
        }
        if is_first {
            self.events.push_back(Event::PeerConnected { host, address, member });
        }
    }

    fn on_closed(&mut self, peer: &PeerId, id: ConnectionId, broke: bool) {
        let now = self.now();
        self.connections.closed(id, broke, now);
        self.bootstrap.closed(id, now);
        if let Some(host) = self.peers.closed(peer, id) {
            self.events.push_back(Event::PeerDisconnected { host });
        }
        self.bootstrap.set_joined(self.peers.any_ready(), now);
    }

    pub(super) fn on_dial_error(&mut self, id: ConnectionId, peer: Option<PeerId>, error: &DialError) {
        let now = self.now();
        let text = dial_error_text(error);
        match self.bootstrap.failed(id, text.clone(), now) {
            Some(1) => tracing::info!(%text, "A bootstrap address does not answer: it is tried again"),
            _ => tracing::debug!(?peer, %text, "A dial failed"),
        }
        if let Some(host) = peer.as_ref().and_then(host_of) {
            let failed = match error {
                DialError::Transport(errors) => errors.iter().map(|(address, _)| plain(address)).collect(),
                DialError::WrongPeerId { address, .. } | DialError::LocalPeerId { address } => vec![plain(address)],
                _ => Vec::new(),
            };
            self.connections.dial_failed(&host, &failed, now);
        }
    }

    /// Connects to a member for the sake of a stream. How that ends, the streams hear from libp2p.
    fn on_stream_wanted(&mut self, peer: PeerId) {
        let host = host_of(&peer).filter(|host| self.members.contains(host));
        let Some(host) = host else {
            if let Some(protocols) = self.swarm.behaviour_mut().members.inner_mut() {
                protocols.streams.refuse(&peer, &OpenError::NoMember);
            }
            return;
        };
        let addresses = self.connections.addresses(&host);
        tracing::debug!(%host, ?addresses, "Dialling a member for a stream");
        if self.dial(host, addresses).is_err() {
            tracing::debug!(%host, "Not dialled: it is connected, being dialled, or has no address");
        }
    }

    /// Both gates are open.
    fn on_ready(&mut self, peer: PeerId, id: ConnectionId) {
        let (now, was_ready) = (self.now(), self.peers.is_ready(&peer));
        let Some(connection) = self.peers.connection_mut(&peer, id) else { return };
        connection.ready = true;
        self.bootstrap.set_joined(true, now);
        let Some(host) = host_of(&peer) else { return };
        self.remember(&peer, host);
        if !was_ready {
            tracing::info!(%host, "Connected to a member");
            self.events.push_back(Event::MemberReady { host });
        }
    }

    /// Keeps where a ready member can be reached: by what worked first, then by its own word.
    fn remember(&mut self, peer: &PeerId, host: HostId) {
        if !self.peers.is_ready(peer) {
            return;
        }
        let Some(entry) = self.peers.get(peer) else { return };
        // The port of an inbound TCP connection is nobody's; that of QUIC is the one that serves all.
        let proven = entry.connections.values().filter(|c| c.dialled || is_quic(&c.address));
        let mut addresses: Vec<_> = proven.map(|c| c.address.clone()).collect();
        for address in &entry.listens {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        self.known.met(host, addresses.clone(), self.wall_clock());
        self.add_member_addresses(host, addresses);
    }

    fn on_identified(&mut self, peer: &PeerId, id: ConnectionId, info: identify::Info) {
        let Some(entry) = self.peers.get_mut(peer) else { return };
        let host = entry.host;
        let on_loopback = entry.connections.get(&id).is_some_and(|c| is_loopback(&c.address));
        let useful = |address: &Multiaddr| is_dialable(address) && (on_loopback || !is_loopback(address));
        let listens: Vec<_> = info.listen_addrs.iter().map(plain).filter(useful).take(ADDRESSES_MAX).collect();
        let protocols = info.protocols.iter().map(|name| name.as_ref().chars().take(128).collect());
        entry.identified(&info.agent_version, protocols, listens);
        self.remember(peer, host);
    }

    /// QUIC notices a dead peer by itself; TCP does not.
    fn on_ping(&mut self, event: ping::Event) {
        match event.result {
            Ok(rtt) => {
                if let Some(connection) = self.peers.connection_mut(&event.peer, event.connection) {
                    connection.rtt = Some(rtt);
                }
            }
            Err(ping::Failure::Unsupported) => {}
            Err(error) => {
                tracing::debug!(peer = %event.peer, %error, "No answer to ping: closing the connection");
                self.swarm.close_connection(event.connection);
            }
        }
    }

    fn on_candidate(&mut self, address: Multiaddr) {
        let is_new = is_dialable(&address) && self.candidates.len() < CANDIDATES_MAX;
        if is_new && self.candidates.insert(address.clone()) {
            self.events.push_back(Event::ExternalAddressCandidate(address));
        }
    }

    fn on_discovered(&mut self, found: Vec<(PeerId, Multiaddr)>) {
        let mut hosts: BTreeMap<HostId, Vec<Multiaddr>> = BTreeMap::new();
        for (peer, address) in found {
            let Some(host) = host_of(&peer) else { continue };
            let addresses = hosts.entry(host).or_default();
            if is_dialable(&address) && addresses.len() < ADDRESSES_MAX {
                addresses.push(plain(&address));
            }
        }
        for (host, addresses) in hosts {
            self.add_member_addresses(host, addresses.clone());
            self.events.push_back(Event::Discovered { host, addresses });
        }
    }

    fn on_admit(&mut self, event: RequestEvent) {
        let now = self.now();
        match event {
            request_response::Event::Message { peer, connection_id, message } => {
                let Some(entry) = self.peers.get_mut(&peer) else { return };
                let host = entry.host;
                self.events.push_back(match message {
                    Message::Request { request: bytes, channel, .. } => {
                        if !entry.may_admit(now) {
                            tracing::debug!(%host, "Introduces itself too often: not answered");
                            return;
                        }
                        for dead in self.connections.introduced(connection_id) {
                            tracing::debug!(%host, connection = %dead, "The peer has lost this connection: closing it");
                            self.swarm.close_connection(dead);
                        }
                        Event::AdmitRequest { host, bytes, reply: Reply { channel, protocol: Protocol::Admit } }
                    }
                    Message::Response { request_id, response: bytes } => {
                        Event::AdmitResponse { host, id: AdmitId(request_id), bytes }
                    }
                });
            }
            request_response::Event::OutboundFailure { peer, request_id, error, .. } => {
                let Some(host) = host_of(&peer) else { return };
                self.events.push_back(Event::AdmitFailed { host, id: AdmitId(request_id), error: error.to_string() });
            }
            _ => {}
        }
    }

    fn on_sync(&mut self, event: RequestEvent) {
        let now = self.now();
        match event {
            request_response::Event::Message { peer, message, .. } => {
                let Some(host) = host_of(&peer) else { return };
                self.events.push_back(match message {
                    Message::Request { request: bytes, channel, .. } => {
                        Event::SyncRequest { host, bytes, reply: Reply { channel, protocol: Protocol::Sync } }
                    }
                    Message::Response { request_id, response: bytes } => {
                        self.connections.useful(&host, now);
                        Event::SyncResponse { host, id: SyncId(request_id), bytes }
                    }
                });
            }
            request_response::Event::OutboundFailure { peer, request_id, error, .. } => {
                let Some(host) = host_of(&peer) else { return };
                self.events.push_back(Event::SyncFailed { host, id: SyncId(request_id), error: error.to_string() });
            }
            _ => {}
        }
    }

    fn on_gossip(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message { propagation_source, message_id, message } => {
                let id = GossipId { message: message_id, from: propagation_source };
                match message.source.as_ref().and_then(host_of) {
                    Some(source) => self.events.push_back(Event::Gossip { id, source, bytes: message.data }),
                    None => self.judge(&id, super::Verdict::Reject),
                }
            }
            gossipsub::Event::SlowPeer { peer_id, .. } => tracing::debug!(peer = %peer_id, "Gossip to a slow peer"),
            _ => {}
        }
    }

    fn on_kad(&mut self, event: kad::Event) {
        match event {
            kad::Event::OutboundQueryProgressed { id, result: QueryResult::GetProviders(result), step, .. } => {
                let providers = match result {
                    Ok(GetProvidersOk::FoundProviders { providers, .. }) => providers,
                    Ok(GetProvidersOk::FinishedWithNoAdditionalRecord { .. }) | Err(_) => Default::default(),
                };
                self.on_providers(id, providers.iter().filter_map(host_of).collect(), step.last);
            }
            // libp2p has checked that the provider is the sender; only members get this far.
            kad::Event::InboundRequest { request: kad::InboundRequest::AddProvider { record: Some(record) } } => {
                let Some(protocols) = self.swarm.behaviour_mut().members.inner_mut() else { return };
                if let Err(error) = protocols.kad.store_mut().add_provider(record) {
                    tracing::debug!(%error, "No room for a provider");
                }
            }
            _ => {}
        }
    }

    /// Kademlia looks for its neighbours whenever it knows fewer than twenty, by connecting to everybody that it hears
    /// of. It need not: the tables tell every member's addresses. As long as it asks hosts that are connected anyway
    /// it may go on.
    fn stop_wandering(&mut self) {
        let Some(protocols) = self.swarm.behaviour_mut().members.inner_mut() else { return };
        for mut query in protocols.kad.iter_queries_mut() {
            if matches!(query.info(), kad::QueryInfo::Bootstrap { .. }) {
                query.finish();
            }
        }
    }

    fn on_providers(&mut self, query: kad::QueryId, hosts: Vec<HostId>, last: bool) {
        let Some(lookup) = self.lookups.get_mut(&query) else { return };
        let (image, had_enough) = (lookup.image, lookup.found.len() >= PROVIDERS_ENOUGH);
        let hosts: Vec<_> = hosts.into_iter().filter(|host| lookup.found.insert(*host)).collect();
        let has_enough = lookup.found.len() >= PROVIDERS_ENOUGH;
        if last {
            self.lookups.remove(&query);
        } else if has_enough && !had_enough {
            let protocols = self.swarm.behaviour_mut().members.inner_mut();
            if let Some(mut query) = protocols.and_then(|protocols| protocols.kad.query_mut(&query)) {
                query.finish();
            }
        }
        if last || !hosts.is_empty() {
            self.events.push_back(Event::ProvidersFound { image, hosts, last });
        }
    }
}

fn plain(address: &Multiaddr) -> Multiaddr {
    crate::swarm::address::without_peer(address.clone())
}

fn is_quic(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Part::QuicV1)
}

/// One line that says what is wrong with which address.
fn dial_error_text(error: &DialError) -> String {
    match error {
        DialError::Transport(errors) => {
            let of_address = |(address, error): &(Multiaddr, TransportError<std::io::Error>)| match error {
                TransportError::Other(error) => format!("{}: {error}", plain(address)),
                TransportError::MultiaddrNotSupported(_) => format!("{}: can't be dialled from here", plain(address)),
            };
            errors.iter().map(of_address).collect::<Vec<_>>().join("; ")
        }
        DialError::WrongPeerId { obtained, address } => format!("{}: another peer answers, {obtained}", plain(address)),
        DialError::LocalPeerId { address } => format!("{}: this is the host itself", plain(address)),
        other => other.to_string(),
    }
}

/// Whether a connection ended because nothing came any more, and not because one side closed it.
fn is_broken(cause: &(dyn std::error::Error + 'static)) -> bool {
    use quinn::ConnectionError::{Reset, TimedOut};
    let mut next = Some(cause);
    while let Some(error) = next {
        if matches!(error.downcast_ref(), Some(TimedOut | Reset)) {
            return true;
        }
        // An I/O error's source is that of the error inside it, which is the one to look at.
        next = match error.downcast_ref::<std::io::Error>() {
            Some(io) if io.kind() == std::io::ErrorKind::TimedOut => return true,
            Some(io) => io.get_ref().map(|inner| inner as _),
            None => error.source(),
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::is_broken;
    use std::io;

    #[test]
    fn a_time_out_is_found_below_other_errors() {
        let lost = io::Error::other(io::Error::other(quinn::ConnectionError::TimedOut));
        assert!(is_broken(&libp2p::swarm::ConnectionError::IO(lost)));
        let closed = io::Error::other(quinn::ConnectionError::LocallyClosed);
        assert!(!is_broken(&libp2p::swarm::ConnectionError::IO(closed)));
        assert!(!is_broken(&libp2p::swarm::ConnectionError::KeepAliveTimeout));
    }
}

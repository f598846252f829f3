//! The swarm to the rest of the agent: one owner, a stream of events, and commands that return at once.
//!
//! The owner calls [`SwarmService::next_event`] in its loop, and commands between. Nothing here decides who is a
//! member or what a message means.

mod dispatch;
mod event;
mod peers;
#[cfg(test)]
mod tests;

pub use event::{AdmitId, Event, GossipId, Reply, SyncId, Verdict};
pub use peers::PeerRow;

use super::address::{host_of, named_peer, peer_of};
use super::backoff::Backoff;
use super::behaviour::{self, Behaviour, GOSSIP_BYTES_MAX};
use super::bootstrap::{self, Bootstrap};
use super::connections::{Action, Connections};
use super::known_peers::KnownPeers;
use super::members::Members;
use super::streams::{Requests, Streams};
use super::transport::{self, Port};
use anyhow::Context;
use event::Protocol;
use futures::StreamExt;
use libp2p::gossipsub::{MessageAcceptance, PublishError};
use libp2p::identity::Keypair;
use libp2p::kad::{self, RecordKey};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId, Swarm};
use peers::Peers;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::{Interval, MissedTickBehavior};
use virtuoso_overlay::ids::{Digest, HostId, SwarmId};
use virtuoso_overlay::time::{Instant, UnixTime};

/// A connection on which nothing but ping runs is closed after this time. A host that waits for approval asks more
/// often than this, which holds its connection.
const IDLE_CONNECTION_TIME: Duration = Duration::from_secs(60);
/// Gossip does not tell when a message has left the host: so long goodbyes get at shutdown.
const FLUSH_TIME: Duration = Duration::from_millis(200);
/// Closing all connections takes a round trip where the peer answers.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(1);
/// How often the list of known peers is saved at most.
const SAVE_INTERVAL: Duration = Duration::from_secs(30);
/// Searches for providers that run at once.
const LOOKUPS_MAX: usize = 256;
/// A search ends with so many providers: an image is fetched from a few.
const PROVIDERS_ENOUGH: usize = 3;

/// Everything a swarm needs to begin.
pub struct Config {
    /// The host's identity.
    pub keypair: Keypair,
    /// The shared UDP port.
    pub port: Port,
    /// Where TCP is accepted.
    pub tcp: Vec<SocketAddr>,
    /// The agent's name and version.
    pub agent_version: String,
    /// The swarm, unless the host has yet to join one.
    pub swarm: Option<SwarmId>,
    /// Whether to look for hosts on the local network.
    pub mdns: bool,
    /// Where to look for the swarm.
    pub bootstrap: Vec<Multiaddr>,
    /// Members met in earlier runs.
    pub known_peers: KnownPeers,
    /// Saves the list of known peers; is called on the owner's task and must not block it.
    pub save_known_peers: Box<dyn FnMut(Vec<u8>) + Send>,
    /// How fast to try again.
    pub timing: Timing,
    /// For choices among peers.
    pub seed: u64,
}

/// The pace of connecting.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How often connections are looked after.
    pub tick: Duration,
    /// Between dials of one place or member.
    pub backoff: Backoff,
}

impl Default for Timing {
    fn default() -> Self {
        // The longest wait is also how long a healed partition may go unnoticed.
        let backoff = Backoff { min: Duration::from_secs(1), max: Duration::from_secs(15) };
        Self { tick: Duration::from_secs(1), backoff }
    }
}

/// Why a command could not be begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The host has joined no swarm.
    #[error("The host is in no swarm yet")]
    NoSwarm,
    /// There is no connection over which this could go.
    #[error("The host is not connected")]
    NotConnected,
    /// The message exceeds its protocol's bound.
    #[error("The message is too long")]
    TooLong,
    /// Too much of this is going on.
    #[error("Too many requests are running")]
    TooMany,
    /// Gossip could not sign or queue the message.
    #[error("The message can't be gossiped")]
    Gossip,
}

/// The control plane of one host.
pub struct SwarmService {
    swarm: Swarm<Behaviour>,
    endpoint: quinn::Endpoint,
    keypair: Keypair,
    swarm_id: Option<SwarmId>,
    streams: Streams,
    /// Taken when the host enters a swarm.
    stream_requests: Option<Requests>,
    members: Members,
    peers: Peers,
    connections: Connections,
    bootstrap: Bootstrap,
    known: KnownPeers,
    save_known: Box<dyn FnMut(Vec<u8>) + Send>,
    saved_at: Instant,
    lookups: HashMap<kad::QueryId, Lookup>,
    candidates: BTreeSet<Multiaddr>,
    events: VecDeque<Event>,
    tick: Interval,
    origin: std::time::Instant,
}

struct Lookup {
    image: Digest,
    found: BTreeSet<HostId>,
}

impl SwarmService {
    /// Listens, and begins to look for the swarm. Needs a tokio runtime.
    pub fn new(config: Config) -> anyhow::Result<Self> {
        let local = config.port.socket.local_addr().context("Can't read the local address of the UDP socket")?;
        let (transport, endpoint) = transport::build(config.port, &config.keypair)?;
        let members = Members::default();
        let behaviour = Behaviour::new(&config.keypair, config.agent_version, config.mdns, members.clone())?;
        let peer = config.keypair.public().to_peer_id();
        let own = host_of(&peer).context("The host's key is not Ed25519")?;
        let settings = libp2p::swarm::Config::with_tokio_executor()
            .with_idle_connection_timeout(IDLE_CONNECTION_TIME)
            .with_smart_dial();
        let mut tick = tokio::time::interval(config.timing.tick);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (streams, stream_requests) = Streams::new();
        let mut service = Self {
            swarm: Swarm::new(transport, behaviour, peer, settings),
            endpoint,
            keypair: config.keypair,
            swarm_id: None,
            streams,
            stream_requests: Some(stream_requests),
            members,
            peers: Peers::default(),
            connections: Connections::new(own, config.timing.backoff, config.seed),
            bootstrap: Bootstrap::new(config.timing.backoff, config.seed ^ 1),
            known: config.known_peers,
            save_known: config.save_known_peers,
            saved_at: Instant::default(),
            lookups: HashMap::new(),
            candidates: BTreeSet::new(),
            events: VecDeque::new(),
            tick,
            origin: std::time::Instant::now(),
        };
        service.listen(local, &config.tcp)?;
        service.remember_places(config.bootstrap);
        if let Some(swarm) = config.swarm {
            service.set_swarm(swarm)?;
        }
        Ok(service)
    }

    fn listen(&mut self, udp: SocketAddr, tcp: &[SocketAddr]) -> anyhow::Result<()> {
        let quic = super::address::quic_address(udp);
        self.swarm.listen_on(quic).with_context(|| format!("Can't listen on UDP {udp}"))?;
        for at in tcp {
            let address = super::address::tcp_address(*at);
            self.swarm.listen_on(address).with_context(|| {
                format!(
                    "Can't listen on TCP {at}: find out who has the port with `ss -ltnp`, or choose another by --listen"
                )
            })?;
        }
        Ok(())
    }

    fn remember_places(&mut self, bootstrap: Vec<Multiaddr>) {
        let own = *self.swarm.local_peer_id();
        for (host, addresses) in self.known.latest() {
            let peer = peer_of(&host);
            let named = addresses.iter().cloned().filter_map(|address| address.with_p2p(peer).ok());
            self.bootstrap.add(named, true, Instant::default());
        }
        let others = bootstrap.into_iter().filter(|address| named_peer(address) != Some(own));
        self.bootstrap.add(others, false, Instant::default());
    }

    /// The next event. May be dropped and called again at any time without losing one.
    pub async fn next_event(&mut self) -> Event {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_swarm_event(event),
                _ = self.tick.tick() => self.look_after_connections(),
            }
        }
    }

    /// Joins a swarm, or makes the host the first of one: from now on its members can be admitted.
    pub fn set_swarm(&mut self, swarm: SwarmId) -> anyhow::Result<()> {
        if self.swarm_id == Some(swarm) {
            return Ok(());
        }
        anyhow::ensure!(self.swarm_id.is_none(), "The host is in a swarm already");
        let requests = self.stream_requests.take().context("The host is in a swarm already")?;
        let behaviour = self.swarm.behaviour_mut();
        behaviour.enter(swarm, &self.keypair, requests)?;
        if let Some(protocols) = behaviour.members.inner_mut() {
            for (host, address) in self.connections.known_addresses() {
                protocols.kad.add_address(&peer_of(&host), address.clone());
            }
        }
        self.swarm_id = Some(swarm);
        Ok(())
    }

    /// Admits a host, or ends its membership and its connections.
    pub fn set_admitted(&mut self, host: HostId, admitted: bool) {
        if !self.members.set(host, admitted) {
            return;
        }
        let (peer, now) = (peer_of(&host), self.now());
        if admitted {
            let listens = self.peers.get(&peer).map_or_else(Vec::new, |peer| peer.listens.clone());
            for (id, connection) in self.peers.get(&peer).iter().flat_map(|peer| &peer.connections) {
                self.connections.opened(*id, host, &connection.address, connection.dialled, now);
            }
            self.add_member_addresses(host, listens);
        } else {
            self.connections.forget(&host);
            self.known.forget(&host);
            if let Some(protocols) = self.swarm.behaviour_mut().members.inner_mut() {
                protocols.kad.remove_peer(&peer);
            }
        }
        self.swarm.behaviour_mut().members.on_standing_changed(peer);
    }

    /// Who is admitted, for other parts to ask.
    pub fn members(&self) -> Members {
        self.members.clone()
    }

    /// Raw streams to and from members.
    pub fn streams(&self) -> Streams {
        self.streams.clone()
    }

    /// Where a member can be reached, by its row or its own word.
    pub fn add_member_addresses(&mut self, host: HostId, addresses: Vec<Multiaddr>) {
        if !self.members.contains(&host) {
            return;
        }
        let news = self.connections.learned(host, addresses, self.now());
        if let Some(protocols) = self.swarm.behaviour_mut().members.inner_mut() {
            for address in news {
                protocols.kad.add_address(&peer_of(&host), address);
            }
        }
    }

    /// Keeps the connections of a member whatever their number.
    pub fn pin(&mut self, host: HostId, pinned: bool) {
        self.connections.pin(host, pinned);
    }

    /// Dials a host at given addresses.
    pub fn dial(&mut self, host: HostId, addresses: Vec<Multiaddr>) -> Result<(), Refused> {
        let options = DialOpts::peer_id(peer_of(&host))
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addresses)
            .build();
        self.swarm.dial(options).map_err(|_| Refused::NotConnected)
    }

    /// Gossips to all members. A host that is alone has told everybody.
    pub fn publish(&mut self, bytes: Vec<u8>) -> Result<(), Refused> {
        // The envelope (source, number, key, signature, topic) needs room too.
        if bytes.len() > GOSSIP_BYTES_MAX - 512 {
            return Err(Refused::TooLong);
        }
        let topic = behaviour::topic(self.swarm_id.ok_or(Refused::NoSwarm)?);
        let protocols = self.swarm.behaviour_mut().members.inner_mut().ok_or(Refused::NoSwarm)?;
        match protocols.gossip.publish(topic, bytes) {
            Ok(_) | Err(PublishError::Duplicate | PublishError::NoPeersSubscribedToTopic) => Ok(()),
            Err(PublishError::AllQueuesFull(_)) => Err(Refused::TooMany),
            Err(PublishError::MessageTooLarge) => Err(Refused::TooLong),
            Err(error) => {
                tracing::debug!(%error, "Gossip refused a message");
                Err(Refused::Gossip)
            }
        }
    }

    /// Says what becomes of a gossip message.
    pub fn judge(&mut self, id: &GossipId, verdict: Verdict) {
        let now = self.now();
        let Some(protocols) = self.swarm.behaviour_mut().members.inner_mut() else { return };
        let acceptance = match verdict {
            Verdict::Accept => MessageAcceptance::Accept,
            Verdict::Ignore => MessageAcceptance::Ignore,
            Verdict::Reject => MessageAcceptance::Reject,
        };
        protocols.gossip.report_message_validation_result(&id.message, &id.from, acceptance);
        if let (Verdict::Accept, Some(host)) = (verdict, host_of(&id.from)) {
            self.connections.useful(&host, now);
        }
    }

    /// Introduces this host to a connected one, which may be a stranger.
    pub fn send_admit(&mut self, host: HostId, bytes: Vec<u8>) -> Result<AdmitId, Refused> {
        let peer = peer_of(&host);
        if bytes.len() > behaviour::ADMIT_BYTES_MAX {
            return Err(Refused::TooLong);
        }
        if self.peers.get(&peer).is_none() {
            return Err(Refused::NotConnected);
        }
        Ok(AdmitId(self.swarm.behaviour_mut().admit.send_request(&peer, bytes)))
    }

    /// Asks a member for rows. It must be ready.
    pub fn send_sync(&mut self, host: HostId, bytes: Vec<u8>) -> Result<SyncId, Refused> {
        let peer = peer_of(&host);
        if bytes.len() > behaviour::SYNC_REQUEST_BYTES_MAX {
            return Err(Refused::TooLong);
        }
        if !self.peers.is_ready(&peer) {
            return Err(Refused::NotConnected);
        }
        let protocols = self.swarm.behaviour_mut().members.inner_mut().ok_or(Refused::NoSwarm)?;
        Ok(SyncId(protocols.sync.send_request(&peer, bytes)))
    }

    /// Answers a request. The peer may be gone by now: then it is told nothing.
    pub fn respond(&mut self, reply: Reply, bytes: Vec<u8>) -> Result<(), Refused> {
        let behaviour = self.swarm.behaviour_mut();
        let (requests, bytes_max) = match reply.protocol {
            Protocol::Admit => (Some(&mut behaviour.admit), behaviour::ADMIT_BYTES_MAX),
            Protocol::Sync => {
                let protocols = behaviour.members.inner_mut();
                (protocols.map(|protocols| &mut protocols.sync), behaviour::SYNC_RESPONSE_BYTES_MAX)
            }
        };
        if bytes.len() > bytes_max {
            return Err(Refused::TooLong);
        }
        let requests = requests.ok_or(Refused::NoSwarm)?;
        requests.send_response(reply.channel, bytes).map_err(|_| Refused::NotConnected)
    }

    /// Tells the swarm that this host has an image.
    pub fn start_providing(&mut self, image: Digest) -> Result<(), Refused> {
        let protocols = self.swarm.behaviour_mut().members.inner_mut().ok_or(Refused::NoSwarm)?;
        protocols.kad.start_providing(image_key(image)).map(|_| ()).map_err(|_| Refused::TooMany)
    }

    /// Stops telling so. Others forget it within the hour.
    pub fn stop_providing(&mut self, image: Digest) {
        if let Some(protocols) = self.swarm.behaviour_mut().members.inner_mut() {
            protocols.kad.stop_providing(&image_key(image));
        }
    }

    /// Looks for hosts that have an image.
    pub fn get_providers(&mut self, image: Digest) -> Result<(), Refused> {
        if self.lookups.len() >= LOOKUPS_MAX {
            return Err(Refused::TooMany);
        }
        let protocols = self.swarm.behaviour_mut().members.inner_mut().ok_or(Refused::NoSwarm)?;
        let query = protocols.kad.get_providers(image_key(image));
        self.lookups.insert(query, Lookup { image, found: BTreeSet::new() });
        Ok(())
    }

    /// Where this host can be reached: where it listens, and what was confirmed.
    pub fn addresses(&self) -> Vec<Multiaddr> {
        let own = self.swarm.listeners().chain(self.swarm.external_addresses());
        own.cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Every connection.
    pub fn peers(&self) -> Vec<PeerRow> {
        self.peers.rows(self.now(), |host| self.members.contains(host))
    }

    /// How the search for the swarm goes.
    pub fn bootstrap_status(&self) -> Vec<bootstrap::Status> {
        self.bootstrap.status(self.now())
    }

    /// Lets what was just published leave, then closes every connection and the endpoint.
    pub async fn shutdown(mut self) {
        self.save_known_peers();
        let flush = async {
            loop {
                self.swarm.select_next_some().await;
            }
        };
        tokio::time::timeout(FLUSH_TIME, flush).await.ok();
        let connected: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in connected {
            self.swarm.disconnect_peer_id(peer).ok();
        }
        let close = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        tokio::time::timeout(CLOSE_TIME_MAX, close).await.ok();
        self.endpoint.close(0u32.into(), b"");
        tokio::time::timeout(CLOSE_TIME_MAX, self.endpoint.wait_idle()).await.ok();
    }

    fn now(&self) -> Instant {
        Instant::default() + self.origin.elapsed()
    }

    fn look_after_connections(&mut self) {
        let now = self.now();
        for due in self.bootstrap.due(now) {
            self.dial_place(due);
        }
        let gossip = self.swarm.behaviour().members.inner().map(|protocols| &protocols.gossip);
        let mut mesh: BTreeSet<_> =
            gossip.map(|gossip| gossip.all_mesh_peers().filter_map(host_of).collect()).unwrap_or_default();
        let (peers, busy) = self.streams.busy();
        mesh.extend(peers.iter().filter_map(host_of));
        self.connections.set_busy(busy);
        for action in self.connections.plan(now, &mesh) {
            match action {
                Action::Dial(host, addresses) => {
                    tracing::debug!(%host, ?addresses, "Dialling a member");
                    if self.dial(host, addresses).is_err() {
                        self.connections.dial_failed(&host, &[], now);
                    }
                }
                Action::Close(id, reason) => {
                    tracing::debug!(connection = %id, ?reason, "Closing a connection");
                    self.swarm.close_connection(id);
                }
            }
        }
        if now.since(self.saved_at) >= SAVE_INTERVAL {
            self.save_known_peers();
        }
    }

    fn dial_place(&mut self, due: bootstrap::Due) {
        let options = match due.peer {
            // A host that has come by itself need not be looked for.
            Some(peer) if self.swarm.is_connected(&peer) => return,
            Some(peer) => DialOpts::peer_id(peer).addresses(due.addresses).build(),
            None => match due.addresses.into_iter().next() {
                Some(address) => DialOpts::unknown_peer_id().address(address).build(),
                None => return,
            },
        };
        let id = options.connection_id();
        self.bootstrap.started(due.place, id);
        if let Err(error) = self.swarm.dial(options) {
            self.on_dial_error(id, due.peer, &error);
        }
    }

    fn save_known_peers(&mut self) {
        self.saved_at = self.now();
        if let Some(content) = self.known.render_if_changed() {
            (self.save_known)(content);
        }
    }

    fn wall_clock(&self) -> UnixTime {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        UnixTime(since_1970.unwrap_or_default().as_secs())
    }
}

/// Kademlia's key of an image's providers.
fn image_key(image: Digest) -> RecordKey {
    let mut key = b"img\0".to_vec();
    key.extend_from_slice(&image.0);
    key.into()
}

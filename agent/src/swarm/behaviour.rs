//! The protocols of a host, and how each is set.

use super::codec::RawCodec;
use super::gate::Gated;
use super::limits::Limits;
use super::members::Members;
use super::streams::{self, Requests};
use anyhow::Context;
use libp2p::gossipsub::{self, IdentTopic, IdentityTransform, TopicHash, WhitelistSubscriptionFilter};
use libp2p::identity::Keypair;
use libp2p::kad::store::{MemoryStore, MemoryStoreConfig};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{PeerId, StreamProtocol, identify, kad, mdns, ping, request_response};
use std::time::Duration;
use virtuoso_overlay::ids::SwarmId;

/// What a host says of itself to identify; the agent's version goes beside it.
const IDENTIFY_PROTOCOL: &str = "/virtuoso/id/1";
/// Says nothing of a swarm: a host that knows only an address does not know which swarm it joins.
const ADMIT_PROTOCOL: StreamProtocol = StreamProtocol::new("/virtuoso/admit/1");
/// Addresses that change are pushed; this only repairs.
const IDENTIFY_INTERVAL: Duration = Duration::from_secs(300);
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIME_MAX: Duration = Duration::from_secs(20);

/// A certificate, a ticket's secret and a name are below 2 KiB.
pub const ADMIT_BYTES_MAX: usize = 8 << 10;
/// Digests of all buckets and the versions of the rows in some.
pub const SYNC_REQUEST_BYTES_MAX: usize = 64 << 10;
/// Rows, a page at a time.
pub const SYNC_RESPONSE_BYTES_MAX: usize = 1 << 20;
/// The largest gossip message. Rows are below 1 KiB; whatever is larger goes by sync.
pub const GOSSIP_BYTES_MAX: usize = 64 << 10;
const ADMIT_STREAMS_MAX: usize = 4;
const SYNC_STREAMS_MAX: usize = 16;
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// RPCs that wait for one slow peer. Gossipsub's own bound of 5,000 would be 320 MB of the largest messages.
const GOSSIP_QUEUE_MAX: usize = 256;

/// All protocols. `limits` is first: what it refuses, the others don't hear of.
#[derive(NetworkBehaviour)]
pub struct Behaviour {
    limits: Limits,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub mdns: Toggle<mdns::tokio::Behaviour>,
    pub admit: request_response::Behaviour<RawCodec>,
    pub members: Gated<MemberProtocols>,
}

/// Those that exist only between members.
#[derive(NetworkBehaviour)]
pub struct MemberProtocols {
    pub kad: kad::Behaviour<MemoryStore>,
    pub gossip: gossipsub::Behaviour<IdentityTransform, WhitelistSubscriptionFilter>,
    pub sync: request_response::Behaviour<RawCodec>,
    pub streams: streams::Behaviour,
}

impl Behaviour {
    /// The protocols of a host that is in no swarm yet.
    pub fn new(keypair: &Keypair, agent_version: String, mdns: bool, members: Members) -> anyhow::Result<Self> {
        let peer = keypair.public().to_peer_id();
        let mdns = match mdns {
            true => Some(mdns::tokio::Behaviour::new(mdns::Config::default(), peer).context("Can't start mDNS")?),
            false => None,
        };
        let identify = identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), keypair.public())
            .with_agent_version(agent_version)
            .with_interval(IDENTIFY_INTERVAL)
            .with_push_listen_addr_updates(true);
        let ping = ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIME_MAX);
        let admit = RawCodec { request_bytes_max: ADMIT_BYTES_MAX, response_bytes_max: ADMIT_BYTES_MAX };
        Ok(Self {
            limits: Limits::new(members.clone()),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping),
            mdns: mdns.into(),
            admit: requests(admit, ADMIT_PROTOCOL, ADMIT_STREAMS_MAX),
            members: Gated::new(members),
        })
    }

    /// Makes the protocols of a swarm. Their names carry it, so that members of two swarms don't mix.
    pub fn enter(&mut self, swarm: SwarmId, keypair: &Keypair, streams: Requests) -> anyhow::Result<()> {
        let peer = keypair.public().to_peer_id();
        let codec = RawCodec { request_bytes_max: SYNC_REQUEST_BYTES_MAX, response_bytes_max: SYNC_RESPONSE_BYTES_MAX };
        let protocols = MemberProtocols {
            kad: kademlia(peer, protocol(swarm, "kad/1")),
            gossip: gossip(swarm, keypair)?,
            sync: requests(codec, protocol(swarm, "sync/1"), SYNC_STREAMS_MAX),
            streams: streams::Behaviour::new(swarm, streams),
        };
        self.members.install(protocols, protocol(swarm, "gate/1"));
        Ok(())
    }
}

/// `/virtuoso/<first 16 digits of the swarm's id>/<name>`.
pub(super) fn protocol(swarm: SwarmId, name: &str) -> StreamProtocol {
    let swarm = swarm.to_string();
    StreamProtocol::try_from_owned(format!("/virtuoso/{}/{name}", &swarm[..16])).expect("it begins with a slash")
}

/// The topic of everything that is gossiped in a swarm.
pub fn topic(swarm: SwarmId) -> TopicHash {
    IdentTopic::new(protocol(swarm, "rows").to_string()).hash()
}

fn requests(codec: RawCodec, name: StreamProtocol, streams_max: usize) -> request_response::Behaviour<RawCodec> {
    let config = request_response::Config::default()
        .with_request_timeout(REQUEST_TIME_MAX)
        .with_max_concurrent_streams(streams_max);
    request_response::Behaviour::with_codec(codec, [(name, request_response::ProtocolSupport::Full)], config)
}

/// For providers of images and for peer routing; nothing stores records in it.
fn kademlia(peer: PeerId, name: StreamProtocol) -> kad::Behaviour<MemoryStore> {
    let mut config = kad::Config::new(name);
    config
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_caching(kad::Caching::Disabled)
        .set_provider_record_ttl(Some(Duration::from_secs(3_600)))
        .set_provider_publication_interval(Some(Duration::from_secs(1_200)))
        .set_publication_interval(None)
        .set_replication_interval(None)
        .set_query_timeout(Duration::from_secs(30))
        .set_periodic_bootstrap_interval(None);
    // In a small swarm every host stores every key: the bounds are for the whole swarm's images.
    let store = MemoryStoreConfig { max_provided_keys: 65_536, max_records: 16, ..MemoryStoreConfig::default() };
    let mut kad = kad::Behaviour::with_config(peer, MemoryStore::with_config(peer, store), config);
    kad.set_mode(Some(kad::Mode::Server));
    kad
}

type Gossip = gossipsub::Behaviour<IdentityTransform, WhitelistSubscriptionFilter>;

fn gossip(swarm: SwarmId, keypair: &Keypair) -> anyhow::Result<Gossip> {
    let config = gossipsub::ConfigBuilder::default()
        .protocol_id_prefix(protocol(swarm, "gossip").to_string())
        .heartbeat_interval(Duration::from_secs(1))
        .validation_mode(gossipsub::ValidationMode::Strict)
        .validate_messages()
        // A row that two members publish again is the same message.
        .message_id_fn(|message| blake3::hash(&message.data).as_bytes()[..20].to_vec().into())
        .max_transmit_size(GOSSIP_BYTES_MAX)
        .connection_handler_queue_len(GOSSIP_QUEUE_MAX)
        .flood_publish(false)
        .build()
        .map_err(|error| anyhow::anyhow!("Bad gossip settings: {error}"))?;
    let filter = WhitelistSubscriptionFilter([topic(swarm)].into());
    let privacy = gossipsub::MessageAuthenticity::Signed(keypair.clone());
    let mut gossip = Gossip::new_with_subscription_filter(privacy, config, filter)
        .map_err(|error| anyhow::anyhow!("Bad gossip settings: {error}"))?;
    let topic = IdentTopic::new(protocol(swarm, "rows").to_string());
    gossip.subscribe(&topic).context("Can't subscribe to the swarm's topic")?;
    Ok(gossip)
}

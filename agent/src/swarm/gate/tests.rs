//! Real connections on loopback, with gossipsub and Kademlia behind the gate.

use super::*;
use crate::swarm::address::host_of;
use crate::swarm::transport::{self, Port};
use futures::{FutureExt, StreamExt};
use libp2p::identity::Keypair;
use libp2p::kad::store::MemoryStore;
use libp2p::swarm::SwarmEvent;
use libp2p::{Swarm, gossipsub, identify, kad};
use std::time::Duration;

#[derive(NetworkBehaviour)]
struct Protected {
    gossip: gossipsub::Behaviour,
    kad: kad::Behaviour<MemoryStore>,
}

#[derive(NetworkBehaviour)]
struct Host {
    identify: identify::Behaviour,
    gated: Gated<Protected>,
}

const KAD: StreamProtocol = StreamProtocol::new("/test/kad");
const KNOCK: StreamProtocol = StreamProtocol::new("/test/gate");

fn topic() -> gossipsub::IdentTopic {
    gossipsub::IdentTopic::new("rows")
}

fn host() -> (Swarm<Host>, Members) {
    let keypair = Keypair::generate_ed25519();
    let peer = keypair.public().to_peer_id();
    let port = Port::plain("127.0.0.1:0".parse().unwrap()).unwrap();
    let (transport, _) = transport::build(port, &keypair).unwrap();
    let members = Members::default();
    let mut gated = Gated::new(members.clone());
    let privacy = gossipsub::MessageAuthenticity::Signed(keypair.clone());
    let config = gossipsub::ConfigBuilder::default().heartbeat_interval(Duration::from_millis(100)).build().unwrap();
    let mut gossip = gossipsub::Behaviour::new(privacy, config).unwrap();
    gossip.subscribe(&topic()).unwrap();
    let mut kad = kad::Behaviour::with_config(peer, MemoryStore::new(peer), kad::Config::new(KAD));
    kad.set_mode(Some(kad::Mode::Server));
    gated.install(Protected { gossip, kad }, KNOCK);
    let identify = identify::Behaviour::new(identify::Config::new("/test/id".into(), keypair.public()));
    let config = libp2p::swarm::Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(20));
    let mut swarm = Swarm::new(transport, Host { identify, gated }, peer, config);
    swarm.listen_on("/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()).unwrap();
    (swarm, members)
}

fn admit(swarm: &mut Swarm<Host>, members: &Members, peer: PeerId) {
    members.set(host_of(&peer).unwrap(), true);
    swarm.behaviour_mut().gated.on_standing_changed(peer);
}

/// Runs both hosts until `done` says so of an event (true: of the first host).
async fn run(a: &mut Swarm<Host>, b: &mut Swarm<Host>, mut done: impl FnMut(bool, &SwarmEvent<HostEvent>) -> bool) {
    let until = async {
        loop {
            let (first, event) = futures::select! {
                event = a.select_next_some() => (true, event),
                event = b.select_next_some() => (false, event),
            };
            if done(first, &event) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), until).await.expect("nothing happened in 20 s");
}

async fn connect(a: &mut Swarm<Host>, b: &mut Swarm<Host>) {
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = b.select_next_some().await {
            break address;
        }
    };
    a.dial(address).unwrap();
    let mut established = 0;
    run(a, b, |_, event| {
        established += usize::from(matches!(event, SwarmEvent::ConnectionEstablished { .. }));
        established == 2
    })
    .await;
}

fn is_opened(event: &SwarmEvent<HostEvent>) -> bool {
    matches!(event, SwarmEvent::Behaviour(HostEvent::Gated(Event::Opened { .. })))
}

async fn until_both_opened(a: &mut Swarm<Host>, b: &mut Swarm<Host>) {
    let mut opened = 0;
    run(a, b, |_, event| {
        opened += usize::from(is_opened(event));
        opened == 2
    })
    .await;
}

async fn gossip_flows(a: &mut Swarm<Host>, b: &mut Swarm<Host>) {
    run(a, b, |_, event| {
        matches!(
            event,
            SwarmEvent::Behaviour(HostEvent::Gated(Event::Inner(ProtectedEvent::Gossip(
                gossipsub::Event::Subscribed { .. }
            ))))
        )
    })
    .await;
    while a.behaviour_mut().gated.inner_mut().unwrap().gossip.publish(topic(), b"row".to_vec()).is_err() {
        run(a, b, |_, _| true).now_or_never();
        tokio::task::yield_now().await;
    }
    run(a, b, |_, event| {
        matches!(event, SwarmEvent::Behaviour(HostEvent::Gated(Event::Inner(ProtectedEvent::Gossip(
            gossipsub::Event::Message { message, .. }
        )))) if message.data == b"row")
    })
    .await;
}

#[tokio::test]
async fn a_stranger_is_offered_nothing_and_a_member_everything() {
    let ((mut a, a_members), (mut b, b_members)) = (host(), host());
    connect(&mut a, &mut b).await;
    let mut lists = 0;
    run(&mut a, &mut b, |_, event| {
        if let SwarmEvent::Behaviour(HostEvent::Identify(identify::Event::Received { info, .. })) = event {
            let names: Vec<_> = info.protocols.iter().map(AsRef::as_ref).collect();
            assert!(names.iter().all(|name| name.starts_with("/ipfs/id/")), "{names:?}");
            lists += 1;
        }
        lists == 2
    })
    .await;
    assert_eq!(a.behaviour().gated.inner().unwrap().gossip.all_peers().count(), 0);

    let (a_peer, b_peer) = (*a.local_peer_id(), *b.local_peer_id());
    admit(&mut a, &a_members, b_peer);
    // One open gate is not enough: nothing is started on the stream of a host that has not agreed.
    run(&mut a, &mut b, |_, event| !is_opened(event)).now_or_never();
    admit(&mut b, &b_members, a_peer);
    until_both_opened(&mut a, &mut b).await;
    gossip_flows(&mut a, &mut b).await;
}

#[tokio::test]
async fn hosts_that_admit_each_other_at_different_times_still_gossip() {
    for first_admits_first in [true, false] {
        let ((mut a, a_members), (mut b, b_members)) = (host(), host());
        connect(&mut a, &mut b).await;
        let (a_peer, b_peer) = (*a.local_peer_id(), *b.local_peer_id());
        if first_admits_first {
            admit(&mut a, &a_members, b_peer);
        } else {
            admit(&mut b, &b_members, a_peer);
        }
        // Long enough for the knock of the first to be refused.
        let waiting = run(&mut a, &mut b, |_, event| is_opened(event));
        assert!(tokio::time::timeout(Duration::from_millis(300), waiting).await.is_err(), "opened on one side's word");
        admit(&mut a, &a_members, b_peer);
        admit(&mut b, &b_members, a_peer);
        until_both_opened(&mut a, &mut b).await;
        gossip_flows(&mut a, &mut b).await;
    }
}

#[tokio::test]
async fn a_member_that_ceases_to_be_one_is_disconnected() {
    let ((mut a, a_members), (mut b, b_members)) = (host(), host());
    let (a_peer, b_peer) = (*a.local_peer_id(), *b.local_peer_id());
    admit(&mut a, &a_members, b_peer);
    admit(&mut b, &b_members, a_peer);
    connect(&mut a, &mut b).await;
    until_both_opened(&mut a, &mut b).await;
    a_members.set(host_of(&b_peer).unwrap(), false);
    a.behaviour_mut().gated.on_standing_changed(b_peer);
    let mut closed = 0;
    run(&mut a, &mut b, |_, event| {
        closed += usize::from(matches!(event, SwarmEvent::ConnectionClosed { .. }));
        closed == 2
    })
    .await;
    assert_eq!(a.behaviour().gated.inner().unwrap().gossip.all_peers().count(), 0);
}

//! How links come up, are refused, and come back.

use super::*;
use quinn_proto::{ClientConfig, Endpoint, EndpointConfig};

#[test]
fn both_sides_dial_and_one_connection_serves_the_link() {
    let lab = lab();
    let (mut a, mut b) = lab.pair();
    lab.expect_up(&mut a, &b);
    lab.expect_up(&mut b, &a);
    let ids = (a.id, b.id);
    for (host, peer) in [(&mut a, ids.1), (&mut b, ids.0)] {
        let info = lab.info(host);
        assert_eq!(info.links.len(), 1);
        assert_eq!((info.links[0].host, info.links[0].state), (peer, LinkState::Up));
        assert!(info.links[0].path.as_ref().is_some_and(|path| path.starts_with("direct udp 127.0.0.1:")));
        while let Ok(event) = host.events.try_recv() {
            assert!(!matches!(event, EngineEvent::LinkDown { .. }), "{event:?}");
        }
    }
}

#[test]
fn a_refused_certificate_is_told_to_both_sides() {
    let lab = lab();
    let mut a = lab.host(&Options::key(1));
    let mut b = lab.host(&Options { certificate: b"forged", ..Options::key(2) });
    lab.introduce(&b, &a);
    let refused = |event| match event {
        EngineEvent::Refused { by_us, reason, .. } => Some((by_us, reason)),
        _ => None,
    };
    assert_eq!(lab.expect(&mut a, refused), (true, "No certificate of this swarm".to_owned()));
    assert_eq!(lab.expect(&mut b, refused), (false, "No certificate of this swarm".to_owned()));
    b.send(&PLAIN, &frame(2, 1, b"let me in"));
    let info = lab.wait_until(&b, |info| info.links[0].state == LinkState::Backoff);
    assert!(info.links[0].error.as_ref().is_some_and(|error| error.contains("Refused by the peer")));
    assert!(lab.info(&a).links.is_empty(), "a stranger leaves nothing behind");
}

#[test]
fn a_new_certificate_is_shown_at_the_next_attempt() {
    let lab = lab();
    let mut a = lab.host(&Options::key(1));
    let mut b = lab.host(&Options { certificate: b"", ..Options::key(2) });
    lab.introduce(&b, &a);
    lab.expect(&mut b, |event| matches!(event, EngineEvent::Refused { .. }).then_some(()));
    lab.runtime.block_on(async {
        b.engine.set_certificate(b"member".to_vec()).await.unwrap();
        b.engine.forget(a.id).await.unwrap();
    });
    lab.introduce(&b, &a);
    lab.expect_up(&mut b, &a);
    lab.expect_up(&mut a, &b);
}

#[test]
fn who_dials_before_there_is_a_certificate_is_not_shown_an_empty_one() {
    let lab = lab();
    let mut a = lab.host(&Options::key(1));
    let mut b = lab.host(&Options { certificate: b"", ..Options::key(2) });
    lab.introduce(&a, &b);
    // More packets than it takes to be shown one.
    lab.wait_until(&b, |info| info.demux.data >= 4);
    lab.runtime.block_on(b.engine.set_certificate(b"member".to_vec())).unwrap();
    lab.expect_up(&mut a, &b);
    lab.expect_up(&mut b, &a);
    while let Ok(event) = a.events.try_recv() {
        assert!(!matches!(event, EngineEvent::Refused { .. }), "{event:?}");
    }
}

#[test]
fn a_wrong_host_at_the_address_is_not_taken_for_the_right_one() {
    let lab = lab();
    let a = lab.host(&Options::key(1));
    let b = lab.host(&Options::key(2));
    let other = HostId([9; 32]);
    lab.runtime.block_on(async {
        a.engine.set_addresses(other, vec![b.address]).await.unwrap();
        a.engine.connect(other).await.unwrap();
    });
    let info = lab.wait_until(&a, |info| info.links.first().is_some_and(|link| link.error.is_some()));
    assert!(info.links[0].error.as_ref().is_some_and(|error| error.contains("belongs to")), "{info:?}");
}

#[test]
fn a_link_without_address_asks_for_one() {
    let lab = lab();
    let mut a = lab.host(&Options::key(1));
    let mut b = lab.host(&Options::key(2));
    let peer = b.id;
    lab.runtime.block_on(a.engine.connect(peer)).unwrap();
    lab.expect(&mut a, |event| (event == EngineEvent::AddressWanted(peer)).then_some(()));
    lab.runtime.block_on(a.engine.set_addresses(peer, vec![b.address])).unwrap();
    lab.expect_up(&mut a, &b);
    lab.expect_up(&mut b, &a);
}

#[test]
fn dead_addresses_beside_the_right_one_do_no_harm() {
    let lab = lab();
    let mut a = lab.host(&Options::key(1));
    let b = lab.host(&Options::key(2));
    let dead = ["127.0.0.1:1".parse().unwrap(), "[::1]:1".parse().unwrap(), "240.1.1.1:5".parse().unwrap()];
    let addresses = dead.into_iter().chain([b.address]).collect();
    lab.runtime.block_on(async {
        a.engine.set_addresses(b.id, addresses).await.unwrap();
        a.engine.connect(b.id).await.unwrap();
    });
    lab.expect_up(&mut a, &b);
    assert_eq!(lab.info(&a).links[0].path, Some(format!("direct udp {}", b.address)));
}

#[test]
fn goodbye_ends_the_link_at_once() {
    let lab = lab();
    let (mut a, mut b) = lab.pair();
    lab.expect_up(&mut a, &b);
    lab.expect_up(&mut b, &a);
    lab.runtime.block_on(b.engine.stop()).unwrap();
    let reason = lab.expect(&mut a, |event| match event {
        EngineEvent::LinkDown { reason, .. } => Some(reason),
        _ => None,
    });
    assert_eq!(reason, "The host stops");
    assert!(lab.runtime.block_on(b.engine.info()).is_err(), "the thread is gone");
}

/// A killed agent says nothing. When it is back, its reset key is the old one, and it tells its peers that it knows
/// their connections no longer.
#[test]
fn a_killed_peer_is_noticed_when_it_is_back() {
    let lab = lab();
    for (survivor, victim) in [(1, 2), (2, 1)] {
        let mut a = lab.host(&Options::key(survivor));
        let mut b = lab.host(&Options::key(victim));
        lab.introduce(&a, &b);
        lab.introduce(&b, &a);
        lab.expect_up(&mut a, &b);
        lab.expect_up(&mut b, &a);
        let port = b.address.port();
        let died = lab.runtime.block_on(b.engine.call(|_, _| -> () { panic!("the test kills this engine") }));
        assert!(died.is_err());
        // The channel ends when the thread has dropped everything, the socket included.
        lab.runtime.block_on(async { while b.events.recv().await.is_some() {} });
        drop(b);
        let restarted = Instant::now();
        let mut b = lab.host(&Options { port, ..Options::key(victim) });
        a.send(&PLAIN, &frame(1, 2, b"are you there?"));
        lab.expect(&mut a, |event| matches!(event, EngineEvent::LinkDown { .. }).then_some(()));
        lab.expect_up(&mut a, &b);
        lab.expect_up(&mut b, &a);
        let took = restarted.elapsed();
        assert!(took < Duration::from_secs(10), "without the reset it takes the idle time: {took:?}");
    }
}

/// Diallers that never go on fill the handshakes that a host has room for. A peer that shows that it receives at its
/// address gets in all the same.
#[test]
fn unfinished_handshakes_do_not_keep_peers_out() {
    let lab = lab();
    let mut a = lab.host(&Options::key(1));
    let mut b = lab.host(&Options::key(2));
    let stranger = Keypair::ed25519_from_bytes([66; 32]).unwrap();
    let config = EndpointConfig::new(Arc::new(tls::ResetKey::data(&stranger).unwrap()));
    let mut endpoint = Endpoint::new(Arc::new(config), None, true, None);
    let socket = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    for _ in 0..100 {
        let mut config = ClientConfig::new(Arc::new(tls::client(&stranger, a.id).unwrap()));
        config.initial_dst_cid_provider(Arc::new(cid::initial_cid));
        let (_, mut connection) = endpoint.connect(Instant::now(), config, a.address, "name").unwrap();
        let mut packets = Vec::new();
        while let Some(transmit) = connection.poll_transmit(Instant::now(), 1, &mut packets) {
            socket.send(&packets[..transmit.size], None, a.address, None).unwrap();
            packets.clear();
        }
    }
    lab.wait_until(&a, |info| info.demux.data >= 100);
    lab.introduce(&b, &a);
    lab.expect_up(&mut b, &a);
    lab.expect_up(&mut a, &b);
}

//! Frames from TAP to TAP.

use super::*;
use virtuoso_overlay::drop_reason::DropReason;

#[test]
fn frames_pass_both_ways_and_are_counted() {
    let lab = lab();
    let (mut a, mut b) = lab.pair();
    // Before there is a link: the frame waits for it.
    a.send(&PLAIN, &frame(1, 2, b"hello"));
    assert_eq!(b.receive(), (PLAIN.to_vec(), frame(1, 2, b"hello")));
    b.send(&PLAIN, &frame(2, 1, b"and back"));
    assert_eq!(a.receive(), (PLAIN.to_vec(), frame(2, 1, b"and back")));
    let info = lab.wait_until(&a, |info| info.links[0].traffic.rx_frames == 1);
    let traffic = info.links[0].traffic;
    assert_eq!((traffic.tx_frames, traffic.tx_bytes, traffic.rx_bytes), (1, 19, 22));
    let port = info.ports[0].traffic;
    assert_eq!((port.rx_frames, port.rx_bytes, port.tx_frames, port.tx_bytes), (1, 19, 1, 22));
}

#[test]
fn super_frames_pass_whole() {
    let lab = lab();
    let (a, mut b) = lab.pair();
    let (header, frame) = super_frame(65_000, 1460);
    for _ in 0..20 {
        a.send(&header.encode(), &frame);
        assert_eq!(b.receive(), (header.encode().to_vec(), frame.clone()));
    }
}

/// Loopback takes packets of 64 KiB, so discovery goes as far as it goes anywhere.
#[test]
fn large_packets_are_used_where_the_way_carries_them() {
    let lab = lab();
    let (mut a, mut b) = lab.pair();
    lab.expect_up(&mut a, &b);
    lab.expect_up(&mut b, &a);
    for host in [&a, &b] {
        lab.wait_until(host, |info| info.links[0].mtu_bytes == Some(ceiling::CEILING_MAX));
    }
    let (header, super_frame) = super_frame(65_000, 1460);
    for round in 0..20 {
        a.send(&header.encode(), &super_frame);
        assert_eq!(b.receive(), (header.encode().to_vec(), super_frame.clone()));
        b.send(&PLAIN, &frame(2, 1, &[round; 1400]));
        assert_eq!(a.receive(), (PLAIN.to_vec(), frame(2, 1, &[round; 1400])));
    }
    assert_eq!(lab.info(&a).links[0].batch_packets, 7, "as many as one send has room for");
}

#[test]
fn super_frames_are_cut_for_a_port_without_offload() {
    let lab = lab();
    let a = lab.host(&Options::key(1));
    let mut b = lab.host(&Options { offloads: TapOffloads::NONE, ..Options::key(2) });
    lab.introduce(&a, &b);
    let (header, frame) = super_frame(10_000, 1460);
    a.send(&header.encode(), &frame);
    let segments: Vec<_> = (0..7).map(|_| b.receive()).collect();
    assert!(segments.iter().all(|(header, _)| *header == PLAIN));
    let payload: usize = segments.iter().map(|(_, segment)| segment.len() - 54).sum();
    assert_eq!(payload, 10_000);
}

#[test]
fn many_frames_keep_their_order() {
    let lab = lab();
    let (mut a, mut b) = lab.pair();
    lab.expect_up(&mut a, &b);
    lab.expect_up(&mut b, &a);
    for round in 0..50u32 {
        for index in 0..20u32 {
            let number = round * 20 + index;
            let mut payload = number.to_be_bytes().to_vec();
            payload.resize(4 + number as usize * 7 % 1400, 0x55);
            a.send(&PLAIN, &frame(1, 2, &payload));
        }
        for index in 0..20u32 {
            let (_, received) = b.receive();
            assert_eq!(received[14..18], (round * 20 + index).to_be_bytes());
        }
    }
}

/// One host in the middle of several: each of its conversations keeps its order, whatever the others do.
#[test]
fn frames_with_many_peers_keep_the_order_of_each() {
    let lab = lab();
    let mut hub = lab.host(&Options::key(1));
    let mut peers: Vec<Host> = (2..7).map(|key| lab.host(&Options::key(key))).collect();
    let ids: Vec<HostId> = peers.iter().map(|peer| peer.id).collect();
    lab.runtime.block_on(hub.engine.call(move |switch, _| switch.set_participants(NETWORK, &ids))).unwrap();
    for (peer, key) in peers.iter_mut().zip(2..) {
        lab.introduce(peer, &hub);
        // From this the hub learns where the station is.
        peer.send(&PLAIN, &frame(key, 1, b"here"));
        assert_eq!(hub.receive().1, frame(key, 1, b"here"));
        lab.expect_up(&mut hub, peer);
        lab.expect_up(peer, &hub);
    }
    let number = |frame: &[u8]| u32::from_be_bytes(frame[14..18].try_into().unwrap());
    let (mut sent, mut returned) = ([0u32; 7], [0u32; 7]);
    for round in 0..40usize {
        for key in (2..7u8).cycle().take(5 * 8) {
            let mut payload = sent[usize::from(key)].to_be_bytes().to_vec();
            sent[usize::from(key)] += 1;
            payload.resize(4 + (round * 97 + usize::from(key) * 331) % 1400, key);
            hub.send(&PLAIN, &frame(1, key, &payload));
        }
        for (peer, key) in peers.iter_mut().zip(2..) {
            let end = sent[usize::from(key)];
            for expected in end - 8..end {
                let received = loop {
                    let (_, received) = peer.receive();
                    // What was sent before the hub knew the station goes to everybody.
                    if received[5] == key {
                        break received;
                    }
                };
                assert_eq!(number(&received), expected);
                peer.send(&PLAIN, &frame(key, 1, &received[14..]));
            }
        }
        for _ in 0..5 * 8 {
            let (_, received) = hub.receive();
            let key = usize::from(received[11]);
            assert_eq!(number(&received), returned[key], "from {key}");
            returned[key] += 1;
        }
    }
    assert_eq!(sent, returned);
}

#[test]
fn every_frame_of_a_flood_is_sent_or_counted() {
    let lab = lab();
    let (mut a, mut b) = lab.pair();
    lab.expect_up(&mut a, &b);
    lab.expect_up(&mut b, &a);
    // From this the other one learns where the station is.
    b.send(&PLAIN, &frame(2, 1, b"here"));
    assert_eq!(a.receive().1, frame(2, 1, b"here"));
    let flood = 20_000;
    for _ in 0..flood {
        a.send(&PLAIN, &frame(1, 2, &[7; 1000]));
    }
    lab.wait_until(&a, |info| {
        let traffic = &info.links[0].traffic;
        info.links[0].queued_frames == 0
            && traffic.tx_frames + traffic.drops.iter().map(|(_, count)| count).sum::<u64>() == flood
    });
}

#[test]
fn jumbo_frames_and_bad_frames_die_counted() {
    let lab = lab();
    let (mut a, mut b) = lab.pair();
    lab.expect_up(&mut a, &b);
    lab.expect_up(&mut b, &a);
    a.send(&PLAIN, &frame(1, 2, &[0; 2000]));
    a.send(&PLAIN, b"short");
    let (header, super_frame) = super_frame(5000, 1460);
    let mut lie = header.encode();
    lie[1] = 3;
    a.send(&lie, &super_frame);
    let drops = |info: &EngineInfo| info.ports[0].traffic.drops;
    let info = lab.wait_until(&a, |info| drops(info).get(DropReason::BadOffload) == 1);
    assert_eq!(drops(&info).get(DropReason::TooBig), 1);
    assert_eq!(drops(&info).get(DropReason::Malformed), 1);
    a.send(&PLAIN, &frame(1, 2, b"good"));
    assert_eq!(b.receive().1, frame(1, 2, b"good"));
}

#[test]
fn a_peer_without_link_fills_only_its_own_queue() {
    let lab = lab();
    let a = lab.host(&Options::key(1));
    let mut b = lab.host(&Options::key(2));
    let dead = HostId([9; 32]);
    let alive = b.id;
    lab.runtime.block_on(async {
        a.engine.set_addresses(b.id, vec![b.address]).await.unwrap();
        a.engine.set_addresses(dead, vec!["127.0.0.1:1".parse().unwrap()]).await.unwrap();
        a.engine.call(move |switch, _| switch.set_participants(NETWORK, &[dead, alive])).await.unwrap();
    });
    let sent = 600;
    for number in 0..sent {
        a.send(&PLAIN, &frame(1, 2, &[number as u8; 1400]));
        assert_eq!(b.receive().1[14], number as u8);
    }
    let info = lab.info(&a);
    let link = info.links.iter().find(|link| link.host == dead).unwrap();
    assert!(link.traffic.drops.get(DropReason::NoLink) >= sent - 512 * 1024 / 1400, "{link:?}");
}

#[test]
fn a_vanished_tap_is_reported() {
    let lab = lab();
    let mut a = lab.host(&Options::key(1));
    a.tap = std::fs::File::open("/dev/null").unwrap();
    let lost = lab.expect(&mut a, |event| match event {
        EngineEvent::PortLost { network, .. } => Some(network),
        _ => None,
    });
    assert_eq!(lost, NETWORK);
    assert!(lab.info(&a).ports.is_empty());
}

#[test]
fn a_window_of_each_kind_carries_frames() {
    for congestion in [Congestion::Cubic, Congestion::Delay] {
        let lab = lab();
        let links = LinkSettings { congestion, ..LinkSettings::default() };
        let a = lab.host(&Options { links, ..Options::key(1) });
        let mut b = lab.host(&Options { links, ..Options::key(2) });
        lab.introduce(&a, &b);
        let (header, frame) = super_frame(65_000, 1460);
        for _ in 0..100 {
            a.send(&header.encode(), &frame);
            assert_eq!(b.receive(), (header.encode().to_vec(), frame.clone()));
        }
        assert_eq!(lab.info(&a).links[0].congestion, congestion);
    }
}

#[test]
fn a_link_has_settings_of_its_own() {
    let lab = lab();
    let (mut a, b) = lab.pair();
    let limits = |congestion| LinkLimits { congestion, rate_mbit: 0 };
    lab.runtime.block_on(a.engine.limit_link(b.id, limits(Congestion::Delay))).unwrap();
    a.send(&PLAIN, &frame(1, 2, b"the first"));
    lab.expect_up(&mut a, &b);
    assert_eq!(lab.info(&a).links[0].congestion, Congestion::Delay, "set before there was a connection");
    let set = |congestion| {
        lab.runtime.block_on(a.engine.limit_link(b.id, limits(congestion))).unwrap();
        lab.info(&a).links[0].congestion
    };
    assert_eq!(set(Congestion::Cubic), Congestion::Cubic, "while it is up");
    assert_eq!(set(Congestion::None), Congestion::None);
}

#[test]
fn a_link_keeps_its_rate() {
    let lab = lab();
    let links = LinkSettings { rate_mbit: 8, ..LinkSettings::default() };
    let mut a = lab.host(&Options { links, ..Options::key(1) });
    let b = lab.host(&Options::key(2));
    lab.introduce(&a, &b);
    a.send(&PLAIN, &frame(1, 2, b"the first"));
    lab.expect_up(&mut a, &b);
    let begin = Instant::now();
    for _ in 0..300 {
        a.send(&PLAIN, &frame(1, 2, &[5; 1000]));
    }
    let info = lab.wait_until(&a, |info| {
        let link = &info.links[0];
        link.traffic.tx_frames + link.traffic.drops.get(DropReason::Congested) == 301
    });
    let sent = info.links[0].traffic.tx_frames;
    let least = Duration::from_millis(sent.saturating_sub(30));
    assert!(sent > 50 && begin.elapsed() >= least, "{sent} frames of 1 ms each in {:?}", begin.elapsed());
}

/// What a network may send is held back before QUIC, whatever the link allows.
#[test]
fn a_network_has_limits_of_its_own_on_each_link() {
    let lab = lab();
    let (mut a, mut b) = lab.pair();
    lab.expect_up(&mut a, &b);
    lab.expect_up(&mut b, &a);
    let limit = |congestion, rate_mbit| {
        lab.runtime.block_on(a.engine.limit_network(NETWORK, LinkLimits { congestion, rate_mbit })).unwrap();
    };
    let (header, super_frame) = super_frame(50_000, 1460);
    let pass = |rounds: u32, b: &mut Host| {
        let begin = Instant::now();
        for _ in 0..rounds {
            a.send(&header.encode(), &super_frame);
            assert_eq!(b.receive(), (header.encode().to_vec(), super_frame.clone()));
        }
        begin.elapsed()
    };
    limit(Congestion::None, 8);
    // Each of them takes 50 ms, and the first one goes at once.
    let took = pass(6, &mut b);
    assert!(took >= Duration::from_millis(240), "{took:?}");
    for congestion in [Congestion::Cubic, Congestion::Delay] {
        limit(congestion, 0);
        pass(20, &mut b);
    }
    assert_eq!(lab.info(&a).links[0].congestion, Congestion::None, "the link itself is not limited");
    limit(Congestion::None, 0);
    pass(20, &mut b);
}

//! The decisions, with made-up connections and virtual time.

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const BACKOFF: Backoff = Backoff { min: SECOND, max: Duration::from_secs(60) };

fn host(n: u32) -> HostId {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&n.to_be_bytes());
    HostId(id)
}

fn address(n: u32, form: &str) -> Multiaddr {
    format!("/ip4/10.{}.{}.1/{form}", n >> 8 & 255, n & 255).parse().unwrap()
}

fn quic(n: u32) -> Multiaddr {
    address(n, "udp/4747/quic-v1")
}

fn tcp(n: u32) -> Multiaddr {
    address(n, "tcp/4747")
}

fn id(n: u32) -> ConnectionId {
    ConnectionId::new_unchecked(n as usize)
}

fn at(seconds: u64) -> Instant {
    Instant(seconds * 1_000_000)
}

/// A host with the smallest id that knows members 1 to `count`.
fn knowing(count: u32) -> Connections {
    let mut connections = Connections::new(host(0), BACKOFF, 1);
    for n in 1..=count {
        connections.learned(host(n), [quic(n), tcp(n)], at(0));
    }
    connections
}

fn dialled(actions: &[Action]) -> Vec<HostId> {
    actions.iter().filter_map(|a| if let Action::Dial(host, _) = a { Some(*host) } else { None }).collect()
}

fn closed(actions: &[Action]) -> BTreeSet<ConnectionId> {
    actions.iter().filter_map(|a| if let Action::Close(id, _) = a { Some(*id) } else { None }).collect()
}

#[test]
fn dials_up_to_ten_of_a_thousand_members() {
    let mut connections = knowing(1_000);
    let mut number = 0;
    for second in 1..20 {
        for host in dialled(&connections.plan(at(second), &BTreeSet::new())) {
            number += 1;
            connections.opened(id(number), host, &quic(number), true, at(second));
        }
    }
    assert_eq!(connections.connected(), CONNECTED_MIN);
    assert_eq!(number as usize, CONNECTED_MIN);
}

#[test]
fn few_dials_run_at_once() {
    let mut connections = knowing(1_000);
    assert_eq!(dialled(&connections.plan(at(1), &BTreeSet::new())).len(), DIALS_MAX);
    assert_eq!(connections.plan(at(2), &BTreeSet::new()), []);
    assert_eq!(dialled(&connections.plan(at(40), &BTreeSet::new())).len(), DIALS_MAX, "a lost dial blocks for ever");
}

#[test]
fn connects_to_all_of_a_small_swarm() {
    let mut connections = knowing(5);
    let mut all = BTreeSet::new();
    for second in 1..10 {
        for host in dialled(&connections.plan(at(second), &BTreeSet::new())) {
            connections.opened(id(all.len() as u32), host, &quic(1), true, at(second));
            all.insert(host);
        }
    }
    assert_eq!(all, (1..=5).map(host).collect());
}

#[test]
fn trims_a_thousand_connections_but_never_the_mesh_or_a_pinned_host() {
    let mut connections = knowing(1_000);
    for n in 1..=1_000 {
        connections.opened(id(n), host(n), &quic(n), false, at(0));
    }
    let mesh: BTreeSet<_> = (100..112).map(host).collect();
    connections.pin(host(7), true);
    connections.useful(&host(500), at(3));
    assert_eq!(connections.plan(at(1), &mesh), [], "closed before its trial ended");

    let actions = connections.plan(at(10), &mesh);
    let gone = closed(&actions);
    assert_eq!(gone.len(), 1_000 - CONNECTED_AFTER_TRIM);
    for kept in (100..112).chain([7, 500]) {
        assert!(!gone.contains(&id(kept)), "{kept}");
    }
    for connection in gone {
        connections.closed(connection, false, at(10));
    }
    assert_eq!(connections.connected(), CONNECTED_AFTER_TRIM);
    assert_eq!(connections.plan(at(11), &mesh), []);
}

#[test]
fn a_mesh_above_the_bound_is_left_alone() {
    let mut connections = knowing(40);
    for n in 1..=40 {
        connections.opened(id(n), host(n), &quic(n), false, at(0));
    }
    assert_eq!(connections.plan(at(10), &(1..=40).map(host).collect()), []);
}

#[test]
fn a_trimmed_host_is_not_dialled_at_once() {
    let mut connections = knowing(30);
    for n in 1..=30 {
        connections.opened(id(n), host(n), &quic(n), true, at(0));
    }
    for connection in closed(&connections.plan(at(10), &BTreeSet::new())) {
        connections.closed(connection, false, at(10));
    }
    for n in 1..=30 {
        connections.closed(id(n), false, at(300));
    }
    let mut connections = knowing(1);
    connections.opened(id(1), host(1), &quic(1), true, at(0));
    connections.closed(id(1), false, at(100));
    assert_eq!(dialled(&connections.plan(at(102), &BTreeSet::new())), [host(1)]);
}

#[test]
fn one_of_several_connections_to_a_host_stays() {
    // Own id is the smaller: what this host dialled stays, unless it is TCP.
    let mut connections = knowing(1);
    connections.opened(id(1), host(1), &quic(1), false, at(0));
    connections.opened(id(2), host(1), &quic(1), true, at(0));
    connections.opened(id(3), host(1), &tcp(1), true, at(0));
    assert_eq!(connections.plan(at(1), &BTreeSet::new()), [], "the other one may be in use still");
    assert_eq!(closed(&connections.plan(at(2), &BTreeSet::new())), [id(1), id(3)].into());

    // The host with the larger id comes to the same verdict, but later.
    let mut other = Connections::new(host(1), BACKOFF, 1);
    other.opened(id(1), host(0), &quic(0), true, at(0));
    other.opened(id(2), host(0), &quic(0), false, at(0));
    other.opened(id(3), host(0), &tcp(0), false, at(0));
    assert_eq!(other.plan(at(2), &BTreeSet::new()), []);
    assert_eq!(closed(&other.plan(at(20), &BTreeSet::new())), [id(1), id(3)].into());
}

#[test]
fn of_several_connections_those_that_carry_streams_stay() {
    let mut connections = knowing(1);
    for n in 1..=3 {
        connections.opened(id(n), host(1), &quic(1), n == 2, at(0));
    }
    connections.set_busy([id(1)].into());
    assert_eq!(closed(&connections.plan(at(2), &BTreeSet::new())), [id(3)].into());
    connections.set_busy(BTreeSet::new());
    assert_eq!(closed(&connections.plan(at(3), &BTreeSet::new())), [id(1)].into());
}

#[test]
fn a_host_that_introduces_itself_has_lost_what_is_much_older() {
    let mut connections = knowing(2);
    connections.opened(id(1), host(1), &quic(1), true, at(0));
    connections.opened(id(2), host(2), &quic(2), true, at(0));
    connections.opened(id(3), host(1), &quic(1), false, at(10));
    connections.opened(id(4), host(1), &tcp(1), false, at(11));
    assert_eq!(connections.introduced(id(4)), [id(1)]);
    assert_eq!(connections.introduced(id(4)), [], "it is closed once");
    assert_eq!(closed(&connections.plan(at(13), &BTreeSet::new())), [id(4)].into());
    assert_eq!(connections.introduced(id(2)), []);
    assert_eq!(connections.introduced(id(9)), [], "a stranger's");
}

#[test]
fn the_larger_id_lets_the_other_dial_first() {
    let mut connections = Connections::new(host(9), BACKOFF, 1);
    connections.learned(host(1), [quic(1)], at(0));
    assert_eq!(connections.plan(at(1), &BTreeSet::new()), []);
    assert_eq!(dialled(&connections.plan(at(3), &BTreeSet::new())), [host(1)]);
}

#[test]
fn an_address_that_fails_waits_while_another_is_tried() {
    let mut connections = knowing(1);
    assert_eq!(connections.plan(at(1), &BTreeSet::new()), [Action::Dial(host(1), vec![quic(1), tcp(1)])]);
    connections.dial_failed(&host(1), &[quic(1)], at(1));
    assert_eq!(connections.plan(at(1), &BTreeSet::new()), []);
    let mut waits = Vec::new();
    let mut now = at(1);
    while waits.len() < 12 {
        now = now + Duration::from_millis(100);
        for action in connections.plan(now, &BTreeSet::new()) {
            let Action::Dial(host, addresses) = action else { panic!("{action:?}") };
            waits.push(now.0 / 1_000_000);
            connections.dial_failed(&host, &addresses, now);
        }
    }
    let gaps: Vec<_> = waits.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(gaps[0] <= 4 && gaps[10] >= 45 && gaps[10] <= 80, "{gaps:?}");
}

#[test]
fn addresses_are_bounded_and_the_useless_give_way() {
    let mut connections = knowing(0);
    connections.learned(host(1), (0..100).map(quic), at(0));
    let first = connections.addresses(&host(1));
    assert_eq!(first.len(), ADDRESSES_MAX);
    connections.dial_failed(&host(1), &first[..1], at(1));
    connections.learned(host(1), [quic(200)], at(2));
    let second = connections.addresses(&host(1));
    assert_eq!(second.len(), ADDRESSES_MAX);
    assert!(second.contains(&quic(200)) && !second.contains(&first[0]));
    connections.learned(host(1), ["/ip4/0.0.0.0/tcp/1".parse().unwrap()], at(2));
    assert_eq!(connections.addresses(&host(1)), second);
}

#[test]
fn a_forgotten_host_and_the_own_one_are_not_dialled() {
    let mut connections = knowing(1);
    connections.forget(&host(1));
    connections.learned(host(0), [quic(0)], at(0));
    assert_eq!(connections.plan(at(5), &BTreeSet::new()), []);
}

#[test]
fn a_lost_member_is_dialled_again_although_there_are_enough_others() {
    let mut connections = knowing(40);
    for n in 1..=12 {
        connections.opened(id(n), host(n), &quic(n), true, at(1));
    }
    connections.opened(id(13), host(13), &quic(13), true, at(1));
    assert_eq!(connections.plan(at(2), &BTreeSet::new()), []);
    connections.closed(id(12), true, at(100));
    connections.closed(id(11), true, at(100));
    connections.closed(id(10), false, at(100));
    let mut dials = Vec::new();
    for second in 101..200 {
        for host in dialled(&connections.plan(at(second), &BTreeSet::new())) {
            dials.push((second, host));
            connections.dial_failed(&host, &[], at(second));
        }
    }
    assert!(dials.iter().all(|(_, dialled)| [host(11), host(12)].contains(dialled)), "{dials:?}");
    assert!(dials.len() >= 4 && dials.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 5), "{dials:?}");
    connections.opened(id(100), host(11), &quic(11), true, at(200));
    connections.opened(id(101), host(12), &quic(12), false, at(200));
    assert_eq!(connections.plan(at(300), &BTreeSet::new()), []);
}

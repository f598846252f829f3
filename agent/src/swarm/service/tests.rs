//! Real services on loopback. A small stand-in for the core admits whoever introduces himself with the password, and
//! tells every member's addresses to all by gossip, as the tables do.

mod restarts;
mod streams;

use super::*;
use crate::swarm::address::{quic_address, tcp_address};
use crate::swarm::bootstrap::State;
use futures::FutureExt;
use libp2p::multiaddr::Protocol as Part;
use std::sync::{Arc, Mutex};
use virtuoso_engine::control_endpoint_config;

const SWARM: SwarmId = SwarmId([5; 32]);
const PASSWORD: &[u8] = b"let me in";
const PATIENCE: Duration = Duration::from_secs(30);

struct Host {
    service: SwarmService,
    id: HostId,
    password: &'static [u8],
    told: u32,
    saved: Arc<Mutex<Vec<u8>>>,
}

struct Options {
    listen: String,
    tcp: Vec<SocketAddr>,
    keypair: Keypair,
    password: &'static [u8],
    bootstrap: Vec<Multiaddr>,
    known: KnownPeers,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:0".into(),
            tcp: Vec::new(),
            keypair: Keypair::generate_ed25519(),
            password: PASSWORD,
            bootstrap: Vec::new(),
            known: KnownPeers::default(),
        }
    }
}

/// The endpoint of an agent: started again, it resets the connections of its earlier run.
fn port(listen: &str, keypair: &Keypair) -> Port {
    Port { config: control_endpoint_config(keypair).unwrap(), ..Port::plain(listen.parse().unwrap()).unwrap() }
}

fn start(options: Options) -> Host {
    let saved = Arc::new(Mutex::new(Vec::new()));
    let save_to = Arc::clone(&saved);
    let backoff = Backoff { min: Duration::from_millis(50), max: Duration::from_millis(800) };
    let id = host_of(&options.keypair.public().to_peer_id()).unwrap();
    let service = SwarmService::new(Config {
        port: port(&options.listen, &options.keypair),
        keypair: options.keypair,
        tcp: options.tcp,
        agent_version: "virtuoso/test".into(),
        swarm: Some(SWARM),
        mdns: false,
        bootstrap: options.bootstrap,
        known_peers: options.known,
        save_known_peers: Box::new(move |content| *save_to.lock().unwrap() = content),
        timing: Timing { tick: Duration::from_millis(50), backoff },
        seed: u64::from(id.0[0]),
    })
    .unwrap();
    Host { service, id, password: options.password, told: 0, saved }
}

impl Host {
    /// What other hosts would be told to dial.
    fn bootstrap(&self) -> Vec<Multiaddr> {
        let quic = self.service.endpoint.local_addr().unwrap();
        vec![quic_address(quic).with(Part::P2p(peer_of(&self.id)))]
    }

    fn tell_addresses(&mut self) {
        self.told += 1;
        let mut row = format!("row {}", self.told);
        for address in self.service.addresses() {
            row.push_str(&format!(" {address}"));
        }
        self.service.publish(row.into_bytes()).unwrap();
    }

    /// Does what the core would; gives back what a test may want to see.
    fn react(&mut self, event: Event) -> Option<Event> {
        match event {
            Event::PeerConnected { host, .. } => {
                // It may be gone by now.
                self.service.send_admit(host, self.password.to_vec()).ok();
            }
            Event::AdmitRequest { host, ref bytes, .. } => {
                let admitted = bytes == PASSWORD;
                self.service.set_admitted(host, admitted);
                let Event::AdmitRequest { reply, .. } = event else { unreachable!() };
                // A member shows that it is one, too.
                let answer: &[u8] = if admitted { self.password } else { b"refused" };
                self.service.respond(reply, answer.to_vec()).unwrap();
                return None;
            }
            Event::AdmitResponse { host, ref bytes, .. } if bytes == PASSWORD => self.service.set_admitted(host, true),
            Event::MemberReady { .. } => self.tell_addresses(),
            Event::Gossip { ref id, source, ref bytes } => {
                self.service.judge(id, Verdict::Accept);
                let text = String::from_utf8_lossy(bytes);
                if let Some(row) = text.strip_prefix("row ") {
                    let addresses = row.split(' ').skip(1).map(|a| a.parse().unwrap()).collect();
                    self.service.set_admitted(source, true);
                    self.service.add_member_addresses(source, addresses);
                }
            }
            Event::SyncRequest { reply, bytes, .. } => {
                let answer = [b"re: ", bytes.as_slice()].concat();
                self.service.respond(reply, answer).unwrap();
                return None;
            }
            _ => {}
        }
        Some(event)
    }

    fn ready_members(&self) -> usize {
        let rows = self.service.peers();
        rows.iter().filter(|row| row.ready).map(|row| row.host).collect::<BTreeSet<_>>().len()
    }
}

/// Runs all hosts until `done` says so. It sees every event with the number of the host it happened at, and is asked
/// from time to time without one, for what shows in no event.
async fn run(hosts: &mut [Host], mut done: impl FnMut(&mut [Host], usize, Option<&Event>) -> bool) {
    let until = async {
        let mut look = tokio::time::interval(Duration::from_millis(20));
        loop {
            let next = hosts.iter_mut().map(|host| host.service.next_event().boxed());
            let happened = tokio::select! {
                (event, number, _) = futures::future::select_all(next) => Some((event, number)),
                _ = look.tick() => None,
            };
            let is_done = match happened {
                None => done(hosts, 0, None),
                Some((event, number)) => {
                    let event = hosts[number].react(event);
                    done(hosts, number, event.as_ref())
                }
            };
            if is_done {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, until).await.expect("it did not happen in 30 s");
}

/// Runs the hosts for a time, whatever happens.
async fn run_for(hosts: &mut [Host], time: Duration) {
    tokio::time::timeout(time, run(hosts, |_, _, _| false)).await.unwrap_err();
}

async fn until_all_ready(hosts: &mut [Host], members: usize) {
    run(hosts, |hosts, _, _| hosts.iter().all(|host| host.ready_members() == members)).await;
}

async fn gossip_reaches_all(hosts: &mut [Host], from: usize) {
    let mut round = 0;
    let mut reached = BTreeSet::new();
    while reached.len() + 1 < hosts.len() {
        // The mesh forms at heartbeats; a message before that may go nowhere.
        round += 1;
        hosts[from].service.publish(format!("news {round}").into_bytes()).unwrap();
        let listen = run(hosts, |hosts, number, event| {
            if let Some(Event::Gossip { source, bytes, .. }) = event
                && bytes.starts_with(b"news")
            {
                assert_eq!(*source, hosts[from].id);
                reached.insert(number);
            }
            reached.len() + 1 == hosts.len()
        });
        tokio::time::timeout(Duration::from_secs(1), listen).await.ok();
        assert!(round < 30, "reached only {reached:?}");
    }
}

#[tokio::test]
async fn two_hosts_meet_by_bootstrap_and_talk() {
    let first = start(Options::default());
    let second = start(Options { bootstrap: first.bootstrap(), ..Options::default() });
    let mut hosts = [first, second];
    until_all_ready(&mut hosts, 1).await;
    assert_eq!(hosts[1].service.bootstrap_status()[0].state, State::Connected);
    gossip_reaches_all(&mut hosts, 0).await;

    let second = hosts[1].id;
    let request = hosts[0].service.send_sync(second, b"digest".to_vec()).unwrap();
    run(&mut hosts, |_, number, event| {
        matches!(event, Some(Event::SyncResponse { host, id, bytes })
            if number == 0 && *host == second && *id == request && bytes == b"re: digest")
    })
    .await;

    run(&mut hosts, |hosts, _, _| hosts[0].service.peers()[0].protocols.iter().any(|name| name.contains("/sync/1")))
        .await;
    let row = &hosts[0].service.peers()[0];
    assert_eq!((row.host, row.dialled, row.member, row.ready), (second, false, true, true));
    assert_eq!(row.agent, "virtuoso/test");
}

#[tokio::test]
async fn a_host_that_leaves_is_missed_at_once_and_its_goodbye_arrives() {
    let first = start(Options::default());
    let second = start(Options { bootstrap: first.bootstrap(), ..Options::default() });
    let mut hosts = vec![first, second];
    until_all_ready(&mut hosts, 1).await;
    gossip_reaches_all(&mut hosts, 1).await;
    let mut leaving = hosts.pop().unwrap();
    let saved = Arc::clone(&leaving.saved);
    leaving.service.publish(b"goodbye".to_vec()).unwrap();
    let shutdown = tokio::spawn(leaving.service.shutdown());
    let mut goodbye = false;
    run(&mut hosts, |_, _, event| {
        goodbye |= matches!(event, Some(Event::Gossip { bytes, .. }) if bytes == b"goodbye");
        matches!(event, Some(Event::PeerDisconnected { .. }))
    })
    .await;
    assert!(goodbye);
    shutdown.await.unwrap();

    // What it remembers is enough to come back.
    let known = KnownPeers::parse(&saved.lock().unwrap()).unwrap();
    hosts.push(start(Options { known, ..Options::default() }));
    until_all_ready(&mut hosts, 1).await;
}

#[tokio::test]
async fn five_hosts_that_know_one_come_to_know_all() {
    let first = start(Options::default());
    let bootstrap = first.bootstrap();
    let mut hosts = vec![first];
    hosts.extend((1..5).map(|_| start(Options { bootstrap: bootstrap.clone(), ..Options::default() })));
    until_all_ready(&mut hosts, 4).await;
    gossip_reaches_all(&mut hosts, 4).await;

    let image = Digest([9; 32]);
    hosts[1].service.start_providing(image).unwrap();
    hosts[3].service.get_providers(image).unwrap();
    let provider = hosts[1].id;
    let mut found = false;
    run(&mut hosts, |_, number, event| {
        let Some(Event::ProvidersFound { hosts, last, .. }) = event else { return false };
        assert_eq!(number, 3);
        found |= hosts.contains(&provider);
        *last
    })
    .await;
    assert!(found);

    // Hosts that dialled each other at once end with one connection.
    run(&mut hosts, |hosts, _, _| hosts.iter().all(|host| host.service.peers().len() == 4)).await;
}

#[tokio::test]
async fn hosts_meet_over_ipv6_and_through_a_dual_stack_socket() {
    for (listen, dial) in [("[::1]:0", "::1"), ("[::]:0", "127.0.0.1"), ("[::]:0", "::1")] {
        let first = start(Options { listen: listen.into(), ..Options::default() });
        let port = first.service.endpoint.local_addr().unwrap().port();
        let address = quic_address(SocketAddr::new(dial.parse().unwrap(), port)).with(Part::P2p(peer_of(&first.id)));
        let second = start(Options { listen: listen.into(), bootstrap: vec![address.clone()], ..Options::default() });
        let mut hosts = [first, second];
        until_all_ready(&mut hosts, 1).await;
        let row = &hosts[1].service.peers()[0];
        assert_eq!(row.address.clone().with(Part::P2p(peer_of(&row.host))), address);
        assert!(!hosts[0].service.peers()[0].address.to_string().contains("ffff"), "not canonical");
    }
}

fn free_tcp_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn hosts_meet_over_tcp_once_the_bootstrap_host_is_up() {
    let at = free_tcp_port();
    let keypair = Keypair::generate_ed25519();
    let address = tcp_address(at).with(Part::P2p(keypair.public().to_peer_id()));
    let mut hosts = vec![start(Options { bootstrap: vec![address.clone()], ..Options::default() })];
    let down = async {
        loop {
            run_for(&mut hosts, Duration::from_millis(100)).await;
            let status = &hosts[0].service.bootstrap_status()[0];
            if status.failures >= 3 {
                let error = status.last_error.clone().unwrap();
                assert!(error.contains("/tcp/") && error.contains("refused"), "{error}");
                assert!(status.next_try.is_some() || status.state == State::Dialling);
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, down).await.expect("it was not tried three times in 30 s");

    hosts.push(start(Options { keypair, tcp: vec![at], ..Options::default() }));
    until_all_ready(&mut hosts, 1).await;
    assert_eq!(hosts[0].service.peers()[0].address, tcp_address(at));
}

#[tokio::test]
async fn a_taken_tcp_port_is_an_error_that_says_so() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let keypair = Keypair::generate_ed25519();
    let result = SwarmService::new(Config {
        keypair,
        port: Port::plain("127.0.0.1:0".parse().unwrap()).unwrap(),
        tcp: vec![at],
        agent_version: String::new(),
        swarm: None,
        mdns: false,
        bootstrap: Vec::new(),
        known_peers: KnownPeers::default(),
        save_known_peers: Box::new(|_| {}),
        timing: Timing::default(),
        seed: 0,
    });
    let error = format!("{:#}", result.err().unwrap());
    assert!(error.contains(&format!("Can't listen on TCP {at}")), "{error}");
}

#[tokio::test]
async fn a_stranger_gets_nothing() {
    let first = start(Options::default());
    let bootstrap = first.bootstrap();
    let second = start(Options { bootstrap: bootstrap.clone(), ..Options::default() });
    let mut hosts = vec![first, second];
    until_all_ready(&mut hosts, 1).await;
    hosts.push(start(Options { bootstrap, password: b"wrong", ..Options::default() }));
    let member = hosts[0].id;
    run(&mut hosts, |_, number, event| match event {
        Some(Event::AdmitResponse { bytes, .. }) if number == 2 => bytes == b"refused",
        _ => false,
    })
    .await;
    hosts[2].service.set_admitted(member, true);
    hosts[0].service.publish(b"secret".to_vec()).unwrap();
    let wait = run(&mut hosts, |_, number, event| {
        let told = matches!(event, Some(Event::Gossip { .. } | Event::MemberReady { .. } | Event::SyncRequest { .. }));
        assert!(!(number == 2 && told), "{event:?}");
        false
    });
    tokio::time::timeout(Duration::from_secs(2), wait).await.unwrap_err();
    assert_eq!(hosts[2].service.send_sync(member, b"rows?".to_vec()), Err(Refused::NotConnected));
    let row = &hosts[2].service.peers()[0];
    let listed: Vec<_> = row.protocols.iter().filter(|name| name.contains("/virtuoso/")).collect();
    assert_eq!(listed, ["/virtuoso/admit/1"]);
}

#[tokio::test]
async fn a_host_that_knows_no_swarm_enters_the_one_it_is_admitted_to() {
    let first = start(Options::default());
    let mut second = start(Options { bootstrap: first.bootstrap(), ..Options::default() });
    // As if it had been started without a swarm.
    second.service.swarm_id = None;
    let (streams, requests) = Streams::new();
    (second.service.streams, second.service.stream_requests) = (streams, Some(requests));
    second.service.swarm.behaviour_mut().members = crate::swarm::gate::Gated::new(second.service.members.clone());
    assert_eq!(second.service.publish(b"x".to_vec()), Err(Refused::NoSwarm));
    let mut hosts = [first, second];
    run(&mut hosts, |_, number, event| number == 1 && matches!(event, Some(Event::AdmitResponse { .. }))).await;
    hosts[1].service.set_swarm(SWARM).unwrap();
    let first = hosts[0].id;
    hosts[1].service.set_admitted(first, true);
    until_all_ready(&mut hosts, 1).await;
    gossip_reaches_all(&mut hosts, 1).await;
    assert!(hosts[1].service.set_swarm(SwarmId([6; 32])).is_err());
}

#[tokio::test]
async fn too_long_messages_are_refused_here() {
    let mut host = start(Options::default());
    let stranger = HostId([3; 32]);
    assert_eq!(host.service.publish(vec![0; 64 << 10]), Err(Refused::TooLong));
    assert_eq!(host.service.publish(vec![0; 60 << 10]), Ok(()), "a host that is alone has told everybody");
    assert_eq!(host.service.send_admit(stranger, vec![0; 9 << 10]).unwrap_err(), Refused::TooLong);
    assert_eq!(host.service.send_admit(stranger, vec![0; 9]).unwrap_err(), Refused::NotConnected);
    assert_eq!(host.service.send_sync(stranger, vec![0; 65 << 10]).unwrap_err(), Refused::TooLong);
}

/// What any libp2p program with TCP, Noise and Yamux would do.
#[tokio::test]
async fn a_stock_libp2p_host_can_ping_over_tcp() {
    let at = free_tcp_port();
    let mut hosts = vec![start(Options { tcp: vec![at], ..Options::default() })];
    let mut stock = libp2p::SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(Default::default(), libp2p::noise::Config::new, libp2p::yamux::Config::default)
        .unwrap()
        .with_behaviour(|_| libp2p::ping::Behaviour::default())
        .unwrap()
        .build();
    stock.dial(tcp_address(at)).unwrap();
    let pinged = async {
        loop {
            if let libp2p::swarm::SwarmEvent::Behaviour(event) = stock.select_next_some().await {
                return event.result.unwrap();
            }
        }
    };
    tokio::select! {
        _ = pinged => {}
        () = run(&mut hosts, |_, _, _| false) => {}
    }
}

/// What thirty hosts have come to.
#[derive(Default)]
struct Tally {
    ready: Vec<usize>,
    connects: usize,
    news: usize,
}

/// Runs a host in a task of its own, counting; publishes a message when told to.
fn run_apart(mut host: Host, number: usize, tally: Arc<Mutex<Tally>>, mut publish: tokio::sync::watch::Receiver<bool>) {
    tokio::spawn(async move {
        let mut look = tokio::time::interval(Duration::from_millis(200));
        let mut row_due = false;
        loop {
            tokio::select! {
                event = host.service.next_event() => match event {
                    Event::MemberReady { .. } => row_due = true,
                    event => {
                        let news = matches!(&event, Event::Gossip { bytes, .. } if bytes.starts_with(b"news"));
                        let connected = matches!(event, Event::PeerConnected { .. });
                        let mut tally = tally.lock().unwrap();
                        tally.news += usize::from(news);
                        tally.connects += usize::from(connected);
                        drop(tally);
                        host.react(event);
                    }
                },
                _ = look.tick() => {
                    tally.lock().unwrap().ready[number] = host.ready_members();
                    if std::mem::take(&mut row_due) {
                        host.tell_addresses();
                    }
                }
                Ok(()) = publish.changed() => if number == 7 { host.service.publish(b"news".to_vec()).unwrap() },
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_hosts_settle_at_ten_to_twenty_four_connections_each() {
    const HOSTS: usize = 30;
    let tally = Arc::new(Mutex::new(Tally { ready: vec![0; HOSTS], ..Tally::default() }));
    let (publish, told) = tokio::sync::watch::channel(false);
    let first = start(Options::default());
    let bootstrap = first.bootstrap();
    run_apart(first, 0, Arc::clone(&tally), told.clone());
    for number in 1..HOSTS {
        let host = start(Options { bootstrap: bootstrap.clone(), ..Options::default() });
        run_apart(host, number, Arc::clone(&tally), told.clone());
    }
    let (mut quiet, mut connects) = (0, 0);
    // Settled: for three seconds every number is in bounds and nobody connects. That takes ten, or a minute and more
    // where ten times as many threads as processors run.
    for _ in 0..900 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let tally = tally.lock().unwrap();
        let in_bounds = tally.ready.iter().all(|ready| (10..=24).contains(ready));
        quiet = if in_bounds && tally.connects == connects { quiet + 1 } else { 0 };
        connects = tally.connects;
        if quiet == 15 {
            break;
        }
    }
    assert_eq!(quiet, 15, "{:?}", tally.lock().unwrap().ready);
    publish.send(true).unwrap();
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if tally.lock().unwrap().news == HOSTS - 1 {
            return;
        }
    }
    panic!("gossip reached {} of {HOSTS} hosts", tally.lock().unwrap().news + 1);
}

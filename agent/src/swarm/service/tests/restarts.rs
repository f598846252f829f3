//! Hosts that end without a word and are started again, while others still hold a connection to their earlier run.

use super::streams::{ECHO, echo, until};
use super::*;
use crate::swarm::address::quic_parts;
use crate::swarm::streams::Inbound;
use tokio::io::AsyncWriteExt;
use tokio::runtime;
use tokio::sync::oneshot;

/// A host with a thread for itself, whose end tells nobody. It echoes streams, and gossips its beats.
struct Mortal {
    id: HostId,
    address: Multiaddr,
    kill: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Mortal {
    fn start(options: Options, run: &'static str) -> Self {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let (kill, killed) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            // Nothing of this runtime runs on once the host is killed: no goodbye leaves.
            runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async move {
                let host = start(options);
                tell.send((host.id, host.bootstrap().remove(0))).unwrap();
                let inbound = host.service.streams().serve(ECHO);
                tokio::select! {
                    _ = killed => {}
                    () = echo_all(inbound) => {}
                    () = live(host, run) => {}
                }
            });
        });
        let (id, address) = told.recv().unwrap();
        Self { id, address, kill, thread }
    }

    fn die(self) {
        self.kill.send(()).unwrap();
        self.thread.join().unwrap();
    }
}

async fn echo_all(mut inbound: tokio::sync::mpsc::Receiver<Inbound>) {
    while let Some(Inbound { stream, .. }) = inbound.recv().await {
        let (mut reading, mut writing) = tokio::io::split(stream);
        tokio::io::copy(&mut reading, &mut writing).await.unwrap();
        writing.shutdown().await.unwrap();
    }
}

async fn live(mut host: Host, run: &str) {
    let mut beat = tokio::time::interval(Duration::from_millis(200));
    let mut beats = 0;
    loop {
        tokio::select! {
            event = host.service.next_event() => drop(host.react(event)),
            _ = beat.tick() => {
                beats += 1;
                host.service.publish(format!("{run} beat {beats}").into_bytes()).unwrap();
            }
        }
    }
}

async fn until_it_beats(hosts: &mut [Host], run_name: &str) {
    run(
        hosts,
        |_, _, event| matches!(event, Some(Event::Gossip { bytes, .. }) if bytes.starts_with(run_name.as_bytes())),
    )
    .await;
}

/// A host, and where another one was whose first run has just died.
async fn beside_a_dead_one(keypair: &Keypair) -> ([Host; 1], String) {
    let mut hosts = [start(Options::default())];
    let bootstrap = hosts[0].bootstrap();
    let mortal = Mortal::start(Options { keypair: keypair.clone(), bootstrap, ..Options::default() }, "first");
    until_it_beats(&mut hosts, "first").await;
    run(&mut hosts, |hosts, _, _| !hosts[0].service.connections.addresses(&mortal.id).is_empty()).await;
    let listen = quic_parts(&mortal.address).unwrap().0.to_string();
    mortal.die();
    (hosts, listen)
}

#[tokio::test]
async fn a_stream_that_met_a_dead_connection_is_opened_on_another() {
    let keypair = Keypair::generate_ed25519();
    let (mut hosts, listen) = beside_a_dead_one(&keypair).await;
    // It looks for nobody: the other host must find out that their connection is of its earlier run.
    let again = Mortal::start(Options { keypair, listen, ..Options::default() }, "second");
    assert_eq!(hosts[0].ready_members(), 1, "the dead connection should still be there");
    let back = echo(hosts[0].service.streams(), again.id, b"hello".to_vec());
    assert_eq!(until(&mut hosts, back).await, b"hello");
    again.die();
}

/// Nobody answers on the old connection, which would end only when it has been silent for long enough.
#[tokio::test]
async fn a_host_that_came_back_elsewhere_is_asked_and_heard_on_its_new_connection() {
    let keypair = Keypair::generate_ed25519();
    let (mut hosts, _) = beside_a_dead_one(&keypair).await;
    // The connections are made at different times.
    run_for(&mut hosts, Duration::from_secs(3)).await;
    let (bootstrap, begin) = (hosts[0].bootstrap(), std::time::Instant::now());
    let again = Mortal::start(Options { keypair, bootstrap, ..Options::default() }, "second");
    run(&mut hosts, |hosts, _, _| hosts[0].service.peers().iter().any(|row| row.ready && row.age < begin.elapsed()))
        .await;
    let back = echo(hosts[0].service.streams(), again.id, b"hello".to_vec());
    assert_eq!(until(&mut hosts, back).await, b"hello");
    until_it_beats(&mut hosts, "second").await;
    assert!(begin.elapsed() < Duration::from_secs(10), "It took {:?}", begin.elapsed());
    again.die();
}

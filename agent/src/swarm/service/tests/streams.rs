//! Raw streams between real services on loopback.

use super::*;
use crate::swarm::streams::{Inbound, OpenError, STREAMS_PER_PEER_MAX, StreamKind, Streams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(super) const ECHO: StreamKind = StreamKind::new("echo");

/// Runs the hosts until the task is done.
pub(super) async fn until<T: Send + 'static>(hosts: &mut [Host], task: JoinHandle<T>) -> T {
    let (done, mut waiting) = oneshot::channel();
    tokio::spawn(async move { done.send(task.await).ok() });
    let mut result = None;
    run(hosts, |_, _, _| {
        result = result.take().or_else(|| waiting.try_recv().ok());
        result.is_some()
    })
    .await;
    result.unwrap().unwrap()
}

/// Sends everything back, and says who asked.
fn serve_echo(streams: &Streams) -> JoinHandle<HostId> {
    let mut inbound = streams.serve(ECHO);
    tokio::spawn(async move {
        let Inbound { host, stream } = inbound.recv().await.unwrap();
        let (mut reading, mut writing) = tokio::io::split(stream);
        tokio::io::copy(&mut reading, &mut writing).await.unwrap();
        writing.shutdown().await.unwrap();
        host
    })
}

pub(super) fn echo(streams: Streams, to: HostId, content: Vec<u8>) -> JoinHandle<Vec<u8>> {
    tokio::spawn(async move {
        let (mut reading, mut writing) = tokio::io::split(streams.open(to, ECHO).await.unwrap());
        let send = async {
            writing.write_all(&content).await.unwrap();
            writing.shutdown().await.unwrap();
        };
        let mut back = Vec::new();
        let (_, read) = tokio::join!(send, reading.read_to_end(&mut back));
        read.unwrap();
        back
    })
}

async fn two_members() -> [Host; 2] {
    let first = start(Options::default());
    let second = start(Options { bootstrap: first.bootstrap(), ..Options::default() });
    let mut hosts = [first, second];
    until_all_ready(&mut hosts, 1).await;
    hosts
}

#[tokio::test]
async fn bytes_flow_both_ways_and_the_stream_ends() {
    let mut hosts = two_members().await;
    let (client, server) = (hosts[0].id, hosts[1].id);
    let served = serve_echo(&hosts[1].service.streams());
    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let back = echo(hosts[0].service.streams(), server, content.clone());
    assert!(until(&mut hosts, back).await == content);
    assert_eq!(until(&mut hosts, served).await, client);
    run(&mut hosts, |hosts, _, _| hosts.iter().all(|host| host.service.streams.busy().0.is_empty())).await;
}

#[tokio::test]
async fn what_nobody_serves_is_refused() {
    let mut hosts = two_members().await;
    let (streams, server) = (hosts[0].service.streams(), hosts[1].id);
    let mut open = async |streams: Streams, to: HostId| {
        until(&mut hosts, tokio::spawn(async move { streams.open(to, ECHO).await.map(drop) })).await
    };
    assert_eq!(open(streams.clone(), server).await, Err(OpenError::Unserved("echo")));
    assert_eq!(open(streams, HostId([3; 32])).await, Err(OpenError::NoMember));
    let outside = Streams::new().0;
    assert_eq!(open(outside, server).await, Err(OpenError::NoSwarm));
}

#[tokio::test]
async fn a_member_that_is_not_connected_is_dialled_and_one_that_is_gone_is_an_error() {
    let mut hosts = two_members().await;
    let server = hosts[1].id;
    drop(serve_echo(&hosts[1].service.streams()));
    let (peer, streams) = (peer_of(&server), hosts[0].service.streams());
    hosts[0].service.swarm.disconnect_peer_id(peer).unwrap();
    run(&mut hosts, |_, number, event| number == 0 && matches!(event, Some(Event::PeerDisconnected { .. }))).await;
    let back = echo(streams.clone(), server, b"hello".to_vec());
    assert_eq!(until(&mut hosts, back).await, b"hello");

    let [first, second] = hosts;
    second.service.shutdown().await;
    let mut hosts = [first];
    run(&mut hosts, |_, _, event| matches!(event, Some(Event::PeerDisconnected { .. }))).await;
    let opened = tokio::spawn(async move { streams.open(server, ECHO).await.map(drop) });
    let error = until(&mut hosts, opened).await.unwrap_err();
    assert!(matches!(error, OpenError::Unreachable(_) | OpenError::Timeout), "{error}");
}

#[tokio::test]
async fn streams_of_one_peer_are_bounded_and_hold_their_connection() {
    let mut hosts = two_members().await;
    let (streams, server) = (hosts[0].service.streams(), hosts[1].id);
    let mut inbound = hosts[1].service.streams().serve(ECHO);
    let held = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            match streams.open(server, ECHO).await {
                Ok(stream) => held.push((stream, inbound.recv().await.unwrap())),
                Err(error) => return (held, error),
            }
        }
    });
    let (held, error) = until(&mut hosts, held).await;
    assert_eq!((held.len(), error), (STREAMS_PER_PEER_MAX, OpenError::TooMany));
    let (peers, connections) = hosts[0].service.streams.busy();
    assert_eq!((peers.len(), connections.len()), (1, 1));
}

#[tokio::test]
async fn who_ceases_to_be_a_member_loses_its_streams() {
    let mut hosts = two_members().await;
    let (streams, client, server) = (hosts[0].service.streams(), hosts[0].id, hosts[1].id);
    let mut inbound = hosts[1].service.streams().serve(ECHO);
    let opened = tokio::spawn(async move {
        let mut stream = streams.open(server, ECHO).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        (stream, inbound.recv().await.unwrap())
    });
    let (mut stream, served) = until(&mut hosts, opened).await;
    assert_eq!(served.host, client);
    hosts[1].service.set_admitted(client, false);
    let broken = tokio::spawn(async move { stream.read_u8().await.map_err(|error| error.kind()) });
    assert!(until(&mut hosts, broken).await.is_err());
}

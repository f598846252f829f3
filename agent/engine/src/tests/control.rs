//! The control plane on the same port.

use super::*;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};

const ALPN: &[u8] = b"some other protocol";

fn server_config(host: &Keypair) -> quinn::ServerConfig {
    let mut tls = libp2p_tls::make_server_config(host).unwrap();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()))
}

fn client_config(host: &Keypair) -> quinn::ClientConfig {
    let mut tls = libp2p_tls::make_client_config(host, None).unwrap();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

/// A quinn endpoint on the control port of the host with `key`.
fn endpoint(lab: &Lab, key: u8, port: Arc<ControlPort>) -> quinn::Endpoint {
    let _entered = lab.runtime.enter();
    let host = Keypair::ed25519_from_bytes([key; 32]).unwrap();
    let config = control_endpoint_config(&host).unwrap();
    quinn::Endpoint::new_with_abstract_socket(config, Some(server_config(&host)), port, Arc::new(quinn::TokioRuntime))
        .unwrap()
}

/// Sends `bytes` on a stream of the connection and returns what comes back.
async fn echo(connection: &quinn::Connection, bytes: &[u8]) -> Vec<u8> {
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    send.finish().unwrap();
    receive.read_to_end(bytes.len() + 1).await.unwrap()
}

async fn serve_echo(endpoint: quinn::Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        let connection = incoming.await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                let bytes = receive.read_to_end(1 << 20).await.unwrap();
                send.write_all(&bytes).await.unwrap();
                send.finish().unwrap();
            }
        });
    }
}

#[test]
fn both_planes_work_on_one_port_while_data_flows() {
    let lab = lab();
    let (a, _) = lab.host_with_control(&Options::key(1));
    let (mut b, control) = lab.host_with_control(&Options { has_control: true, ..Options::key(2) });
    let control = control.unwrap();
    lab.introduce(&a, &b);
    let server = endpoint(&lab, 2, Arc::clone(&control));
    lab.runtime.spawn(serve_echo(server));
    // A stranger with a stock endpoint: its first packets carry ids that neither plane has seen.
    let keypair = Keypair::ed25519_from_bytes([77; 32]).unwrap();
    let address = b.address;
    let client = lab.runtime.spawn(async move {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connection = endpoint.connect_with(client_config(&keypair), address, "name").unwrap().await.unwrap();
        let bytes = vec![0xaa; 100_000];
        for _ in 0..20 {
            assert_eq!(echo(&connection, &bytes).await, bytes);
        }
    });
    let (header, frame) = super_frame(60_000, 1460);
    let mut count = 0;
    while !client.is_finished() || count < 50 {
        a.send(&header.encode(), &frame);
        assert_eq!(b.receive().1.len(), frame.len());
        count += 1;
    }
    lab.runtime.block_on(client).unwrap();
    let counters = control.counters();
    assert!(counters.received > 20 && counters.sent > 20, "{counters:?}");
    let demux = lab.info(&b).demux;
    assert!(demux.data > 50 && demux.control >= counters.received, "{demux:?}");
}

#[test]
fn a_control_endpoint_dials_from_the_shared_port() {
    let lab = lab();
    let (_a, port_a) = lab.host_with_control(&Options { has_control: true, ..Options::key(1) });
    let (b, port_b) = lab.host_with_control(&Options { has_control: true, ..Options::key(2) });
    let dialler = endpoint(&lab, 1, port_a.unwrap());
    lab.runtime.spawn(serve_echo(endpoint(&lab, 2, port_b.unwrap())));
    let keypair = Keypair::ed25519_from_bytes([1; 32]).unwrap();
    lab.runtime.block_on(async {
        let connection = dialler.connect_with(client_config(&keypair), b.address, "name").unwrap().await.unwrap();
        assert_eq!(echo(&connection, b"over the shared port").await, b"over the shared port");
    });
}

#[test]
fn a_batch_of_both_planes_is_sorted_packet_by_packet() {
    let lab = lab();
    let (b, control) = lab.host_with_control(&Options { has_control: true, ..Options::key(2) });
    let sender = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut batch = Vec::new();
    for index in 0..10 {
        let magic = if index % 2 == 0 { cid::DATA_MAGIC } else { cid::CONTROL_MAGIC };
        batch.extend([&[0x40][..], &magic, &[index; 96]].concat());
    }
    sender.send(&batch, Some(100), b.address, None).unwrap();
    let info = lab.wait_until(&b, |info| info.demux.data + info.demux.control == 10);
    assert_eq!((info.demux.data, info.demux.control), (5, 5));
    assert_eq!(control.unwrap().counters().received, 5);
}

#[test]
fn noise_hurts_neither_plane() {
    let lab = lab();
    let (b, _control) = lab.host_with_control(&Options { has_control: true, ..Options::key(2) });
    let sender = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut noise = [0; 1200];
    for round in 0..2000u32 {
        cid::fill_random(&mut noise);
        match round % 4 {
            // The data plane's first packets, with garbage behind the id.
            0 => noise[..9].copy_from_slice(&[
                0xc3,
                0,
                0,
                0,
                1,
                20,
                cid::DATA_MAGIC[0],
                cid::DATA_MAGIC[1],
                cid::DATA_MAGIC[2],
            ]),
            1 => noise[1..4].copy_from_slice(&cid::DATA_MAGIC),
            2 => noise[1..4].copy_from_slice(&cid::CONTROL_MAGIC),
            _ => {}
        }
        let _ = sender.send(&noise[..(round as usize * 7) % 1200 + 1], None, b.address, None);
    }
    assert!(lab.info(&b).links.is_empty());
    let mut a = lab.host(&Options::key(1));
    lab.introduce(&a, &b);
    lab.expect_up(&mut a, &b);
}

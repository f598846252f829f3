//! Engines against each other on loopback, with packet sockets in place of TAPs.

mod idle;
// The same tests twice.
#[allow(clippy::duplicate_mod)]
mod one_thread;
#[allow(clippy::duplicate_mod)]
mod three_threads;

use super::*;
use socket2::{Domain, Socket as RawSocket, Type};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use virtuoso_overlay::crypto::{Signature, Signer, Verifier};
use virtuoso_overlay::ids::NetworkId;
use virtuoso_overlay::offload::VnetHdr;
use virtuoso_overlay::wire::frame::VNET_BYTES;
use virtuoso_overlay::wire::ip::Checksum;

const NETWORK: NetworkId = NetworkId(0xb1);

/// Longer than anything that a test waits for takes.
const PATIENCE: Duration = Duration::from_secs(20);

struct HostKey(Keypair);

impl Signer for HostKey {
    fn public_key(&self) -> [u8; 32] {
        tls::host_id(&self.0).unwrap().0
    }

    fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).unwrap().try_into().unwrap())
    }
}

impl Verifier for HostKey {
    fn verify(&self, key: &[u8; 32], message: &[u8], signature: &Signature) -> bool {
        libp2p::identity::ed25519::PublicKey::try_from_bytes(key).is_ok_and(|key| key.verify(message, &signature.0))
    }
}

/// One host: its engine, and the other end of its TAP.
struct Host {
    id: HostId,
    address: SocketAddr,
    engine: EngineHandle,
    events: mpsc::Receiver<EngineEvent>,
    tap: std::fs::File,
}

/// What a host is started with.
struct Options {
    key: u8,
    port: u16,
    certificate: &'static [u8],
    offloads: TapOffloads,
    has_control: bool,
    links: LinkSettings,
}

impl Options {
    fn key(key: u8) -> Self {
        Self {
            key,
            port: 0,
            certificate: b"member",
            offloads: TapOffloads::ALL,
            has_control: false,
            links: LinkSettings::default(),
        }
    }
}

/// A runtime for the control side, and the hosts' common view of time.
struct Lab {
    runtime: Runtime,
    threads: Threads,
}

impl Lab {
    /// Engines with so many threads.
    fn new(threads: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { runtime, threads: Threads::try_from(threads).unwrap() }
    }

    fn host(&self, options: &Options) -> Host {
        self.host_with_control(options).0
    }

    /// A host that admits whoever shows "member".
    fn host_with_control(&self, options: &Options) -> (Host, Option<Arc<ControlPort>>) {
        let keypair = Keypair::ed25519_from_bytes([options.key; 32]).unwrap();
        let socket = Arc::new(Socket::bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), options.port)).unwrap());
        let address = socket.local_addr();
        let control = options.has_control.then(|| ControlPort::new(Arc::clone(&socket)));
        let id = tls::host_id(&keypair).unwrap();
        let signer = Arc::new(HostKey(keypair.clone()));
        let admit: AdmissionCheck = Arc::new(|_, certificate| match certificate {
            b"member" => Ok(()),
            _ => Err("No certificate of this swarm".to_owned()),
        });
        let switch = Switch::new(signer.clone(), signer, options.key.into());
        let certificate = options.certificate.to_vec();
        let links = LinkSettings { threads: self.threads, ..options.links };
        let config = EngineConfig { socket, control: control.clone(), keypair, certificate, admit, switch, links };
        let (engine, events) = start(config).unwrap();
        let (ours, theirs) = RawSocket::pair(Domain::UNIX, Type::from(libc::SOCK_SEQPACKET), None).unwrap();
        theirs.set_read_timeout(Some(PATIENCE)).unwrap();
        theirs.set_send_buffer_size(4 << 20).unwrap();
        ours.set_send_buffer_size(4 << 20).unwrap();
        let port = PortConfig { network: NETWORK, tap: ours.into(), mtu: 1500, offloads: options.offloads };
        self.runtime.block_on(engine.add_port(port)).unwrap();
        (Host { id, address, engine, events, tap: OwnedFd::from(theirs).into() }, control)
    }

    /// Makes `a` know `b`'s address, and that it has a port.
    fn introduce(&self, a: &Host, b: &Host) {
        let other = b.id;
        self.runtime.block_on(async {
            a.engine.set_addresses(b.id, vec![b.address]).await.unwrap();
            a.engine.call(move |switch, _| switch.set_participants(NETWORK, &[other])).await.unwrap();
        });
    }

    /// Two hosts that know each other.
    fn pair(&self) -> (Host, Host) {
        let (a, b) = (self.host(&Options::key(1)), self.host(&Options::key(2)));
        self.introduce(&a, &b);
        self.introduce(&b, &a);
        (a, b)
    }

    /// The next event of `host` that `pick` takes.
    fn expect<R>(&self, host: &mut Host, mut pick: impl FnMut(EngineEvent) -> Option<R>) -> R {
        let wait = async {
            loop {
                let event = host.events.recv().await.expect("the engine runs");
                if let Some(picked) = pick(event) {
                    return picked;
                }
            }
        };
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, wait).await }).expect("the event comes")
    }

    fn expect_up(&self, host: &mut Host, peer: &Host) {
        let peer = peer.id;
        self.expect(host, |event| (event == EngineEvent::LinkUp(peer)).then_some(()));
    }

    fn info(&self, host: &Host) -> EngineInfo {
        self.runtime.block_on(host.engine.info()).unwrap()
    }

    /// Waits until the host's counters satisfy `is_so`.
    fn wait_until(&self, host: &Host, is_so: impl Fn(&EngineInfo) -> bool) -> EngineInfo {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let info = self.info(host);
            if is_so(&info) {
                return info;
            }
            assert!(Instant::now() < deadline, "{info:#?}");
            self.runtime.block_on(tokio::task::yield_now());
        }
    }
}

impl Host {
    /// Sends a packet as if the bridge did.
    fn send(&self, header: &[u8; VNET_BYTES], frame: &[u8]) {
        let packet = [&header[..], frame].concat();
        std::io::Write::write_all(&mut &self.tap, &packet).unwrap();
    }

    /// The next packet that the host writes to its TAP.
    fn receive(&mut self) -> (Vec<u8>, Vec<u8>) {
        let mut buffer = vec![0; 128 << 10];
        let bytes = self.tap.read(&mut buffer).expect("a packet comes");
        (buffer[..VNET_BYTES].to_vec(), buffer[VNET_BYTES..bytes].to_vec())
    }
}

/// A frame with a local experimental EtherType.
fn frame(src: u8, dst: u8, payload: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, dst, 2, 0, 0, 0, 0, src, 0x88, 0xb5][..], payload].concat()
}

const PLAIN: [u8; VNET_BYTES] = [0; VNET_BYTES];

/// A TCP super-frame of IPv4 with `payload` bytes, cut after each `size`, and its header.
pub(super) fn super_frame(payload: usize, size: u16) -> (VnetHdr, Vec<u8>) {
    let total = u16::try_from(40 + payload).unwrap();
    let mut frame = [[2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]].concat();
    frame.extend([0x08, 0x00, 0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = Checksum::default().with(&frame[14..34]).finish();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend([0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.resize(54 + payload, 7);
    let [low, high] = size.to_le_bytes();
    let wish = VnetHdr::decode(&[1, 1, 0, 0, low, high, 34, 0, 16, 0]).unwrap();
    (wish.rebuild(&frame).unwrap(), frame)
}

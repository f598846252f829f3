//! The control plane's end of the shared UDP socket: what [`quinn::Endpoint`] takes instead of a socket of its own.
//!
//! Packets come in through a bounded ring that the engine fills. They are copied: a slice would pin the engine's
//! 64-KiB receive buffer. Packets go out straight on the socket, from the control plane's own threads.

use super::cid::ControlCids;
use super::socket::Socket;
use super::tls;
use libp2p::identity::Keypair;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, EndpointConfig, UdpPoller};
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Packets that wait for the control plane. At 1,452 bytes each a full ring is what a busy control plane takes in
/// some milliseconds; more is dropped and repaired by QUIC.
const RING_SLOTS: usize = 256;

/// The largest packet that the control plane sends: as large as its discovery goes on an Ethernet underlay.
const PACKET_BYTES_MAX: u16 = 1472;

/// Bytes of a slot: more than any packet on an Ethernet underlay.
const SLOT_BYTES: usize = 2048;

/// The socket as the control plane sees it.
pub struct ControlPort {
    socket: Arc<Socket>,
    ring: Mutex<Ring>,
    received: AtomicU64,
    dropped: AtomicU64,
    sent: AtomicU64,
    /// Whether the socket had no room when a packet was to be sent, and nobody has found room since.
    is_full: AtomicBool,
}

/// What went through the control plane's end of the socket.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct ControlCounters {
    /// Packets that the ring took.
    pub received: u64,
    /// Packets that came when the ring was full, or were larger than a slot.
    pub dropped: u64,
    /// Sends.
    pub sent: u64,
}

/// Preallocated slots: `free` ones and `queued` packets.
struct Ring {
    free: Vec<Box<[u8]>>,
    queued: VecDeque<(Box<[u8]>, RecvMeta)>,
    waker: Option<Waker>,
}

impl ControlPort {
    /// The control plane's end of `socket`.
    pub fn new(socket: Arc<Socket>) -> Arc<Self> {
        let free = (0..RING_SLOTS).map(|_| vec![0; SLOT_BYTES].into_boxed_slice()).collect();
        let ring = Ring { free, queued: VecDeque::with_capacity(RING_SLOTS), waker: None };
        Arc::new(Self {
            socket,
            ring: Mutex::new(ring),
            received: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            is_full: AtomicBool::new(false),
        })
    }

    /// What went through so far.
    pub fn counters(&self) -> ControlCounters {
        ControlCounters {
            received: self.received.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
        }
    }

    /// Takes one packet for the control plane, or drops it if the ring is full. The engine calls [`Self::wake`] when
    /// it has put in the last packet of a batch.
    pub(crate) fn push(&self, packet: &[u8], batch: &RecvMeta) {
        let mut ring = self.ring();
        let slot = if packet.len() <= SLOT_BYTES { ring.free.pop() } else { None };
        let Some(mut slot) = slot else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        slot[..packet.len()].copy_from_slice(packet);
        ring.queued.push_back((slot, RecvMeta { len: packet.len(), stride: packet.len(), ..*batch }));
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    /// Wakes the control plane if it waits for packets.
    pub(crate) fn wake(&self) {
        let waker = self.ring().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The ring, whatever happened to another holder of the lock: its parts are consistent between any two calls.
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncUdpSocket for ControlPort {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(WritePoller { port: self, registered: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.sent.fetch_add(1, Ordering::Relaxed);
        // It fails only when there is no room.
        let result = self.socket.transmit(transmit).map(drop);
        if result.is_err() {
            self.is_full.store(true, Ordering::Relaxed);
        }
        result
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut ring = self.ring();
        let mut count = 0;
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            let Some((slot, packet)) = ring.queued.pop_front() else { break };
            let len = packet.len.min(buffer.len());
            buffer[..len].copy_from_slice(&slot[..len]);
            *meta = RecvMeta { len, stride: len, ..packet };
            ring.free.push(slot);
            count += 1;
        }
        if count > 0 {
            return Poll::Ready(Ok(count));
        }
        ring.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.socket.local_addr())
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.segments_max(PACKET_BYTES_MAX)
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

impl fmt::Debug for ControlPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPort").field("local", &self.socket.local_addr()).finish_non_exhaustive()
    }
}

/// Waits until the socket takes packets again. QUIC asks before it sends anything, so the answer is yes without a look
/// until a send has failed: that there is no room is rare, and asking costs more than sending. It is registered with
/// the runtime only while someone waits: a standing registration would wake the runtime for every packet that the
/// engine gets rid of.
#[derive(Debug)]
struct WritePoller {
    port: Arc<ControlPort>,
    registered: Option<AsyncFd<OwnedFd>>,
}

impl UdpPoller for WritePoller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.port.is_full.load(Ordering::Relaxed) {
            this.registered = None;
            return Poll::Ready(Ok(()));
        }
        let waiting = match this.registered.take() {
            Some(waiting) => waiting,
            None => {
                let descriptor = this.port.socket.as_fd().try_clone_to_owned()?;
                // SAFETY: an `OwnedFd` stays open and names the same file until it is dropped.
                unsafe { AsyncFd::register_with_interest(descriptor, Interest::WRITABLE) }.map_err(io::Error::from)?
            }
        };
        let waiting = this.registered.insert(waiting);
        let result = ready!(waiting.poll_write_ready(cx)).map(drop);
        this.registered = None;
        this.port.is_full.store(false, Ordering::Relaxed);
        Poll::Ready(result)
    }
}

/// The endpoint configuration that the control plane must use on a [`ControlPort`]: its connection ids lead packets
/// here, and its reset key outlives a restart, so that peers notice it at once.
///
/// # Errors
/// If the key is no Ed25519 key.
pub fn control_endpoint_config(host: &Keypair) -> anyhow::Result<EndpointConfig> {
    let mut config = EndpointConfig::new(Arc::new(tls::ResetKey::control(host)?));
    config.cid_generator(|| Box::new(ControlCids));
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn port() -> Arc<ControlPort> {
        ControlPort::new(Arc::new(Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap()))
    }

    fn receive(port: &ControlPort, count: usize) -> Vec<Vec<u8>> {
        let mut storage = vec![[0; SLOT_BYTES]; count];
        let mut buffers: Vec<_> = storage.iter_mut().map(|bytes| IoSliceMut::new(bytes)).collect();
        let mut metas = vec![RecvMeta::default(); count];
        let Poll::Ready(Ok(count)) = port.poll_recv(&mut Context::from_waker(Waker::noop()), &mut buffers, &mut metas)
        else {
            return Vec::new();
        };
        (0..count).map(|i| storage[i][..metas[i].len].to_vec()).collect()
    }

    proptest! {
        /// Whatever is put in comes out in order and unchanged, except what found the ring full or was too large.
        #[test]
        fn the_ring_is_a_bounded_queue(steps in prop::collection::vec((any::<bool>(), 0usize..2100, 1usize..40), 1..600)) {
            let port = port();
            let mut model = VecDeque::new();
            let mut dropped = 0;
            for (index, (push, len, count)) in steps.into_iter().enumerate() {
                if push {
                    let packet = vec![index as u8; len];
                    port.push(&packet, &RecvMeta::default());
                    if len <= SLOT_BYTES && model.len() < RING_SLOTS { model.push_back(packet) } else { dropped += 1 }
                } else {
                    let expected: Vec<_> = model.drain(..count.min(model.len())).collect();
                    prop_assert_eq!(receive(&port, count), expected);
                }
            }
            prop_assert_eq!(port.counters().dropped, dropped);
        }
    }

    #[test]
    fn a_full_ring_drops_and_recovers() {
        let port = port();
        for _ in 0..=RING_SLOTS {
            port.push(b"packet", &RecvMeta::default());
        }
        assert_eq!(port.counters(), ControlCounters { received: RING_SLOTS as u64, dropped: 1, sent: 0 });
        assert_eq!(receive(&port, 4).len(), 4);
        port.push(b"again", &RecvMeta::default());
        assert_eq!(port.counters().dropped, 1);
    }
}

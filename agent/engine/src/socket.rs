//! The one UDP socket of this host. The engine reads it; engine and control plane both send on it.
//!
//! It knows nothing about QUIC. Sends never fail for a reason that a retry could not see: only "would block" comes
//! back, everything else is what a lossy network looks like and is counted.

mod holder;

use anyhow::{Context, Result};
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, SockRef, Socket as RawSocket, Type};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of each kernel buffer of the socket. It is a queue that control packets share with data, so it is sized in
/// milliseconds (4 ms at 4 Gbit/s), not as large as it could be.
const BUFFER_BYTES: usize = 2 << 20;

/// Packets of one send: 44 packets of 1472 bytes fill the 64 KiB that one UDP send can carry.
pub(crate) const SEGMENTS_MAX: usize = 44;

/// Bytes of one send: the most that an IPv4 packet has room for, as which the kernel takes it before it segments.
const BATCH_BYTES_MAX: usize = 65_507;

/// A bound socket with offloads, pktinfo and ECN switched on.
#[derive(Debug)]
pub struct Socket {
    socket: UdpSocket,
    /// For receiving, and for sends of several packets.
    state: UdpSocketState,
    /// For sends of one packet: an address that the kernel finds invalid must not look like a kernel without ECN.
    single: UdpSocketState,
    /// How many packets one send may carry.
    segments_max: usize,
    local: SocketAddr,
    send_errors: AtomicU64,
}

/// What became of a send that the socket had room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Sent,
    /// They were sent one by one, because the device on the way does not segment.
    Unsegmented,
    /// The packets are larger than the interface takes.
    TooLarge,
    /// It failed for another reason, and was counted.
    Failed,
}

impl Socket {
    /// Binds `listen`. The IPv6 wildcard takes IPv4 as well; on a host without IPv6 it falls back to the IPv4 one.
    ///
    /// # Errors
    /// If the address can't be bound; the text says who holds the port where that can be found out.
    pub fn bind(listen: SocketAddr) -> Result<Self> {
        let socket = match open(listen) {
            Err(error) if lacks_ipv6(&error) && listen.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
                open(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), listen.port()))
            }
            other => other,
        };
        let socket = socket.map_err(|error| holder::explain(&error, listen))?;
        size_buffers(&socket);
        let socket = UdpSocket::from(socket);
        let state = UdpSocketState::new((&socket).into()).context("Can't set up the UDP socket")?;
        let single = UdpSocketState::new((&socket).into()).context("Can't set up the UDP socket")?;
        let local = socket.local_addr().context("Can't read the UDP socket's address")?;
        let segments_max = state.max_gso_segments().min(SEGMENTS_MAX);
        Ok(Self { socket, state, single, segments_max, local, send_errors: AtomicU64::new(0) })
    }

    /// The bound address, as the kernel names it.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Sends one or more packets of `segment` bytes each to `to`.
    ///
    /// # Errors
    /// Only `WouldBlock`. Any other failure is an [`Outcome`] that looks like loss, which QUIC repairs.
    pub(crate) fn send(
        &self,
        contents: &[u8],
        segment: Option<usize>,
        to: SocketAddr,
        ecn: Option<EcnCodepoint>,
    ) -> io::Result<Outcome> {
        self.transmit(&Transmit {
            destination: self.kernel_addr(to),
            ecn,
            contents,
            segment_size: segment,
            src_ip: None,
        })
    }

    /// As [`Socket::send`], for a transmit that is ready.
    pub(crate) fn transmit(&self, transmit: &Transmit<'_>) -> io::Result<Outcome> {
        let state = if transmit.segment_size.is_some() { &self.state } else { &self.single };
        let error = match state.try_send((&self.socket).into(), transmit) {
            Ok(()) => return Ok(Outcome::Sent),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            Err(error) => error,
        };
        match (transmit.segment_size, error.raw_os_error()) {
            // Either the device can't segment, or the packets are too large for it: kernels say the same for both.
            (Some(segment), Some(libc::EIO | libc::EINVAL)) => self.send_singly(transmit, segment),
            // Larger than the interface's MTU: how discovery learns the limit.
            (_, Some(libc::EMSGSIZE)) => Ok(Outcome::TooLarge),
            _ => {
                self.send_errors.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%error, to = %transmit.destination, "UDP send failed");
                Ok(Outcome::Failed)
            }
        }
    }

    /// Sends a batch packet by packet. If that works, the way wants batches of one packet from now on.
    fn send_singly(&self, transmit: &Transmit<'_>, segment: usize) -> io::Result<Outcome> {
        let mut outcome = Outcome::Failed;
        for packet in transmit.contents.chunks(segment) {
            match self.transmit(&Transmit { contents: packet, segment_size: None, ..transmit.clone() })? {
                Outcome::Sent => outcome = Outcome::Unsegmented,
                other if outcome != Outcome::Unsegmented => outcome = other,
                _ => {}
            }
        }
        Ok(outcome)
    }

    /// Receives one batch of packets from one sender into `buffer`. An IPv4 sender has its IPv4 address.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing, else what the kernel says.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<RecvMeta> {
        let mut meta = [RecvMeta::default()];
        self.state.recv((&self.socket).into(), &mut [IoSliceMut::new(buffer)], &mut meta)?;
        Ok(meta[0])
    }

    /// How many packets of `bytes` one send may carry.
    pub(crate) fn segments_max(&self, bytes: u16) -> usize {
        (BATCH_BYTES_MAX / usize::from(bytes.max(1))).clamp(1, self.segments_max)
    }

    /// Whether the network may fragment what is sent: then path MTU discovery would lie.
    pub(crate) fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    /// Sends that failed for another reason than a full buffer or the MTU.
    pub(crate) fn send_errors(&self) -> u64 {
        self.send_errors.load(Ordering::Relaxed)
    }

    /// The form of `address` that this socket's family wants.
    fn kernel_addr(&self, address: SocketAddr) -> SocketAddr {
        match (self.local, address) {
            (SocketAddr::V6(_), SocketAddr::V4(v4)) => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            _ => address,
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The address of a sender as a person would write it: IPv4 also when it came in over the dual-stack socket.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn open(address: SocketAddr) -> io::Result<RawSocket> {
    let socket = RawSocket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Sets both buffers, above the system's limit where this process may, else up to it.
fn size_buffers(socket: &RawSocket) {
    for (forced, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        if set_buffer(socket, forced).is_err()
            && let Err(error) = set_buffer(socket, plain)
        {
            tracing::debug!(%error, "UDP socket buffer keeps the system's default size");
        }
    }
    let sock = SockRef::from(socket);
    tracing::debug!(receive = ?sock.recv_buffer_size(), send = ?sock.send_buffer_size(), "UDP socket buffers");
}

fn set_buffer(socket: &RawSocket, option: libc::c_int) -> io::Result<()> {
    let bytes = BUFFER_BYTES as libc::c_int;
    // SAFETY: the descriptor is open, and the value is a c_int of the length that is passed with it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// Receives within a second; the socket does not block.
    fn receive(socket: &Socket, buffer: &mut [u8]) -> RecvMeta {
        let deadline = Instant::now() + Duration::from_secs(1);
        loop {
            match socket.receive(buffer) {
                Ok(meta) => return meta,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn one_socket_serves_both_families() {
        let a = Socket::bind("[::]:0".parse().unwrap()).unwrap();
        let b = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut buffer = [0; 4096];
        a.send(b"four", None, b.local_addr(), None).unwrap();
        let meta = receive(&b, &mut buffer);
        assert_eq!(&buffer[..meta.len], b"four");
        b.send(b"back", None, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), a.local_addr().port()), None).unwrap();
        let meta = receive(&a, &mut buffer);
        assert_eq!(canonical(meta.addr), b.local_addr());
    }

    #[test]
    fn batches_arrive_whole() {
        let a = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let b = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        a.send(&[7; 3000], Some(1000), b.local_addr(), None).unwrap();
        let mut buffer = vec![0; 65_536];
        let mut bytes = 0;
        while bytes < 3000 {
            let meta = receive(&b, &mut buffer);
            assert_eq!(meta.stride, 1000);
            bytes += meta.len;
        }
    }

    #[test]
    fn an_invalid_address_does_not_end_segmentation() {
        let a = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let before = a.segments_max(1472);
        a.send(b"to nowhere", None, "127.0.0.1:0".parse().unwrap(), None).unwrap();
        a.send(b"to nowhere", None, "[::1]:5".parse().unwrap(), None).unwrap();
        assert_eq!((a.segments_max(1472), a.send_errors()), (before, 2));
    }

    #[test]
    fn a_taken_port_names_its_holder() {
        let a = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = Socket::bind(a.local_addr()).unwrap_err().to_string();
        assert!(error.contains(&format!("{}", a.local_addr())), "{error}");
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    }
}

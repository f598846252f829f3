//! A port: where a network meets this host. One TAP, what it can take, and what went through it.

use super::stats::TrafficCounters;
use super::tap::{Tap, TapOffloads};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use virtuoso_overlay::drop_reason::DropReason;
use virtuoso_overlay::ids::NetworkId;
use virtuoso_overlay::offload::{Segmenter, VnetHdr};
use virtuoso_overlay::packet::PacketBuffer;
use virtuoso_overlay::wire::frame::VNET_BYTES;

/// Bytes of an untagged Ethernet header.
const ETHERNET_BYTES: usize = 14;

/// What the engine needs to serve a network's TAP.
#[derive(Debug)]
pub struct PortConfig {
    /// The network.
    pub network: NetworkId,
    /// The TAP, with `IFF_VNET_HDR` and a 10-byte virtio-net header.
    pub tap: OwnedFd,
    /// The network's MTU.
    pub mtu: u16,
    /// What the TAP takes.
    pub offloads: TapOffloads,
}

/// A port of the engine.
#[derive(Debug)]
pub(super) struct Port {
    tap: Tap,
    mtu: usize,
    offloads: TapOffloads,
    pub(super) traffic: TrafficCounters,
    /// Whether something was delivered since it was read last.
    has_delivered: bool,
}

impl Port {
    pub(super) fn new(config: PortConfig) -> io::Result<Self> {
        Ok(Self {
            tap: Tap::new(config.tap)?,
            mtu: config.mtu.into(),
            offloads: config.offloads,
            traffic: TrafficCounters::default(),
            has_delivered: false,
        })
    }

    /// Reads one packet and makes its virtio-net header one that a peer accepts. False if it was dropped. HOT PATH.
    pub(super) fn read(&mut self, buffer: &mut PacketBuffer) -> io::Result<bool> {
        self.has_delivered = false;
        buffer.fill(|bytes| self.tap.read(bytes))?;
        let packet = buffer.as_mut();
        self.traffic.received(packet.len().saturating_sub(VNET_BYTES));
        let Some((header, frame)) = packet.split_first_chunk_mut::<VNET_BYTES>() else {
            self.traffic.drops.count(DropReason::Malformed);
            return Ok(false);
        };
        match VnetHdr::decode(header).and_then(|wish| wish.settle(frame)) {
            Ok(settled) => *header = settled.encode(),
            Err(_) => {
                self.traffic.drops.count(DropReason::BadOffload);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes a packet of untrusted origin: its virtio-net header is rebuilt. HOT PATH.
    pub(super) fn deliver(&mut self, segmenter: &mut Segmenter, packet: &[u8]) {
        self.has_delivered = true;
        match self.write(segmenter, packet) {
            Ok(bytes) => self.traffic.sent(bytes),
            Err(reason) => self.traffic.drops.count(reason),
        }
    }

    /// Whether something was delivered since it was read last: who got it may have answered already.
    pub(super) fn has_delivered(&self) -> bool {
        self.has_delivered
    }

    /// Gives a packet of untrusted origin to `send`, which takes it past the bridge: its virtio-net header is rebuilt.
    pub(super) fn deliver_aside(
        &mut self,
        packet: &[u8],
        send: impl FnOnce(&[u8; VNET_BYTES], &[u8]) -> io::Result<()>,
    ) {
        let sent = self.checked(packet).and_then(|(header, frame)| {
            send(&header.encode(), frame).map(|()| frame.len()).map_err(|_| DropReason::PortRefused)
        });
        match sent {
            Ok(bytes) => self.traffic.sent(bytes),
            Err(reason) => self.traffic.drops.count(reason),
        }
    }

    /// The frame and the header that the kernel may see.
    fn checked<'a>(&self, packet: &'a [u8]) -> Result<(VnetHdr, &'a [u8]), DropReason> {
        let (header, frame) = packet.split_first_chunk::<VNET_BYTES>().ok_or(DropReason::Malformed)?;
        let header =
            VnetHdr::decode(header).and_then(|wish| wish.rebuild(frame)).map_err(|_| DropReason::BadOffload)?;
        if frame.len() > self.mtu + ETHERNET_BYTES && header.packet_bytes(frame) > self.mtu {
            return Err(DropReason::TooBig);
        }
        Ok((header, frame))
    }

    fn write(&mut self, segmenter: &mut Segmenter, packet: &[u8]) -> Result<usize, DropReason> {
        let (header, frame) = self.checked(packet)?;
        if self.offloads.take(&header) {
            match self.tap.write(&header.encode(), frame) {
                Ok(()) => return Ok(frame.len()),
                Err(error) if is_refusal(&error) && header != VnetHdr::PLAIN => self.give_up(&header),
                Err(_) => return Err(DropReason::PortRefused),
            }
        }
        let mut result = Ok(());
        let plain = VnetHdr::PLAIN.encode();
        let finished = segmenter.finish(&header, frame, |segment| {
            if result.is_ok() {
                result = self.tap.write(&plain, segment);
            }
        });
        finished.map_err(|_| DropReason::BadOffload)?;
        result.map_err(|_| DropReason::PortRefused)?;
        Ok(frame.len())
    }

    /// The kernel promised an offload and does not keep it: it is done here from now on.
    fn give_up(&mut self, header: &VnetHdr) {
        self.offloads = self.offloads.without(header);
        tracing::warn!(?header, left = ?self.offloads, "A TAP refused an offload, which is done in software from now on");
    }
}

/// Whether the kernel finds fault with the packet's header; anything else is about the device.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::super_frame;
    use super::*;
    use std::os::fd::FromRawFd;

    #[test]
    fn an_offload_that_is_refused_is_given_up() {
        // SAFETY: the call takes no pointers, and the descriptor it returns has no other owner.
        let refuses = unsafe { OwnedFd::from_raw_fd(libc::timerfd_create(libc::CLOCK_MONOTONIC, 0)) };
        let config = PortConfig { network: NetworkId(1), tap: refuses, mtu: 1500, offloads: TapOffloads::ALL };
        let mut port = Port::new(config).unwrap();
        let (header, frame) = super_frame(10_000, 1460);
        port.deliver(&mut Segmenter::default(), &[&header.encode()[..], &frame].concat());
        assert_eq!(port.offloads, TapOffloads { tso4: false, ..TapOffloads::ALL });
        assert_eq!(
            port.traffic.drops.get(DropReason::PortRefused),
            1,
            "what refuses everything takes no segment either"
        );
        assert!(!port.offloads.take(&header));
        let mut checksum = VnetHdr::PLAIN;
        checksum.needs_csum = true;
        assert!(port.offloads.take(&checksum) && !port.offloads.without(&checksum).take(&checksum));
        assert!(TapOffloads::NONE.take(&VnetHdr::PLAIN));
    }
}

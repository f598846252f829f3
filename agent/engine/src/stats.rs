//! What operators see of links and ports: plain numbers, taken as a snapshot.

use super::demux::DemuxCounters;
use std::time::Duration;
use virtuoso_overlay::congestion::Congestion;
use virtuoso_overlay::drop_reason::DropCounters;
use virtuoso_overlay::ids::{HostId, NetworkId};

/// Frames through one link or port. Bytes are those of Ethernet frames, without headers of ours.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct TrafficCounters {
    /// Frames that left: to the peer, or to the bridge.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames that came.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames that died here.
    pub drops: DropCounters,
}

impl TrafficCounters {
    pub(super) fn sent(&mut self, bytes: usize) {
        self.tx_frames += 1;
        self.tx_bytes += bytes as u64;
    }

    pub(super) fn received(&mut self, bytes: usize) {
        self.rx_frames += 1;
        self.rx_bytes += bytes as u64;
    }

    /// Adds what another one has counted.
    pub(super) fn add(&mut self, other: &Self) {
        self.tx_frames += other.tx_frames;
        self.tx_bytes += other.tx_bytes;
        self.rx_frames += other.rx_frames;
        self.rx_bytes += other.rx_bytes;
        self.drops.add(&other.drops);
    }
}

/// What a link is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkState {
    /// Nobody asked for it, or its peer has no known address.
    Idle,
    /// The QUIC handshake runs.
    Connecting,
    /// The handshake is done, certificates are being exchanged.
    Hello,
    /// It carries frames.
    Up,
    /// The last attempt failed; the next one waits.
    Backoff,
}

impl LinkState {
    /// The stable name, as the API shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Connecting => "connecting",
            Self::Hello => "hello",
            Self::Up => "up",
            Self::Backoff => "backoff",
        }
    }
}

/// One link.
#[derive(Clone, Debug)]
pub struct LinkInfo {
    /// The peer.
    pub host: HostId,
    /// What the link is doing.
    pub state: LinkState,
    /// The path in use.
    pub path: Option<String>,
    /// Round trip as QUIC measures it.
    pub rtt: Option<Duration>,
    /// UDP payload that the path carries.
    pub mtu_bytes: Option<u16>,
    /// QUIC packets sent on the present connection.
    pub sent_packets: u64,
    /// How many of them were lost.
    pub lost_packets: u64,
    /// How often the path was found to carry less than before.
    pub black_holes: u64,
    /// Bits of UDP payload sent per second, within the last half second.
    pub sent_bits_per_s: u64,
    /// See [`LinkInfo::sent_bits_per_s`], received.
    pub received_bits_per_s: u64,
    /// Packets that one send passes to the kernel; one where the device does not segment.
    pub batch_packets: usize,
    /// What limits how much is on its way, now.
    pub congestion: Congestion,
    /// The most that it sends, in Mbit/s; 0 is no limit.
    pub rate_mbit: u32,
    /// Frames that came without a part, and were delivered as far as they came.
    pub repaired_frames: u64,
    /// Frames that wait for the link.
    pub queued_frames: u64,
    /// Frames that were marked instead of dropped because they had waited for too long.
    pub marked_frames: u64,
    /// Super-frames that lost one segment because they had waited for too long.
    pub cut_frames: u64,
    /// Frames.
    pub traffic: TrafficCounters,
    /// Why the link is not up, if it was tried.
    pub error: Option<String>,
    /// How long it has been up.
    pub age: Duration,
}

/// One port.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// The network.
    pub network: NetworkId,
    /// Frames: `rx` came from the bridge, `tx` went to it.
    pub traffic: TrafficCounters,
}

/// Everything at one moment.
#[derive(Clone, Debug)]
pub struct EngineInfo {
    /// The links, by host.
    pub links: Vec<LinkInfo>,
    /// The ports, by network.
    pub ports: Vec<PortInfo>,
    /// Frames of hosts that are not admitted.
    pub strays: TrafficCounters,
    /// Packets of the shared UDP port.
    pub demux: DemuxCounters,
    /// UDP sends that failed for another reason than a full buffer or the MTU.
    pub send_errors: u64,
    /// Events that the control plane was too slow for.
    pub events_lost: u64,
    /// Frames that died while they waited for a moving address.
    pub held_drops: DropCounters,
}

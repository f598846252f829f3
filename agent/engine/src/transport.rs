//! QUIC's settings on the data plane, each with its reason.

use super::congestion::Windows;
use quinn_proto::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use std::sync::Arc;
use std::time::Duration;
use virtuoso_overlay::congestion::Congestion;

/// What every path must carry: QUIC's own minimum.
const MTU_FLOOR: u16 = 1200;

/// Bytes of datagrams that wait inside QUIC at most. The next frame is handed over only when the buffer is half
/// empty, so that about one super-frame is committed at a time and the queue that counts is ours.
pub(crate) const DATAGRAM_BUFFER_BYTES: usize = 256 << 10;

/// Bytes of received datagrams that wait for the engine: it drains them after each batch from the socket, which
/// holds 64 KiB at most.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;

/// Bytes of link messages in flight. They are few and small; the window is what an unread stream can pin.
const STREAM_WINDOW: u32 = 256 << 10;

/// Keeps NAT bindings and detects a dead peer. One keep-alive fits into the idle time: QUIC repeats it until it is
/// answered. Either side's serves both.
const KEEP_ALIVE: Duration = Duration::from_secs(8);
const IDLE: Duration = Duration::from_secs(15);

/// First guess of the round trip: a lost first packet is repeated after three times this.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// The settings of a connection that is probed for UDP payloads of up to `ceiling` bytes. `may_fragment` switches
/// discovery off where its probes would be fragmented.
pub(super) fn config(may_fragment: bool, ceiling: u16, congestion: Congestion) -> Arc<TransportConfig> {
    let mut discovery = MtuDiscoveryConfig::default();
    // Steps of 20 bytes, the default, would give up to 19 bytes of each packet away. A black hole that burst loss
    // feigned must not halve a link for a minute.
    discovery
        .upper_bound(ceiling)
        .minimum_change(1)
        .black_hole_cooldown(Duration::from_secs(5))
        .interval(Duration::from_secs(30));
    let idle = IdleTimeout::try_from(IDLE).expect("15 s is a valid idle timeout");
    let mut config = TransportConfig::default();
    config
        .initial_mtu(MTU_FLOOR)
        .min_mtu(MTU_FLOOR)
        .mtu_discovery_config((!may_fragment).then_some(discovery))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(idle))
        .initial_rtt(INITIAL_RTT)
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
        .datagram_receive_buffer_size(Some(RECEIVE_BUFFER_BYTES))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(STREAM_WINDOW))
        .send_window(u64::from(STREAM_WINDOW))
        .congestion_controller_factory(Arc::new(Windows(congestion)));
    Arc::new(config)
}

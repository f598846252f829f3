//! Every bound and timer of the overlay, with its reason.

use std::time::Duration;

/// Bytes of one frame or super-frame without headers of ours: what TSO hands over at most, plus Ethernet and VLAN.
pub const FRAME_BYTES_MAX: usize = 65_535 + 18;

/// Smallest and largest MTU of a network. 1280 is IPv6's minimum, 9000 the usual jumbo frame.
pub const NETWORK_MTU_MIN: u16 = 1280;
/// See [`NETWORK_MTU_MIN`].
pub const NETWORK_MTU_MAX: u16 = 9000;
/// MTU of a network unless it says otherwise: guests keep Ethernet's own.
pub const NETWORK_MTU_DEFAULT: u16 = 1500;

/// How often a frame may be sent on by hosts that no longer hold its destination. One move needs one hop; a VM that
/// moves again before its talkers heard needs two; beyond four it is a loop.
pub const HOP_LIMIT: u8 = 4;

/// Characters in a host, network or image name: one DNS label.
pub const NAME_CHARS_MAX: usize = 63;

/// Time between two refreshes of a host row in a small swarm. Grows with the swarm (see `node::refresh_interval`), so
/// that rows received per second stay below about 33 whatever its size.
pub const REFRESH_INTERVAL_MIN: Duration = Duration::from_secs(5);
/// See [`REFRESH_INTERVAL_MIN`].
pub const REFRESH_INTERVAL_MAX: Duration = Duration::from_secs(300);

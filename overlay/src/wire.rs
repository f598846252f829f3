//! What goes over the wire: checked views of packets, our frame header, messages, and their encoding.
//!
//! The views of guests' packets borrow the bytes, allocate nothing, and check once: `new_checked` refuses what its
//! accessors could not read, so these never fail. Most are made from the first bytes of a frame only, because the
//! rest of it may never come near the code that decides. Packets built here are answers and probes: rare, rate-limited
//! by their senders, and therefore plain `Vec`s.

pub mod announce;
pub mod arp;
pub mod attach;
pub mod beacon;
pub mod codec;
pub mod dhcp;
pub mod disc;
pub mod dns;
pub mod ethernet;
pub mod frame;
pub mod image;
pub mod ip;
pub mod message;
pub mod nd;
pub mod parcel;
pub mod too_big;
pub mod udp;

/// Why bytes are not the packet that a view was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PacketError {
    /// The bytes end before what the view needs.
    #[error("Packet is truncated")]
    Truncated,
    /// A packet of another kind.
    #[error("Packet is of another kind")]
    OtherKind,
    /// The packet contradicts itself or its standard.
    #[error("Packet is malformed")]
    Malformed,
    /// The checksum is wrong.
    #[error("Packet has a wrong checksum")]
    Checksum,
}

//! Every way in which a frame can die, and a counter for each. A frame that dies is never an error.

use std::fmt;

/// Why a frame went no further.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum DropReason {
    /// Shorter than an Ethernet header, or its headers contradict its length.
    Malformed,
    /// The frame header has a version or flags that this host does not know.
    UnknownVersion,
    /// A peer sent a frame of a network that has no port here.
    UnknownNetwork,
    /// The link's peer has shown no valid certificate yet.
    NotAdmitted,
    /// The source address is a group address or zero.
    BadSource,
    /// It belongs to one wire or LAN: a group address that bridges must not forward (01:80:c2:00:00:0x), or the beacon
    /// of an uplink.
    LinkLocal,
    /// Larger than the network's MTU allows; the sender was told by ICMP where the protocol has it.
    TooBig,
    /// The destination is on this host: the bridge delivers it.
    Local,
    /// No host claims the destination.
    UnknownDestination,
    /// No other host has a port in this network.
    Alone,
    /// The hop limit reached zero: a loop of stragglers.
    HopLimit,
    /// The flood limit of the port is used up.
    FloodLimit,
    /// Seen before.
    Duplicate,
    /// ARP or ND that was answered from claims.
    Answered,
    /// The destination host can't be reached yet and the queue for it is full.
    NoLink,
    /// The queue towards the link is full.
    QueueFull,
    /// It waited for a moving address longer than the bound, or its buffer was full.
    HoldOverflow,
    /// A chunk of the frame was lost or contradicts the others.
    Incomplete,
    /// The virtio-net header does not fit the frame.
    BadOffload,
    /// The TAP did not take it.
    PortRefused,
    /// It was given up after a wait, so that its flow slows down.
    Congested,
    /// It speaks in the name of another station than its sender may.
    Spoofed,
}

impl DropReason {
    /// All reasons, in the order of their counters.
    pub const ALL: [Self; 22] = [
        Self::Malformed,
        Self::UnknownVersion,
        Self::UnknownNetwork,
        Self::NotAdmitted,
        Self::BadSource,
        Self::LinkLocal,
        Self::TooBig,
        Self::Local,
        Self::UnknownDestination,
        Self::Alone,
        Self::HopLimit,
        Self::FloodLimit,
        Self::Duplicate,
        Self::Answered,
        Self::NoLink,
        Self::QueueFull,
        Self::HoldOverflow,
        Self::Incomplete,
        Self::BadOffload,
        Self::PortRefused,
        Self::Congested,
        Self::Spoofed,
    ];

    /// The stable name, as the API shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownVersion => "unknown_version",
            Self::UnknownNetwork => "unknown_network",
            Self::NotAdmitted => "not_admitted",
            Self::BadSource => "bad_source",
            Self::LinkLocal => "link_local",
            Self::TooBig => "too_big",
            Self::Local => "local",
            Self::UnknownDestination => "unknown_destination",
            Self::Alone => "alone",
            Self::HopLimit => "hop_limit",
            Self::FloodLimit => "flood_limit",
            Self::Duplicate => "duplicate",
            Self::Answered => "answered",
            Self::NoLink => "no_link",
            Self::QueueFull => "queue_full",
            Self::HoldOverflow => "hold_overflow",
            Self::Incomplete => "incomplete",
            Self::BadOffload => "bad_offload",
            Self::PortRefused => "port_refused",
            Self::Congested => "congested",
            Self::Spoofed => "spoofed",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One counter for each reason.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct DropCounters([u64; DropReason::ALL.len()]);

impl DropCounters {
    /// Counts one frame.
    pub fn count(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    /// Adds what another one has counted.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
    }

    /// How many frames died of `reason`.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// The reasons that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.into_iter().map(|reason| (reason, self.get(reason))).filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up() {
        let (mut a, mut b) = (DropCounters::default(), DropCounters::default());
        a.count(DropReason::Alone);
        b.count(DropReason::Alone);
        b.count(DropReason::Spoofed);
        a.add(&b);
        assert_eq!(a.iter().collect::<Vec<_>>(), [(DropReason::Alone, 2), (DropReason::Spoofed, 1)]);
    }

    #[test]
    fn all_is_in_counter_order() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{reason}");
        }
    }
}

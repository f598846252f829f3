//! The beacon by which hosts find out that their uplinks lead to the same LAN. This is its only definition.
//!
//! An Ethernet frame to a group that bridges and switches forward, so that it reaches every corner of the LAN and
//! nothing beyond it: the overlay drops it (see `Switch::ingress`). Behind the Ethernet header:
//!
//! ```text
//!  0 .. 3   4         5          6  7    8 .. 11           12 .. 43   44 .. 75
//! +--------+---------+----------+-------+-----------------+----------+---------+
//! | "VOUL" | version | standing | 0  0  | network id (BE) | swarm id | host id |
//! +--------+---------+----------+-------+-----------------+----------+---------+
//! ```
//! What follows is padding. A beacon is not signed: who can send on a LAN can cut it off or loop it without beacons.

use super::PacketError;
use super::ethernet::{self, EtherType, EthernetView, VlanTags};
use crate::ids::{HostId, Mac, NetworkId, SwarmId};

/// Where beacons go: a locally administered group ("vo", 1). Those of 802.1Q table 8-1 end at the first switch.
pub const GROUP: Mac = Mac([0x03, b'v', b'o', 0, 0, 1]);

/// IEEE 802 local experimental EtherType 1.
pub const ETHERTYPE: EtherType = EtherType(0x88b5);

/// Version of the beacon that this host speaks.
pub const VERSION: u8 = 1;

/// Bytes of a beacon with its Ethernet header. Ethernet's least frame is shorter, so it needs no padding.
pub const FRAME_BYTES: usize = ethernet::HEADER_BYTES + BODY_BYTES;

const BODY_BYTES: usize = 76;
const MAGIC: [u8; 4] = *b"VOUL";

/// What a host says of its uplink.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Beacon {
    /// Its swarm.
    pub swarm: SwarmId,
    /// The network that the uplink is in.
    pub network: NetworkId,
    /// The host.
    pub host: HostId,
    /// How it stands.
    pub standing: Standing,
}

/// How a host stands in the election of the one that joins a LAN to a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It has just come and only listens.
    Listening = 0,
    /// It would join the two, and does not.
    Standby = 1,
    /// It joins the two.
    Active = 2,
    /// It has stopped, and is not to be waited for.
    Leaving = 3,
}

impl Beacon {
    /// The whole frame, sent by a NIC with the address `src`.
    pub fn encode(&self, src: Mac) -> Vec<u8> {
        let mut frame = ethernet::build_header(GROUP, src, VlanTags::NONE, ETHERTYPE, BODY_BYTES);
        frame.extend_from_slice(&MAGIC);
        frame.extend_from_slice(&[VERSION, self.standing as u8, 0, 0]);
        frame.extend_from_slice(&self.network.0.to_be_bytes());
        frame.extend_from_slice(&self.swarm.0);
        frame.extend_from_slice(&self.host.0);
        frame
    }

    /// Reads a whole frame.
    ///
    /// # Errors
    /// If it is no beacon, is of another version, or ends too early.
    pub fn decode(frame: &[u8]) -> Result<Self, PacketError> {
        let view = EthernetView::new_checked(frame)?;
        if !is_beacon(&view) || view.tags() != VlanTags::NONE {
            return Err(PacketError::OtherKind);
        }
        let body = view.payload().first_chunk::<BODY_BYTES>().ok_or(PacketError::Truncated)?;
        let (head, keys) = body.split_at(12);
        let &[m0, m1, m2, m3, version, standing, zero0, zero1, n0, n1, n2, n3] = head else {
            return Err(PacketError::Truncated);
        };
        if [m0, m1, m2, m3] != MAGIC || version != VERSION {
            return Err(PacketError::OtherKind);
        }
        let standing = match (standing, zero0, zero1) {
            (0, 0, 0) => Standing::Listening,
            (1, 0, 0) => Standing::Standby,
            (2, 0, 0) => Standing::Active,
            (3, 0, 0) => Standing::Leaving,
            _ => return Err(PacketError::Malformed),
        };
        let (swarm, host) = keys.split_at(32);
        Ok(Self {
            swarm: SwarmId(swarm.try_into().map_err(|_| PacketError::Truncated)?),
            network: NetworkId(u32::from_be_bytes([n0, n1, n2, n3])),
            host: HostId(host.try_into().map_err(|_| PacketError::Truncated)?),
            standing,
        })
    }
}

/// Whether a frame belongs to the election of uplinks, whatever its version, and so to one LAN only.
// HOT PATH
pub fn is_beacon(view: &EthernetView<'_>) -> bool {
    view.dst() == GROUP && view.ethertype() == ETHERTYPE
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NIC: Mac = Mac([2, 0, 0, 0, 0, 9]);
    const BEACON: Beacon = Beacon {
        swarm: SwarmId([7; 32]),
        network: NetworkId(0x0102_0304),
        host: HostId([9; 32]),
        standing: Standing::Active,
    };

    #[test]
    fn the_encoding_is_fixed() {
        let frame = BEACON.encode(NIC);
        assert_eq!(frame.len(), FRAME_BYTES);
        assert_eq!(frame[..14], [0x03, b'v', b'o', 0, 0, 1, 2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
        assert_eq!(frame[14..26], [b'V', b'O', b'U', b'L', 1, 2, 0, 0, 1, 2, 3, 4]);
        assert_eq!((&frame[26..58], &frame[58..]), (&[7; 32][..], &[9; 32][..]));
        assert!(GROUP.is_group() && !ethernet::is_link_local_group(GROUP), "bridges forward it");
    }

    #[test]
    fn padding_is_ignored_and_damage_is_not() {
        let mut frame = BEACON.encode(NIC);
        frame.extend([0; 40]);
        assert_eq!(Beacon::decode(&frame), Ok(BEACON));
        for (at, to, error) in [
            (0, 1, PacketError::OtherKind),
            (13, 0xb6, PacketError::OtherKind),
            (14, 0, PacketError::OtherKind),
            (18, 2, PacketError::OtherKind),
            (19, 4, PacketError::Malformed),
            (20, 1, PacketError::Malformed),
        ] {
            let mut damaged = frame.clone();
            damaged[at] = to;
            assert_eq!(Beacon::decode(&damaged), Err(error), "byte {at}");
        }
        for n in 0..FRAME_BYTES {
            assert_eq!(Beacon::decode(&frame[..n]), Err(PacketError::Truncated), "{n}");
        }
    }

    #[test]
    fn a_tagged_beacon_is_of_another_lan_and_still_stays_out_of_the_overlay() {
        let plain = BEACON.encode(NIC);
        let tagged = [&plain[..12], VlanTags::single(7).as_bytes(), &plain[12..]].concat();
        assert_eq!(Beacon::decode(&tagged), Err(PacketError::OtherKind));
        assert!(is_beacon(&EthernetView::new_checked(&tagged).unwrap()));
    }

    proptest! {
        #[test]
        fn round_trips(swarm: [u8; 32], network: u32, host: [u8; 32], standing in 0usize..4) {
            let standing = [Standing::Listening, Standing::Standby, Standing::Active, Standing::Leaving][standing];
            let beacon = Beacon { swarm: SwarmId(swarm), network: NetworkId(network), host: HostId(host), standing };
            prop_assert_eq!(Beacon::decode(&beacon.encode(NIC)), Ok(beacon));
        }

        #[test]
        fn any_bytes_decode_or_fail(tail: Vec<u8>, whole: bool) {
            let bytes = if whole { tail } else { [&BEACON.encode(NIC)[..20], &tail].concat() };
            if let Ok(beacon) = Beacon::decode(&bytes) {
                let src = EthernetView::new_checked(&bytes).unwrap().src();
                prop_assert_eq!(&beacon.encode(src)[..], &bytes[..FRAME_BYTES]);
            }
        }
    }
}

//! Ethernet headers with up to two VLAN tags: a checked view, and the header of an answer.
//!
//! The view needs the headers only. It never assumes that the whole frame is there.

use super::PacketError;
use crate::ids::Mac;
use std::fmt;

/// Bytes of an untagged header.
pub const HEADER_BYTES: usize = 14;
/// Bytes of one VLAN tag.
pub const TAG_BYTES: usize = 4;
/// VLAN tags that are looked through: 802.1Q and, outside it, 802.1ad. What a third tag hides is payload.
pub const TAGS_MAX: usize = 2;

/// What a frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EtherType(pub u16);

impl EtherType {
    /// Internet Protocol version 4.
    pub const IPV4: Self = Self(0x0800);
    /// Address resolution (RFC 826).
    pub const ARP: Self = Self(0x0806);
    /// Reverse address resolution (RFC 903); QEMU announces a resumed guest with it.
    pub const RARP: Self = Self(0x8035);
    /// Customer VLAN tag (802.1Q).
    pub const VLAN: Self = Self(0x8100);
    /// Internet Protocol version 6.
    pub const IPV6: Self = Self(0x86dd);
    /// Service VLAN tag (802.1ad).
    pub const SERVICE_VLAN: Self = Self(0x88a8);

    /// Whether a VLAN tag follows.
    pub const fn is_tag(self) -> bool {
        matches!(self, Self::VLAN | Self::SERVICE_VLAN)
    }
}

impl fmt::Debug for EtherType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EtherType({:#06x})", self.0)
    }
}

/// The VLAN tags of a frame as they stand in it, so that an answer can carry the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct VlanTags {
    bytes: [u8; TAGS_MAX * TAG_BYTES],
    count: u8,
}

impl VlanTags {
    /// No tag.
    pub const NONE: Self = Self { bytes: [0; TAGS_MAX * TAG_BYTES], count: 0 };

    /// One 802.1Q tag for VLAN `id`, of which the low twelve bits count.
    pub const fn single(id: u16) -> Self {
        let [tpid_high, tpid_low] = EtherType::VLAN.0.to_be_bytes();
        let [id_high, id_low] = (id & VLAN_ID_MASK).to_be_bytes();
        Self { bytes: [tpid_high, tpid_low, id_high, id_low, 0, 0, 0, 0], count: 1 }
    }

    /// The tags, outermost first, each with its tag protocol identifier in front.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..TAG_BYTES * usize::from(self.count)]
    }

    /// How many there are.
    pub const fn count(&self) -> usize {
        self.count as usize
    }
}

/// The headers of an Ethernet frame.
#[derive(Clone, Copy)]
pub struct EthernetView<'a> {
    bytes: &'a [u8],
    payload_offset: usize,
}

impl<'a> EthernetView<'a> {
    /// Reads the headers of the frame that begins with `bytes`.
    ///
    /// # Errors
    /// If the bytes end before the Ethernet header and its VLAN tags do.
    // HOT PATH
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let mut payload_offset = HEADER_BYTES;
        for _ in 0..TAGS_MAX {
            if !ethertype_before(bytes, payload_offset)?.is_tag() {
                break;
            }
            payload_offset += TAG_BYTES;
        }
        ethertype_before(bytes, payload_offset)?;
        Ok(Self { bytes, payload_offset })
    }

    /// The station or group the frame is for.
    pub fn dst(&self) -> Mac {
        self.mac_at(0)
    }

    /// The station that sent it.
    pub fn src(&self) -> Mac {
        self.mac_at(6)
    }

    /// What the payload is. Below 0x0600 it is a length (802.3), and for a third VLAN tag it is that tag's.
    pub fn ethertype(&self) -> EtherType {
        let low = self.payload_offset - 1;
        EtherType(u16::from_be_bytes([self.bytes[low - 1], self.bytes[low]]))
    }

    /// The VLAN tags.
    pub fn tags(&self) -> VlanTags {
        let mut tags = VlanTags::NONE;
        let found = &self.bytes[12..self.payload_offset - 2];
        tags.bytes[..found.len()].copy_from_slice(found);
        tags.count = if found.len() == TAGS_MAX * TAG_BYTES { 2 } else { u8::from(!found.is_empty()) };
        tags
    }

    /// The outermost VLAN. A tag that carries a priority only (id 0) names none.
    pub fn vlan(&self) -> Option<u16> {
        if self.payload_offset == HEADER_BYTES {
            return None;
        }
        let id = u16::from_be_bytes([self.bytes[14], self.bytes[15]]) & VLAN_ID_MASK;
        (id != 0).then_some(id)
    }

    /// Where the payload begins.
    pub fn payload_offset(&self) -> usize {
        self.payload_offset
    }

    /// The payload, as far as it is here.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.payload_offset..]
    }

    /// The header of an answer: to the frame's sender, from `src`, in the same VLANs, with room for `payload_bytes`.
    pub(super) fn answer(&self, src: Mac, ethertype: EtherType, payload_bytes: usize) -> Vec<u8> {
        build_header(self.src(), src, self.tags(), ethertype, payload_bytes)
    }

    fn mac_at(&self, offset: usize) -> Mac {
        let mut mac = [0; 6];
        mac.copy_from_slice(&self.bytes[offset..offset + 6]);
        Mac(mac)
    }
}

impl fmt::Debug for EthernetView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} vlan {:?} {:?}", self.src(), self.dst(), self.vlan(), self.ethertype())
    }
}

/// Whether `mac` is one of 01:80:c2:00:00:00 to :0f: the protocols of one wire (STP, LACP, LLDP, pause), which a
/// bridge must not send on (802.1Q, table 8-1).
pub const fn is_link_local_group(mac: Mac) -> bool {
    matches!(mac.0, [0x01, 0x80, 0xc2, 0x00, 0x00, 0x00..=0x0f])
}

/// A header in a buffer that has room for `payload_bytes` more.
pub(super) fn build_header(dst: Mac, src: Mac, tags: VlanTags, ethertype: EtherType, payload_bytes: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER_BYTES + tags.as_bytes().len() + payload_bytes);
    frame.extend_from_slice(&dst.0);
    frame.extend_from_slice(&src.0);
    frame.extend_from_slice(tags.as_bytes());
    frame.extend_from_slice(&ethertype.0.to_be_bytes());
    frame
}

/// The two bytes in front of `payload_offset`, which say what the payload is.
fn ethertype_before(bytes: &[u8], payload_offset: usize) -> Result<EtherType, PacketError> {
    match bytes.get(payload_offset - 2..payload_offset) {
        Some(&[high, low]) => Ok(EtherType(u16::from_be_bytes([high, low]))),
        _ => Err(PacketError::Truncated),
    }
}

const VLAN_ID_MASK: u16 = 0x0fff;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DST: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const SRC: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn frame(between: &[u8], payload: &[u8]) -> Vec<u8> {
        [&DST.0[..], &SRC.0, between, payload].concat()
    }

    #[test]
    fn untagged() {
        let bytes = frame(&[0x08, 0x00], b"payload");
        let view = EthernetView::new_checked(&bytes).unwrap();
        assert_eq!((view.dst(), view.src(), view.ethertype()), (DST, SRC, EtherType::IPV4));
        assert_eq!((view.vlan(), view.tags(), view.payload_offset()), (None, VlanTags::NONE, 14));
        assert_eq!(view.payload(), b"payload");
    }

    #[test]
    fn one_tag_two_tags_and_a_third() {
        let one = frame(&[0x81, 0x00, 0x20, 0x07, 0x08, 0x06], b"x");
        let view = EthernetView::new_checked(&one).unwrap();
        assert_eq!((view.vlan(), view.ethertype(), view.payload()), (Some(7), EtherType::ARP, &b"x"[..]));
        assert_eq!(view.tags().as_bytes(), [0x81, 0x00, 0x20, 0x07]);

        let two = frame(&[0x88, 0xa8, 0, 9, 0x81, 0x00, 0, 7, 0x86, 0xdd], b"x");
        let view = EthernetView::new_checked(&two).unwrap();
        assert_eq!((view.vlan(), view.ethertype(), view.tags().count()), (Some(9), EtherType::IPV6, 2));

        let three = frame(&[0x88, 0xa8, 0, 9, 0x81, 0x00, 0, 7, 0x81, 0x00, 0, 3, 8, 0], b"x");
        let view = EthernetView::new_checked(&three).unwrap();
        assert_eq!((view.ethertype(), view.payload_offset()), (EtherType::VLAN, 22));
    }

    #[test]
    fn a_priority_tag_names_no_vlan() {
        let bytes = frame(&[0x81, 0x00, 0xe0, 0x00, 0x08, 0x00], b"");
        let view = EthernetView::new_checked(&bytes).unwrap();
        assert_eq!((view.vlan(), view.tags().count()), (None, 1));
    }

    #[test]
    fn truncated_headers_are_refused() {
        let bytes = frame(&[0x88, 0xa8, 0, 9, 0x81, 0x00, 0, 7, 0x86, 0xdd], b"");
        for n in 0..bytes.len() {
            assert_eq!(EthernetView::new_checked(&bytes[..n]).err(), Some(PacketError::Truncated), "{n}");
        }
    }

    #[test]
    fn answers_keep_tags() {
        let bytes = frame(&[0x81, 0x00, 0x20, 0x07, 0x08, 0x06], b"");
        let answer = EthernetView::new_checked(&bytes).unwrap().answer(DST, EtherType::ARP, 0);
        let view = EthernetView::new_checked(&answer).unwrap();
        assert_eq!((view.dst(), view.src(), view.vlan()), (SRC, DST, Some(7)));
        assert_eq!(VlanTags::single(7).as_bytes(), [0x81, 0x00, 0x00, 0x07]);
    }

    #[test]
    fn link_local_groups() {
        assert!(is_link_local_group(Mac([0x01, 0x80, 0xc2, 0, 0, 0x0e])));
        assert!(!is_link_local_group(Mac([0x01, 0x80, 0xc2, 0, 0, 0x10])));
        assert!(!is_link_local_group(Mac::BROADCAST));
    }

    proptest! {
        #[test]
        fn any_bytes_are_viewed_or_refused(bytes: Vec<u8>) {
            if let Ok(view) = EthernetView::new_checked(&bytes) {
                prop_assert_eq!(view.payload_offset() + view.payload().len(), bytes.len());
                let header = build_header(view.dst(), view.src(), view.tags(), view.ethertype(), 0);
                prop_assert_eq!(&header[..], &bytes[..view.payload_offset()]);
                let _ = format!("{view:?}");
            }
        }
    }
}

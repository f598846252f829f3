//! Connection ids that sort packets before QUIC sees them.
//!
//! Both planes share one UDP port and a short QUIC header has no length field, so every id that this host issues is
//! eight bytes long and begins with a magic that names its plane. A data-plane id goes on with the number of the
//! connection, so that a packet names its connection without a table. See RFC 8999 and RFC 9000 section 5.1.

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

/// First bytes of a data-plane id. All hosts must know it: a client's first packet carries an id of its own choice,
/// and this prefix sends it to the peer's data plane. A foreign first packet has it with probability 2^-24 and then
/// fails on the ALPN.
pub(crate) const DATA_MAGIC: [u8; 3] = *b"\xd7\x4d\x19";

/// First bytes of the ids that the control endpoint issues. Only this host reads them.
pub(crate) const CONTROL_MAGIC: [u8; 3] = *b"\x5e\xc0\x77";

/// Bytes of every id that this host issues.
pub(crate) const CID_BYTES: usize = 8;

/// Bytes of the id in a client's first packet: the longest that QUIC allows, most of it random.
const INITIAL_CID_BYTES: usize = 20;

/// The connection number of ids that are issued before there is a connection.
pub(crate) const NO_SLOT: u16 = u16::MAX;

/// The number that the next ids get. QUIC asks for ids without saying for which connection, but only inside calls
/// about one connection: it is set before each of them.
#[derive(Clone, Debug)]
pub(crate) struct CurrentSlot(Arc<AtomicU16>);

impl CurrentSlot {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicU16::new(NO_SLOT)))
    }

    pub(crate) fn set(&self, slot: u16) {
        self.0.store(slot, Ordering::Relaxed);
    }

    fn get(&self) -> u16 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Issues ids of the data plane: `[magic 3][connection 2][random 3]`.
pub(crate) struct DataCids(pub(crate) CurrentSlot);

/// Issues ids of the control plane: `[magic 3][random 5]`.
pub(crate) struct ControlCids;

impl ConnectionIdGenerator for DataCids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CID_BYTES];
        id[..3].copy_from_slice(&DATA_MAGIC);
        id[3..5].copy_from_slice(&self.0.get().to_be_bytes());
        fill_random(&mut id[5..]);
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        if id.starts_with(&DATA_MAGIC) { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        CID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

impl ConnectionIdGenerator for ControlCids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CID_BYTES];
        id[..3].copy_from_slice(&CONTROL_MAGIC);
        fill_random(&mut id[3..]);
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        if id.starts_with(&CONTROL_MAGIC) { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        CID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// The destination id of a first packet to a peer's data plane: the magic, no connection, and 15 random bytes.
pub(crate) fn initial_cid() -> ConnectionId {
    let mut id = [0; INITIAL_CID_BYTES];
    id[..3].copy_from_slice(&DATA_MAGIC);
    id[3..5].copy_from_slice(&NO_SLOT.to_be_bytes());
    fill_random(&mut id[5..]);
    ConnectionId::new(&id)
}

/// The connection number in the destination id of a packet that was classified as data.
pub(crate) fn slot_of(packet: &[u8]) -> u16 {
    let id = if packet.first().is_some_and(|first| first & 0x80 != 0) { packet.get(6..) } else { packet.get(1..) };
    match id {
        Some([a, b, c, high, low, ..]) if [*a, *b, *c] == DATA_MAGIC => u16::from_be_bytes([*high, *low]),
        _ => NO_SLOT,
    }
}

/// Fills `bytes` from the operating system's generator.
pub(crate) fn fill_random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the operating system has a random generator");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_carry_magic_and_slot() {
        let current = CurrentSlot::new();
        let mut ids = DataCids(current.clone());
        current.set(0x0102);
        let id = ids.generate_cid();
        assert!(ids.validate(&id).is_ok());
        assert!(ControlCids.validate(&id).is_err());
        let packet = [&[0x40][..], &id, &[0; 20]].concat();
        assert_eq!(slot_of(&packet), 0x0102);
    }

    #[test]
    fn first_packets_name_no_slot() {
        let id = initial_cid();
        let packet = [&[0xc0, 0, 0, 0, 1, 20][..], &id, &[0; 20]].concat();
        assert_eq!(slot_of(&packet), NO_SLOT);
        assert_ne!(initial_cid(), id, "ids must not be predictable");
        assert_eq!(slot_of(&[]), NO_SLOT);
    }
}

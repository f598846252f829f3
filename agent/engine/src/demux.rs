//! Sorts the packets of the shared UDP port between the data plane and the control plane.
//!
//! Only the first bytes are read, and only what RFC 8999 fixes for all versions of QUIC. A batch that the kernel
//! coalesced can hold packets of both planes, so every segment is classified, never the batch.

use super::cid::{CONTROL_MAGIC, DATA_MAGIC};
use std::time::Duration;
use virtuoso_overlay::time::Instant;

/// Which plane a packet is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// The data plane's QUIC.
    Data,
    /// The control plane's QUIC.
    Control,
    /// A short header with an id that neither plane issued: a stateless reset, or noise.
    Either,
    /// Nothing that either plane could use.
    Junk,
}

/// Packets that came in, by class.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct DemuxCounters {
    /// Packets of the data plane.
    pub data: u64,
    /// Packets of the control plane.
    pub control: u64,
    /// Packets with an unknown id that were given to both planes.
    pub either: u64,
    /// Packets with an unknown id above the limit.
    pub limited: u64,
    /// Packets too short to be QUIC.
    pub junk: u64,
}

/// The smallest packet that can matter: a stateless reset has 21 bytes at least (RFC 9000 section 10.3).
const PACKET_BYTES_MIN: usize = 21;

/// Packets with unknown ids that are taken per second, and at once. A restarted peer needs one; a flood of random
/// bytes must not fill the control plane's ring.
const EITHER_PER_SECOND: u64 = 128;

/// Counts and limits while it classifies.
#[derive(Debug)]
pub(crate) struct Demux {
    counters: DemuxCounters,
    tokens: u64,
    refilled_at: Instant,
}

impl Demux {
    pub(crate) fn new(now: Instant) -> Self {
        Self { counters: DemuxCounters::default(), tokens: EITHER_PER_SECOND, refilled_at: now }
    }

    /// The class of one packet. HOT PATH.
    #[inline]
    pub(crate) fn sort(&mut self, now: Instant, packet: &[u8]) -> Class {
        let class = classify(packet);
        match class {
            Class::Data => self.counters.data += 1,
            Class::Control => self.counters.control += 1,
            Class::Junk => self.counters.junk += 1,
            Class::Either if self.take_token(now) => self.counters.either += 1,
            Class::Either => {
                self.counters.limited += 1;
                return Class::Junk;
            }
        }
        class
    }

    pub(crate) fn counters(&self) -> DemuxCounters {
        self.counters
    }

    fn take_token(&mut self, now: Instant) -> bool {
        if now.since(self.refilled_at) >= Duration::from_secs(1) {
            self.refilled_at = now;
            self.tokens = EITHER_PER_SECOND;
        }
        let taken = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        taken
    }
}

/// The class by the first bytes alone.
#[inline]
fn classify(packet: &[u8]) -> Class {
    if packet.len() < PACKET_BYTES_MIN {
        return Class::Junk;
    }
    if packet[0] & 0x80 != 0 {
        // Long header: version in 1..5, length of the destination id at 5, the id at 6.
        return if packet[5] >= 8 && packet[6..9] == DATA_MAGIC { Class::Data } else { Class::Control };
    }
    match [packet[1], packet[2], packet[3]] {
        DATA_MAGIC => Class::Data,
        CONTROL_MAGIC => Class::Control,
        _ => Class::Either,
    }
}

#[cfg(test)]
mod tests {
    use super::super::cid::initial_cid;
    use super::*;
    use proptest::prelude::*;

    fn short(id: [u8; 3]) -> Vec<u8> {
        [&[0x40][..], &id, &[0; 30]].concat()
    }

    #[test]
    fn ids_decide() {
        assert_eq!(classify(&short(DATA_MAGIC)), Class::Data);
        assert_eq!(classify(&short(CONTROL_MAGIC)), Class::Control);
        assert_eq!(classify(&short([1, 2, 3])), Class::Either);
        assert_eq!(classify(&short(DATA_MAGIC)[..20]), Class::Junk);
        let first = [&[0xc3, 0, 0, 0, 1, 20][..], &initial_cid(), &[0; 30]].concat();
        assert_eq!(classify(&first), Class::Data);
        let foreign = [&[0xc3, 0, 0, 0, 1, 8][..], &[9; 40]].concat();
        assert_eq!(classify(&foreign), Class::Control);
        let id_too_short = [&[0xc3, 0, 0, 0, 1, 4][..], &DATA_MAGIC, &[9; 40]].concat();
        assert_eq!(classify(&id_too_short), Class::Control);
    }

    #[test]
    fn unknown_ids_are_limited() {
        let mut demux = Demux::new(Instant(0));
        let packet = short([1, 2, 3]);
        let taken = (0..1000).filter(|_| demux.sort(Instant(5), &packet) == Class::Either).count();
        assert_eq!(taken as u64, EITHER_PER_SECOND);
        assert_eq!(demux.counters().limited, 1000 - EITHER_PER_SECOND);
        assert_eq!(demux.sort(Instant(1_000_000), &packet), Class::Either);
        assert_eq!(demux.sort(Instant(1_000_000), &short(DATA_MAGIC)), Class::Data, "only unknown ids are limited");
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_class(packet: Vec<u8>) {
            let mut demux = Demux::new(Instant(0));
            demux.sort(Instant(0), &packet);
            let all = demux.counters();
            prop_assert_eq!(all.data + all.control + all.either + all.limited + all.junk, 1);
        }
    }
}

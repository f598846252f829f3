//! Puts the chunks of one link's frames together again.

use super::{CHUNK_HEADER_BYTES, ChunkHeader, PACKET_BYTES_MAX};
use crate::time::Instant;
use std::time::Duration;

/// Frames that can be incomplete at once. Reordering by more frames than this loses the older one.
const SLOTS: usize = 64;

/// Bytes of all incomplete frames of a link: 15 super-frames, and what a hostile peer can pin.
const INCOMPLETE_BYTES_MAX: usize = 1 << 20;

/// Gaps that a frame may have. Forty-six datagrams carry a super-frame; every second one missing makes 23.
const RANGES_MAX: usize = 24;

/// A missing chunk that has not come after this time is lost: nothing repeats it.
const INCOMPLETE_AGE_MAX: Duration = Duration::from_millis(500);

/// Buffers that are kept for the next frame.
const SPARES_MAX: usize = 2;

/// What became of a datagram's chunks, besides the frames that came out.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Losses {
    /// Frames that will never be complete.
    pub incomplete: u64,
    /// Datagrams with bytes that are no chunk.
    pub malformed: u64,
}

/// Incomplete frames of one link.
#[derive(Debug)]
pub struct Reassembler {
    slots: Vec<Option<Partial>>,
    bytes: usize,
    spares: Vec<Vec<u8>>,
    losses: Losses,
}

/// One incomplete frame.
#[derive(Debug)]
struct Partial {
    id: u16,
    since: Instant,
    packet: Vec<u8>,
    /// What is here: sorted, disjoint, not touching.
    ranges: Vec<(usize, usize)>,
}

/// What a chunk did to its frame.
#[derive(PartialEq, Eq, Debug)]
enum Step {
    Incomplete,
    Complete,
    Contradiction,
}

impl Default for Reassembler {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| None).collect(), bytes: 0, spares: Vec::new(), losses: Losses::default() }
    }
}

impl Reassembler {
    /// Takes one datagram and hands every packet that it completes to `out`. HOT PATH.
    pub fn feed(&mut self, now: Instant, mut datagram: &[u8], mut out: impl FnMut(&[u8])) {
        while let Some((header, rest)) = datagram.split_first_chunk::<CHUNK_HEADER_BYTES>() {
            let header = ChunkHeader::decode(*header);
            if header.total == 0 {
                return;
            }
            if header.total > PACKET_BYTES_MAX || header.offset >= header.total || rest.is_empty() {
                self.losses.malformed += 1;
                return;
            }
            let (payload, rest) = rest.split_at(rest.len().min(header.total - header.offset));
            datagram = rest;
            if payload.len() == header.total {
                out(payload);
                continue;
            }
            self.store(now, header, payload, &mut out);
        }
    }

    /// Gives up frames that wait for too long.
    pub fn expire(&mut self, now: Instant) {
        for slot in 0..SLOTS {
            if self.slots[slot].as_ref().is_some_and(|partial| now.since(partial.since) > INCOMPLETE_AGE_MAX) {
                self.lose(slot);
            }
        }
    }

    /// What was lost since the last call.
    pub fn take_losses(&mut self) -> Losses {
        std::mem::take(&mut self.losses)
    }

    /// Adds one chunk to its frame.
    fn store(&mut self, now: Instant, header: ChunkHeader, payload: &[u8], out: &mut impl FnMut(&[u8])) {
        let slot = usize::from(header.id) % SLOTS;
        let fits = |partial: &Partial| partial.id == header.id && partial.packet.len() == header.total;
        if self.slots[slot].as_ref().is_some_and(|partial| !fits(partial)) {
            self.lose(slot);
        }
        if self.slots[slot].is_none() {
            self.open(now, slot, header);
        }
        let Some(partial) = &mut self.slots[slot] else { return };
        match partial.put(header.offset, payload) {
            Step::Incomplete => {}
            Step::Contradiction => self.lose(slot),
            Step::Complete => {
                if let Some(partial) = self.close(slot) {
                    out(&partial.packet);
                    self.spare(partial.packet);
                }
            }
        }
    }

    fn open(&mut self, now: Instant, slot: usize, header: ChunkHeader) {
        while self.bytes + header.total > INCOMPLETE_BYTES_MAX {
            let oldest = (0..SLOTS)
                .filter_map(|slot| self.slots[slot].as_ref().map(|partial| (partial.since, slot)))
                .min()
                .map(|(_, slot)| slot);
            let Some(oldest) = oldest else { break };
            self.lose(oldest);
        }
        let mut packet = self.spares.pop().unwrap_or_default();
        packet.resize(header.total, 0);
        self.bytes += header.total;
        self.slots[slot] = Some(Partial { id: header.id, since: now, packet, ranges: Vec::new() });
    }

    fn lose(&mut self, slot: usize) {
        if let Some(partial) = self.close(slot) {
            self.losses.incomplete += 1;
            self.spare(partial.packet);
        }
    }

    fn close(&mut self, slot: usize) -> Option<Partial> {
        let partial = self.slots[slot].take()?;
        self.bytes -= partial.packet.len();
        Some(partial)
    }

    fn spare(&mut self, buffer: Vec<u8>) {
        if self.spares.len() < SPARES_MAX {
            self.spares.push(buffer);
        }
    }
}

impl Partial {
    /// Copies a chunk in. A chunk that is here already changes nothing; one that overlaps another contradicts it.
    fn put(&mut self, offset: usize, payload: &[u8]) -> Step {
        let end = offset + payload.len();
        let index = self.ranges.partition_point(|&(_, range_end)| range_end < offset);
        let touching = self.ranges.get(index).copied();
        match touching {
            Some((from, to)) if from <= offset && end <= to => return Step::Incomplete,
            Some((from, to)) if to == offset => {
                let next = self.ranges.get(index + 1).copied();
                match next {
                    Some((next_from, _)) if next_from < end => return Step::Contradiction,
                    Some((next_from, next_to)) if next_from == end => {
                        self.ranges[index] = (from, next_to);
                        self.ranges.remove(index + 1);
                    }
                    _ => self.ranges[index] = (from, end),
                }
            }
            Some((from, _)) if from < end => return Step::Contradiction,
            Some((from, to)) if from == end => self.ranges[index] = (offset, to),
            _ if self.ranges.len() >= RANGES_MAX => return Step::Contradiction,
            _ => self.ranges.insert(index, (offset, end)),
        }
        self.packet[offset..end].copy_from_slice(payload);
        if self.ranges == [(0, self.packet.len())] { Step::Complete } else { Step::Incomplete }
    }
}

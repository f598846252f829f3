//! Puts the chunks of one link's frames together again.

use super::{CHUNK_HEADER_BYTES, ChunkHeader, PACKET_BYTES_MAX, parity};
use crate::offload::Segmenter;
use crate::time::Instant;
use crate::wire::frame::HEADER_BYTES;
use std::collections::VecDeque;
use std::time::Duration;

/// Frames that can be incomplete at once. Reordering by more frames than this loses the older one.
const SLOTS: usize = 64;

/// Bytes of all incomplete frames of a link: 15 super-frames, and half of what a hostile peer can pin, because the
/// parity of each may have as many.
const INCOMPLETE_BYTES_MAX: usize = 1 << 20;

/// Gaps that a frame may have. Forty-six datagrams carry a super-frame; every second one missing makes 23.
const RANGES_MAX: usize = 24;

/// Datagrams that may overtake a missing chunk before it counts as lost: as many packets as TCP and QUIC wait for. A
/// chunk that comes later than this doubles it, up to the longest batch that a socket takes.
const PATIENCE_MIN: u64 = 3;
/// See [`PATIENCE_MIN`].
const PATIENCE_MAX: u64 = 64;

/// Without later datagrams, a missing chunk is waited for so long at first. A chunk that comes later than this makes it
/// twice its delay, each frame that was waited for in vain an eighth of the way shorter. Chunks of one frame are apart
/// where a path is slow (12 ms at 1 Mbit/s), and by a round trip where a congestion window is smaller than the frame.
const WAIT: Duration = Duration::from_millis(50);
/// See [`WAIT`]: more than processors take to get from one send to the next.
const WAIT_MIN: Duration = Duration::from_millis(10);
/// See [`WAIT`]: TCP repeats by then what it has no answer to (`TCP_RTO_MIN` of Linux).
const WAIT_MAX: Duration = Duration::from_millis(200);

/// Datagrams for which it is remembered that a frame is done with: more than a queue of the network reorders.
const MEMORY: u64 = 4096;

/// Buffers that are kept for the next frame.
const SPARES_MAX: usize = 2;

/// What became of a datagram's chunks, besides the frames that came out.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Losses {
    /// Frames that lack a part.
    pub incomplete: u64,
    /// How many of them were delivered as far as they came.
    pub repaired: u64,
    /// Datagrams with bytes that are no chunk.
    pub malformed: u64,
}

/// Incomplete frames of one link.
#[derive(Debug)]
pub struct Reassembler {
    slots: Vec<Slot>,
    /// The slots with an incomplete frame, in the order of their frames.
    open: VecDeque<usize>,
    bytes: usize,
    spares: Vec<Vec<u8>>,
    segmenter: Segmenter,
    /// How many came.
    datagrams: u64,
    patience: u64,
    wait: Duration,
    losses: Losses,
}

#[derive(Debug, Default)]
struct Slot {
    partial: Option<Partial>,
    done: Option<Done>,
}

/// One incomplete frame.
#[derive(Debug)]
struct Partial {
    id: u16,
    /// When the last chunk came.
    since: Instant,
    /// With which datagram it came.
    datagram: u64,
    packet: Vec<u8>,
    /// The parity, once it has come; never empty.
    parity: Option<Vec<u8>>,
    /// What is here: sorted, disjoint, not touching.
    ranges: Vec<(usize, usize)>,
}

/// The last frame of a slot. What still comes of it is not the beginning of another one.
#[derive(Debug)]
struct Done {
    id: u16,
    datagram: u64,
    end: End,
}

/// How a frame came to its end.
#[derive(Debug)]
enum End {
    Complete,
    /// Others came instead of its missing chunks, or it contradicted itself.
    Overtaken,
    /// Nothing came for too long; since when.
    Overdue(Instant),
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
        Self {
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            open: VecDeque::new(),
            bytes: 0,
            spares: Vec::new(),
            segmenter: Segmenter::default(),
            datagrams: 0,
            patience: PATIENCE_MIN,
            wait: WAIT,
            losses: Losses::default(),
        }
    }
}

impl Reassembler {
    /// Takes one datagram and hands every packet that it completes to `out`, and what is left of those that can't
    /// become complete any more. HOT PATH.
    pub fn feed(&mut self, now: Instant, mut datagram: &[u8], mut out: impl FnMut(&[u8])) {
        self.datagrams += 1;
        while let Some((header, rest)) = datagram.split_first_chunk::<CHUNK_HEADER_BYTES>() {
            let header = ChunkHeader::decode(*header);
            if header.total == 0 {
                break;
            }
            let bytes = if header.short > 0 { header.short } else { rest.len() };
            let bytes_max = if header.is_parity() { header.total } else { header.total.saturating_sub(header.offset) };
            let bytes = bytes.min(bytes_max);
            let Some((payload, rest)) = rest.split_at_checked(bytes).filter(|_| is_sound(&header, bytes)) else {
                self.losses.malformed += 1;
                break;
            };
            datagram = rest;
            if payload.len() == header.total && !header.is_parity() {
                out(payload);
                continue;
            }
            self.store(now, header, payload, &mut out);
        }
        self.settle(now, out);
    }

    /// Gives up frames of which nothing more will come, because later datagrams have, or for too long nothing has. Of
    /// a super-frame the segments that are here are handed to `out`.
    pub fn settle(&mut self, now: Instant, mut out: impl FnMut(&[u8])) {
        while let Some(&slot) = self.open.front() {
            let Some(partial) = &self.slots[slot].partial else { return };
            let end = if self.datagrams - partial.datagram > self.patience {
                End::Overtaken
            } else if partial.since + self.wait <= now {
                self.wait -= (self.wait - WAIT_MIN) / 8;
                End::Overdue(partial.since)
            } else {
                return;
            };
            self.give_up(slot, end, &mut out);
        }
    }

    /// When [`Reassembler::settle`] has something to do though no datagram comes.
    pub fn deadline(&self) -> Option<Instant> {
        let oldest = self.slots[*self.open.front()?].partial.as_ref()?;
        Some(oldest.since + self.wait)
    }

    /// What was lost since the last call.
    pub fn take_losses(&mut self) -> Losses {
        std::mem::take(&mut self.losses)
    }

    /// Adds one chunk to its frame.
    fn store(&mut self, now: Instant, header: ChunkHeader, payload: &[u8], out: &mut impl FnMut(&[u8])) {
        let slot = usize::from(header.id) % SLOTS;
        if self.is_late(now, slot, &header) {
            return;
        }
        let fits = |partial: &Partial| partial.id == header.id && partial.packet.len() == header.total;
        if self.slots[slot].partial.as_ref().is_some_and(|partial| !fits(partial)) {
            self.give_up(slot, End::Overtaken, out);
        }
        if self.slots[slot].partial.is_none() {
            self.begin(now, slot, header, out);
        }
        let datagram = self.datagrams;
        let Some(partial) = &mut self.slots[slot].partial else { return };
        (partial.since, partial.datagram) = (now, datagram);
        let step = if header.is_parity() { partial.put_parity(payload) } else { partial.put(header.offset, payload) };
        match step {
            Step::Incomplete => {}
            Step::Contradiction => {
                self.losses.incomplete += 1;
                self.close(slot, End::Overtaken);
            }
            Step::Complete => {
                if let Some(partial) = self.close(slot, End::Complete) {
                    out(&partial.packet);
                    self.spare(partial.packet);
                }
            }
        }
    }

    /// Whether the chunk belongs to a frame that is done with. If that was too early, the next ones get more time.
    fn is_late(&mut self, now: Instant, slot: usize, header: &ChunkHeader) -> bool {
        let Some(done) = &mut self.slots[slot].done else { return false };
        if done.id != header.id || self.datagrams - done.datagram > MEMORY {
            return false;
        }
        match &mut done.end {
            End::Overtaken if self.datagrams > done.datagram => {
                self.patience = (self.patience * 2).min(PATIENCE_MAX);
            }
            End::Overdue(since) => {
                self.wait = self.wait.max(2 * now.since(*since)).min(WAIT_MAX);
                *since = now;
            }
            End::Overtaken | End::Complete => {}
        }
        true
    }

    fn begin(&mut self, now: Instant, slot: usize, header: ChunkHeader, out: &mut impl FnMut(&[u8])) {
        while self.bytes + header.total > INCOMPLETE_BYTES_MAX {
            let Some(&oldest) = self.open.front() else { break };
            self.give_up(oldest, End::Overtaken, out);
        }
        let mut packet = self.spares.pop().unwrap_or_default();
        packet.resize(header.total, 0);
        self.bytes += header.total;
        let (id, datagram) = (header.id, self.datagrams);
        let partial = Partial { id, since: now, datagram, packet, parity: None, ranges: Vec::new() };
        self.slots[slot] = Slot { partial: Some(partial), done: None };
        self.open.push_back(slot);
    }

    /// Delivers what is here of a frame that will not be complete.
    fn give_up(&mut self, slot: usize, end: End, out: &mut impl FnMut(&[u8])) {
        let Some(mut partial) = self.close(slot, end) else { return };
        self.losses.incomplete += 1;
        let has_head = partial.ranges.first().is_some_and(|(begin, end)| *begin == 0 && *end >= HEADER_BYTES);
        // Offsets behind the frame header, which every piece gets.
        for (begin, end) in &mut partial.ranges {
            (*begin, *end) = (begin.saturating_sub(HEADER_BYTES), end.saturating_sub(HEADER_BYTES));
        }
        if has_head
            && let Some((head, packet)) = partial.packet.split_at_checked(HEADER_BYTES)
            && self.segmenter.salvage(head, packet, &partial.ranges, out)
        {
            self.losses.repaired += 1;
        }
        self.spare(partial.packet);
    }

    fn close(&mut self, slot: usize, end: End) -> Option<Partial> {
        let partial = self.slots[slot].partial.take()?;
        self.slots[slot].done = Some(Done { id: partial.id, datagram: self.datagrams, end });
        self.open.retain(|open| *open != slot);
        self.bytes -= partial.packet.len();
        Some(partial)
    }

    fn spare(&mut self, buffer: Vec<u8>) {
        if self.spares.len() < SPARES_MAX {
            self.spares.push(buffer);
        }
    }
}

/// Whether a chunk with this header and so many bytes can belong to a packet.
fn is_sound(header: &ChunkHeader, bytes: usize) -> bool {
    header.total <= PACKET_BYTES_MAX && header.offset <= header.total && bytes > 0
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
        self.step()
    }

    /// Keeps the parity. A second one changes nothing.
    fn put_parity(&mut self, parity: &[u8]) -> Step {
        self.parity.get_or_insert_with(|| parity.to_vec());
        self.step()
    }

    /// Whether the packet is complete, if need be by its parity.
    fn step(&mut self) -> Step {
        let total = self.packet.len();
        let gap = match self.ranges[..] {
            [(0, end)] if end == total => return Step::Complete,
            [(0, end)] => end..total,
            [(begin, end)] if end == total => 0..begin,
            [(0, begin), (end, last)] if last == total => begin..end,
            _ => return Step::Incomplete,
        };
        match self.parity.take_if(|parity| gap.len() <= parity.len()) {
            Some(parity) => parity::fill_gap(&mut self.packet, gap, parity),
            None => return Step::Incomplete,
        }
        Step::Complete
    }
}

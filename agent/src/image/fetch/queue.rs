//! Which chunk to ask of whom next.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;
use virtuoso_overlay::ids::{Digest, HostId};

/// A chunk that was asked of one host for so long is asked of another too.
pub(super) const STEAL_AFTER: Duration = Duration::from_millis(500);
/// A reader that wanted nothing for so long is quiet: a guest that boots pauses for less.
const QUIET_AFTER: Duration = Duration::from_secs(5);
/// A reader that is never quiet must not keep the image from being completed.
const DEMAND_TIME_MAX: Duration = Duration::from_secs(60);
/// Hosts that are asked for the same chunk at once.
const ASKED_MAX: usize = 2;

/// Chunks that are not here yet.
pub(super) struct Queue {
    missing: HashMap<Digest, Piece>,
    missing_bytes: u64,
    /// Not asked of anybody, in this order; may name chunks that have come meanwhile.
    order: VecDeque<Digest>,
    /// Somebody waits for these, or will soon.
    urgent: VecDeque<Digest>,
    /// Who wants all of it now. Without any, what nobody waits for comes only in quiet times.
    hurries: usize,
    /// What nobody waits for comes only with a hurry.
    only_on_demand: bool,
    begun_at: Instant,
    wanted_at: Instant,
    /// Since when somebody has been waiting and nothing has come.
    waiting_since: Option<Instant>,
}

struct Piece {
    length: usize,
    asked: Vec<HostId>,
    asked_at: Instant,
}

impl Queue {
    pub(super) fn new(missing: Vec<(Digest, u64, usize)>) -> Self {
        let (now, asked) = (Instant::now(), Vec::new);
        let order = missing.iter().map(|(digest, _, _)| *digest).collect();
        let missing_bytes = missing.iter().map(|(_, _, length)| *length as u64).sum();
        let piece = |(digest, _, length)| (digest, Piece { length, asked: asked(), asked_at: now });
        Self {
            missing: missing.into_iter().map(piece).collect(),
            missing_bytes,
            order,
            urgent: VecDeque::new(),
            hurries: 0,
            only_on_demand: false,
            begun_at: now,
            wanted_at: now,
            waiting_since: None,
        }
    }

    pub(super) fn missing_bytes(&self) -> u64 {
        self.missing_bytes
    }

    pub(super) fn begin_hurry(&mut self) {
        self.hurries += 1;
    }

    /// Gives how many are left.
    pub(super) fn end_hurry(&mut self) -> usize {
        self.hurries -= 1;
        self.hurries
    }

    /// From now on, what nobody waits for comes only with a hurry.
    pub(super) fn only_on_demand(&mut self) {
        self.only_on_demand = true;
    }

    /// Since when somebody has been waiting and nothing has come.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.waiting_since
    }

    /// A chunk is missing that was here, or seemed to be.
    pub(super) fn add(&mut self, digest: Digest, length: usize) {
        if let Entry::Vacant(vacant) = self.missing.entry(digest) {
            vacant.insert(Piece { length, asked: Vec::new(), asked_at: Instant::now() });
            self.missing_bytes += length as u64;
            self.order.push_back(digest);
        }
    }

    /// Somebody waits for a chunk, and is likely to want those `ahead` next.
    pub(super) fn want(&mut self, digest: Digest, length: usize, ahead: Vec<Digest>) {
        self.wanted_at = Instant::now();
        self.waiting_since.get_or_insert(self.wanted_at);
        // A chunk that was here is missing again if the disk damaged it.
        self.add(digest, length);
        self.urgent.retain(|other| *other != digest);
        let ahead: Vec<_> = ahead.into_iter().filter(|digest| !self.urgent.contains(digest)).collect();
        self.urgent.push_front(digest);
        self.urgent.extend(ahead);
    }

    pub(super) fn is_missing(&self, digest: &Digest) -> bool {
        self.missing.contains_key(digest)
    }

    fn is_quiet(&self, now: Instant) -> bool {
        let quiet = now.duration_since(self.wanted_at) >= QUIET_AFTER;
        let is_due = quiet || now.duration_since(self.begun_at) >= DEMAND_TIME_MAX;
        self.hurries > 0 || (is_due && !self.only_on_demand)
    }

    /// The chunk to ask of `host` now, with its length and whether somebody waits for it.
    pub(super) fn next(&mut self, host: HostId, now: Instant) -> Option<(Digest, usize, bool)> {
        let urgent = self.next_urgent(host, now);
        let is_urgent = urgent.is_some();
        let in_order = |queue: &mut Self| if queue.is_quiet(now) { queue.next_in_order() } else { None };
        let digest = urgent.or_else(|| in_order(self)).or_else(|| self.next_overdue(host, now))?;
        let piece = self.missing.get_mut(&digest)?;
        piece.asked.push(host);
        piece.asked_at = now;
        Some((digest, piece.length, is_urgent))
    }

    fn next_urgent(&mut self, host: HostId, now: Instant) -> Option<Digest> {
        let missing = &self.missing;
        // Of what is read ahead, some is here already.
        self.urgent.retain(|digest| missing.contains_key(digest));
        self.urgent.iter().copied().find(|digest| {
            let piece = &missing[digest];
            piece.asked.is_empty() || piece.is_overdue(host, now)
        })
    }

    fn next_in_order(&mut self) -> Option<Digest> {
        while let Some(digest) = self.order.pop_front() {
            if self.missing.get(&digest).is_some_and(|piece| piece.asked.is_empty()) {
                return Some(digest);
            }
        }
        None
    }

    /// What another host owes for the longest time. There are no more of these than fit the windows of all hosts.
    fn next_overdue(&self, host: HostId, now: Instant) -> Option<Digest> {
        let overdue = self.missing.iter().filter(|(_, piece)| piece.is_overdue(host, now));
        overdue.min_by_key(|(_, piece)| piece.asked_at).map(|(digest, _)| *digest)
    }

    /// A chunk is here; says whether that is news.
    pub(super) fn arrived(&mut self, digest: &Digest, now: Instant) -> bool {
        let Some(piece) = self.missing.remove(digest) else { return false };
        self.missing_bytes -= piece.length as u64;
        self.urgent.retain(|other| other != digest);
        self.waiting_since = (!self.urgent.is_empty()).then_some(now);
        true
    }

    /// A host will not answer: others may be asked at once.
    pub(super) fn gave_up(&mut self, host: HostId) {
        for (digest, piece) in self.missing.iter_mut().filter(|(_, piece)| piece.asked.contains(&host)) {
            piece.asked.retain(|asked| *asked != host);
            if piece.asked.is_empty() {
                self.order.push_front(*digest);
            }
        }
    }
}

impl Piece {
    fn is_overdue(&self, host: HostId, now: Instant) -> bool {
        let others = !self.asked.is_empty() && !self.asked.contains(&host) && self.asked.len() < ASKED_MAX;
        others && now.duration_since(self.asked_at) >= STEAL_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: HostId = HostId([1; 32]);
    const B: HostId = HostId([2; 32]);
    const C: HostId = HostId([3; 32]);

    fn digest(n: u8) -> Digest {
        Digest([n; 32])
    }

    /// A queue of chunks that are all wanted.
    fn queue(count: u8) -> Queue {
        let mut queue = Queue::new((1..=count).map(|n| (digest(n), u64::from(n), 10)).collect());
        queue.begin_hurry();
        queue
    }

    #[test]
    fn each_chunk_is_asked_of_one_host_until_it_is_overdue() {
        let (mut queue, now) = (queue(2), Instant::now());
        assert_eq!(queue.next(A, now), Some((digest(1), 10, false)));
        assert_eq!(queue.next(B, now), Some((digest(2), 10, false)));
        assert_eq!((queue.next(A, now), queue.next(B, now)), (None, None));
        let later = now + STEAL_AFTER;
        assert_eq!(queue.next(B, later), Some((digest(1), 10, false)));
        assert_eq!(queue.next(C, later), Some((digest(2), 10, false)));
        assert_eq!(queue.next(C, later + STEAL_AFTER), None, "two hosts are enough for a chunk");
        assert!(
            queue.arrived(&digest(1), later) && !queue.arrived(&digest(1), later) && queue.arrived(&digest(2), later)
        );
        assert_eq!(queue.missing_bytes(), 0);
    }

    #[test]
    fn what_a_lost_host_owes_comes_first() {
        let (mut queue, now) = (queue(3), Instant::now());
        queue.next(A, now);
        queue.gave_up(A);
        assert_eq!(queue.next(B, now), Some((digest(1), 10, false)));
        assert_eq!(queue.next(B, now), Some((digest(2), 10, false)));
    }

    #[test]
    fn what_is_read_comes_first_and_the_rest_in_quiet_times() {
        let (mut queue, now) = (queue(4), Instant::now());
        assert_eq!(queue.end_hurry(), 0);
        assert_eq!((queue.next(A, now), queue.waiting_since()), (None, None));
        queue.want(digest(3), 10, vec![digest(4)]);
        let since = queue.waiting_since().unwrap();
        assert_eq!(queue.next(A, now), Some((digest(3), 10, true)));
        assert_eq!(queue.next(A, now), Some((digest(4), 10, true)));
        assert_eq!(queue.next(A, now), None);
        assert!(queue.arrived(&digest(4), since + QUIET_AFTER));
        assert_eq!(queue.waiting_since(), Some(since + QUIET_AFTER), "somebody still waits, but something has come");
        assert!(queue.arrived(&digest(3), now));
        assert_eq!((queue.waiting_since(), queue.next(A, now)), (None, None));
        let quiet = since + QUIET_AFTER;
        assert_eq!(queue.next(A, quiet), Some((digest(1), 10, false)));
        queue.only_on_demand();
        assert_eq!(queue.next(A, quiet), None);
    }
}

//! Which chunk to ask of whom next.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;
use virtuoso_overlay::ids::{Digest, HostId};

/// A chunk that was asked of one host for so long is asked of another too.
pub(super) const STEAL_AFTER: Duration = Duration::from_millis(500);
/// A reader that wanted nothing for so long is quiet: a guest that boots, even an emulated one, pauses for less.
const QUIET_AFTER: Duration = Duration::from_secs(20);
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
    /// The same of chunks that hosts have which fetch the image too: those who have all of it are asked for what only
    /// they have.
    common: VecDeque<Digest>,
    /// What hosts have that fetch the image too.
    offers: HashMap<HostId, Offers>,
    /// How many of those have a chunk.
    held_by: HashMap<Digest, usize>,
    /// In the order in which they came.
    here: Vec<Digest>,
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

#[derive(Default)]
struct Offers {
    chunks: HashSet<Digest>,
    /// Not asked of it; may name chunks that have come or were asked of others meanwhile.
    order: VecDeque<Digest>,
}

struct Piece {
    length: usize,
    asked: Vec<HostId>,
    asked_at: Instant,
}

impl Queue {
    /// A queue of what is `missing`, which is asked for in an order that follows from `seed`: hosts that fetch at the
    /// same time have then something for each other.
    pub(super) fn new(missing: Vec<(Digest, u64, usize)>, here: Vec<Digest>, seed: u64) -> Self {
        let (now, asked) = (Instant::now(), Vec::new);
        let mut order: Vec<_> = missing.iter().map(|(digest, _, _)| *digest).collect();
        // Digests are as good as dice.
        order.sort_by_key(|digest| digest.0.first_chunk().map(|dice| u64::from_le_bytes(*dice) ^ seed));
        let missing_bytes = missing.iter().map(|(_, _, length)| *length as u64).sum();
        let piece = |(digest, _, length)| (digest, Piece { length, asked: asked(), asked_at: now });
        Self {
            missing: missing.into_iter().map(piece).collect(),
            missing_bytes,
            order: order.into(),
            common: VecDeque::new(),
            offers: HashMap::new(),
            held_by: HashMap::new(),
            here,
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

    /// A host fetches the image too; so far it is not known to have anything.
    pub(super) fn begin_offers(&mut self, host: HostId) {
        self.offers.entry(host).or_default();
    }

    /// Such a host has these.
    pub(super) fn add_offers(&mut self, host: HostId, chunks: impl Iterator<Item = Digest>) {
        let Some(offers) = self.offers.get_mut(&host) else { return };
        for chunk in chunks.filter(|chunk| self.missing.contains_key(chunk)) {
            if offers.chunks.insert(chunk) {
                offers.order.push_back(chunk);
                *self.held_by.entry(chunk).or_default() += 1;
            }
        }
    }

    /// Such a host has all of it, or is gone.
    pub(super) fn end_offers(&mut self, host: HostId) {
        let Some(offers) = self.offers.remove(&host) else { return };
        for chunk in offers.chunks {
            if let Entry::Occupied(mut count) = self.held_by.entry(chunk) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }

    /// The chunks that are here, without the first `known`.
    pub(super) fn here_after(&self, known: usize) -> &[Digest] {
        self.here.get(known..).unwrap_or_default()
    }

    fn has(&self, host: HostId, digest: &Digest) -> bool {
        self.offers.get(&host).is_none_or(|offers| offers.chunks.contains(digest))
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
        let in_order = |queue: &mut Self| if queue.is_quiet(now) { queue.next_in_order(host) } else { None };
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
            (piece.asked.is_empty() || piece.is_overdue(host, now)) && self.has(host, digest)
        })
    }

    fn next_in_order(&mut self, host: HostId) -> Option<Digest> {
        let Self { missing, order, common, offers, held_by, .. } = self;
        let is_unasked = |digest: &Digest| missing.get(digest).is_some_and(|piece| piece.asked.is_empty());
        if let Some(offers) = offers.get_mut(&host) {
            return take_first(&mut offers.order, is_unasked);
        }
        while let Some(digest) = take_first(order, is_unasked) {
            if !held_by.contains_key(&digest) {
                return Some(digest);
            }
            common.push_back(digest);
        }
        take_first(common, is_unasked)
    }

    /// What another host owes for the longest time. There are no more of these than fit the windows of all hosts.
    fn next_overdue(&self, host: HostId, now: Instant) -> Option<Digest> {
        let overdue =
            self.missing.iter().filter(|(digest, piece)| piece.is_overdue(host, now) && self.has(host, digest));
        overdue.min_by_key(|(_, piece)| piece.asked_at).map(|(digest, _)| *digest)
    }

    /// A chunk is here; says whether that is news.
    pub(super) fn arrived(&mut self, digest: &Digest, now: Instant) -> bool {
        let Some(piece) = self.missing.remove(digest) else { return false };
        self.missing_bytes -= piece.length as u64;
        self.here.push(*digest);
        self.urgent.retain(|other| other != digest);
        self.waiting_since = (!self.urgent.is_empty()).then_some(now);
        true
    }

    /// A host will not answer: others may be asked at once.
    pub(super) fn gave_up(&mut self, host: HostId) {
        self.end_offers(host);
        for (digest, piece) in self.missing.iter_mut().filter(|(_, piece)| piece.asked.contains(&host)) {
            piece.asked.retain(|asked| *asked != host);
            if piece.asked.is_empty() {
                self.order.push_front(*digest);
                let others = self.offers.values_mut().filter(|offers| offers.chunks.contains(digest));
                others.for_each(|offers| offers.order.push_back(*digest));
            }
        }
    }
}

/// Takes digests away up to the first that is `wanted`, with it.
fn take_first(order: &mut VecDeque<Digest>, wanted: impl Fn(&Digest) -> bool) -> Option<Digest> {
    while let Some(digest) = order.pop_front() {
        if wanted(&digest) {
            return Some(digest);
        }
    }
    None
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
        let mut queue = Queue::new((1..=count).map(|n| (digest(n), u64::from(n), 10)).collect(), Vec::new(), 0);
        queue.order = (1..=count).map(digest).collect();
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

    #[test]
    fn who_has_all_is_asked_for_what_no_other_has() {
        let (mut queue, now) = (queue(4), Instant::now());
        queue.begin_offers(B);
        assert_eq!(queue.next(B, now), None, "it is not known to have anything");
        queue.add_offers(B, [digest(1), digest(3), digest(9)].into_iter());
        assert_eq!(queue.next(A, now), Some((digest(2), 10, false)));
        assert_eq!(queue.next(B, now), Some((digest(1), 10, false)));
        assert_eq!(queue.next(A, now), Some((digest(4), 10, false)));
        assert_eq!(queue.next(A, now), Some((digest(3), 10, false)), "nothing else is left");
        assert_eq!(queue.next(B, now), None);
        queue.gave_up(A);
        queue.begin_offers(B);
        assert_eq!(queue.next(B, now), Some((digest(3), 10, false)), "only this it has");
        queue.end_offers(B);
        assert!(queue.next(B, now).is_some());
        assert!(queue.arrived(&digest(3), now));
        assert_eq!(queue.here_after(0), [digest(3)]);
        assert!(queue.here_after(1).is_empty() && queue.here_after(7).is_empty());
    }
}

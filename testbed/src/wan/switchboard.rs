//! The decisions of an emulated link of any number of members: a learning switch whose every ordered pair of
//! members is a pipe of its own, and the frames that are on their way. Virtual time only.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use super::pipe::{Counters, Pipe};
use crate::topology::Impairment;

pub(super) struct Switchboard {
    members: usize,
    delay: Duration,
    /// The pipe from `a` to `b` is at `a * members + b`.
    pipes: Vec<Pipe>,
    /// For each pipe, when watched frames entered it.
    sightings: Vec<Vec<u64>>,
    watched_length_min: Option<usize>,
    learned: HashMap<[u8; 6], usize>,
    travelling: BinaryHeap<Reverse<Travelling>>,
    sequence: u64,
}

/// Ordered by time, then by the order of arrival.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Travelling {
    due_ns: u64,
    sequence: u64,
    /// The pipe that it is in.
    pair: usize,
    to: usize,
    frame: Vec<u8>,
}

impl Switchboard {
    pub(super) fn new(members: usize, impairment: Impairment, seed: u64) -> Self {
        let pipes = (0..members * members).map(|n| Pipe::new(impairment, seed.wrapping_add(n as u64))).collect();
        Self {
            members,
            delay: impairment.delay.0,
            pipes,
            sightings: vec![Vec::new(); members * members],
            watched_length_min: None,
            learned: HashMap::new(),
            travelling: BinaryHeap::new(),
            sequence: 0,
        }
    }

    pub(super) fn set_impairment(&mut self, impairment: Impairment) {
        self.delay = impairment.delay.0;
        self.pipes.iter_mut().for_each(|pipe| pipe.set_impairment(impairment));
    }

    /// How long to gather frames at least before they are looked at, as a network card does between its interrupts: a
    /// look at each frame would take much of a small machine from those that send them. Little beside the delay, and
    /// nothing where there is none.
    pub(super) fn moderation(&self) -> Duration {
        MODERATION_MAX.min(self.delay / MODERATIONS_PER_DELAY)
    }

    /// Cuts exactly the pipes for which `is_cut(from, to)`, with what is on its way in them.
    pub(super) fn cut(&mut self, is_cut: impl Fn(usize, usize) -> bool) {
        for from in 0..self.members {
            for to in 0..self.members {
                self.pipes[from * self.members + to].set_cut(is_cut(from, to));
            }
        }
        self.travelling.retain(|Reverse(travelling)| !self.pipes[travelling.pair].loses());
    }

    pub(super) fn counters(&self) -> impl Iterator<Item = (usize, usize, Counters)> {
        let pairs = (0..self.members).flat_map(|from| (0..self.members).map(move |to| (from, to)));
        pairs
            .filter(|(from, to)| from != to)
            .map(|(from, to)| (from, to, self.pipes[from * self.members + to].counters()))
    }

    pub(super) fn watch(&mut self, length_min: usize) {
        self.watched_length_min = Some(length_min);
        self.sightings.iter_mut().for_each(Vec::clear);
    }

    /// When watched frames entered the pipe, in nanoseconds of the monotonic clock.
    pub(super) fn sightings(&self, from: usize, to: usize) -> &[u64] {
        &self.sightings[from * self.members + to]
    }

    /// Takes a frame from member `from` and puts it on its way to whom it is for.
    pub(super) fn ingress(&mut self, now_ns: u64, from: usize, frame: &[u8]) {
        let Some((destination, source)) = addresses(frame) else { return };
        if self.learned.len() < ADDRESSES_MAX || self.learned.contains_key(&source) {
            self.learned.insert(source, from);
        }
        match self.learned.get(&destination) {
            Some(&to) if to == from => {}
            Some(&to) => self.dispatch(now_ns, from, to, frame),
            None => (0..self.members).filter(|&to| to != from).for_each(|to| self.dispatch(now_ns, from, to, frame)),
        }
    }

    pub(super) fn pop_due(&mut self, now_ns: u64) -> Option<(usize, Vec<u8>)> {
        if self.next_due()? > now_ns {
            return None;
        }
        self.travelling.pop().map(|Reverse(travelling)| (travelling.to, travelling.frame))
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        self.travelling.peek().map(|Reverse(travelling)| travelling.due_ns)
    }

    fn dispatch(&mut self, now_ns: u64, from: usize, to: usize, frame: &[u8]) {
        let pair = from * self.members + to;
        let is_watched = self.watched_length_min.is_some_and(|length_min| frame.len() >= length_min);
        if is_watched && self.sightings[pair].len() < SIGHTINGS_MAX {
            self.sightings[pair].push(now_ns);
        }
        if self.travelling.len() >= TRAVELLING_MAX {
            return;
        }
        let Some(due_ns) = self.pipes[pair].admit(now_ns, frame.len()) else { return };
        self.sequence += 1;
        let travelling = Travelling { due_ns, sequence: self.sequence, pair, to, frame: frame.to_vec() };
        self.travelling.push(Reverse(travelling));
    }
}

/// Of a network card: a few full frames at 100 Mbit/s.
const MODERATION_MAX: Duration = Duration::from_micros(500);
const MODERATIONS_PER_DELAY: u32 = 20;
/// A lab's link has a handful of members; more addresses than this are a flood.
const ADDRESSES_MAX: usize = 4096;
/// A minute and a half of 10,000 frames a second.
const SIGHTINGS_MAX: usize = 1_000_000;
/// A second of full frames at 1 Gbit/s, about 130 MB.
const TRAVELLING_MAX: usize = 85_000;

fn addresses(frame: &[u8]) -> Option<([u8; 6], [u8; 6])> {
    let destination = frame.first_chunk()?;
    let source = frame.get(6..)?.first_chunk()?;
    Some((*destination, *source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Span;

    fn frame(destination: u8, source: u8) -> Vec<u8> {
        [[2, 0, 0, 0, 0, destination], [2, 0, 0, 0, 0, source]].concat()
    }

    fn board() -> Switchboard {
        Switchboard::new(3, Impairment { delay: Span(Duration::from_millis(1)), ..Impairment::default() }, 1)
    }

    fn receivers(board: &mut Switchboard) -> Vec<usize> {
        let mut receivers: Vec<usize> = std::iter::from_fn(|| board.pop_due(u64::MAX)).map(|(to, _)| to).collect();
        receivers.sort_unstable();
        receivers
    }

    #[test]
    fn floods_the_unknown_and_learns() {
        let mut board = board();
        board.ingress(0, 0, &frame(2, 1));
        assert_eq!(receivers(&mut board), [1, 2]);
        board.ingress(0, 1, &frame(1, 2));
        assert_eq!(receivers(&mut board), [0]);
    }

    #[test]
    fn nothing_is_due_before_its_time() {
        let mut board = board();
        board.ingress(500, 0, &frame(2, 1));
        assert_eq!(board.next_due(), Some(1_000_500));
        assert!(board.pop_due(1_000_499).is_none());
        assert!(board.pop_due(1_000_500).is_some());
    }

    #[test]
    fn frames_of_one_time_leave_in_order() {
        let mut board = board();
        for n in 0..100u8 {
            board.ingress(0, 0, &[&frame(2, 1)[..], &[n]].concat());
        }
        let order: Vec<u8> = std::iter::from_fn(|| board.pop_due(u64::MAX))
            .filter(|(to, _)| *to == 1)
            .map(|(_, frame)| frame[12])
            .collect();
        assert!(order.is_sorted());
        assert_eq!(order.len(), 100);
    }

    #[test]
    fn a_cut_separates_only_what_it_names() {
        let mut board = board();
        board.cut(|from, to| (from == 2) != (to == 2));
        board.ingress(0, 0, &frame(9, 1));
        assert_eq!(receivers(&mut board), [1]);
        board.cut(|_, _| false);
        board.ingress(0, 0, &frame(9, 1));
        board.cut(|from, to| (from == 2) != (to == 2));
        board.cut(|_, _| false);
        assert_eq!(receivers(&mut board), [1], "what was on its way is lost");
        board.ingress(0, 0, &frame(9, 1));
        assert_eq!(receivers(&mut board), [1, 2]);
    }

    #[test]
    fn watches_frames_of_a_size() {
        let mut board = board();
        board.watch(14);
        board.ingress(5, 0, &frame(2, 1));
        assert!(board.sightings(0, 1).is_empty());
        for now in [7, 9] {
            board.ingress(now, 0, &[&frame(2, 1)[..], &[0, 0]].concat());
        }
        assert_eq!(board.sightings(0, 1), [7, 9]);
    }
}

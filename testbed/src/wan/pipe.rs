//! One direction between two members of an emulated link: when a frame that comes in now goes out, if it does.
//! Virtual time only; it holds no frames.

use crate::topology::Impairment;

#[derive(Debug)]
pub(super) struct Pipe {
    impairment: Impairment,
    cut: bool,
    /// When the bottleneck has sent all that was admitted.
    busy_until_ns: u64,
    /// When the last frame that kept its place goes out.
    last_due_ns: u64,
    random: Random,
    counters: Counters,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    pub(crate) lost: u64,
    pub(crate) overflowed: u64,
    pub(crate) oversized: u64,
    pub(crate) reordered: u64,
    pub(crate) cut: u64,
}

impl Pipe {
    pub(super) fn new(impairment: Impairment, seed: u64) -> Self {
        Self {
            impairment,
            cut: false,
            busy_until_ns: 0,
            last_due_ns: 0,
            random: Random(seed),
            counters: Counters::default(),
        }
    }

    pub(super) fn set_impairment(&mut self, impairment: Impairment) {
        self.impairment = impairment;
    }

    pub(super) fn set_cut(&mut self, cut: bool) {
        self.cut = cut;
    }

    /// Whether it is cut; then a frame in it is lost, and counted.
    pub(super) fn loses(&mut self) -> bool {
        self.counters.cut += u64::from(self.cut);
        self.cut
    }

    pub(super) fn counters(&self) -> Counters {
        self.counters
    }

    /// The time at which a frame of `length` bytes goes out; `None` if it is dropped.
    pub(super) fn admit(&mut self, now_ns: u64, length: usize) -> Option<u64> {
        if self.loses() {
            return None;
        }
        if self.impairment.path_mtu.is_some_and(|mtu| length > usize::from(mtu) + ETHERNET_HEADER_BYTES) {
            self.counters.oversized += 1;
            return None;
        }
        if self.random.chance(self.impairment.loss.0) {
            self.counters.lost += 1;
            return None;
        }
        let Some(sent_ns) = self.send(now_ns, length) else {
            self.counters.overflowed += 1;
            return None;
        };
        self.counters.frames += 1;
        self.counters.bytes += length as u64;
        Some(self.travel(sent_ns))
    }

    /// The time at which the bottleneck has sent the frame; `None` if the queue before it is full.
    fn send(&mut self, now_ns: u64, length: usize) -> Option<u64> {
        let Some(rate) = self.impairment.rate else { return Some(now_ns) };
        let start_ns = now_ns.max(self.busy_until_ns);
        let queue_ns = self.impairment.queue.map_or(QUEUE_NS_DEFAULT, |queue| queue.as_nanos());
        if start_ns - now_ns > queue_ns {
            return None;
        }
        let bits = length as u128 * 8;
        let duration_ns = u64::try_from(bits * 1_000_000_000 / u128::from(rate.0)).unwrap_or(u64::MAX);
        self.busy_until_ns = start_ns.saturating_add(duration_ns);
        Some(self.busy_until_ns)
    }

    /// The time at which a frame sent at `sent_ns` arrives. Jitter keeps the order; a reordered frame is held
    /// back long enough that later ones overtake it.
    fn travel(&mut self, sent_ns: u64) -> u64 {
        let delay_ns = self.impairment.delay.as_nanos();
        let jitter_ns = self.impairment.jitter.as_nanos();
        let shift_ns = self.random.below(jitter_ns.saturating_mul(2).saturating_add(1));
        let due_ns = (sent_ns + delay_ns + shift_ns).saturating_sub(jitter_ns).max(self.last_due_ns);
        if self.random.chance(self.impairment.reorder.0) {
            self.counters.reordered += 1;
            return due_ns + (delay_ns / 2).max(HOLD_BACK_NS_MIN);
        }
        self.last_due_ns = due_ns;
        due_ns
    }
}

const ETHERNET_HEADER_BYTES: usize = 14;
/// Of a router with a small buffer, when the topology names none.
const QUEUE_NS_DEFAULT: u64 = 50_000_000;
/// Lets a few frames of an ordinary flow overtake a reordered one on a link without delay.
const HOLD_BACK_NS_MIN: u64 = 1_000_000;

/// SplitMix64: small, fast, and the same sequence for the same seed everywhere.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.next()) * u128::from(bound);
        (wide >> 64) as u64
    }

    fn chance(&mut self, probability: f64) -> bool {
        const STEPS: f64 = (1u64 << 53) as f64;
        probability > 0.0 && ((self.next() >> 11) as f64) < probability * STEPS
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::topology::{BitRate, Fraction, Span};

    const MS: u64 = 1_000_000;

    fn millis(millis: u64) -> Span {
        Span(Duration::from_millis(millis))
    }

    fn pipe(impairment: Impairment) -> Pipe {
        Pipe::new(impairment, 7)
    }

    #[test]
    fn delays_every_frame() {
        let mut pipe = pipe(Impairment { delay: millis(20), ..Impairment::default() });
        assert_eq!(pipe.admit(5 * MS, 1514), Some(25 * MS));
        assert_eq!(pipe.counters(), Counters { frames: 1, bytes: 1514, ..Counters::default() });
    }

    #[test]
    fn jitter_stays_in_bounds_and_in_order() {
        let impairment = Impairment { delay: millis(20), jitter: millis(5), ..Impairment::default() };
        let mut pipe = pipe(impairment);
        let dues: Vec<u64> = (0..1000).map(|n| pipe.admit(n * MS, 100).unwrap() - n * MS).collect();
        assert!(dues.iter().all(|due| (15 * MS..=25 * MS).contains(due)), "{dues:?}");
        assert!(dues.iter().max().unwrap() - dues.iter().min().unwrap() > 5 * MS);
        let absolute: Vec<u64> = dues.iter().zip(0..).map(|(due, n)| due + n * MS).collect();
        assert!(absolute.is_sorted());
    }

    #[test]
    fn loses_the_given_share() {
        let mut pipe = pipe(Impairment { loss: Fraction(0.1), ..Impairment::default() });
        let lost = (0..10_000).filter(|n| pipe.admit(n * MS, 100).is_none()).count();
        assert!((900..1100).contains(&lost), "{lost}");
        assert_eq!(pipe.counters().lost, lost as u64);
    }

    #[test]
    fn sends_at_the_rate_and_drops_behind_a_full_queue() {
        let impairment = Impairment { rate: Some(BitRate(8_000_000)), queue: Some(millis(3)), ..Impairment::default() };
        let mut pipe = pipe(impairment);
        let dues: Vec<Option<u64>> = (0..6).map(|_| pipe.admit(0, 1000)).collect();
        assert_eq!(dues, [Some(MS), Some(2 * MS), Some(3 * MS), Some(4 * MS), None, None]);
        assert_eq!(pipe.counters().overflowed, 2);
        assert_eq!(pipe.admit(10 * MS, 1000), Some(11 * MS));
    }

    #[test]
    fn a_reordered_frame_is_overtaken() {
        let mut pipe = pipe(Impairment { reorder: Fraction(0.05), ..Impairment::default() });
        let dues: Vec<u64> = (0..1000).map(|n| pipe.admit(n * MS / 10, 100).unwrap()).collect();
        let overtaken = dues.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert!((20..100).contains(&overtaken), "{overtaken}");
        assert!(pipe.counters().reordered >= overtaken as u64);
    }

    #[test]
    fn a_cut_pipe_and_a_narrow_one_pass_nothing() {
        let mut pipe = pipe(Impairment { path_mtu: Some(1400), ..Impairment::default() });
        assert_eq!(pipe.admit(0, 1415), None);
        assert_eq!(pipe.admit(0, 1414), Some(0));
        pipe.set_cut(true);
        assert_eq!(pipe.admit(0, 100), None);
        assert_eq!((pipe.counters().oversized, pipe.counters().cut), (1, 1));
    }
}

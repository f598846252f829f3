//! A limit of bytes in a second: a bucket that fills with time. The last packet may overdraw it, so that a limit below
//! the size of a packet still passes one now and then.

use crate::time::Instant;

/// Time for which an unused rate is kept, in nanoseconds: what may be sent at once.
const BURST_NS: u64 = 2_000_000;

/// The limit of one link.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Zero means no limit.
    bits_per_s: u64,
    /// When what was sent will have passed at this rate. Small packets take less than a microsecond.
    paid_ns: u64,
}

impl Pace {
    /// Limits to `bits_per_s`; zero means no limit.
    pub fn new(bits_per_s: u64) -> Self {
        Self { bits_per_s, paid_ns: 0 }
    }

    /// Limits to another rate from now on; zero means no limit.
    pub fn set(&mut self, bits_per_s: u64) {
        self.bits_per_s = bits_per_s;
    }

    /// Whether something may be sent.
    pub fn is_open(&self, now: Instant) -> bool {
        self.bits_per_s == 0 || self.paid_ns <= now.0.saturating_mul(1000)
    }

    /// When something may be sent again, if not now.
    pub fn opens_at(&self, now: Instant) -> Option<Instant> {
        (!self.is_open(now)).then_some(Instant(self.paid_ns.div_ceil(1000)))
    }

    /// `bytes` are sent.
    pub fn spend(&mut self, now: Instant, bytes: usize) {
        let nanos = (bytes as u64).saturating_mul(8_000_000_000).checked_div(self.bits_per_s);
        if let Some(nanos) = nanos {
            let from = self.paid_ns.max(now.0.saturating_mul(1000).saturating_sub(BURST_NS));
            self.paid_ns = from.saturating_add(nanos);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of packets that pass in ten seconds when there are always more.
    fn passed(bits_per_s: u64, packet: usize) -> usize {
        let mut pace = Pace::new(bits_per_s);
        let (mut now, mut bytes) = (Instant(0), 0);
        while now < Instant(10_000_000) {
            while pace.is_open(now) {
                pace.spend(now, packet);
                bytes += packet;
            }
            now = pace.opens_at(now).unwrap();
        }
        bytes
    }

    #[test]
    fn the_rate_is_kept() {
        for (rate, packet) in [(1_000_000, 1500), (100_000_000, 65_000), (50_000, 65_000), (1_000_000_000, 60)] {
            let wanted = rate as f64 / 8.0 * 10.0;
            let got = passed(rate, packet) as f64;
            let slack = 0.02 * wanted + packet as f64;
            assert!((got - wanted).abs() <= slack, "{rate} bit/s in packets of {packet}: {got} of {wanted}");
        }
    }

    #[test]
    fn without_a_limit_it_is_always_open() {
        let mut pace = Pace::new(0);
        pace.spend(Instant(0), usize::MAX);
        assert!(pace.is_open(Instant(0)));
    }

    #[test]
    fn silence_does_not_add_up() {
        let mut pace = Pace::new(8_000_000);
        let now = Instant(60_000_000);
        let burst = std::iter::from_fn(|| pace.is_open(now).then(|| pace.spend(now, 100))).count();
        assert!(burst <= 22, "{burst} packets of 0.1 ms each");
    }
}

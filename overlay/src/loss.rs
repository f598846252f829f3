//! How much of what is sent gets lost, lately, and whether a queue is the reason.

use std::time::Duration;

/// Packets over which one sample counts fully; fewer count in proportion.
const PACKETS_FULL: f64 = 8_000.0;

/// Loss from which it pays to prepare for it: more than one packet in [`PACKETS_FULL`].
const LOSSY: f64 = 1.2 / PACKETS_FULL;

/// The shortest round trip that is remembered grows by one part in so many with each sample, so that a longer path is
/// taken for what it is after minutes; but only with samples of few packets, which fill no queue. While much is sent,
/// flows may keep a queue filled for as long as they like.
const BASE_GROWTH: u32 = 256;
/// See [`BASE_GROWTH`].
const QUIET_PACKETS: u64 = 100;

/// A round trip above the shortest by a quarter of it, at most [`JITTER_MAX`], and this much is one with a queue in it.
const QUEUE_MIN: Duration = Duration::from_millis(1);

/// So much do long round trips vary; what fills the queue of a long path adds more.
const JITTER_MAX: Duration = Duration::from_millis(5);

/// Moving averages of a path.
#[derive(Clone, Copy, Default, Debug)]
pub struct LossMeter {
    sent: u64,
    lost: u64,
    ratio: f64,
    round_trip: Duration,
    shortest: Option<Duration>,
}

impl LossMeter {
    /// Takes a connection's counters, which only grow, and its round trip now.
    pub fn sample(&mut self, sent: u64, lost: u64, round_trip: Duration) {
        let (new_sent, new_lost) = (sent.saturating_sub(self.sent), lost.saturating_sub(self.lost));
        (self.sent, self.lost) = (sent, lost);
        self.round_trip = round_trip;
        let growth = |shortest| if new_sent <= QUIET_PACKETS { shortest / BASE_GROWTH } else { Duration::ZERO };
        let shortest = self.shortest.map_or(round_trip, |shortest| shortest + growth(shortest));
        self.shortest = Some(shortest.min(round_trip));
        if new_sent == 0 {
            return;
        }
        let ratio = (new_lost as f64 / new_sent as f64).min(1.0);
        let weight = (new_sent as f64 / PACKETS_FULL).min(0.5);
        self.ratio += (ratio - self.ratio) * weight;
    }

    /// The share of packets that are lost, from 0 to 1.
    pub fn ratio(&self) -> f64 {
        self.ratio
    }

    /// Whether it pays to prepare for loss.
    pub fn is_lossy(&self) -> bool {
        self.ratio >= LOSSY
    }

    /// Whether packets get lost though no queue is full: then more packets do no harm.
    pub fn is_random(&self) -> bool {
        let shortest = self.shortest.unwrap_or_default();
        self.is_lossy() && self.round_trip <= shortest + (shortest / 4).min(JITTER_MAX) + QUEUE_MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(10);

    #[test]
    fn the_ratio_follows_the_path() {
        let mut meter = LossMeter::default();
        let (mut sent, mut lost) = (0, 0);
        let mut pass = |meter: &mut LossMeter, of_hundred: u64, samples| {
            for _ in 0..samples {
                sent += 1000;
                lost += of_hundred * 10;
                meter.sample(sent, lost, RTT);
            }
        };
        pass(&mut meter, 0, 10);
        assert!(!meter.is_lossy());
        pass(&mut meter, 2, 40);
        assert!(meter.is_lossy() && (0.019..0.021).contains(&meter.ratio()), "{meter:?}");
        pass(&mut meter, 0, 60);
        assert!(!meter.is_lossy());
    }

    #[test]
    fn one_loss_of_a_quiet_path_is_not_much() {
        let mut meter = LossMeter::default();
        meter.sample(10, 1, RTT);
        assert!(!meter.is_lossy() && meter.ratio() > 0.0, "{meter:?}");
        meter.sample(10, 1, RTT);
        assert!(meter.ratio() > 0.0);
    }

    #[test]
    fn loss_in_a_full_queue_is_not_random() {
        let mut meter = LossMeter::default();
        meter.sample(10_000, 100, RTT);
        assert!(meter.is_random());
        meter.sample(20_000, 200, RTT * 2);
        assert!(meter.is_lossy() && !meter.is_random());
        meter.sample(30_000, 300, RTT + QUEUE_MIN);
        assert!(meter.is_random());
        let mut long = LossMeter::default();
        long.sample(10_000, 100, RTT * 10);
        long.sample(20_000, 200, RTT * 10 + JITTER_MAX);
        assert!(long.is_random());
        long.sample(30_000, 300, RTT * 12);
        assert!(!long.is_random(), "20 ms of queue in a path of 100 ms");
        // The way of the packets has become longer,
        let mut become_longer = |packets: u64| {
            let (sent, lost) = (meter.sent, meter.lost);
            for sample in 1..500 {
                meter.sample(sent + sample * packets, lost + sample * packets / 100, RTT * 3);
            }
            meter.is_random()
        };
        assert!(!become_longer(10_000), "or all of these packets have filled a queue");
        assert!(become_longer(QUIET_PACKETS));
    }
}

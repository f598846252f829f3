//! How much of what is sent gets lost, lately.

/// Packets over which one sample counts fully; fewer count in proportion.
const PACKETS_FULL: f64 = 2_000.0;

/// Loss from which headers of super-frames are sent twice: more than one packet in [`PACKETS_FULL`].
const LOSSY: f64 = 1.2 / PACKETS_FULL;

/// A moving average of lost packets.
#[derive(Clone, Copy, Default, Debug)]
pub struct LossMeter {
    sent: u64,
    lost: u64,
    ratio: f64,
}

impl LossMeter {
    /// Takes a connection's counters, which only grow.
    pub fn sample(&mut self, sent: u64, lost: u64) {
        let (new_sent, new_lost) = (sent.saturating_sub(self.sent), lost.saturating_sub(self.lost));
        (self.sent, self.lost) = (sent, lost);
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_follows_the_path() {
        let mut meter = LossMeter::default();
        let (mut sent, mut lost) = (0, 0);
        let mut pass = |meter: &mut LossMeter, of_hundred: u64, samples| {
            for _ in 0..samples {
                sent += 1000;
                lost += of_hundred * 10;
                meter.sample(sent, lost);
            }
        };
        pass(&mut meter, 0, 10);
        assert!(!meter.is_lossy());
        pass(&mut meter, 2, 10);
        assert!(meter.is_lossy() && (0.019..0.021).contains(&meter.ratio()), "{meter:?}");
        pass(&mut meter, 0, 20);
        assert!(!meter.is_lossy());
    }

    #[test]
    fn one_loss_of_a_quiet_path_is_not_much() {
        let mut meter = LossMeter::default();
        meter.sample(10, 1);
        assert!(!meter.is_lossy() && meter.ratio() > 0.0, "{meter:?}");
        meter.sample(10, 1);
        assert!(meter.ratio() > 0.0);
    }
}

//! How much a connection sends and receives at present.

use std::time::Duration;
use virtuoso_overlay::time::Instant;

/// Bits per second on the path, between the last two looks.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(super) struct RateMeter {
    last: Option<(Instant, u64, u64)>,
    sent_bits: u64,
    received_bits: u64,
}

impl RateMeter {
    /// Takes what was sent and received since the connection began, in bytes.
    pub(super) fn sample(&mut self, now: Instant, sent: u64, received: u64) {
        if let Some((since, sent_then, received_then)) = self.last {
            let time = now.since(since);
            self.sent_bits = bits_per_second(sent - sent_then.min(sent), time);
            self.received_bits = bits_per_second(received - received_then.min(received), time);
        }
        self.last = Some((now, sent, received));
    }

    /// Sent bits per second.
    pub(super) fn sent(&self) -> u64 {
        self.sent_bits
    }

    /// Received bits per second.
    pub(super) fn received(&self) -> u64 {
        self.received_bits
    }
}

fn bits_per_second(bytes: u64, time: Duration) -> u64 {
    let bits = u128::from(bytes) * 8_000_000 / time.as_micros().max(1);
    u64::try_from(bits).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_last_interval() {
        let mut meter = RateMeter::default();
        meter.sample(Instant(0), 1_000_000, 0);
        assert_eq!((meter.sent(), meter.received()), (0, 0), "what was before is not known");
        meter.sample(Instant(500_000), 1_062_500, 125);
        assert_eq!((meter.sent(), meter.received()), (1_000_000, 2_000));
        meter.sample(Instant(1_000_000), 1_062_500, 125);
        assert_eq!((meter.sent(), meter.received()), (0, 0));
        meter.sample(Instant(1_000_000), 1_062_501, 0);
        assert_eq!(meter.sent(), 8_000_000, "the clock may stand still");
    }
}

//! Bytes per second, over all providers of one image.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use tokio::time::Instant;

/// Time for which bytes that were not asked for may be asked for later.
const BURST: Duration = Duration::from_millis(250);

/// A limit, or none.
pub(super) struct Rate {
    bytes_per_second: Option<u64>,
    /// When the next bytes may be asked for.
    due: Mutex<Option<Instant>>,
}

impl Rate {
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, due: Mutex::default() }
    }

    /// Waits until so many bytes may be asked for.
    pub(super) async fn take(&self, bytes: usize) {
        let Some(limit) = self.bytes_per_second else { return };
        let cost = Duration::from_secs_f64(bytes as f64 / limit.max(1) as f64);
        let now = Instant::now();
        let start = {
            // A plain value: it is whole even if a holder panicked.
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            let start = due.map_or(now, |due| due.max(earliest));
            *due = Some(start + cost);
            start
        };
        tokio::time::sleep_until(start).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_the_rate_and_forgives_a_short_pause() {
        let rate = Rate::new(Some(10 << 20));
        let take_five = async || {
            let begun = Instant::now();
            for _ in 0..5 {
                rate.take(1 << 20).await;
            }
            begun.elapsed()
        };
        assert!(take_five().await >= Duration::from_millis(400));
        tokio::time::sleep(2 * BURST).await;
        assert!(take_five().await >= Duration::from_millis(150));
        let unlimited = Rate::new(None);
        unlimited.take(usize::MAX).await;
    }
}

//! Bytes per second, over all providers of one image.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Time for which bytes that were not asked for may be asked for later.
const BURST: Duration = Duration::from_millis(250);

/// A limit, or none.
#[derive(Default)]
pub(super) struct Rate(Mutex<Limit>);

#[derive(Default)]
struct Limit {
    bytes_per_second: Option<u64>,
    /// When the next bytes may be asked for.
    due: Option<Instant>,
}

impl Rate {
    /// Sets or lifts the limit.
    pub(super) fn set(&self, bytes_per_second: Option<u64>) {
        self.limit().bytes_per_second = bytes_per_second;
    }

    /// Waits until so many bytes may be asked for.
    pub(super) async fn take(&self, bytes: usize) {
        let start = {
            let mut limit = self.limit();
            let Some(bytes_per_second) = limit.bytes_per_second else { return };
            let cost = Duration::from_secs_f64(bytes as f64 / bytes_per_second.max(1) as f64);
            let now = Instant::now();
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            let start = limit.due.map_or(now, |due| due.max(earliest));
            limit.due = Some(start + cost);
            start
        };
        tokio::time::sleep_until(start).await;
    }

    /// Plain values: they are whole even if a holder panicked.
    fn limit(&self) -> MutexGuard<'_, Limit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_the_rate_and_forgives_a_short_pause() {
        let rate = Rate::default();
        rate.set(Some(10 << 20));
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
        rate.set(None);
        rate.take(usize::MAX).await;
    }
}

//! A limit of bytes per second that several connections share.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// After a pause, the bytes of at most this time may be transferred at once.
const BURST: Duration = Duration::from_millis(250);

/// The limit. Each transfer is put on a schedule at the end of the transfers before it (the generic cell rate
/// algorithm, <https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm>).
#[derive(Debug)]
pub struct Rate {
    /// `None`: no limit.
    bytes_per_second: Option<u64>,
    /// The time at which all transfers so far are within the limit.
    scheduled: Mutex<Option<Instant>>,
}

impl Rate {
    /// A limit of megabits per second; 0 is no limit.
    pub fn megabits(per_second: u64) -> Self {
        let bytes_per_second = (per_second > 0).then_some(per_second.saturating_mul(125_000));
        Self { bytes_per_second, scheduled: Mutex::default() }
    }

    /// Counts bytes that were transferred. Returns the time to wait before the next transfer.
    pub(crate) fn count(&self, bytes: usize) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let now = Instant::now();
        let took = Duration::from_micros((bytes as u64).saturating_mul(1_000_000) / rate);
        let mut scheduled = self.scheduled.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let until = scheduled.map_or(earliest, |at| at.max(earliest)) + took;
        *scheduled = Some(until);
        until.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn transfers_together_are_no_faster_than_the_limit() {
        let (rate, began) = (Rate::megabits(8), Instant::now());
        for _ in 0..100 {
            tokio::time::sleep(rate.count(100_000)).await;
        }
        // 10 MB at 1 MB a second, of which the burst is a quarter second.
        assert_eq!(began.elapsed().as_millis(), 9_750);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(rate.count(250_000), Duration::ZERO, "a burst after a pause");
        assert!(rate.count(1_000_000) >= Duration::from_secs(1));
        assert_eq!(Rate::megabits(0).count(usize::MAX), Duration::ZERO);
    }
}

//! Sums of spending and earnings over days.

use gpubnb_events::Timestamp;
use gpubnb_query::view::Day;

/// Days that are asked for: as many as the longest month has.
pub(crate) const MONTH: u32 = 31;

/// Today, and all days of this month (today among them), out of `days`.
pub(crate) fn this_month(days: &[Day], now: Timestamp) -> (Day, Vec<Day>) {
    let today = Day::of(now);
    let day_of_month = now.date().rsplit('-').next().and_then(|d| d.parse().ok()).unwrap_or(1_u32);
    let first = today.saturating_sub(day_of_month - 1);
    let month: Vec<_> = days.iter().copied().filter(|d| d.day >= first).collect();
    let of_today = month.iter().copied().find(|d| d.day == today).unwrap_or_default();
    (of_today, month)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::MicroUsd;

    #[test]
    fn a_month_begins_on_its_first_day() {
        let now: Timestamp = "2026-03-02T12:00:00Z".parse().unwrap();
        let today = Day::of(now);
        let day = |day: u32, earned: i64| Day { day, earned: MicroUsd(earned), ..Day::default() };
        let days = [day(today - 2, 1), day(today - 1, 10), day(today, 100)];
        let (of_today, month) = this_month(&days, now);
        assert_eq!(of_today.earned, MicroUsd(100));
        assert_eq!(month.iter().map(|d| d.earned.0).sum::<i64>(), 110, "the last day of February does not count");
        let (none, empty) = this_month(&[], now);
        assert_eq!((none.earned, empty.len()), (MicroUsd::ZERO, 0));
    }
}

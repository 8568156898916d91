//! Spending and earnings by day. A [`Day`] contains the sums of one day; `Day::number` counts the days.

use gpubnb_events::Timestamp;
use gpubnb_query::view::Day;

/// The number of days in a query: the length of the longest month.
pub(crate) const MONTH: u32 = 31;

/// Selects two things from `days`: today (all sums zero if today is missing), and all days of this month, including
/// today.
pub(crate) fn this_month(days: &[Day], now: Timestamp) -> (Day, Vec<Day>) {
    let today = Day::number(now);
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
    fn days_of_the_previous_month_are_not_selected() {
        let now: Timestamp = "2026-03-02T12:00:00Z".parse().unwrap();
        let today = Day::number(now);
        let day = |day: u32, earned: i64| Day { day, earned: MicroUsd(earned), ..Day::default() };
        let days = [day(today - 2, 1), day(today - 1, 10), day(today, 100)];
        let (of_today, month) = this_month(&days, now);
        assert_eq!(of_today.earned, MicroUsd(100));
        assert_eq!(month.iter().map(|d| d.earned.0).sum::<i64>(), 110, "the last day of February does not count");
        let (none, empty) = this_month(&[], now);
        assert_eq!((none.earned, empty.len()), (MicroUsd::ZERO, 0));
    }
}

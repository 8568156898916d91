//! Spending and earnings by day. A [`Day`] contains the sums of one day; `Day::number` counts the days.

use gpubnb_events::{MicroUsd, Timestamp};
use gpubnb_query::view::Day;

use crate::{chart, format};

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

/// The last [`MONTH`] days up to today, oldest first, each with its sums. A day without a settlement is zero.
pub(crate) fn last_days(days: &[Day], now: Timestamp) -> Vec<Day> {
    let today = Day::number(now);
    let of_day = |day| days.iter().copied().find(|d| d.day == day).unwrap_or(Day { day, ..Day::default() });
    (today.saturating_sub(MONTH - 1)..=today).map(of_day).collect()
}

/// The chart of what the last days earned; empty if they earned nothing.
// The amounts become pixels, so the lost precision is invisible.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn chart(days: &[Day], now: Timestamp) -> String {
    let days = last_days(days, now);
    let sum: MicroUsd = days.iter().map(|day| day.earned).sum();
    if sum <= MicroUsd::ZERO {
        return String::new();
    }
    let date = |day: &Day| Timestamp::from_millis(i64::from(day.day) * 86_400_000).date();
    let bars: Vec<_> = days
        .iter()
        .map(|day| chart::Bar { label: format!("{}: {}", date(day), day.earned), value: day.earned.0 as f64 })
        .collect();
    let first = days.first().map(date).unwrap_or_default();
    let summary = format!("{} in {MONTH} days, by day (UTC)", format::headline(&sum));
    chart::bars("Earned", &summary, &bars, (&first, "today"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_of_the_previous_month_are_not_selected() {
        let now: Timestamp = "2026-03-02T12:00:00Z".parse().unwrap();
        let today = Day::number(now);
        let day = |day: u32, earned: i64| Day { day, earned: MicroUsd(earned), ..Day::default() };
        let days = [day(today - 2, 1), day(today - 1, 10), day(today, 100)];
        let (of_today, month) = this_month(&days, now);
        assert_eq!(of_today.earned, MicroUsd(100));
        assert_eq!(month.iter().map(|d| d.earned.0).sum::<i64>(), 110, "the last day of February does not count");
        let last = last_days(&days, now);
        assert_eq!((last.len(), last[30].earned.0, last[29].earned.0, last[28].earned.0), (31, 100, 10, 1));
        assert_eq!(chart(&days, now).matches("<rect").count(), 31);
        assert_eq!(chart(&[], now), "");
        let (none, empty) = this_month(&[], now);
        assert_eq!((none.earned, empty.len()), (MicroUsd::ZERO, 0));
    }
}

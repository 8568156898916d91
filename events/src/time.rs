//! Timestamps, durations and clocks. No code reads the time by itself: a [`Clock`] is passed in. The type of a duration
//! names its unit.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// A moment, to the millisecond, in UTC. On the wire: RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(from = "jiff::Timestamp", into = "jiff::Timestamp")]
#[schema(value_type = String, format = DateTime)]
pub struct Timestamp(jiff::Timestamp);

/// A duration in milliseconds.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct Millis(pub u64);

/// A duration in seconds.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct Seconds(pub u64);

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    pub const EPOCH: Self = Self(jiff::Timestamp::UNIX_EPOCH);

    /// The time at these milliseconds since the epoch. A time outside the calendar becomes its first or last moment.
    pub fn from_millis(millis: i64) -> Self {
        let edge = if millis < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
        Self(jiff::Timestamp::from_millisecond(millis).unwrap_or(edge))
    }

    /// The time at these nanoseconds since the epoch, cut to the millisecond.
    pub fn from_nanos(nanos: i128) -> Self {
        Self::from_millis(i64::try_from(nanos / 1_000_000).unwrap_or(i64::MAX))
    }

    /// Nanoseconds since the epoch.
    pub fn nanos(self) -> i128 {
        self.0.as_nanosecond()
    }

    /// Milliseconds since the epoch.
    pub fn millis(self) -> i64 {
        self.0.as_millisecond()
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Millis {
        Millis(u64::try_from(self.millis().saturating_sub(earlier.millis())).unwrap_or(0))
    }

    /// The moment one nanosecond before this one. Only this `Timestamp` is finer than a millisecond. For every other
    /// time `x`, `x <= t.previous_instant()` means `x < t`.
    #[must_use]
    pub fn previous_instant(self) -> Self {
        self.0.checked_sub(jiff::SignedDuration::from_nanos(1)).map_or(self, Self)
    }

    /// The moment after this one by `time`.
    #[must_use]
    pub fn plus(self, time: Millis) -> Self {
        Self::from_millis(self.millis().saturating_add(i64::try_from(time.0).unwrap_or(i64::MAX)))
    }

    /// Reads an HTTP date (RFC 9110, IMF-fixdate).
    pub fn from_http_date(text: &str) -> Option<Self> {
        let parsed = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text.replace("GMT", "+0000"));
        parsed.ok().map(Self)
    }

    /// Minutes since midnight in the time zone of this machine.
    pub fn local_minute(self) -> u16 {
        let local = self.0.to_zoned(jiff::tz::TimeZone::system());
        let of = |part: i8| u16::from(part.unsigned_abs());
        of(local.hour()) * 60 + of(local.minute())
    }

    /// The day in UTC, such as `2026-02-03`.
    pub fn date(self) -> String {
        self.0.strftime("%Y-%m-%d").to_string()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Timestamp {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<jiff::Timestamp>().map(Self::from)
    }
}

impl From<jiff::Timestamp> for Timestamp {
    /// Cuts the time to the millisecond.
    fn from(at: jiff::Timestamp) -> Self {
        Self::from_millis(at.as_millisecond())
    }
}

impl From<Timestamp> for jiff::Timestamp {
    fn from(at: Timestamp) -> Self {
        at.0
    }
}

impl Millis {
    /// The same time as the standard library's duration.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }

    /// A duration of the standard library, cut to the millisecond.
    pub fn from_duration(time: Duration) -> Self {
        Self(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }
}

impl Seconds {
    /// The same time in milliseconds.
    pub const fn millis(self) -> Millis {
        Millis(self.0.saturating_mul(1_000))
    }
}

/// A source of the present time. Tests and the simulation have sources of their own.
pub trait Clock: Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// The clock of the computer on which the process runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // the one place where the wall clock is read
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_rfc_3339_text_and_time_between_is_never_negative() {
        let at = Timestamp::from_millis(1_770_000_000_123);
        assert_eq!(serde_json::to_string(&at).unwrap(), "\"2026-02-02T02:40:00.123Z\"");
        assert_eq!("2026-02-02T02:40:00.123456789Z".parse::<Timestamp>().unwrap(), at);
        assert_eq!(serde_json::from_str::<Timestamp>("\"2026-02-02T02:40:00.1239Z\"").unwrap(), at);
        assert_eq!(Timestamp::EPOCH.since(at), Millis(0));
        assert_eq!(at.plus(Millis(7)).since(at), Millis(7));
        assert_eq!(Timestamp::from_millis(i64::MAX), Timestamp::from_millis(i64::MAX - 1));
    }
}

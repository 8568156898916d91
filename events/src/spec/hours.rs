//! The hours of the day at which the owner of a machine shares it.

use std::{fmt, str::FromStr};

/// Hours of the day, by the machine's clock, such as `22:00-08:00` or `22:00-08:00,12:30-13:00`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hours {
    /// Start (included) and end (excluded) of each window, minutes since midnight. A window may go past midnight: its
    /// end is then smaller than its start.
    windows: Vec<(u16, u16)>,
    /// The text from which the hours were parsed.
    text: String,
}

/// The minute of the day, 0 to 1,440, of a text such as `18:00`; `None` if the text is no time of day. `24:00` is the
/// end of the day.
pub fn minute_of_day(text: &str) -> Option<u16> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    (minutes < 60 && (hours < 24 || (hours, minutes) == (24, 0))).then(|| hours * 60 + minutes)
}

impl FromStr for Hours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |part: &str| format!("`{part}` is not a window of time: write it like 22:00-08:00");
        let window = |part: &str| {
            let (from, to) = part.split_once('-').ok_or_else(|| bad(part))?;
            let window = minute_of_day(from).zip(minute_of_day(to)).ok_or_else(|| bad(part))?;
            if window.0 == window.1 {
                return Err(format!("`{part}` is empty: all day is 00:00-24:00"));
            }
            Ok(window)
        };
        let windows = text.split(',').map(window).collect::<Result<_, String>>()?;
        Ok(Self { windows, text: text.to_owned() })
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Hours {
    /// Returns true if one of the windows contains this minute of the day, 0 to 1,439.
    #[must_use]
    pub fn contains(&self, minute: u16) -> bool {
        self.windows
            .iter()
            .any(|(from, to)| if from <= to { (*from..*to).contains(&minute) } else { minute >= *from || minute < *to })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_may_go_past_midnight() {
        let hours: Hours = "22:00-08:00, 12:30-13:00".parse().unwrap();
        for (minute, within) in [(22 * 60, true), (0, true), (8 * 60, false), (12 * 60 + 45, true), (13 * 60, false)] {
            assert_eq!(hours.contains(minute), within, "{minute}");
        }
        assert!("0:00-24:00".parse::<Hours>().unwrap().contains(23 * 60 + 59));
        for bad in ["", "22-8", "25:00-08:00", "22:00", "22:60-08:00", "08:00-08:00", "9999:00-10:00"] {
            assert!(bad.parse::<Hours>().is_err(), "{bad}");
        }
    }
}

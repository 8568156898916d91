//! Money as whole micro-dollars. No floating point number is used anywhere near money.

use std::{fmt, iter::Sum, ops, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::time::Millis;

/// An amount in millionths of a US dollar; negative in a posting that takes money from an account.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct MicroUsd(pub i64);

/// A price per hour of use.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct HourlyRate(pub MicroUsd);

/// The error for a text that is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an amount: expected dollars such as 12.50, with at most six decimals")]
pub struct BadAmount(String);

const MICROS: i64 = 1_000_000;
const MILLIS_PER_HOUR: i128 = 3_600_000;

impl MicroUsd {
    /// No money.
    pub const ZERO: Self = Self(0);

    /// An amount of whole dollars.
    #[must_use]
    pub const fn dollars(dollars: i64) -> Self {
        Self(dollars * MICROS)
    }

    /// This amount times `basis_points` / 10,000, rounded down.
    #[must_use]
    pub fn share(self, basis_points: u32) -> Self {
        Self(clamp(i128::from(self.0) * i128::from(basis_points) / 10_000))
    }
}

impl HourlyRate {
    /// The cost of a time, rounded down to the micro-dollar in favour of the consumer. No other function computes a
    /// cost from a price. ([`MicroUsd::share`] rounds the fee, which is a part of this cost.)
    #[must_use]
    pub fn cost_of(self, time: Millis) -> MicroUsd {
        MicroUsd(clamp(i128::from(self.0.0) * i128::from(time.0) / MILLIS_PER_HOUR))
    }

    /// The time that a budget pays for; `None` for a machine that costs nothing.
    #[must_use]
    pub fn time_for(self, budget: MicroUsd) -> Option<Millis> {
        if self.0.0 <= 0 {
            return None;
        }
        let millis = i128::from(budget.0.max(0)) * MILLIS_PER_HOUR / i128::from(self.0.0);
        Some(Millis(u64::try_from(millis).unwrap_or(u64::MAX)))
    }
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

// Arithmetic saturates, because a fold must never panic. The result is never wrong: commands with amounts anywhere near
// the limits of an i64 are refused (`services/domain`).
impl ops::Add for MicroUsd {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl ops::Sub for MicroUsd {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl ops::Neg for MicroUsd {
    type Output = Self;
    fn neg(self) -> Self {
        Self(self.0.saturating_neg())
    }
}

impl ops::AddAssign for MicroUsd {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for MicroUsd {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, |a, b| a + b)
    }
}

impl fmt::Display for MicroUsd {
    /// Writes dollars with as many decimals as the amount needs, at least two: `$0.0042`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let micros = self.0.unsigned_abs();
        let decimals = format!("{:06}", micros % 1_000_000);
        let needed = decimals.trim_end_matches('0').len().max(2);
        write!(f, "{sign}${}.{}", micros / 1_000_000, &decimals[..needed])
    }
}

impl fmt::Display for HourlyRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/h", self.0)
    }
}

impl FromStr for MicroUsd {
    type Err = BadAmount;

    /// Reads dollars: `12`, `12.5`, `$0.000001`, `-3.20`.
    fn from_str(text: &str) -> Result<Self, BadAmount> {
        let bad = || BadAmount(text.chars().take(40).collect());
        let trimmed = text.trim();
        let (sign, unsigned) = trimmed.strip_prefix('-').map_or((1, trimmed), |rest| (-1, rest));
        let digits = unsigned.strip_prefix('$').unwrap_or(unsigned);
        let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
        let numeric = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if (whole.is_empty() && decimals.is_empty()) || decimals.len() > 6 || !numeric(whole) || !numeric(decimals) {
            return Err(bad());
        }
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
        let micros: i64 = format!("{decimals:0<6}").parse().map_err(|_| bad())?;
        let amount = whole.checked_mul(MICROS).and_then(|w| w.checked_add(micros)).ok_or_else(bad)?;
        Ok(Self(sign * amount))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_an_amount_parses_to_the_same_amount() {
        for (text, micros) in [("$12.50", 12_500_000), ("$0.000001", 1), ("-$3.20", -3_200_000), ("$0.00", 0)] {
            assert_eq!(text.parse::<MicroUsd>(), Ok(MicroUsd(micros)));
            assert_eq!(MicroUsd(micros).to_string(), text);
        }
        for bad in ["", ".", "1e3", "1.0000001", "99999999999999999999", "1,5", "--1"] {
            assert!(bad.parse::<MicroUsd>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cost_is_rounded_down_and_never_exceeds_its_budget() {
        let rate = HourlyRate(MicroUsd(1_000_001));
        assert_eq!(rate.cost_of(Millis(3_600_000)), MicroUsd(1_000_001));
        assert_eq!(rate.cost_of(Millis(1)), MicroUsd(0));
        let budget = MicroUsd(123_457);
        assert!(rate.cost_of(rate.time_for(budget).unwrap()) <= budget);
        assert_eq!(HourlyRate(MicroUsd(0)).time_for(budget), None);
    }
}

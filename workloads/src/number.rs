//! Conversions between integers and floating-point numbers, each with a documented rounding.

/// An integer as a single-precision number; exact up to 2^24. All counts of the demo jobs are far smaller.
#[expect(clippy::cast_precision_loss, reason = "documented: exact up to 2^24")]
pub const fn to_f32(count: usize) -> f32 {
    count as f32
}

/// An integer as a double-precision number; exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "documented: exact up to 2^53")]
pub const fn to_f64(count: usize) -> f64 {
    count as f64
}

/// The nearest single-precision number.
#[expect(clippy::cast_possible_truncation, reason = "documented: rounds to the nearest")]
pub const fn round_to_f32(value: f64) -> f32 {
    value as f32
}

/// Rounds down to an integer; negative numbers and NaN give 0.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "documented: rounds down and saturates")]
pub const fn floor_index(value: f32) -> usize {
    value as usize
}

/// A brightness between 0 and 1 as a byte; values outside the range are clamped.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range of a byte first")]
pub const fn to_byte(brightness: f32) -> u8 {
    (brightness.clamp(0.0, 1.0) * 255.0 + 0.5) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_outside_the_range_are_clamped() {
        assert_eq!(floor_index(2.9), 2);
        assert_eq!(floor_index(-1.0), 0);
        assert_eq!(floor_index(f32::NAN), 0);
        assert_eq!((to_byte(-1.0), to_byte(0.5), to_byte(7.0)), (0, 128, 255));
    }
}

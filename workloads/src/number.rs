//! Conversions between integers and floating-point numbers, each with a documented rounding.

/// An integer as a single-precision number; exact up to 2^24, far above any count used here.
#[expect(clippy::cast_precision_loss, reason = "documented: exact up to 2^24")]
pub const fn real(count: usize) -> f32 {
    count as f32
}

/// An integer as a double-precision number; exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "documented: exact up to 2^53")]
pub const fn real64(count: usize) -> f64 {
    count as f64
}

/// The nearest single-precision number.
#[expect(clippy::cast_possible_truncation, reason = "documented: rounds to the nearest")]
pub const fn single(value: f64) -> f32 {
    value as f32
}

/// Rounds down to an integer; negative numbers and NaN give 0.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "documented: rounds down and saturates")]
pub const fn floor_index(value: f32) -> usize {
    value as usize
}

/// A brightness between 0 and 1 as a byte; values outside the range are clamped.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range of a byte first")]
pub const fn byte(brightness: f32) -> u8 {
    (brightness.clamp(0.0, 1.0) * 255.0 + 0.5) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_saturate() {
        assert_eq!(floor_index(2.9), 2);
        assert_eq!(floor_index(-1.0), 0);
        assert_eq!(floor_index(f32::NAN), 0);
        assert_eq!((byte(-1.0), byte(0.5), byte(7.0)), (0, 128, 255));
    }
}

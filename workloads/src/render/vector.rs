//! Vectors of three numbers: places, directions and light.
//!
//! Only arithmetic belongs here.

use std::ops::{Add, AddAssign, Mul, Neg, Sub};

/// Three numbers which are calculated with together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Vec3 {
    /// To the right, or red.
    pub x: f32,
    /// Upwards, or green.
    pub y: f32,
    /// Towards the viewer, or blue.
    pub z: f32,
}

impl Vec3 {
    /// All zero: the origin, or darkness.
    pub const ZERO: Self = Self::new(0.0, 0.0, 0.0);
    /// All one: white light.
    pub const ONE: Self = Self::new(1.0, 1.0, 1.0);

    /// A vector from its three numbers.
    pub const fn new(x: f32, y: f32, z: f32) -> Self {
        Self { x, y, z }
    }

    /// The sum of the products.
    pub const fn dot(self, other: Self) -> f32 {
        self.x * other.x + self.y * other.y + self.z * other.z
    }

    /// A vector at right angles to both.
    #[must_use]
    pub const fn cross(self, other: Self) -> Self {
        Self::new(
            self.y * other.z - self.z * other.y,
            self.z * other.x - self.x * other.z,
            self.x * other.y - self.y * other.x,
        )
    }

    /// How long the vector is.
    pub fn length(self) -> f32 {
        self.dot(self).sqrt()
    }

    /// The same direction with length one.
    #[must_use]
    pub fn unit(self) -> Self {
        self * (1.0 / self.length().max(f32::MIN_POSITIVE))
    }

    /// The vector thrown back by a surface with this normal.
    #[must_use]
    pub fn reflected(self, normal: Self) -> Self {
        self - normal * (2.0 * self.dot(normal))
    }

    /// The vector `share` of the way towards another one.
    #[must_use]
    pub fn mix(self, other: Self, share: f32) -> Self {
        self + (other - self) * share
    }

    /// The greatest of the three numbers.
    pub const fn greatest(self) -> f32 {
        self.x.max(self.y).max(self.z)
    }

    /// Two vectors which are at right angles to this one (of length one) and to each other.
    pub fn basis(self) -> (Self, Self) {
        let other = if self.x.abs() > 0.9 { Self::new(0.0, 1.0, 0.0) } else { Self::new(1.0, 0.0, 0.0) };
        let first = self.cross(other).unit();
        (first, self.cross(first))
    }
}

impl Add for Vec3 {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self::new(self.x + other.x, self.y + other.y, self.z + other.z)
    }
}

impl AddAssign for Vec3 {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Vec3 {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self::new(self.x - other.x, self.y - other.y, self.z - other.z)
    }
}

impl Neg for Vec3 {
    type Output = Self;
    fn neg(self) -> Self {
        Self::new(-self.x, -self.y, -self.z)
    }
}

impl Mul<f32> for Vec3 {
    type Output = Self;
    fn mul(self, factor: f32) -> Self {
        Self::new(self.x * factor, self.y * factor, self.z * factor)
    }
}

impl Mul for Vec3 {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self::new(self.x * other.x, self.y * other.y, self.z * other.z)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_basis_is_at_right_angles() {
        for axis in [Vec3::new(1.0, 0.0, 0.0), Vec3::new(0.3, -2.0, 1.0), Vec3::new(0.0, 0.0, -1.0)] {
            let axis = axis.unit();
            let (first, second) = axis.basis();
            for (a, b) in [(axis, first), (axis, second), (first, second)] {
                assert!(a.dot(b).abs() < 1e-6);
            }
            assert!((second.length() - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn light_leaves_as_steep_as_it_came() {
        let up = Vec3::new(0.0, 1.0, 0.0);
        assert_eq!(Vec3::new(1.0, -1.0, 0.0).reflected(up), Vec3::new(1.0, 1.0, 0.0));
    }
}

//! The handwritten digits: loading, splitting, and varying the pictures.
//!
//! The data set is "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI
//! Machine Learning Repository, CC BY 4.0): 1797 digits of 8 by 8 pixels.

use rand::RngExt;
use rand::rngs::ChaCha8Rng;
use smartcore::dataset::digits;

use crate::error::Error;
use crate::number::{floor_index, real};

/// Rows and columns of each picture.
pub const SIDE: usize = 8;
/// The number of different digits.
pub const CLASSES: usize = 10;
/// Pixels of each picture.
pub(super) const PIXELS: usize = SIDE * SIDE;

/// The name of the data set, as stored in `metrics.json`.
pub(super) const NAME: &str = "Optical Recognition of Handwritten Digits (UCI), 8 x 8 pixels";

/// The brightness of a white pixel in the original data set.
const BRIGHTEST: f32 = 16.0;
/// Every fifth picture of each digit is kept for testing.
const TEST_SHARE: usize = 5;

/// A picture: rows of brightness between 0 and 1.
pub(super) type Picture = [f32; PIXELS];

/// Pictures with the digit that each of them shows.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// The pictures.
    pub pictures: Vec<Picture>,
    /// The digit on each picture.
    pub labels: Vec<usize>,
}

impl Part {
    /// The number of pictures.
    pub const fn len(&self) -> usize {
        self.labels.len()
    }

    /// True if there are no pictures.
    pub const fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// The data set, split into a training part and a test part.
#[derive(Clone, Debug)]
pub struct Digits {
    /// The pictures that the network learns from.
    pub train: Part,
    /// The pictures that the network is tested with.
    pub test: Part,
}

impl Digits {
    /// Loads and splits the data; the split is fixed, so that results can be compared.
    pub fn load() -> Result<Self, Error> {
        let data = digits::load_dataset();
        let mut split = Self { train: Part::default(), test: Part::default() };
        let mut seen = [0_usize; CLASSES];
        let (pictures, _) = data.data.as_chunks::<PIXELS>();
        for (picture, label) in pictures.iter().zip(&data.target) {
            let class = floor_index(*label);
            let count = seen.get_mut(class).ok_or(Error::Data("a label is no digit"))?;
            *count += 1;
            let part = if *count % TEST_SHARE == 0 { &mut split.test } else { &mut split.train };
            part.pictures.push(picture.map(|brightness| brightness / BRIGHTEST));
            part.labels.push(class);
        }
        if split.train.is_empty() || split.test.is_empty() {
            return Err(Error::Data("there are too few pictures"));
        }
        Ok(split)
    }
}

/// Turns, scales and shifts a picture a little at random, like the hand of another writer.
pub(super) fn vary(picture: &Picture, rng: &mut ChaCha8Rng) -> Picture {
    let turn: f32 = rng.random_range(-0.2..0.2);
    let scale: f32 = rng.random_range(0.88..1.14);
    let (right, down): (f32, f32) = (rng.random_range(-0.8..0.8), rng.random_range(-0.8..0.8));
    let (sin, cos) = (turn.sin() / scale, turn.cos() / scale);
    let middle = real(SIDE - 1) / 2.0;
    std::array::from_fn(|i| {
        let (x, y) = (real(i % SIDE) - middle, real(i / SIDE) - middle);
        sample(picture, cos * x - sin * y + middle + right, sin * x + cos * y + middle + down)
    })
}

/// The brightness at a place between four pixels, interpolated; outside the picture it is 0.
fn sample(picture: &Picture, x: f32, y: f32) -> f32 {
    // A margin of one pixel keeps the integers positive.
    let (x, y) = (x + 1.0, y + 1.0);
    if x < 0.0 || y < 0.0 {
        return 0.0;
    }
    let (column, row) = (floor_index(x), floor_index(y));
    let (across, along) = (x - x.floor(), y - y.floor());
    let pixel = |column: usize, row: usize| {
        let inside = (1..=SIDE).contains(&column) && (1..=SIDE).contains(&row);
        if inside { picture[(row - 1) * SIDE + column - 1] } else { 0.0 }
    };
    let above = pixel(column, row) * (1.0 - across) + pixel(column + 1, row) * across;
    let below = pixel(column, row + 1) * (1.0 - across) + pixel(column + 1, row + 1) * across;
    above * (1.0 - along) + below * along
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn every_digit_is_in_both_parts() {
        let digits = Digits::load().unwrap();
        assert_eq!(digits.train.len() + digits.test.len(), 1797);
        for part in [&digits.train, &digits.test] {
            assert_eq!(part.pictures.len(), part.labels.len());
            for class in 0..10 {
                let share = part.labels.iter().filter(|label| **label == class).count();
                assert!(share * 12 > part.len(), "{class}");
            }
            assert!(part.pictures.iter().flatten().all(|pixel| (0.0..=1.0).contains(pixel)));
        }
    }

    #[test]
    fn brightness_is_interpolated_between_pixels() {
        let picture: Picture = std::array::from_fn(|i| real(i % SIDE));
        assert!((sample(&picture, 3.0, 3.0) - 3.0).abs() < 1e-6);
        assert!((sample(&picture, 2.5, 6.5) - 2.5).abs() < 1e-6);
        assert!(sample(&picture, -3.0, 2.0).abs() < 1e-6);
        assert!(sample(&picture, 40.0, 2.0).abs() < 1e-6);
    }

    #[test]
    fn variations_differ_but_stay_within_bounds() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let digits = Digits::load().unwrap();
        let picture = &digits.train.pictures[0];
        let varied = vary(picture, &mut rng);
        let differ = varied.iter().zip(picture).any(|(a, b)| (a - b).abs() > 0.05);
        assert!(differ);
        assert!(varied.iter().all(|pixel| (0.0..=1.0).contains(pixel)));
    }
}

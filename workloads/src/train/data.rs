//! The handwritten digits: loads the data set, splits it, and makes random variations of a picture.
//!
//! The data set is "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI
//! Machine Learning Repository, CC BY 4.0): 1797 digits of 8 by 8 pixels.

use rand::RngExt;
use rand::rngs::ChaCha8Rng;
use smartcore::dataset::digits;

use crate::error::Error;
use crate::number::{floor_index, to_f32};

/// The number of rows and of columns of each picture.
pub const PICTURE_SIDE: usize = 8;
/// The number of different digits.
pub const CLASSES: usize = 10;
/// The number of pixels of each picture.
pub(super) const PIXELS: usize = PICTURE_SIDE * PICTURE_SIDE;

/// The name of the data set, as stored in `metrics.json`.
pub(super) const NAME: &str = "Optical Recognition of Handwritten Digits (UCI), 8 x 8 pixels";

/// The brightness of a white pixel in the original data set.
const BRIGHTEST: f32 = 16.0;
/// Every fifth picture of each digit is a test picture.
const TEST_INTERVAL: usize = 5;

/// A picture: the brightness of each pixel, 0 to 1, row by row.
pub(super) type Picture = [f32; PIXELS];

/// A part of the data set: pictures with their labels. The label of a picture is the digit that it shows.
#[derive(Clone, Debug, Default)]
pub struct Subset {
    /// The pictures.
    pub pictures: Vec<Picture>,
    /// The label of each picture.
    pub labels: Vec<usize>,
}

impl Subset {
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
    pub train: Subset,
    /// The pictures that the network is tested with.
    pub test: Subset,
}

impl Digits {
    /// Loads and splits the data. The split is always the same, so the results of two trainings can be compared.
    pub fn load() -> Result<Self, Error> {
        let data = digits::load_dataset();
        let mut split = Self { train: Subset::default(), test: Subset::default() };
        let mut seen = [0_usize; CLASSES];
        let (pictures, _) = data.data.as_chunks::<PIXELS>();
        for (picture, label) in pictures.iter().zip(&data.target) {
            let class = floor_index(*label);
            let count = seen.get_mut(class).ok_or(Error::Data("a label is not a digit"))?;
            *count += 1;
            let subset = if *count % TEST_INTERVAL == 0 { &mut split.test } else { &mut split.train };
            subset.pictures.push(picture.map(|brightness| brightness / BRIGHTEST));
            subset.labels.push(class);
        }
        if split.train.is_empty() || split.test.is_empty() {
            return Err(Error::Data("there are too few pictures"));
        }
        Ok(split)
    }
}

/// Makes a random variation: turns, scales and shifts the picture a little, as if another person had written the digit.
pub(super) fn augment(picture: &Picture, rng: &mut ChaCha8Rng) -> Picture {
    let turn: f32 = rng.random_range(-0.2..0.2);
    let scale: f32 = rng.random_range(0.88..1.14);
    let (right, down): (f32, f32) = (rng.random_range(-0.8..0.8), rng.random_range(-0.8..0.8));
    let (sin, cos) = (turn.sin() / scale, turn.cos() / scale);
    let middle = to_f32(PICTURE_SIDE - 1) / 2.0;
    std::array::from_fn(|i| {
        let (x, y) = (to_f32(i % PICTURE_SIDE) - middle, to_f32(i / PICTURE_SIDE) - middle);
        interpolate(picture, cos * x - sin * y + middle + right, sin * x + cos * y + middle + down)
    })
}

/// The brightness at a position between four pixels, by bilinear interpolation; 0 outside the picture.
fn interpolate(picture: &Picture, x: f32, y: f32) -> f32 {
    // A margin of one pixel: without it, the left and upper neighbours of an edge pixel would have negative indices.
    let (x, y) = (x + 1.0, y + 1.0);
    if x < 0.0 || y < 0.0 {
        return 0.0;
    }
    let (column, row) = (floor_index(x), floor_index(y));
    let (across, down) = (x - x.floor(), y - y.floor());
    let pixel = |column: usize, row: usize| {
        let is_inside = (1..=PICTURE_SIDE).contains(&column) && (1..=PICTURE_SIDE).contains(&row);
        if is_inside { picture[(row - 1) * PICTURE_SIDE + column - 1] } else { 0.0 }
    };
    let above = pixel(column, row) * (1.0 - across) + pixel(column + 1, row) * across;
    let below = pixel(column, row + 1) * (1.0 - across) + pixel(column + 1, row + 1) * across;
    above * (1.0 - down) + below * down
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn every_digit_is_in_both_subsets() {
        let digits = Digits::load().unwrap();
        assert_eq!(digits.train.len() + digits.test.len(), 1797);
        for subset in [&digits.train, &digits.test] {
            assert_eq!(subset.pictures.len(), subset.labels.len());
            for class in 0..10 {
                let count = subset.labels.iter().filter(|label| **label == class).count();
                assert!(count * 12 > subset.len(), "{class}");
            }
            assert!(subset.pictures.iter().flatten().all(|pixel| (0.0..=1.0).contains(pixel)));
        }
    }

    #[test]
    fn brightness_is_interpolated_between_pixels() {
        let picture: Picture = std::array::from_fn(|i| to_f32(i % PICTURE_SIDE));
        assert!((interpolate(&picture, 3.0, 3.0) - 3.0).abs() < 1e-6);
        assert!((interpolate(&picture, 2.5, 6.5) - 2.5).abs() < 1e-6);
        assert!(interpolate(&picture, -3.0, 2.0).abs() < 1e-6);
        assert!(interpolate(&picture, 40.0, 2.0).abs() < 1e-6);
    }

    #[test]
    fn variations_differ_but_stay_within_bounds() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let digits = Digits::load().unwrap();
        let picture = &digits.train.pictures[0];
        let varied = augment(picture, &mut rng);
        let differ = varied.iter().zip(picture).any(|(a, b)| (a - b).abs() > 0.05);
        assert!(differ);
        assert!(varied.iter().all(|pixel| (0.0..=1.0).contains(pixel)));
    }
}

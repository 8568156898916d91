//! The `matmul` job: measures how fast one core multiplies matrices of 32-bit floating-point numbers.

use std::io::Write;
use std::time::Instant;

use ndarray::Array2;
use ndarray::linalg::general_mat_mul;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use crate::cli::MatmulOptions;
use crate::error::Error;
use crate::number::to_f64;
use crate::output::OutputDir;
use crate::progress::Reporter;

const SEED: u64 = 1;
const REPORT_EVERY_SECONDS: f64 = 0.25;

/// The result of the measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measurement {
    /// Rows and columns of each matrix.
    pub size: usize,
    /// The number of calculated products.
    pub iterations: usize,
    /// The time for all products, in seconds.
    pub seconds: f64,
    /// Billions of additions and multiplications per second.
    pub gflops: f64,
}

impl Measurement {
    fn new(size: usize, iterations: usize, seconds: f64) -> Self {
        let operations = 2.0 * to_f64(size).powi(3) * to_f64(iterations);
        Self { size, iterations, seconds, gflops: operations / seconds.max(1e-9) / 1e9 }
    }
}

/// Multiplies for `options.seconds`, checks the product, and stores the measurement.
pub fn run<W: Write>(
    options: &MatmulOptions,
    output: &OutputDir,
    reporter: &mut Reporter<W>,
) -> Result<Measurement, Error> {
    let size = usize::from(options.size);
    reporter.log(&format!("multiplying {size} x {size} matrices for {} s", options.seconds))?;
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let left = random_matrix(size, &mut rng);
    let right = random_matrix(size, &mut rng);
    // The first product is not measured, because it also fills the caches.
    let mut product = left.dot(&right);
    check_row(&left, &right, &product, size / 2)?;

    let start = Instant::now();
    let mut iterations = 0_usize;
    let mut last_report = 0.0;
    let measurement = loop {
        general_mat_mul(1.0, &left, &right, 0.0, &mut product);
        iterations += 1;
        let seconds = start.elapsed().as_secs_f64();
        let so_far = Measurement::new(size, iterations, seconds);
        if seconds >= options.seconds {
            break so_far;
        }
        if seconds - last_report >= REPORT_EVERY_SECONDS {
            last_report = seconds;
            let message = format!("{:.2} GFLOP/s", so_far.gflops);
            reporter.progress(seconds / options.seconds, &message)?;
            reporter.metric(&[("gflops", so_far.gflops)])?;
        }
    };
    check_row(&left, &right, &product, size / 2)?;
    reporter.metric(&[("gflops", measurement.gflops)])?;
    let path = output.write_json("matmul.json", &measurement)?;
    reporter.log(&format!(
        "{iterations} products in {:.2} s: {:.2} GFLOP/s, stored in {}",
        measurement.seconds,
        measurement.gflops,
        path.display()
    ))?;
    reporter.progress(1.0, &format!("{:.2} GFLOP/s", measurement.gflops))?;
    Ok(measurement)
}

fn random_matrix(size: usize, rng: &mut ChaCha8Rng) -> Array2<f32> {
    Array2::from_shape_simple_fn((size, size), || rng.random_range(-1.0..1.0))
}

/// Recalculates one row of the product in double precision, without the matrix library.
fn check_row(left: &Array2<f32>, right: &Array2<f32>, product: &Array2<f32>, row: usize) -> Result<(), Error> {
    let factors = left.row(row);
    // The sum of n rounded products may be off by about n times the precision.
    let allowed = 1e-6 * to_f64(factors.len()).max(10.0);
    let is_close = |(column, found): (ndarray::ArrayView1<'_, f32>, &f32)| {
        let expected: f64 = factors.iter().zip(column).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        (f64::from(*found) - expected).abs() <= allowed
    };
    let mut pairs = right.columns().into_iter().zip(product.row(row));
    if pairs.all(is_close) { Ok(()) } else { Err(Error::WrongProduct { row }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_is_right_in_every_row() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let (left, right) = (random_matrix(33, &mut rng), random_matrix(33, &mut rng));
        let product = left.dot(&right);
        for row in 0..33 {
            check_row(&left, &right, &product, row).unwrap();
        }
    }

    #[test]
    fn a_wrong_product_is_detected() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let left = random_matrix(8, &mut rng);
        let right = random_matrix(8, &mut rng);
        assert!(matches!(check_row(&left, &right, &left, 3), Err(Error::WrongProduct { row: 3 })));
    }

    #[test]
    fn a_measurement_is_stored() {
        let dir = tempfile::tempdir().unwrap();
        let output = OutputDir::open(dir.path()).unwrap();
        let options = MatmulOptions { size: 16, seconds: 0.01 };
        let mut log = Vec::new();
        let measured = run(&options, &output, &mut Reporter::new(&mut log)).unwrap();
        assert!(measured.gflops > 0.0 && measured.iterations > 0);
        let stored = std::fs::read_to_string(dir.path().join("matmul.json")).unwrap();
        let stored: serde_json::Value = serde_json::from_str(&stored).unwrap();
        assert_eq!(stored["size"], 16);
        assert_eq!(stored.as_object().unwrap().len(), 4);
    }

    #[test]
    fn gflops_count_additions_and_multiplications() {
        let measured = Measurement::new(1000, 3, 2.0);
        assert!((measured.gflops - 3.0).abs() < 1e-9);
    }
}

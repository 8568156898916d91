//! The training loop: epochs of small steps, each epoch followed by a test.
//!
//! The result depends on the options and the data only, so the same seed gives the same numbers.

use ndarray::Array2;
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;
use serde::Serialize;

use super::data::{self, CLASSES, Digits, PIXELS, Part, Picture, vary};
use super::model::{Mlp, cross_entropy, read};
use crate::cli::TrainOptions;
use crate::error::Error;
use crate::number::{real64, single};

/// The last learning rate as a share of the first.
const FINAL_RATE: f64 = 0.02;

/// The result of one epoch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Epoch {
    /// The number of the epoch, from 1.
    pub epoch: u16,
    /// The mean loss over the training pictures, measured during the epoch.
    pub train_loss: f64,
    /// The mean loss over the test pictures, after the epoch.
    pub test_loss: f64,
    /// The share of test pictures that the network reads correctly.
    pub test_accuracy: f64,
}

/// Number of test pictures for each written digit (row) and each digit read (column).
pub type Confusion = [[u32; CLASSES]; CLASSES];

/// The contents of `metrics.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// The name of the data set.
    pub data: &'static str,
    /// The number of training pictures.
    pub train_pictures: usize,
    /// The number of test pictures.
    pub test_pictures: usize,
    /// The neurons of each layer, input first.
    pub layers: Vec<usize>,
    /// The number of trainable values of the network.
    pub weights: usize,
    /// The `--seed`.
    pub seed: u64,
    /// The other options.
    pub parameters: Parameters,
    /// The share of test pictures read correctly after the last epoch.
    pub test_accuracy: f64,
    /// The result of each epoch.
    pub epochs: Vec<Epoch>,
    /// The confusion matrix after the last epoch.
    pub confusion: Confusion,
}

/// The options of a training, as stored in `metrics.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Parameters {
    /// The `--epochs`.
    pub epochs: u16,
    /// The `--hidden`.
    pub hidden: u16,
    /// The `--learning-rate`.
    pub learning_rate: f64,
    /// The `--batch`.
    pub batch: u16,
    /// The `--variations`.
    pub variations: u16,
}

/// A finished training.
#[derive(Debug)]
pub struct Outcome {
    /// The trained network.
    pub model: Mlp,
    /// The measured numbers.
    pub metrics: Metrics,
    /// The digit that the network reads in each test picture after the last epoch.
    pub predictions: Vec<usize>,
}

/// Trains a network; `tell` is called after each epoch and can stop the training with an error.
pub fn learn(
    options: &TrainOptions,
    digits: &Digits,
    tell: &mut impl FnMut(&Epoch) -> Result<(), Error>,
) -> Result<Outcome, Error> {
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let hidden = usize::from(options.hidden);
    let layers = vec![PIXELS, hidden, hidden, CLASSES];
    let mut model = Mlp::new(&layers, &mut rng);
    let test_input = matrix(&digits.test.pictures);
    let mut epochs = Vec::new();
    let mut predictions = Vec::new();
    for number in 1..=options.epochs {
        let rate = single(options.learning_rate * decay(number, options.epochs));
        let train_loss = learn_epoch(options, &digits.train, &mut model, rate, &mut rng);
        let logits = model.forward(&test_input);
        let (test_loss, _) = cross_entropy(&logits, &digits.test.labels);
        predictions = read(&logits);
        if !train_loss.is_finite() || !test_loss.is_finite() {
            return Err(Error::Diverged { epoch: number });
        }
        let correct = predictions.iter().zip(&digits.test.labels).filter(|(a, b)| a == b).count();
        let test_accuracy = real64(correct) / real64(predictions.len().max(1));
        let epoch = Epoch { epoch: number, train_loss, test_loss, test_accuracy };
        tell(&epoch)?;
        epochs.push(epoch);
    }
    let metrics = Metrics {
        data: data::NAME,
        train_pictures: digits.train.len(),
        test_pictures: digits.test.len(),
        layers,
        weights: model.weights(),
        seed: options.seed,
        parameters: Parameters {
            epochs: options.epochs,
            hidden: options.hidden,
            learning_rate: options.learning_rate,
            batch: options.batch,
            variations: options.variations,
        },
        test_accuracy: epochs.last().map_or(0.0, |epoch| epoch.test_accuracy),
        epochs,
        confusion: confusion(&digits.test.labels, &predictions),
    };
    Ok(Outcome { model, metrics, predictions })
}

/// The learning rate of an epoch as a share of the first: half a cosine wave, falling.
fn decay(number: u16, all: u16) -> f64 {
    let done = f64::from(number.saturating_sub(1)) / f64::from(all.max(1));
    FINAL_RATE + (1.0 - FINAL_RATE) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
}

/// Learns from every variation of every picture, in random order; returns the mean loss.
fn learn_epoch(options: &TrainOptions, part: &Part, model: &mut Mlp, rate: f32, rng: &mut ChaCha8Rng) -> f64 {
    let mut order: Vec<usize> =
        (0..part.len()).flat_map(|i| std::iter::repeat_n(i, options.variations.into())).collect();
    order.shuffle(rng);
    let mut sum = 0.0;
    for batch in order.chunks(usize::from(options.batch)) {
        let pictures: Vec<Picture> = batch.iter().map(|i| vary(&part.pictures[*i], rng)).collect();
        let labels: Vec<usize> = batch.iter().map(|i| part.labels[*i]).collect();
        sum += model.learn(matrix(&pictures), &labels, rate) * real64(batch.len());
    }
    sum / real64(order.len().max(1))
}

/// The pictures as rows of a matrix.
fn matrix(pictures: &[Picture]) -> Array2<f32> {
    Array2::from_shape_fn((pictures.len(), PIXELS), |(picture, pixel)| pictures[picture][pixel])
}

fn confusion(truth: &[usize], read: &[usize]) -> Confusion {
    let mut table = Confusion::default();
    for (truth, read) in truth.iter().zip(read) {
        if let Some(cell) = table.get_mut(*truth).and_then(|row| row.get_mut(*read)) {
            *cell += 1;
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_get_smaller() {
        let rates: Vec<f64> = (1..=12).map(|number| decay(number, 12)).collect();
        assert!((rates[0] - 1.0).abs() < 1e-12);
        assert!(rates.is_sorted_by(|a, b| a > b));
        assert!(rates[11] > 0.0);
    }

    #[test]
    fn confusion_counts_written_and_read_digits() {
        let table = confusion(&[0, 0, 7], &[0, 3, 7]);
        assert_eq!((table[0][0], table[0][3], table[7][7]), (1, 1, 1));
        assert_eq!(table.iter().flatten().sum::<u32>(), 3);
    }
}

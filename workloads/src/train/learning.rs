//! The training loop. An epoch is one pass over the training pictures in small steps, followed by a test.
//!
//! The result depends on the options and the data only, so the same seed gives the same numbers.

use ndarray::Array2;
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;
use serde::Serialize;

use super::data::{self, CLASSES, Digits, PIXELS, Picture, Subset, augment};
use super::model::{Mlp, cross_entropy, predicted_digits};
use crate::cli::TrainOptions;
use crate::error::Error;
use crate::number::{round_to_f32, to_f64};

/// The final learning rate, as a factor of the first learning rate.
const FINAL_RATE_FACTOR: f64 = 0.02;

/// The result of one epoch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Epoch {
    /// The number of the epoch, from 1.
    pub epoch: u16,
    /// The mean loss over the training pictures, measured during the epoch.
    pub train_loss: f64,
    /// The mean loss over the test pictures, after the epoch.
    pub test_loss: f64,
    /// The share of test pictures that the network reads correctly, 0 to 1.
    pub test_accuracy: f64,
}

/// The number of test pictures for each written digit (row) and each digit that the network read (column).
pub type Confusion = [[u32; CLASSES]; CLASSES];

/// The result of a training, as stored in `metrics.json`.
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
    /// The option `--seed`.
    pub seed: u64,
    /// The other options.
    pub parameters: Parameters,
    /// The share of test pictures that the network reads correctly after the last epoch, 0 to 1.
    pub test_accuracy: f64,
    /// The result of each epoch.
    pub epochs: Vec<Epoch>,
    /// The confusion matrix after the last epoch.
    pub confusion: Confusion,
}

/// The options of a training, as stored in `metrics.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Parameters {
    /// The option `--epochs`.
    pub epochs: u16,
    /// The option `--hidden`.
    pub hidden: u16,
    /// The option `--learning-rate`.
    pub learning_rate: f64,
    /// The option `--batch`.
    pub batch: u16,
    /// The option `--variations`.
    pub variations: u16,
}

/// The result of a training: the network, the metrics, and the predictions.
#[derive(Debug)]
pub struct TrainedNetwork {
    /// The trained network.
    pub model: Mlp,
    /// The metrics of the training.
    pub metrics: Metrics,
    /// The digit that the network reads in each test picture after the last epoch.
    pub predictions: Vec<usize>,
}

/// Trains a network. `on_epoch` is called after each epoch, and an error from `on_epoch` stops the training.
pub fn learn(
    options: &TrainOptions,
    digits: &Digits,
    on_epoch: &mut impl FnMut(&Epoch) -> Result<(), Error>,
) -> Result<TrainedNetwork, Error> {
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let hidden = usize::from(options.hidden);
    let layers = vec![PIXELS, hidden, hidden, CLASSES];
    let mut model = Mlp::new(&layers, &mut rng);
    let test_input = to_matrix(&digits.test.pictures);
    let mut epochs = Vec::new();
    let mut predictions = Vec::new();
    for number in 1..=options.epochs {
        let rate = round_to_f32(options.learning_rate * rate_factor(number, options.epochs));
        let train_loss = learn_epoch(options, &digits.train, &mut model, rate, &mut rng);
        let logits = model.forward(&test_input);
        let (test_loss, _) = cross_entropy(&logits, &digits.test.labels);
        predictions = predicted_digits(&logits);
        if !train_loss.is_finite() || !test_loss.is_finite() {
            return Err(Error::Diverged { epoch: number });
        }
        let correct = predictions.iter().zip(&digits.test.labels).filter(|(a, b)| a == b).count();
        let test_accuracy = to_f64(correct) / to_f64(predictions.len().max(1));
        let epoch = Epoch { epoch: number, train_loss, test_loss, test_accuracy };
        on_epoch(&epoch)?;
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
        confusion: confusion_matrix(&digits.test.labels, &predictions),
    };
    Ok(TrainedNetwork { model, metrics, predictions })
}

/// The factor of an epoch's learning rate. It falls along half a cosine wave from 1 in the first epoch towards
/// `FINAL_RATE_FACTOR`.
fn rate_factor(number: u16, all: u16) -> f64 {
    let done = f64::from(number.saturating_sub(1)) / f64::from(all.max(1));
    FINAL_RATE_FACTOR + (1.0 - FINAL_RATE_FACTOR) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
}

/// Trains with every variation of every picture, in random order. Returns the mean loss.
fn learn_epoch(options: &TrainOptions, subset: &Subset, model: &mut Mlp, rate: f32, rng: &mut ChaCha8Rng) -> f64 {
    let mut indices: Vec<usize> =
        (0..subset.len()).flat_map(|i| std::iter::repeat_n(i, options.variations.into())).collect();
    indices.shuffle(rng);
    let mut sum = 0.0;
    for batch in indices.chunks(usize::from(options.batch)) {
        let pictures: Vec<Picture> = batch.iter().map(|i| augment(&subset.pictures[*i], rng)).collect();
        let labels: Vec<usize> = batch.iter().map(|i| subset.labels[*i]).collect();
        sum += model.learn(to_matrix(&pictures), &labels, rate) * to_f64(batch.len());
    }
    sum / to_f64(indices.len().max(1))
}

/// The pictures as rows of a matrix.
fn to_matrix(pictures: &[Picture]) -> Array2<f32> {
    Array2::from_shape_fn((pictures.len(), PIXELS), |(picture, pixel)| pictures[picture][pixel])
}

fn confusion_matrix(labels: &[usize], predictions: &[usize]) -> Confusion {
    let mut table = Confusion::default();
    for (label, prediction) in labels.iter().zip(predictions) {
        if let Some(cell) = table.get_mut(*label).and_then(|row| row.get_mut(*prediction)) {
            *cell += 1;
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_falls_in_every_epoch() {
        let factors: Vec<f64> = (1..=12).map(|number| rate_factor(number, 12)).collect();
        assert!((factors[0] - 1.0).abs() < 1e-12);
        assert!(factors.is_sorted_by(|a, b| a > b));
        assert!(factors[11] > 0.0);
    }

    #[test]
    fn the_confusion_matrix_counts_written_and_read_digits() {
        let table = confusion_matrix(&[0, 0, 7], &[0, 3, 7]);
        assert_eq!((table[0][0], table[0][3], table[7][7]), (1, 1, 1));
        assert_eq!(table.iter().flatten().sum::<u32>(), 3);
    }
}

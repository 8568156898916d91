//! The learning itself: epochs of small steps, each followed by a test.
//!
//! Everything that happens is decided by the options and the data; no clock and no hidden chance
//! is involved, so that the same seed gives the same numbers. Nothing is written or drawn here.

use candle_core::{D, Device, Tensor};
use candle_nn::{AdamW, Module, Optimizer, ParamsAdamW, loss};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;
use serde::Serialize;

use super::data::{self, CLASSES, Digits, PIXELS, Part, Picture, vary};
use super::model::Mlp;
use crate::cli::TrainOptions;
use crate::error::Error;
use crate::number::real64;

/// How much smaller the last step is than the first.
const FINAL_RATE: f64 = 0.02;

/// How well the network did after one epoch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Epoch {
    /// The number of the epoch, from 1.
    pub epoch: u16,
    /// The mean loss while learning.
    pub train_loss: f64,
    /// The loss on digits it never learned from.
    pub test_loss: f64,
    /// The share of those digits that it read correctly.
    pub test_accuracy: f64,
}

/// How often each digit (row) was taken for each digit (column).
pub type Confusion = [[u32; CLASSES]; CLASSES];

/// Everything that is worth to be stored about a training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// The name of the data set.
    pub data: &'static str,
    /// How many pictures were learned from.
    pub train_pictures: usize,
    /// How many pictures were tested with.
    pub test_pictures: usize,
    /// The neurons of each layer, input first.
    pub layers: Vec<usize>,
    /// How many numbers the network consists of.
    pub weights: usize,
    /// The `--seed`.
    pub seed: u64,
    /// The other options.
    pub parameters: Parameters,
    /// The share of test digits read correctly in the end.
    pub test_accuracy: f64,
    /// What happened in each epoch.
    pub epochs: Vec<Epoch>,
    /// How often each true digit (row) was read as each digit (column) in the end.
    pub confusion: Confusion,
}

/// The options of a training, as they are stored.
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
    /// The network, as it is in the end.
    pub model: Mlp,
    /// The numbers.
    pub metrics: Metrics,
    /// How the network reads each test picture in the end.
    pub predictions: Vec<u32>,
}

/// Trains a network; `tell` is called after each epoch and can stop the training by an error.
pub fn learn(
    options: &TrainOptions,
    digits: &Digits,
    tell: &mut impl FnMut(&Epoch) -> Result<(), Error>,
) -> Result<Outcome, Error> {
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let hidden = usize::from(options.hidden);
    let layers = vec![PIXELS, hidden, hidden, CLASSES];
    let model = Mlp::new(&layers, &mut rng)?;
    let rates = ParamsAdamW { lr: options.learning_rate, ..ParamsAdamW::default() };
    let mut optimizer = AdamW::new(model.vars(), rates)?;
    let mut epochs = Vec::new();
    let mut predictions = Vec::new();
    for number in 1..=options.epochs {
        optimizer.set_learning_rate(options.learning_rate * decay(number, options.epochs));
        let train_loss = learn_epoch(options, &digits.train, &model, &mut optimizer, &mut rng)?;
        let (test_loss, read) = test(&model, &digits.test)?;
        if !train_loss.is_finite() || !test_loss.is_finite() {
            return Err(Error::Diverged { epoch: usize::from(number) });
        }
        let correct = read.iter().zip(&digits.test.labels).filter(|(a, b)| a == b).count();
        let test_accuracy = real64(correct) / real64(read.len().max(1));
        let epoch = Epoch { epoch: number, train_loss, test_loss, test_accuracy };
        tell(&epoch)?;
        epochs.push(epoch);
        predictions = read;
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

/// How large the steps of an epoch are, compared to the first: falling along a half cosine.
fn decay(number: u16, all: u16) -> f64 {
    let done = f64::from(number.saturating_sub(1)) / f64::from(all.max(1));
    FINAL_RATE + (1.0 - FINAL_RATE) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
}

/// Shows every picture in all its variations, in a random order; gives the mean loss.
fn learn_epoch(
    options: &TrainOptions,
    part: &Part,
    model: &Mlp,
    optimizer: &mut AdamW,
    rng: &mut ChaCha8Rng,
) -> Result<f64, Error> {
    let mut order: Vec<usize> =
        (0..part.len()).flat_map(|i| std::iter::repeat_n(i, options.variations.into())).collect();
    order.shuffle(rng);
    let mut sum = 0.0;
    for batch in order.chunks(usize::from(options.batch)) {
        let pictures: Vec<Picture> = batch.iter().map(|i| vary(&part.pictures[*i], rng)).collect();
        let labels: Vec<u32> = batch.iter().map(|i| part.labels[*i]).collect();
        let (input, truth) = tensors(&pictures, &labels)?;
        let loss = loss::cross_entropy(&model.forward(&input)?, &truth)?;
        optimizer.backward_step(&loss)?;
        sum += f64::from(loss.to_scalar::<f32>()?) * real64(batch.len());
    }
    Ok(sum / real64(order.len().max(1)))
}

/// The loss on pictures that are not learned from, and how each of them is read.
fn test(model: &Mlp, part: &Part) -> Result<(f64, Vec<u32>), Error> {
    let (input, truth) = tensors(&part.pictures, &part.labels)?;
    let logits = model.forward(&input)?;
    let loss = loss::cross_entropy(&logits, &truth)?.to_scalar::<f32>()?;
    let read = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
    Ok((f64::from(loss), read))
}

fn tensors(pictures: &[Picture], labels: &[u32]) -> Result<(Tensor, Tensor), Error> {
    let pixels = pictures.as_flattened().to_vec();
    let input = Tensor::from_vec(pixels, (pictures.len(), PIXELS), &Device::Cpu)?;
    let truth = Tensor::from_vec(labels.to_vec(), labels.len(), &Device::Cpu)?;
    Ok((input, truth))
}

fn confusion(truth: &[u32], read: &[u32]) -> Confusion {
    let mut table = Confusion::default();
    for (truth, read) in truth.iter().zip(read) {
        let row = usize::try_from(*truth).ok().and_then(|truth| table.get_mut(truth));
        let cell = row.and_then(|row| row.get_mut(usize::try_from(*read).ok()?));
        if let Some(cell) = cell {
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
    fn confusion_counts_what_is_taken_for_what() {
        let table = confusion(&[0, 0, 7], &[0, 3, 7]);
        assert_eq!((table[0][0], table[0][3], table[7][7]), (1, 1, 1));
        assert_eq!(table.iter().flatten().sum::<u32>(), 3);
    }
}

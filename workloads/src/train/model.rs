//! The network: fully connected layers with rectifiers (`ReLU`) between them, trained with the optimiser `AdamW`.

use ndarray::{Array, Array2, Axis, Dimension, Ix1, Ix2, Zip};
use rand::RngExt;
use rand::rngs::ChaCha8Rng;
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, TensorView, serialize};

use super::data::CLASSES;
use crate::number::{to_f32, to_f64};

// The usual constants of AdamW: the decay of both moving averages, the guard against a division by
// zero, and the weight decay.
const MEAN_DECAY: f32 = 0.9;
const SQUARE_DECAY: f32 = 0.999;
const EPSILON: f32 = 1e-8;
const WEIGHT_DECAY: f32 = 0.01;

/// A network of fully connected layers.
#[derive(Debug)]
pub struct Mlp {
    layers: Vec<Layer>,
    /// The number of training steps.
    steps: i32,
}

/// One layer. The matrix of weights has a row for each output, as in PyTorch.
#[derive(Debug)]
struct Layer {
    weight: Parameter<Ix2>,
    bias: Parameter<Ix1>,
}

/// Trainable values, each with the moving averages of its gradient and of the gradient's square.
#[derive(Debug)]
struct Parameter<D: Dimension> {
    value: Array<f32, D>,
    mean: Array<f32, D>,
    square: Array<f32, D>,
}

/// The values of a parameter as safetensors stores them.
struct EncodedTensor {
    name: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Mlp {
    /// An untrained network with random weights; `sizes` counts the neurons of each layer, input first.
    pub fn new(sizes: &[usize], rng: &mut ChaCha8Rng) -> Self {
        let layers = sizes.iter().zip(sizes.iter().skip(1)).map(|(inputs, outputs)| {
            // He initialisation: the variance of the values stays the same from layer to layer.
            let bound = (6.0 / to_f32((*inputs).max(1))).sqrt();
            Layer {
                weight: Parameter::new(Array::from_shape_simple_fn((*outputs, *inputs), || {
                    rng.random_range(-bound..bound)
                })),
                bias: Parameter::new(Array::zeros(*outputs)),
            }
        });
        Self { layers: layers.collect(), steps: 0 }
    }

    /// The number of trainable values.
    pub fn weights(&self) -> usize {
        self.layers.iter().map(|layer| layer.weight.value.len() + layer.bias.value.len()).sum()
    }

    /// The output of the network for each row of the input: ten logits, before the softmax.
    pub fn forward(&self, input: &Array2<f32>) -> Array2<f32> {
        self.activations(input.clone()).pop().unwrap_or_default()
    }

    /// The input of each layer, followed by the output of the last layer.
    fn activations(&self, input: Array2<f32>) -> Vec<Array2<f32>> {
        let mut values = vec![input];
        for (number, layer) in self.layers.iter().enumerate() {
            let Some(input) = values.last() else { break };
            let mut output = input.dot(&layer.weight.value.t()) + &layer.bias.value;
            if number + 1 < self.layers.len() {
                output.mapv_inplace(|value| value.max(0.0));
            }
            values.push(output);
        }
        values
    }

    /// Takes one step of gradient descent; returns the loss before the step.
    pub fn learn(&mut self, input: Array2<f32>, labels: &[usize], rate: f32) -> f64 {
        self.steps = self.steps.saturating_add(1);
        let mut values = self.activations(input);
        let (loss, mut gradient) = cross_entropy(&values.pop().unwrap_or_default(), labels);
        for (layer, input) in self.layers.iter_mut().zip(values).rev() {
            let weight = gradient.t().dot(&input);
            let bias = gradient.sum_axis(Axis(0));
            gradient = gradient.dot(&layer.weight.value);
            // The gradient is zero where the rectifier gave zero.
            gradient.zip_mut_with(&input, |slope, value| *slope = if *value > 0.0 { *slope } else { 0.0 });
            layer.weight.step(&weight, rate, self.steps);
            layer.bias.step(&bias, rate, self.steps);
        }
        loss
    }

    /// All weights in the safetensors format.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, SafeTensorError> {
        let encoded: Vec<EncodedTensor> = (1..)
            .zip(&self.layers)
            .flat_map(|(number, layer)| {
                [layer.weight.encode(format!("layer{number}.weight")), layer.bias.encode(format!("layer{number}.bias"))]
            })
            .collect();
        let views = encoded.iter().map(|EncodedTensor { name, shape, bytes }| {
            TensorView::new(Dtype::F32, shape.clone(), bytes).map(|view| (name, view))
        });
        serialize(views.collect::<Result<Vec<_>, _>>()?, None)
    }
}

impl<D: Dimension> Parameter<D> {
    fn new(value: Array<f32, D>) -> Self {
        Self { mean: Array::zeros(value.raw_dim()), square: Array::zeros(value.raw_dim()), value }
    }

    /// One step of `AdamW`; `steps` counts the steps so far, including this step.
    fn step(&mut self, gradient: &Array<f32, D>, rate: f32, steps: i32) {
        // The moving averages start at zero. The division by these shares corrects the bias of the first steps.
        let (mean_share, square_share) = (1.0 - MEAN_DECAY.powi(steps), 1.0 - SQUARE_DECAY.powi(steps));
        Zip::from(&mut self.value).and(&mut self.mean).and(&mut self.square).and(gradient).for_each(
            |value, mean, square, slope| {
                *mean += (1.0 - MEAN_DECAY) * (slope - *mean);
                *square += (1.0 - SQUARE_DECAY) * (slope * slope - *square);
                let direction = (*mean / mean_share) / ((*square / square_share).sqrt() + EPSILON);
                *value -= rate * (direction + WEIGHT_DECAY * *value);
            },
        );
    }

    fn encode(&self, name: String) -> EncodedTensor {
        let bytes = self.value.iter().flat_map(|value| value.to_le_bytes()).collect();
        EncodedTensor { name, shape: self.value.shape().to_vec(), bytes }
    }
}

/// The mean loss of a batch, and the gradient of the loss with respect to the logits.
pub(super) fn cross_entropy(logits: &Array2<f32>, labels: &[usize]) -> (f64, Array2<f32>) {
    let count = labels.len().max(1);
    let mut loss = 0.0;
    let mut gradient = logits.clone();
    for (mut row, label) in gradient.rows_mut().into_iter().zip(labels) {
        // The exponentials stay finite, because the greatest logit is subtracted first.
        let max_logit = row.fold(f32::NEG_INFINITY, |a, b| a.max(*b));
        row -= max_logit;
        let logit = row.get(*label).copied().unwrap_or(f32::NAN);
        row.mapv_inplace(f32::exp);
        let sum = row.sum();
        loss += f64::from(sum.ln() - logit);
        row /= sum;
        if let Some(slope) = row.get_mut(*label) {
            *slope -= 1.0;
        }
    }
    (loss / to_f64(count), gradient / to_f32(count))
}

/// The digit that the network reads in each row: the digit with the greatest logit.
pub(super) fn predicted_digits(logits: &Array2<f32>) -> Vec<usize> {
    let best =
        |row: ndarray::ArrayView1<'_, f32>| (0..CLASSES.min(row.len())).max_by(|a, b| row[*a].total_cmp(&row[*b]));
    logits.rows().into_iter().map(|row| best(row).unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn the_network_has_the_given_shape() {
        let network = Mlp::new(&[64, 20, 10], &mut ChaCha8Rng::seed_from_u64(1));
        assert_eq!(network.weights(), 64 * 20 + 20 + 20 * 10 + 10);
        assert_eq!(network.forward(&Array2::zeros((3, 64))).dim(), (3, 10));
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        const STEP: f32 = 1e-2;
        let logits = Array2::from_shape_fn((2, 3), |(row, column)| to_f32(row * 3 + column) * 0.4 - 1.0);
        let labels = [2, 0];
        let (_, gradient) = cross_entropy(&logits, &labels);
        for index in [(0, 0), (0, 2), (1, 0), (1, 1)] {
            let loss_at = |offset: f32| {
                let mut moved = logits.clone();
                moved[index] += offset;
                cross_entropy(&moved, &labels).0
            };
            let slope = (loss_at(STEP) - loss_at(-STEP)) / f64::from(2.0 * STEP);
            assert!((slope - f64::from(gradient[index])).abs() < 1e-4, "{index:?}");
        }
    }

    #[test]
    fn a_step_lowers_the_loss() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut network = Mlp::new(&[4, 8, 3], &mut rng);
        let input = Array2::from_shape_simple_fn((6, 4), || rng.random_range(0.0..1.0));
        let labels = [0, 1, 2, 0, 1, 2];
        let first = network.learn(input.clone(), &labels, 0.01);
        let losses: Vec<f64> = (0..50).map(|_| network.learn(input.clone(), &labels, 0.01)).collect();
        assert!(losses[49] < first * 0.9, "{first} to {}", losses[49]);
    }
}

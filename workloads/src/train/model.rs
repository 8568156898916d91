//! The network: layers of neurons, each connected to all of the layer before.
//!
//! Its weights start from the caller's random numbers, since those of the tensor library cannot be
//! repeated. How it learns does not belong here.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Result, Tensor, Var};
use candle_nn::{Linear, Module};
use rand::RngExt;
use rand::rngs::ChaCha8Rng;

use crate::number::{real, single};

/// A network of fully connected layers with rectifiers between them.
#[derive(Debug)]
pub struct Mlp {
    layers: Vec<Linear>,
    vars: Vec<(String, Var)>,
}

impl Mlp {
    /// A network which knows nothing yet; `sizes` are the neurons of each layer, input first.
    pub fn new(sizes: &[usize], rng: &mut ChaCha8Rng) -> Result<Self> {
        let mut network = Self { layers: Vec::new(), vars: Vec::new() };
        for (number, pair) in sizes.windows(2).enumerate() {
            let &[inputs, outputs] = pair else { continue };
            let bound = single((6.0 / f64::from(real(inputs.max(1)))).sqrt());
            let start: Vec<f32> = (0..inputs * outputs).map(|_| rng.random_range(-bound..bound)).collect();
            let weight = Var::from_vec(start, (outputs, inputs), &Device::Cpu)?;
            let bias = Var::from_vec(vec![0.0_f32; outputs], outputs, &Device::Cpu)?;
            let layer = Linear::new(weight.as_tensor().clone(), Some(bias.as_tensor().clone()));
            network.layers.push(layer);
            network.vars.push((format!("layer{}.weight", number + 1), weight));
            network.vars.push((format!("layer{}.bias", number + 1), bias));
        }
        Ok(network)
    }

    /// What learning may change.
    pub fn vars(&self) -> Vec<Var> {
        self.vars.iter().map(|(_, var)| var.clone()).collect()
    }

    /// How many numbers learning may change.
    pub fn weights(&self) -> usize {
        self.vars.iter().map(|(_, var)| var.elem_count()).sum()
    }

    /// Stores all weights in the safetensors format.
    pub fn save(&self, path: &Path) -> Result<()> {
        let tensors = self.vars.iter().map(|(name, var)| (name.as_str(), var.as_tensor().clone()));
        candle_core::safetensors::save(&tensors.collect::<HashMap<_, _>>(), path)
    }
}

impl Module for Mlp {
    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let mut values = input.clone();
        for (number, layer) in self.layers.iter().enumerate() {
            if number > 0 {
                values = values.relu()?;
            }
            values = layer.forward(&values)?;
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn the_network_has_the_shape_that_was_asked_for() {
        let network = Mlp::new(&[64, 20, 10], &mut ChaCha8Rng::seed_from_u64(1)).unwrap();
        assert_eq!(network.weights(), 64 * 20 + 20 + 20 * 10 + 10);
        let input = Tensor::zeros((3, 64), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert_eq!(network.forward(&input).unwrap().dims(), [3, 10]);
    }
}

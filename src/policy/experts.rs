//! A mixture of experts: a router chooses some feed-forward layers for each token. All of it is frozen. Reads no file.

use candle_core::{D, Tensor};

use super::ops::{self, Frozen};
use crate::error::Result;

/// Least sum of the chosen probabilities, as in llama.cpp.
const LEAST_SUM: f64 = 6.103_515_625e-5;

/// The feed-forward layer of a block with experts (qwen3moe).
pub(super) struct Experts {
    /// [experts, width], in f32: which experts are chosen must not hang on rounding.
    pub(super) router: Frozen,
    pub(super) experts: Vec<Expert>,
    /// How many a token goes through.
    pub(super) used: usize,
}

/// One of them.
pub(super) struct Expert {
    pub(super) gate: Frozen,
    pub(super) up: Frozen,
    pub(super) down: Frozen,
}

impl Experts {
    /// [tokens, width] to [tokens, width]. Gradients go through the chosen experts and their weights, not through the
    /// choice.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let scores = ops::linear(x, &self.router, None, None)?;
        let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let all = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?; // [tokens, experts]
        let chosen = self.choose(&all.to_vec2()?);
        let tokens = chosen.len();
        let index = Tensor::from_vec(chosen.concat(), (tokens, self.used), x.device())?;
        let weights = all.gather(&index, 1)?; // [tokens, used]
        let sum = weights.sum_keepdim(D::Minus1)?.maximum(LEAST_SUM)?;
        let weights = weights.broadcast_div(&sum)?.flatten_all()?;
        let mut out = x.zeros_like()?;
        for (number, expert) in (0..).zip(&self.experts) {
            // Where it was chosen: the token, and the place among all weights.
            let places = chosen.iter().enumerate().filter_map(|(token, of_token)| {
                let place = of_token.iter().position(|chosen| *chosen == number)?;
                Some((token as u32, (token * self.used + place) as u32))
            });
            let (rows, places): (Vec<u32>, Vec<u32>) = places.unzip();
            if rows.is_empty() {
                continue;
            }
            let rows = Tensor::new(rows, x.device())?;
            let weight = weights.index_select(&Tensor::new(places, x.device())?, 0)?.unsqueeze(1)?;
            let fed = expert.forward(&x.index_select(&rows, 0)?)?;
            out = out.index_add(&rows, &fed.broadcast_mul(&weight)?, 0)?;
        }
        Ok(out)
    }

    /// The most probable experts of each token, the most probable first.
    fn choose(&self, probabilities: &[Vec<f32>]) -> Vec<Vec<u32>> {
        let of_token = |probabilities: &Vec<f32>| {
            let mut order: Vec<u32> = (0..probabilities.len() as u32).collect();
            order.sort_by(|a, b| probabilities[*b as usize].total_cmp(&probabilities[*a as usize]));
            order.truncate(self.used);
            order
        };
        probabilities.iter().map(of_token).collect()
    }
}

impl Expert {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gated = ops::swiglu(&ops::linear(x, &self.gate, None, None)?, &ops::linear(x, &self.up, None, None)?)?;
        ops::linear(&gated, &self.down, None, None)
    }
}

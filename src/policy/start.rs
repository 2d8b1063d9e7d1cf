//! Creates the adapter that training starts from. Never trains it.

use candle_core::{DType, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::lora::{Factors, check_alpha};
use super::{Decoder, Lora};
use crate::error::{Error, Result};

impl Lora {
    /// An adapter without effect yet: A is uniform within ±1/√in (PEFT's Kaiming with a = √5), B is zero.
    ///
    /// `parts` names the adapted linear layers, as in `attn_q`; `None` adapts all layers of the blocks. Deterministic
    /// in the seed. Errors if a part is unknown, the rank is 0 or exceeds a layer, or alpha is not positive.
    pub fn new(decoder: &Decoder, rank: usize, alpha: f64, parts: Option<&[String]>, seed: u64) -> Result<Self> {
        check_alpha(alpha)?;
        if let Some(unknown) =
            parts.unwrap_or_default().iter().find(|p| decoder.linears().iter().all(|l| l.part != **p))
        {
            let mut known: Vec<&str> = decoder.linears().iter().map(|l| l.part).collect();
            known.sort_unstable();
            known.dedup();
            return Err(Error::arg(format!("no linear layer is called {unknown:.40}; known are {}", known.join(", "))));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut layers = Vec::with_capacity(decoder.linears().len());
        for linear in decoder.linears() {
            if parts.is_some_and(|parts| parts.iter().all(|p| p != linear.part)) {
                layers.push(None);
                continue;
            }
            let (out, inp) = (linear.out_features, linear.in_features);
            if rank == 0 || rank > out.min(inp) {
                let most = out.min(inp);
                return Err(Error::arg(format!(
                    "the rank is {rank}, expected 1 to {most} for {} [{out}, {inp}]",
                    linear.tensor
                )));
            }
            let bound = 1.0 / (inp as f32).sqrt();
            let a: Vec<f32> = (0..rank * inp).map(|_| rng.random_range(-bound..bound)).collect();
            layers.push(Some(Factors {
                tensor: linear.tensor.clone(),
                a: Var::from_tensor(&Tensor::from_vec(a, (rank, inp), decoder.device())?)?,
                b: Var::from_tensor(&Tensor::zeros((out, rank), DType::F32, decoder.device())?)?,
            }));
        }
        Self::from_layers(decoder.identity(), rank, alpha, layers)
    }
}

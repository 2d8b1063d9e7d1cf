//! Low-rank adapters: what is learned on top of the frozen base. Knows no file and no optimizer.

use candle_core::{Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Decoder;
use super::ops::LoraPair;
use crate::error::{Error, Result};

/// A low-rank update of some linear layers: W + (alpha / rank) · B A.
#[derive(Clone)]
pub struct Lora {
    pub(super) architecture: &'static str,
    /// SHA-256 of the base it belongs to.
    pub(super) base: String,
    pub(super) rank: usize,
    pub(super) alpha: f64,
    /// One entry a linear layer of the decoder, in its order; `None` where it is left alone.
    pub(super) layers: Vec<Option<Factors>>,
    /// A and B outside of any graph, a layer each; empty where the adapter is to be trained.
    detached: Vec<Option<(Tensor, Tensor)>>,
}

#[derive(Clone)]
pub(super) struct Factors {
    /// The weight it changes, as in `blk.0.attn_q.weight`.
    pub(super) tensor: String,
    /// [rank, in].
    pub(super) a: Var,
    /// [out, rank].
    pub(super) b: Var,
}

impl Lora {
    /// An adapter that changes nothing yet: A uniform within ±1/√in (PEFT's Kaiming with a = √5), B zero.
    ///
    /// `parts` names the linear layers, as in `attn_q`; `None` takes all of the blocks. The same seed gives the same
    /// values. Errors if a part is unknown, the rank is 0 or exceeds a layer, or alpha is not positive.
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
                    "rank {rank} for {} [{out}, {inp}], expected 1 to {most}",
                    linear.tensor
                )));
            }
            let bound = 1.0 / (inp as f32).sqrt();
            let a: Vec<f32> = (0..rank * inp).map(|_| rng.random_range(-bound..bound)).collect();
            layers.push(Some(Factors {
                tensor: linear.tensor.clone(),
                a: Var::from_tensor(&Tensor::from_vec(a, (rank, inp), decoder.device())?)?,
                b: Var::from_tensor(&Tensor::zeros((out, rank), candle_core::DType::F32, decoder.device())?)?,
            }));
        }
        Self::from_layers(decoder, rank, alpha, layers)
    }

    pub(super) fn from_layers(
        decoder: &Decoder,
        rank: usize,
        alpha: f64,
        layers: Vec<Option<Factors>>,
    ) -> Result<Self> {
        check_alpha(alpha)?;
        if rank == 0 {
            return Err(Error::arg("the adapter's rank is 0, expected at least 1"));
        }
        if layers.iter().all(Option::is_none) {
            return Err(Error::arg("the adapter changes no layer, expected at least one"));
        }
        let (architecture, base) = (decoder.shape().architecture.name, decoder.fingerprint().to_owned());
        Ok(Self { architecture, base, rank, alpha, layers, detached: Vec::new() })
    }

    /// Inner width of the factors.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The update's scale times the rank.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// What is trained: A and B of each changed layer, in the decoder's order.
    pub fn vars(&self) -> Vec<Var> {
        self.factors().flat_map(|factors| [factors.a.clone(), factors.b.clone()]).collect()
    }

    /// The same with llama.cpp's names, as in `blk.0.attn_q.weight.lora_a`.
    pub fn named(&self) -> Vec<(String, Var)> {
        let pair = |f: &Factors| {
            [(format!("{}.lora_a", f.tensor), f.a.clone()), (format!("{}.lora_b", f.tensor), f.b.clone())]
        };
        self.factors().flat_map(pair).collect()
    }

    /// The same adapter, in the same memory, for passes that need no gradient: they hold no graph, so they free each
    /// intermediate at once.
    pub fn detached(&self) -> Self {
        let detach = |f: &Factors| (f.a.as_detached_tensor(), f.b.as_detached_tensor());
        let detached = self.layers.iter().map(|layer| layer.as_ref().map(detach)).collect();
        Self { detached, ..self.clone() }
    }

    pub(super) fn factors(&self) -> impl Iterator<Item = &Factors> {
        self.layers.iter().flatten()
    }

    pub(super) fn pair(&self, index: usize) -> Option<LoraPair<'_>> {
        let factors = self.layers.get(index)?.as_ref()?;
        let (a, b) = match self.detached.get(index) {
            Some(Some((a, b))) => (a, b),
            _ => (factors.a.as_tensor(), factors.b.as_tensor()),
        };
        Some(LoraPair { a, b, scale: self.alpha / self.rank as f64 })
    }

    pub(super) fn check_base(&self, decoder: &Decoder) -> Result<()> {
        if self.base != decoder.fingerprint() {
            return Err(other_base(&self.base, decoder));
        }
        Ok(())
    }
}

pub(super) fn other_base(found: &str, decoder: &Decoder) -> Error {
    Error::arg(format!("the adapter is for base {found:.16}…, this one is {:.16}…", decoder.fingerprint()))
}

fn check_alpha(alpha: f64) -> Result<()> {
    // llama.cpp reads alpha 0 as "no scaling", which is not what it says.
    if !(alpha.is_finite() && alpha > 0.0) {
        return Err(Error::arg(format!("the adapter's alpha is {alpha}, expected a positive number")));
    }
    Ok(())
}

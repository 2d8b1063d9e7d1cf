//! Low-rank adapters, which are trained on top of the frozen base. Knows no file and no optimizer.

use std::ops::Range;

use candle_core::{Tensor, Var};

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
    /// One entry per linear layer of the decoder, in the decoder's order; `None` for a layer that is not adapted.
    pub(super) layers: Vec<Option<Factors>>,
    /// A and B of each layer, taken from elsewhere than the variables: detached from the graph, or parts of a flat
    /// tensor. Empty while the adapter is trained.
    detached: Vec<Option<(Tensor, Tensor)>>,
}

#[derive(Clone)]
pub(super) struct Factors {
    /// The weight it changes, such as `blk.0.attn_q.weight`.
    pub(super) tensor: String,
    /// [rank, in].
    pub(super) a: Var,
    /// [out, rank].
    pub(super) b: Var,
}

impl Lora {
    /// Makes an adapter of these layers for the base with this architecture and SHA-256.
    pub(super) fn from_layers(
        (architecture, base): (&'static str, &str),
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
        Ok(Self { architecture, base: base.to_owned(), rank, alpha, layers, detached: Vec::new() })
    }

    /// Rank of the update: the inner width of its factors.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The update's scale times the rank.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// The trained variables: A and B of each adapted layer, in the decoder's order.
    pub fn vars(&self) -> Vec<Var> {
        self.factors().flat_map(|factors| [factors.a.clone(), factors.b.clone()]).collect()
    }

    /// The trained variables with llama.cpp's names, such as `blk.0.attn_q.weight.lora_a`.
    pub fn named(&self) -> Vec<(String, Var)> {
        let pair = |f: &Factors| {
            [(format!("{}.lora_a", f.tensor), f.a.clone()), (format!("{}.lora_b", f.tensor), f.b.clone())]
        };
        self.factors().flat_map(pair).collect()
    }

    /// The same adapter, sharing memory, for passes without gradients, which keep no graph and so free intermediates at
    /// once.
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

    /// Whether gradients flow to it.
    pub(super) fn is_trained(&self) -> bool {
        self.detached.is_empty()
    }

    /// The factors of some of the decoder's linear layers as one flat tensor, through which gradients flow. `None` if
    /// none of them is adapted.
    pub(super) fn flat(&self, linears: Range<usize>) -> Result<Option<Tensor>> {
        let mut parts = Vec::new();
        for LoraPair { a, b, .. } in linears.filter_map(|index| self.pair(index)) {
            parts.extend([a.flatten_all()?, b.flatten_all()?]);
        }
        Ok(if parts.is_empty() { None } else { Some(Tensor::cat(&parts, 0)?) })
    }

    /// The same adapter with the factors of these layers taken from what [`Self::flat`] gave for them.
    pub(super) fn with_flat(&self, linears: Range<usize>, flat: &Tensor) -> Result<Self> {
        let (mut detached, mut at) = (vec![None; self.layers.len()], 0);
        for index in linears {
            let Some(LoraPair { a, b, .. }) = self.pair(index) else { continue };
            let mut part = |like: &Tensor| -> Result<Tensor> {
                let from = at;
                at += like.elem_count();
                Ok(flat.narrow(0, from, like.elem_count())?.reshape(like.shape())?)
            };
            let pair = (part(a)?, part(b)?);
            detached[index] = Some(pair);
        }
        Ok(Self { detached, ..self.clone() })
    }

    /// Errors with `Arg` unless `base` is the SHA-256 of the base that the adapter belongs to.
    pub(super) fn check_base(&self, base: &str) -> Result<()> {
        if self.base != base {
            return Err(other_base(&self.base, base));
        }
        Ok(())
    }
}

pub(super) fn other_base(found: &str, base: &str) -> Error {
    Error::arg(format!("the adapter is for base {found:.16}…, this one is {base:.16}…"))
}

pub(super) fn check_alpha(alpha: f64) -> Result<()> {
    // llama.cpp would read alpha 0 as "no scaling", not as no update.
    if !(alpha.is_finite() && alpha > 0.0) {
        return Err(Error::arg(format!("the adapter's alpha is {alpha}, expected a positive number")));
    }
    Ok(())
}

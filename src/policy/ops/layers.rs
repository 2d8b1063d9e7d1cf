//! Helpers of the fused blocks: several adapted layers whose factors form one flat tensor, and rows of tokens as
//! independent tasks. Knows nothing of what a block computes.

use super::cpu;
use super::frozen::frozen_values;
use super::linear::{FactorGrads, Factors, Layer, transposed};
use super::matrix::Precision;
use super::vectors::map;
use super::{Adapted, LoraPair};
use crate::error::Result;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

/// The position of a layer's factors in the flat tensor.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Of A `[rank, in]`.
    pub a: usize,
    /// Of B `[out, rank]`.
    pub b: usize,
    pub end: usize,
    pub scale: f32,
}

/// The factors of some layers as one flat tensor, through which gradients flow, and where each layer's are. Zero,
/// alone, if none has any.
pub fn flat(specs: &[Adapted], device: &Device) -> Result<(Vec<Option<Slot>>, Tensor)> {
    let (mut slots, mut parts, mut len) = (Vec::new(), Vec::new(), 0);
    for spec in specs {
        slots.push(match spec.lora {
            Some(LoraPair { a, b, scale }) if a.elem_count() > 0 => {
                let (b_at, end) = (len + a.elem_count(), len + a.elem_count() + b.elem_count());
                parts.extend([a.flatten_all()?, b.flatten_all()?]);
                Some(Slot { a: std::mem::replace(&mut len, end), b: b_at, end, scale: scale as f32 })
            }
            _ => None,
        });
    }
    let flat =
        if parts.is_empty() { Tensor::zeros(1, DType::F32, device)? } else { Tensor::cat(&parts, 0)?.contiguous()? };
    Ok((slots, flat))
}

/// The layers of a block.
pub struct Layers {
    layers: Vec<Layer>,
    slots: Vec<Option<Slot>>,
    len: usize,
}

impl Layers {
    /// The layers, and the factors of all of them as one flat tensor through which gradients flow. `None` if the fused
    /// form does not accept these.
    pub fn new(x: &Tensor, specs: &[Adapted]) -> Result<Option<(Self, Tensor)>> {
        let mut layers = Vec::new();
        for spec in specs {
            let Some(weight) = spec.weight.fused(x) else { return Ok(None) };
            layers.push(Layer { weight: weight.clone(), bias: spec.bias.map(frozen_values).transpose()? });
        }
        let (slots, flat) = flat(specs, x.device())?;
        let len = flat.elem_count();
        let one_precision = layers.windows(2).all(|w| w[0].precision() == w[1].precision());
        Ok(one_precision.then_some((Self { layers, slots, len }, flat)))
    }

    pub fn layer(&self, i: usize) -> &Layer {
        &self.layers[i]
    }

    pub fn precision(&self) -> Precision {
        self.layers[0].precision()
    }

    /// The factors, rounded, from the flat tensor's values.
    pub fn factors(&self, flat: &[f32]) -> Vec<Option<Factors>> {
        let rounded = |(layer, slot): (&Layer, &Option<Slot>)| {
            slot.map(|s| layer.factors(&flat[s.a..s.b], &flat[s.b..s.end], s.scale))
        };
        self.layers.iter().zip(&self.slots).map(rounded).collect()
    }

    /// Zeroed gradients of all factors, dB transposed.
    pub fn zero_grads(&self) -> Vec<f32> {
        vec![0f32; self.len]
    }

    /// Layer `i`'s factors with the slices for their gradients.
    pub fn with_grads<'a>(
        &self,
        i: usize,
        factors: &'a [Option<Factors>],
        grads: &'a mut [f32],
    ) -> Option<(&'a Factors, FactorGrads<'a>)> {
        let slot = self.slots[i]?;
        let (a, b_transposed) = grads[slot.a..slot.end].split_at_mut(slot.b - slot.a);
        factors[i].as_ref().map(|f| (f, FactorGrads { a, b_transposed }))
    }

    /// Sums the tasks' gradients in their order, as the gradient of the flat tensor.
    pub fn total(&self, tasks: &[Vec<f32>]) -> Vec<f32> {
        let mut sum = self.zero_grads();
        cpu::rows(&mut sum, 1, |at, sum| {
            for task in tasks {
                map(sum, [&task[at..]], |s, [t]| s + t);
            }
        });
        for (layer, slot) in self.layers.iter().zip(&self.slots) {
            if let Some(s) = slot {
                let b = transposed(&sum[s.b..s.end], layer.out());
                sum[s.b..s.end].copy_from_slice(&b);
            }
        }
        sum
    }
}

/// Most rows of a task.
const MOST: usize = 168;
/// Fewest, which make packing the weights worthwhile.
const LEAST: usize = 14;

/// Rows per task: as many tasks of one size for each core. Depends only on the number of rows, so that sums over tasks
/// do not depend on the number of threads.
pub fn task_rows(rows: usize) -> usize {
    let tasks = rows.div_ceil(MOST).next_multiple_of(8);
    rows.div_ceil(tasks).max(LEAST)
}

/// Calls `f(first row, rows of out)` for each task, and collects the results in order.
pub fn by_rows<T: Send>(
    out: &mut [f32],
    width: usize,
    step: usize,
    f: impl Fn(usize, &mut [f32]) -> T + Sync,
) -> Vec<T> {
    out.par_chunks_mut(step * width).enumerate().with_max_len(1).map(|(i, out)| f(i * step, out)).collect()
}

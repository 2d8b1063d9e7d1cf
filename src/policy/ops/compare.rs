//! The fused operations against their plain forms, values and gradients, on seeded numbers. Never part of an update.

use super::*;
use crate::error::{Error, Result};
use crate::processor::{Gap, KernelCheck};
use candle_core::{DType, Device, Tensor, Var};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// What f32 sums in another order differ by.
const F32: f32 = 1e-4;
/// What operands rounded to bf16 differ by.
const BF16: f32 = 2e-2;

/// The kernels of training that this processor uses.
pub static KERNELS: &[KernelCheck] = &[
    KernelCheck { name: "training: product, f32", run: || product(DType::F32, F32) },
    KernelCheck { name: "training: product, bf16", run: || product(DType::BF16, BF16) },
    KernelCheck { name: "training: log-probabilities, f32", run: || head(DType::F32, F32) },
    KernelCheck { name: "training: log-probabilities, bf16", run: || head(DType::BF16, BF16) },
    KernelCheck { name: "training: attention", run: attend },
    KernelCheck { name: "training: norms and rotation", run: norm_and_turn },
    KernelCheck { name: "training: gated activation", run: gate },
];

/// What frozen products are computed in when settings leave it open.
pub fn precision() -> &'static str {
    bf16::precision()
}

/// Seeded values in -1..1.
pub(super) fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

pub(super) fn tensor(seed: u64, shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_vec(values(seed, shape.iter().product()), shape, &Device::Cpu)?)
}

pub(super) fn flat(t: &Tensor) -> Result<Vec<f32>> {
    Ok(t.flatten_all()?.to_vec1()?)
}

/// An operation of some tensors.
pub(super) type Function<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// The output and every input's gradient of `sum(f(inputs) · direction)`.
pub(super) fn gradients(f: Function, inputs: &[Tensor]) -> Result<(Vec<f32>, Vec<Vec<f32>>)> {
    let vars = inputs.iter().map(Var::from_tensor).collect::<candle_core::Result<Vec<_>>>()?;
    let out = f(&vars.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>())?;
    let direction = tensor(99, out.dims())?;
    let grads = (&out * &direction)?.sum_all()?.backward()?;
    let of = |v: &Var| flat(grads.get(v).ok_or_else(|| Error::train("an input got no gradient"))?);
    let grads = vars.iter().map(of).collect::<Result<_>>()?;
    Ok((flat(&out)?, grads))
}

/// The largest difference of two results, relative to the largest value of the second.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    let size = b.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
    if a.len() != b.len() {
        return f32::INFINITY;
    }
    // A NaN on one side is as far as can be.
    let gap = |(x, y): (&f32, &f32)| if x.is_finite() == y.is_finite() { (x - y).abs() } else { f32::INFINITY };
    a.iter().zip(b).map(gap).fold(0.0, f32::max) / size
}

/// How far two forms of a function are apart, in value and gradients.
pub(super) fn gap(fused: Function, plain: Function, inputs: &[Tensor]) -> Result<f32> {
    let ((a, ga), (b, gb)) = (gradients(fused, inputs)?, gradients(plain, inputs)?);
    Ok(ga.iter().zip(&gb).map(|(a, b)| apart(a, b)).fold(apart(&a, &b), f32::max))
}

fn product(dtype: DType, allowed: f32) -> Result<Gap> {
    let (n, inp, out, rank) = (37, 192, 258, 16);
    let w = Frozen::new(&tensor(1, &[out, inp])?, dtype)?;
    let same = Frozen::new(&w.weight_f32()?, DType::F32)?;
    let inputs = [tensor(3, &[n, inp])?, tensor(4, &[rank, inp])?, tensor(5, &[out, rank])?];
    let fused = |i: &[Tensor]| linear(&i[0], &w, None, Some(LoraPair { a: &i[1], b: &i[2], scale: 0.7 }));
    let plain = |i: &[Tensor]| plain::linear(&i[0], &same, None, Some(LoraPair { a: &i[1], b: &i[2], scale: 0.7 }));
    Ok(Gap { found: gap(&fused, &plain, &inputs)?, allowed })
}

fn head(dtype: DType, allowed: f32) -> Result<Gap> {
    let (rows, width, vocabulary) = (70, 64, 1100);
    let head = Frozen::new(&tensor(1, &[vocabulary, width])?, dtype)?;
    let same = Frozen::new(&head.weight_f32()?, DType::F32)?;
    let targets: Vec<u32> = (0..rows as u32).map(|i| i * 7).collect();
    let temperatures = vec![0.8; rows];
    let fused = |i: &[Tensor]| token_logprobs(&i[0], &head, &targets, &temperatures);
    let plain = |i: &[Tensor]| plain::token_logprobs(&i[0], &same, &targets, &temperatures);
    Ok(Gap { found: gap(&fused, &plain, &[tensor(2, &[rows, width])?])?, allowed })
}

fn attend() -> Result<Gap> {
    let (starts, heads, kv_heads, dim) = ([0, 20, 150], 6, 2, 64);
    let n = starts[2];
    let inputs = [tensor(1, &[n, heads, dim])?, tensor(2, &[n, kv_heads, dim])?, tensor(3, &[n, kv_heads, dim])?];
    let fused = |i: &[Tensor]| attention(&i[0], &i[1], &i[2], &starts, 0.125);
    let plain = |i: &[Tensor]| plain::attention(&i[0], &i[1], &i[2], &starts, 0.125, None);
    let fused_window = |i: &[Tensor]| windowed_attention(&i[0], &i[1], &i[2], &starts, 0.125, Some(9));
    let plain_window = |i: &[Tensor]| plain::attention(&i[0], &i[1], &i[2], &starts, 0.125, Some(9));
    let found = gap(&fused, &plain, &inputs)?.max(gap(&fused_window, &plain_window, &inputs)?);
    Ok(Gap { found, allowed: F32 })
}

fn norm_and_turn() -> Result<Gap> {
    let (heads, dim) = (3, 64);
    let (weight, bias) = (tensor(1, &[dim])?, tensor(2, &[dim])?);
    let frequencies: Vec<f32> = (0..dim / 2).map(|i| 0.8f32.powi(i as i32)).collect();
    let table = RopeTable::new(&[0, 1, 2, 0, 700], &frequencies, &Device::Cpu)?;
    let x = [tensor(3, &[5, heads, dim])?];
    let mut found =
        gap(&|i| layer_norm(&i[0], &weight, &bias, 1e-5), &|i| plain::layer_norm(&i[0], &weight, &bias, 1e-5), &x)?;
    for style in [RopeStyle::Interleaved, RopeStyle::Halves] {
        let fused = |i: &[Tensor]| rope(&rms_norm(&i[0], &weight, 1e-5)?, &table, style);
        let plain = |i: &[Tensor]| plain::rope(&plain::rms_norm(&i[0], &weight, 1e-5)?, &table, style);
        found = found.max(gap(&fused, &plain, &x)?);
    }
    Ok(Gap { found, allowed: F32 })
}

fn gate() -> Result<Gap> {
    let inputs = [tensor(1, &[5, 333])?, tensor(2, &[5, 333])?];
    let gated = gap(&|i| swiglu(&i[0], &i[1]), &|i| plain::swiglu(&i[0], &i[1]), &inputs)?;
    let curved = gap(&|i| gelu(&i[0]), &|i| plain::gelu(&i[0]), &inputs[..1])?;
    Ok(Gap { found: gated.max(curved), allowed: F32 })
}

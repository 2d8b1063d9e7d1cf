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
/// The same on a GPU. An attention block's chain of roundings goes beyond it on most seeds, PyTorch's too: docs/LOG.md.
const GPU_BF16: f32 = 1e-2;

/// The kernels of training that this processor uses.
pub static KERNELS: &[KernelCheck] = &[
    KernelCheck { name: "training: product, f32", run: |on| product(on, DType::F32, F32) },
    KernelCheck { name: "training: product, bf16", run: |on| product(on, DType::BF16, BF16) },
    KernelCheck { name: "training: log-probabilities, f32", run: |on| head(on, DType::F32, F32) },
    KernelCheck { name: "training: log-probabilities, bf16", run: |on| head(on, DType::BF16, BF16) },
    KernelCheck { name: "training: attention", run: |on| attend(on, 64) },
    KernelCheck { name: "training: norms and rotation", run: norm_and_turn },
    KernelCheck { name: "training: gated activation", run: gate },
    KernelCheck { name: "training: update of weights", run: update },
];

/// Those of a GPU, against their plain forms in f32 on the CPU.
pub static GPU_KERNELS: &[KernelCheck] = &[
    KernelCheck { name: "gpu: product, f32", run: |on| product(on, DType::F32, F32) },
    KernelCheck { name: "gpu: product, bf16", run: |on| product(on, DType::BF16, GPU_BF16) },
    KernelCheck { name: "gpu: weights as in the file, every format", run: stored },
    KernelCheck { name: "gpu: log-probabilities, f32", run: |on| head(on, DType::F32, F32) },
    KernelCheck { name: "gpu: log-probabilities, bf16", run: |on| head(on, DType::BF16, GPU_BF16) },
    KernelCheck { name: "gpu: entropy and KL, f32", run: |on| distances(on, DType::F32, F32) },
    KernelCheck { name: "gpu: entropy and KL, bf16", run: |on| distances(on, DType::BF16, GPU_BF16) },
    KernelCheck { name: "gpu: attention, heads of 16", run: |on| attend(on, 16) },
    KernelCheck { name: "gpu: attention, heads of 80", run: |on| attend(on, 80) },
    KernelCheck { name: "gpu: attention, heads of 256", run: |on| attend(on, 256) },
    KernelCheck { name: "gpu: norms and rotation", run: norm_and_turn },
    KernelCheck { name: "gpu: gated activation", run: gate },
    KernelCheck { name: "gpu: update of weights", run: update },
    KernelCheck { name: "gpu: attention block, f32", run: |on| attention_block(on, DType::F32, F32) },
    KernelCheck { name: "gpu: attention block, bf16", run: |on| attention_block(on, DType::BF16, GPU_BF16) },
    KernelCheck { name: "gpu: feed-forward block, f32", run: |on| feed_forward_block(on, DType::F32, F32) },
    KernelCheck { name: "gpu: feed-forward block, bf16", run: |on| feed_forward_block(on, DType::BF16, GPU_BF16) },
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
pub(super) fn gradients(f: Function, inputs: &[Tensor], on: &Device) -> Result<(Vec<f32>, Vec<Vec<f32>>)> {
    let var = |input: &Tensor| Var::from_tensor(&input.to_device(on)?);
    let vars = inputs.iter().map(var).collect::<candle_core::Result<Vec<_>>>()?;
    let out = f(&vars.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>())?;
    let direction = tensor(99, out.dims())?.to_device(on)?;
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

/// How far a function on a device and its plain form on the CPU are apart, in value and gradients.
pub(super) fn gap(on: &Device, fused: Function, plain: Function, inputs: &[Tensor]) -> Result<f32> {
    let ((a, ga), (b, gb)) = (gradients(fused, inputs, on)?, gradients(plain, inputs, &Device::Cpu)?);
    Ok(ga.iter().zip(&gb).map(|(a, b)| apart(a, b)).fold(apart(&a, &b), f32::max))
}

/// A frozen matrix on a device, and its values on the CPU.
fn frozen(on: &Device, seed: u64, shape: &[usize], dtype: DType) -> Result<(Frozen, Frozen)> {
    let weight = Frozen::new(&tensor(seed, shape)?.to_device(on)?, dtype)?;
    let same = Frozen::new(&weight.weight_f32()?.to_device(&Device::Cpu)?, DType::F32)?;
    Ok((weight, same))
}

fn product(on: &Device, dtype: DType, allowed: f32) -> Result<Gap> {
    let (n, inp, out, rank) = (37, 192, 258, 16);
    let (w, same) = frozen(on, 1, &[out, inp], dtype)?;
    let inputs = [tensor(3, &[n, inp])?, tensor(4, &[rank, inp])?, tensor(5, &[out, rank])?];
    let fused = |i: &[Tensor]| linear(&i[0], &w, None, Some(LoraPair { a: &i[1], b: &i[2], scale: 0.7 }));
    let plain = |i: &[Tensor]| plain::linear(&i[0], &same, None, Some(LoraPair { a: &i[1], b: &i[2], scale: 0.7 }));
    Ok(Gap { found: gap(on, &fused, &plain, &inputs)?, allowed })
}

/// Decoded values are the same to the last bit.
fn stored(on: &Device) -> Result<Gap> {
    let (rows, cols) = (3, 512);
    let mut found = 0f32;
    for format in Format::all() {
        let (groups, size) = format.block();
        // Any bytes are numbers, but for scales that are not finite: those have a byte of 0x7c to 0x7f or above 0xfb.
        let mut rng = StdRng::seed_from_u64(format as u64);
        let bytes: Vec<u8> = (0..rows * cols / (32 * groups) * size).map(|_| rng.random_range(0..0x70)).collect();
        let len = bytes.len();
        let matrix = Quantized::new(std::sync::Arc::new(bytes), 0..len, format, rows, cols)?;
        let here = Frozen::quantized(matrix.clone(), DType::F32, &Device::Cpu)?.weight_f32()?;
        let there = Frozen::quantized(matrix, DType::F32, on)?;
        let looked_up = embed(&[2, 0], &there)?.to_device(&Device::Cpu)?;
        let wanted = Tensor::cat(&[here.narrow(0, 2, 1)?, here.narrow(0, 0, 1)?], 0)?;
        found = found.max(apart(&flat(&there.weight_f32()?)?, &flat(&here)?));
        found = found.max(apart(&flat(&looked_up)?, &flat(&wanted)?));
    }
    Ok(Gap { found, allowed: 0.0 })
}

/// Sizes of the head's checks: rows, width, vocabulary; targets and temperatures of the rows.
const HEAD: (usize, usize, usize) = (70, 64, 1100);

fn head_targets() -> (Vec<u32>, Vec<f32>) {
    ((0..HEAD.0 as u32).map(|i| i * 7).collect(), vec![0.8; HEAD.0])
}

fn head(on: &Device, dtype: DType, allowed: f32) -> Result<Gap> {
    let (rows, width, vocabulary) = HEAD;
    let (head, same) = frozen(on, 1, &[vocabulary, width], dtype)?;
    let (targets, temperatures) = head_targets();
    let fused = |i: &[Tensor]| token_logprobs(&i[0], &head, &targets, &temperatures);
    let plain = |i: &[Tensor]| plain::token_logprobs(&i[0], &same, &targets, &temperatures);
    Ok(Gap { found: gap(on, &fused, &plain, &[tensor(2, &[rows, width])?])?, allowed })
}

fn distances(on: &Device, dtype: DType, allowed: f32) -> Result<Gap> {
    let (rows, width, vocabulary) = HEAD;
    let (head, same) = frozen(on, 1, &[vocabulary, width], dtype)?;
    let (targets, temperatures) = head_targets();
    let (hidden, other) = (tensor(2, &[rows, width])?, tensor(3, &[rows, width])?);
    let there = [hidden.to_device(on)?, other.to_device(on)?];
    let fused = token_distributions(&there[0], &[&there[1]], &head, &targets, &temperatures)?;
    let plain = plain::token_distributions(&hidden, &[other], &same, &targets, &temperatures)?;
    let pairs = [
        (&fused.logprobs, &plain.logprobs),
        (&fused.entropy, &plain.entropy),
        (&fused.others[0].logprobs, &plain.others[0].logprobs),
        (&fused.others[0].kl, &plain.others[0].kl),
    ];
    let mut found = 0f32;
    for (a, b) in pairs {
        found = found.max(apart(&flat(a)?, &flat(b)?));
    }
    Ok(Gap { found, allowed })
}

fn attend(on: &Device, dim: usize) -> Result<Gap> {
    let (starts, heads, kv_heads) = ([0, 20, 150], 6, 2);
    let n = starts[2];
    let inputs = [tensor(1, &[n, heads, dim])?, tensor(2, &[n, kv_heads, dim])?, tensor(3, &[n, kv_heads, dim])?];
    let fused = |i: &[Tensor]| attention(&i[0], &i[1], &i[2], &starts, 0.125);
    let plain = |i: &[Tensor]| plain::attention(&i[0], &i[1], &i[2], &starts, 0.125, None);
    let fused_window = |i: &[Tensor]| windowed_attention(&i[0], &i[1], &i[2], &starts, 0.125, Some(9));
    let plain_window = |i: &[Tensor]| plain::attention(&i[0], &i[1], &i[2], &starts, 0.125, Some(9));
    let found = gap(on, &fused, &plain, &inputs)?.max(gap(on, &fused_window, &plain_window, &inputs)?);
    Ok(Gap { found, allowed: F32 })
}

/// Angles of some tokens on a device and on the CPU.
fn angles(on: &Device, positions: &[u32], half: usize) -> Result<[RopeTable; 2]> {
    let frequencies: Vec<f32> = (0..half).map(|i| 0.8f32.powi(i as i32)).collect();
    let table = |on| RopeTable::new(positions, &frequencies, on);
    Ok([table(on)?, table(&Device::Cpu)?])
}

fn norm_and_turn(on: &Device) -> Result<Gap> {
    let (heads, dim) = (3, 64);
    let (weight, bias) = (tensor(1, &[dim])?, tensor(2, &[dim])?);
    let (weight_there, bias_there) = (weight.to_device(on)?, bias.to_device(on)?);
    let [there, here] = angles(on, &[0, 1, 2, 0, 700], dim / 2)?;
    let x = [tensor(3, &[5, heads, dim])?];
    let fused = |i: &[Tensor]| layer_norm(&i[0], &weight_there, &bias_there, 1e-5);
    let mut found = gap(on, &fused, &|i| plain::layer_norm(&i[0], &weight, &bias, 1e-5), &x)?;
    for style in [RopeStyle::Interleaved, RopeStyle::Halves] {
        let fused = |i: &[Tensor]| rope(&rms_norm(&i[0], &weight_there, 1e-5)?, &there, style);
        let plain = |i: &[Tensor]| plain::rope(&plain::rms_norm(&i[0], &weight, 1e-5)?, &here, style);
        found = found.max(gap(on, &fused, &plain, &x)?);
    }
    Ok(Gap { found, allowed: F32 })
}

fn gate(on: &Device) -> Result<Gap> {
    let inputs = [tensor(1, &[5, 333])?, tensor(2, &[5, 333])?];
    let gated = gap(on, &|i| swiglu(&i[0], &i[1]), &|i| plain::swiglu(&i[0], &i[1]), &inputs)?;
    let curved = gap(on, &|i| gelu(&i[0]), &|i| plain::gelu(&i[0]), &inputs[..1])?;
    Ok(Gap { found: gated.max(curved), allowed: F32 })
}

/// Two updates of a variable: what became of it, and the moments.
fn update(on: &Device) -> Result<Gap> {
    let step = AdamWStep {
        grad_scale: 0.5,
        lr: 0.1,
        betas: [0.9, 0.95],
        corrections: [0.1, 0.05],
        weight_decay: 0.01,
        epsilon: 1e-8,
    };
    type Update = fn(&Var, &Tensor, [&Tensor; 2], &AdamWStep) -> Result<[Tensor; 2]>;
    let run = |on: &Device, update: Update| -> Result<Vec<f32>> {
        let there = |seed| -> Result<Tensor> { Ok(tensor(seed, &[70, 300])?.to_device(on)?) };
        let var = Var::from_tensor(&there(1)?)?;
        let mut moments = [there(1)?.zeros_like()?, there(1)?.zeros_like()?];
        for seed in [2, 3] {
            moments = update(&var, &there(seed)?, [&moments[0], &moments[1]], &step)?;
        }
        Ok([flat(&var.as_detached_tensor())?, flat(&moments[0])?, flat(&moments[1])?].concat())
    };
    Ok(Gap { found: apart(&run(on, adamw)?, &run(&Device::Cpu, plain::adamw)?), allowed: F32 })
}

/// The rank of the blocks' updates, and its scale.
const RANK: usize = 8;
const SCALE: f64 = 0.7;

/// Frozen layers of a block on a device and on the CPU, and their factors after the input.
struct BlockCheck {
    layers: Vec<(Frozen, Frozen)>,
    inputs: Vec<Tensor>,
}

impl BlockCheck {
    fn new(on: &Device, dtype: DType, x: Tensor, sizes: &[(usize, usize)]) -> Result<Self> {
        let (mut layers, mut inputs) = (Vec::new(), vec![x]);
        for (seed, &(out, inp)) in (1..).zip(sizes) {
            // Of a size that keeps activations near one.
            let weight = (tensor(seed, &[out, inp])? * (3.0 / inp as f64).sqrt())?.to_device(on)?;
            let weight = Frozen::new(&weight, dtype)?;
            let same = Frozen::new(&weight.weight_f32()?.to_device(&Device::Cpu)?, DType::F32)?;
            layers.push((weight, same));
            inputs.extend([tensor(seed + 10, &[RANK, inp])?, (tensor(seed + 20, &[out, RANK])? * 0.1)?]);
        }
        Ok(Self { layers, inputs })
    }

    fn layer<'a>(&'a self, i: usize, inputs: &'a [Tensor], fused: bool) -> Adapted<'a> {
        let (there, here) = &self.layers[i];
        let lora = Some(LoraPair { a: &inputs[1 + 2 * i], b: &inputs[2 + 2 * i], scale: SCALE });
        Adapted { weight: if fused { there } else { here }, bias: None, lora }
    }
}

fn attention_block(on: &Device, dtype: DType, allowed: f32) -> Result<Gap> {
    let (starts, width, heads, kv_heads, dim) = ([0, 30, 100], 96, 4, 2, 32);
    let n = starts[2];
    let sizes = [(heads * dim, width), (kv_heads * dim, width), (kv_heads * dim, width), (width, heads * dim)];
    let check = BlockCheck::new(on, dtype, tensor(50, &[n, width])?, &sizes)?;
    let positions: Vec<u32> = starts.windows(2).flat_map(|w| 0..(w[1] - w[0]) as u32).collect();
    let tables = angles(on, &positions, dim / 2)?;
    let norm = |seed, len: usize| Ok::<_, Error>((tensor(seed, &[len])? + 1.5)?);
    let norms = [norm(60, width)?, norm(61, dim)?, norm(62, dim)?];
    let norms_there = norms.iter().map(|t| t.to_device(on)).collect::<candle_core::Result<Vec<_>>>()?;
    let block = |i: &[Tensor], fused: bool| {
        let norms = if fused { &norms_there[..] } else { &norms[..] };
        let block = SelfAttention {
            norm: &norms[0],
            eps: 1e-5,
            query: check.layer(0, i, fused),
            key: check.layer(1, i, fused),
            value: check.layer(2, i, fused),
            output: check.layer(3, i, fused),
            head_norms: Some((&norms[1], &norms[2])),
            heads,
            kv_heads,
            rope: &tables[usize::from(!fused)],
            style: RopeStyle::Halves,
            starts: &starts,
            scale: (dim as f32).powf(-0.5),
        };
        if fused { self_attention(&i[0], &block) } else { plain::self_attention(&i[0], &block) }
    };
    Ok(Gap { found: gap(on, &|i| block(i, true), &|i| block(i, false), &check.inputs)?, allowed })
}

fn feed_forward_block(on: &Device, dtype: DType, allowed: f32) -> Result<Gap> {
    let (n, width, inner) = (70, 96, 160);
    let sizes = [(inner, width), (inner, width), (width, inner)];
    let check = BlockCheck::new(on, dtype, tensor(50, &[n, width])?, &sizes)?;
    let norm = (tensor(60, &[width])? + 1.5)?;
    let norm_there = norm.to_device(on)?;
    let block = |i: &[Tensor], fused: bool| {
        let block = FeedForward {
            norm: if fused { &norm_there } else { &norm },
            eps: 1e-5,
            gate: check.layer(0, i, fused),
            up: check.layer(1, i, fused),
            down: check.layer(2, i, fused),
        };
        if fused { feed_forward(&i[0], &block) } else { plain::feed_forward(&i[0], &block) }
    };
    Ok(Gap { found: gap(on, &|i| block(i, true), &|i| block(i, false), &check.inputs)?, allowed })
}

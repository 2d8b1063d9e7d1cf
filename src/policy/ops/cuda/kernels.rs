//! The kernels of kernels.cu, with their arguments as they stand there; attention's are in [`super::tiles`].

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{PushKernelArg, result};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{CudaStorage, Result, Tensor};

use super::array::{Array, At, Values};
use super::launch::{Launch, address, launch, name};
use crate::policy::ops::RopeStyle;
use crate::policy::ops::quantized::Format;

/// The weights of a norm, `[width]` in f32.
#[derive(Clone, Copy)]
pub struct NormWeights<'a> {
    pub weight: At<'a>,
    /// LayerNorm where there is one, else RMSNorm.
    pub bias: Option<At<'a>>,
    pub width: usize,
    pub eps: f32,
}

/// `y = norm(x)`, `[rows, width]` both.
pub fn norm(gpu: &CudaDevice, x: At, w: NormWeights, y: At, rows: usize) -> Result<()> {
    let kernel = format!("norm_{}_{}", name(x.dtype), name(y.dtype));
    launch!(
        gpu,
        &kernel,
        Launch::rows(rows),
        x.pointer,
        w.weight.pointer,
        address(w.bias),
        y.pointer,
        w.width as i32,
        w.eps
    );
    Ok(())
}

/// The gradient of a norm's input: `dx` has the type of `x`. Adds `more [rows, width]`, in f32.
pub fn norm_slopes(
    gpu: &CudaDevice,
    x: At,
    w: NormWeights,
    dy: At,
    more: Option<At>,
    dx: At,
    rows: usize,
) -> Result<()> {
    let kernel = format!("norm_slopes_{}_{}", name(x.dtype), name(dy.dtype));
    let centred = i32::from(w.bias.is_some());
    launch!(
        gpu,
        &kernel,
        Launch::rows(rows),
        x.pointer,
        w.weight.pointer,
        dy.pointer,
        address(more),
        dx.pointer,
        w.width as i32,
        w.eps,
        centred
    );
    Ok(())
}

/// The angles of the tokens, `[n, half]` in f32 both.
#[derive(Clone, Copy)]
pub struct Angles<'a> {
    pub cos: At<'a>,
    pub sin: At<'a>,
    pub half: usize,
    pub style: RopeStyle,
}

/// `y = x [n, heads, dim]` rotated, forward (`sign` 1) or back (-1).
pub fn rope(
    gpu: &CudaDevice,
    x: At,
    y: At,
    angles: Angles,
    (n, heads, dim): (usize, usize, usize),
    sign: f32,
) -> Result<()> {
    let kernel = format!("rope_{}_{}", name(x.dtype), name(y.dtype));
    let (count, style) = (n * heads * dim, i32::from(angles.style == RopeStyle::Interleaved));
    let (cos, sin, half) = (angles.cos.pointer, angles.sin.pointer, angles.half as i32);
    launch!(
        gpu,
        &kernel,
        Launch::each(count),
        x.pointer,
        y.pointer,
        cos,
        sin,
        heads as i32,
        dim as i32,
        half,
        style,
        sign,
        count
    );
    Ok(())
}

/// `y = silu(gate) · up`, of `count` values.
pub fn swiglu(gpu: &CudaDevice, gate: At, up: At, y: At, count: usize) -> Result<()> {
    let kernel = format!("swiglu_{}", name(y.dtype));
    launch!(gpu, &kernel, Launch::each(count), gate.pointer, up.pointer, y.pointer, count);
    Ok(())
}

/// Its gradients.
pub fn swiglu_slopes(
    gpu: &CudaDevice,
    (gate, up): (At, At),
    dy: At,
    (dgate, dup): (At, At),
    count: usize,
) -> Result<()> {
    let kernel = format!("swiglu_slopes_{}", name(dy.dtype));
    launch!(gpu, &kernel, Launch::each(count), gate.pointer, up.pointer, dy.pointer, dgate.pointer, dup.pointer, count);
    Ok(())
}

/// `y = gelu(x)`, of `count` values.
pub fn gelu(gpu: &CudaDevice, x: At, y: At, count: usize) -> Result<()> {
    launch!(gpu, &format!("gelu_{}", name(x.dtype)), Launch::each(count), x.pointer, y.pointer, count);
    Ok(())
}

/// Its gradient.
pub fn gelu_slopes(gpu: &CudaDevice, x: At, dy: At, dx: At, count: usize) -> Result<()> {
    let kernel = format!("gelu_slopes_{}", name(x.dtype));
    launch!(gpu, &kernel, Launch::each(count), x.pointer, dy.pointer, dx.pointer, count);
    Ok(())
}

/// The values in another number format, f32 or bf16.
pub fn cast(gpu: &CudaDevice, x: At, y: At, count: usize) -> Result<()> {
    let kernel = format!("cast_{}_{}", name(x.dtype), name(y.dtype));
    launch!(gpu, &kernel, Launch::each(count), x.pointer, y.pointer, count);
    Ok(())
}

/// Puts `bias [width]`, in f32, into each row of `y [rows, width]`, or adds it.
pub fn bias(gpu: &CudaDevice, y: At, bias: At, rows: usize, width: usize, add: bool) -> Result<()> {
    let (kernel, count) = (format!("bias_{}", name(y.dtype)), rows * width);
    launch!(gpu, &kernel, Launch::each(count), y.pointer, bias.pointer, width as i32, i32::from(add), count);
    Ok(())
}

/// Changes `weights` in place by AdamW, and writes the moments that follow; all of `count` values in f32.
pub fn adamw(
    gpu: &CudaDevice,
    weights: At,
    grads: At,
    [first, second]: [At; 2],
    [new_first, new_second]: [At; 2],
    [scale, one, two, rate, correction, keep, epsilon]: [f32; 7],
    count: usize,
) -> Result<()> {
    launch!(
        gpu,
        "adamw",
        Launch::each(count),
        weights.pointer,
        grads.pointer,
        first.pointer,
        second.pointer,
        new_first.pointer,
        new_second.pointer,
        scale,
        one,
        two,
        rate,
        correction,
        keep,
        epsilon,
        count
    );
    Ok(())
}

/// Rows of logits `[rows, words]` in f32, with what makes distributions of them.
#[derive(Clone, Copy)]
pub struct Logits<'a> {
    pub logits: At<'a>,
    /// `[words]`, in f32.
    pub bias: Option<At<'a>>,
    /// One over the temperature of each row.
    pub inverses: At<'a>,
    /// A word for each row, u32.
    pub targets: At<'a>,
    pub rows: usize,
    pub words: usize,
}

/// Log-sums, log-probabilities of the targets and entropies, `[rows]` each, in nats.
pub fn softmax(gpu: &CudaDevice, l: Logits, sums: At, logprobs: At, entropies: At) -> Result<()> {
    launch!(
        gpu,
        "softmax",
        Launch::rows(l.rows),
        l.logits.pointer,
        address(l.bias),
        l.inverses.pointer,
        l.targets.pointer,
        sums.pointer,
        logprobs.pointer,
        entropies.pointer,
        l.words as i32
    );
    Ok(())
}

/// The gradient in the logits of the log-probabilities, whose own is `dy [rows]`.
pub fn softmax_slopes(gpu: &CudaDevice, l: Logits, sums: At, dy: At, slopes: At) -> Result<()> {
    let kernel = format!("softmax_slopes_{}", name(slopes.dtype));
    launch!(
        gpu,
        &kernel,
        Launch::rows(l.rows),
        l.logits.pointer,
        address(l.bias),
        l.inverses.pointer,
        l.targets.pointer,
        sums.pointer,
        dy.pointer,
        slopes.pointer,
        l.words as i32
    );
    Ok(())
}

/// KL of each row's distribution to that of `others [rows, words]`, `[rows]`, in nats.
pub fn softmax_kl(gpu: &CudaDevice, l: Logits, others: At, sums: At, other_sums: At, kl: At) -> Result<()> {
    launch!(
        gpu,
        "softmax_kl",
        Launch::rows(l.rows),
        l.logits.pointer,
        others.pointer,
        address(l.bias),
        l.inverses.pointer,
        sums.pointer,
        other_sums.pointer,
        kl.pointer,
        l.words as i32
    );
    Ok(())
}

/// Decodes rows of a matrix that is held as its file stores it: those of `ids`, or `count` from `first` on.
pub fn decode(
    gpu: &CudaDevice,
    bytes: At,
    (format, cols): (Format, usize),
    (first, count, ids): (usize, usize, Option<At>),
    to: At,
) -> Result<()> {
    let (per_block, block_bytes) = format.block();
    let row_groups = cols / 32;
    let groups = count * row_groups;
    launch!(
        gpu,
        &format!("decode_{}", name(to.dtype)),
        Launch::each(groups * 32),
        bytes.pointer,
        format as i32,
        per_block as i32,
        block_bytes as i32,
        row_groups as i32,
        first,
        address(ids),
        to.pointer,
        groups
    );
    Ok(())
}

/// A copy, of one type.
pub fn copy(gpu: &CudaDevice, x: At, y: At, count: usize) -> Result<()> {
    let bytes = count * x.dtype.size_in_bytes();
    if bytes > 0 {
        // SAFETY: both places hold as much.
        unsafe { result::memcpy_dtod_async(y.pointer, x.pointer, bytes, gpu.cuda_stream().cu_stream()) }.w()?;
    }
    Ok(())
}

/// A copy of a tensor's values, as the result of an operation.
pub fn storage(t: &Tensor) -> Result<CudaStorage> {
    let t = t.contiguous()?;
    let values = Values::of(&t)?;
    let to = Array::new(values.device(), t.dtype(), t.elem_count())?;
    copy(values.device(), values.at()?, to.all(), t.elem_count())?;
    Ok(to.into_storage())
}

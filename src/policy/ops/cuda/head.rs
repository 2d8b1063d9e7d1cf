//! Log-probabilities, entropies and distances of tokens straight from hidden rows. Logits exist for some rows at a
//! time; the backward pass computes them again.

use std::sync::{Arc, OnceLock};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDevice;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

use super::array::{Array, At, Values, operand};
use super::kernels::{self, Logits};
use super::layer::converted;
use super::product::{Matrix, product};
use super::weight::Weight;
use super::{device, not_here, plain, takes};
use crate::policy::ops::Frozen;
use crate::policy::ops::logprobs::{Compared, Distributions};

/// Most logits at a time, 256 MB of them.
const LOGITS: usize = 64 << 20;

pub fn token_logprobs(hidden: &Tensor, head: &Frozen, targets: &[u32], temperatures: &[f32]) -> crate::Result<Tensor> {
    match head.cuda(hidden).filter(|_| takes(hidden)) {
        Some(weight) => {
            let op = Head::new(device(hidden)?, head, weight, targets, temperatures)?;
            Ok(hidden.contiguous()?.apply_op1(op)?)
        }
        None => plain::token_logprobs(hidden, head, targets, temperatures),
    }
}

pub fn token_distributions(
    hidden: &Tensor,
    others: &[Tensor],
    head: &Frozen,
    targets: &[u32],
    temperatures: &[f32],
) -> crate::Result<Distributions> {
    match head.cuda(hidden).filter(|_| takes(hidden) && others.iter().all(takes)) {
        Some(weight) => {
            let gpu = device(hidden)?;
            let head = Head::new(gpu, head, weight, targets, temperatures)?;
            Ok(head.distributions(gpu, hidden, others)?)
        }
        None => plain::token_distributions(hidden, others, head, targets, temperatures),
    }
}

fn place(array: &Array, first: usize) -> At<'_> {
    array.all().plus(first)
}

struct Head {
    weight: Arc<Weight>, // [V, E]
    bias: Option<Array>,
    targets: Array,
    inverses: Array,
    rows: usize,
    /// Log-sums of the rows' logits.
    sums: OnceLock<Array>,
}

impl Head {
    fn new(
        gpu: &CudaDevice,
        head: &Frozen,
        weight: &Arc<Weight>,
        targets: &[u32],
        temperatures: &[f32],
    ) -> Result<Self> {
        let inverses: Vec<f32> = temperatures.iter().map(|t| 1.0 / t).collect();
        Ok(Self {
            weight: weight.clone(),
            bias: head.bias().map(|bias| Array::of(gpu, bias)).transpose()?,
            targets: Array::of(gpu, targets)?,
            inverses: Array::of(gpu, &inverses)?,
            rows: targets.len(),
            sums: OnceLock::new(),
        })
    }

    /// First row and number of those that are done together.
    fn chunks(&self) -> impl Iterator<Item = (usize, usize)> {
        let (most, rows) = ((LOGITS / self.weight.rows.max(1)).max(1), self.rows);
        (0..rows).step_by(most).map(move |first| (first, most.min(rows - first)))
    }

    /// Logits of some rows of `hidden [rows, E]`, which are of the products' type, before bias and temperature.
    fn logits(&self, gpu: &CudaDevice, hidden: At, (first, count): (usize, usize)) -> Result<Array> {
        let (words, width) = (self.weight.rows, self.weight.cols);
        let logits = Array::new(gpu, DType::F32, count * words)?;
        let rows = Matrix::new(hidden.plus(first * width), count, width);
        self.weight.panels(gpu, |word, panel| {
            let to = Matrix::new(logits.all(), count, words).columns(word, panel.rows());
            product(gpu, rows, panel.transposed(), 1.0, false, to)
        })?;
        Ok(logits)
    }

    fn rows_of<'a>(&'a self, logits: &'a Array, (first, count): (usize, usize)) -> Logits<'a> {
        Logits {
            logits: logits.all(),
            bias: self.bias.as_ref().map(Array::all),
            inverses: self.inverses.all().plus(first),
            targets: self.targets.all().plus(first),
            rows: count,
            words: self.weight.rows,
        }
    }

    fn distributions(&self, gpu: &CudaDevice, hidden: &Tensor, others: &[Tensor]) -> Result<Distributions> {
        let m = self.rows;
        let new = || Array::new(gpu, DType::F32, m);
        let same = |t: &Tensor| {
            let t = t.contiguous()?;
            converted(gpu, Values::of(&t)?.at()?, t.elem_count(), self.weight.dtype)
        };
        let hidden = same(hidden)?;
        let others = others.iter().map(same).collect::<Result<Vec<_>>>()?;
        let (sums, logprobs, entropy) = (new()?, new()?, new()?);
        let (other_sums, unused) = (new()?, new()?);
        let compared = others.iter().map(|_| Ok((new()?, new()?))).collect::<Result<Vec<_>>>()?;
        for chunk in self.chunks() {
            let place = |array| place(array, chunk.0);
            let logits = self.logits(gpu, hidden.all(), chunk)?;
            kernels::softmax(gpu, self.rows_of(&logits, chunk), place(&sums), place(&logprobs), place(&entropy))?;
            for (other, (other_logprobs, kl)) in others.iter().zip(&compared) {
                let theirs = self.logits(gpu, other.all(), chunk)?;
                let rows = self.rows_of(&theirs, chunk);
                kernels::softmax(gpu, rows, place(&other_sums), place(other_logprobs), place(&unused))?;
                let rows = self.rows_of(&logits, chunk);
                kernels::softmax_kl(gpu, rows, theirs.all(), place(&sums), place(&other_sums), place(kl))?;
            }
        }
        let others = compared
            .into_iter()
            .map(|(logprobs, kl)| Compared { logprobs: logprobs.into_tensor(m), kl: kl.into_tensor(m) });
        Ok(Distributions {
            logprobs: logprobs.into_tensor(m),
            entropy: entropy.into_tensor(m),
            others: others.collect(),
        })
    }
}

impl CustomOp1 for Head {
    fn name(&self) -> &'static str {
        "token-logprobs"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_here(self.name())
    }

    fn cuda_fwd(&self, hidden: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        let gpu = hidden.device();
        let hidden = converted(gpu, operand(self.name(), hidden, l)?, l.shape().elem_count(), self.weight.dtype)?;
        let new = || Array::new(gpu, DType::F32, self.rows);
        let (sums, logprobs, unused) = (new()?, new()?, new()?);
        for chunk in self.chunks() {
            let logits = self.logits(gpu, hidden.all(), chunk)?;
            let [sums, logprobs, unused] = [&sums, &logprobs, &unused].map(|array| array.all().plus(chunk.0));
            kernels::softmax(gpu, self.rows_of(&logits, chunk), sums, logprobs, unused)?;
        }
        self.sums.set(sums).ok();
        Ok((logprobs.into_storage(), Shape::from(self.rows)))
    }

    fn bwd(&self, hidden: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let Some(sums) = self.sums.get() else { bail!("{}: nothing was kept for this pass", self.name()) };
        let (gpu, dy, width, words) = (device(hidden)?, dy.contiguous()?, self.weight.cols, self.weight.rows);
        let (dys, dtype) = (Values::of(&dy)?, self.weight.dtype);
        let rows = converted(gpu, Values::of(hidden)?.at()?, hidden.elem_count(), dtype)?;
        let dx = Array::new(gpu, DType::F32, hidden.elem_count())?;
        for chunk in self.chunks() {
            let (first, count) = chunk;
            let logits = self.logits(gpu, rows.all(), chunk)?;
            let slopes = Array::new(gpu, dtype, count * words)?;
            let (sums, dy) = (sums.all().plus(first), dys.at()?.plus(first));
            kernels::softmax_slopes(gpu, self.rows_of(&logits, chunk), sums, dy, slopes.all())?;
            drop(logits);
            let (slopes, to) =
                (Matrix::new(slopes.all(), count, words), Matrix::new(dx.all().plus(first * width), count, width));
            self.weight.panels(gpu, |word, panel| {
                product(gpu, slopes.columns(word, panel.rows()), panel, 1.0, word > 0, to)
            })?;
        }
        Ok(Some(dx.into_tensor(hidden.shape())))
    }
}

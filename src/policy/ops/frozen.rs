//! Frozen weights, which never get a gradient, and embedding lookups in them. Never multiplies.

use super::bf16;
use super::cpu;
#[cfg(feature = "train-cuda")]
use super::cuda;
use super::matrix::{Mat, Precision};
use super::quantized::Quantized;
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

/// A frozen weight matrix `[out, in]`, in f32, bf16 or the number format of its file. Clones share the values.
#[derive(Clone, Debug)]
pub struct Frozen {
    store: Store,
    /// What a head adds to its logits, `[out]`.
    bias: Option<Arc<[f32]>>,
}

#[derive(Clone, Debug)]
enum Store {
    /// For the fused operations of the CPU.
    Cpu(Arc<Mat>),
    #[cfg(feature = "train-cuda")]
    Cuda(Arc<cuda::Weight>),
}

impl Frozen {
    fn of(store: Store) -> Self {
        Self { store, bias: None }
    }

    /// A head that adds `bias [out]` to its logits. Other products leave it out.
    pub(in crate::policy) fn with_bias(self, bias: &Tensor) -> Result<Self> {
        let bias = frozen_values(bias)?;
        if bias.len() != self.out_features() {
            let (found, expected) = (bias.len(), self.out_features());
            return Err(Error::train(format!("head's bias: {found} values, expected {expected}")));
        }
        Ok(Self { bias: Some(bias.into()), ..self })
    }

    /// What a head adds to its logits.
    pub(super) fn bias(&self) -> Option<&Arc<[f32]>> {
        self.bias.as_ref()
    }

    /// Takes an f32 weight `[out, in]` and keeps it as `dtype` (f32 or bf16) on its device.
    ///
    /// A CPU without AVX512-BF16 keeps bf16 values widened to f32, and computes in f32.
    pub fn new(weight: &Tensor, dtype: DType) -> Result<Self> {
        let shape = weight.dims2();
        let (_, inp) =
            shape.map_err(|_| Error::train(format!("frozen weight: shape {:?}, expected [out, in]", weight.dims())))?;
        let precision = precision_of(dtype)?;
        let weight = weight.detach().contiguous()?;
        #[cfg(feature = "train-cuda")]
        if weight.device().is_cuda() {
            let weight = weight.to_dtype(DType::F32)?;
            return Ok(Self::of(Store::Cuda(Arc::new(cuda::Weight::new(&weight, dtype)?))));
        }
        let weight = if precision == Precision::F32 { weight.to_dtype(dtype)? } else { weight };
        let weight = weight.to_dtype(DType::F32)?;
        let mat = Mat::new(precision, &cpu::Values::of(&weight)?, inp).frozen();
        Ok(Self::of(Store::Cpu(Arc::new(mat))))
    }

    /// Takes a weight as its file stores it, to be used on `device`. Products decode it panel by panel, to `dtype` (f32
    /// or bf16), and give the same bits as those of its packed form if they are in bf16.
    pub(in crate::policy) fn quantized(matrix: Quantized, dtype: DType, device: &Device) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self::of(Store::Cpu(Arc::new(Mat::quantized(precision_of(dtype)?, matrix))))),
            #[cfg(feature = "train-cuda")]
            Device::Cuda(gpu) => Ok(Self::of(Store::Cuda(Arc::new(cuda::Weight::stored(gpu, &matrix, dtype)?)))),
            other => Err(Error::unsupported(format!("frozen weights on {:?}", other.location()))),
        }
    }

    /// Rows of the matrix: the width of the product.
    pub fn out_features(&self) -> usize {
        match &self.store {
            Store::Cpu(mat) => mat.rows(),
            #[cfg(feature = "train-cuda")]
            Store::Cuda(weight) => weight.rows,
        }
    }

    /// Columns of the matrix: the width of the input.
    pub fn in_features(&self) -> usize {
        match &self.store {
            Store::Cpu(mat) => mat.cols(),
            #[cfg(feature = "train-cuda")]
            Store::Cuda(weight) => weight.cols,
        }
    }

    /// The stored values as f32, `[out, in]`.
    pub fn weight_f32(&self) -> Result<Tensor> {
        match &self.store {
            Store::Cpu(mat) => rows_of(mat, 0..mat.rows()),
            #[cfg(feature = "train-cuda")]
            Store::Cuda(weight) => Ok(weight.values()?),
        }
    }

    /// The matrix, if a fused operation on `x` can use it.
    pub(super) fn fused(&self, x: &Tensor) -> Option<&Arc<Mat>> {
        match &self.store {
            Store::Cpu(mat) if cpu::takes(x) => Some(mat),
            _ => None,
        }
    }

    /// The matrix, if an operation on `x` on a CUDA device can use it.
    #[cfg(feature = "train-cuda")]
    pub(super) fn cuda(&self, x: &Tensor) -> Option<&Arc<cuda::Weight>> {
        match &self.store {
            Store::Cuda(weight) if x.device().is_cuda() => Some(weight),
            _ => None,
        }
    }

    /// Whether the matrix has these dimensions.
    pub(super) fn is(&self, out: usize, inp: usize) -> bool {
        self.out_features() == out && self.in_features() == inp
    }
}

/// What products of a dtype are computed in here.
fn precision_of(dtype: DType) -> Result<Precision> {
    match dtype {
        DType::F32 => Ok(Precision::F32),
        DType::BF16 if bf16::available() => Ok(Precision::Bf16),
        DType::BF16 => Ok(Precision::F32),
        _ => Err(Error::unsupported(format!("frozen weight: dtype {dtype:?}, expected F32 or BF16"))),
    }
}

/// Bytes of a value that blocks keep for the backward pass, in products of a dtype on the CPU.
pub fn element_bytes(dtype: DType) -> u64 {
    match precision_of(dtype) {
        Ok(Precision::Bf16) => 2,
        _ => 4,
    }
}

/// Some rows of a matrix as an f32 tensor.
fn rows_of(mat: &Mat, rows: impl ExactSizeIterator<Item = usize>) -> Result<Tensor> {
    let (count, cols) = (rows.len(), mat.cols());
    let mut values = vec![0f32; count * cols];
    if cols > 0 {
        values.chunks_exact_mut(cols).zip(rows).for_each(|(to, row)| mat.read_row(row, to));
    }
    Ok(cpu::tensor(values, (count, cols))?)
}

/// The values of a frozen vector.
pub(super) fn frozen_values(t: &Tensor) -> Result<Vec<f32>> {
    Ok(t.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
}

/// Looks up rows of the embedding `[V, E]`: `[N, E]`, exactly the stored values.
pub fn embed(tokens: &[u32], table: &Frozen) -> Result<Tensor> {
    check_tokens("embed", tokens, table.out_features())?;
    match &table.store {
        Store::Cpu(mat) => rows_of(mat, tokens.iter().map(|&t| t as usize)),
        #[cfg(feature = "train-cuda")]
        Store::Cuda(weight) => Ok(weight.lookup(tokens)?),
    }
}

pub(super) fn check_tokens(op: &str, tokens: &[u32], vocabulary: usize) -> Result<()> {
    match tokens.iter().find(|&&t| t as usize >= vocabulary) {
        Some(t) => Err(Error::train(format!("{op}: token {t}, the vocabulary has {vocabulary}"))),
        None => Ok(()),
    }
}

//! Frozen weights on a CUDA device: in the number format of products, or as their file stores them and decoded panel by
//! panel. Never changed.

use candle_core::cuda_backend::CudaDevice;
use candle_core::{DType, Result, Tensor, bail};

use super::array::{Array, Values};
use super::product::Matrix;
use super::{device, kernels};
use crate::policy::ops::quantized::{Format, Quantized};

/// Most values that are decoded at a time.
const PANEL: usize = 32 << 20;

/// A matrix `[rows, cols]`, used in products of `dtype`, f32 or bf16.
#[derive(Debug)]
pub struct Weight {
    pub rows: usize,
    pub cols: usize,
    pub dtype: DType,
    store: Store,
}

#[derive(Debug)]
enum Store {
    /// `[rows, cols]`, of the products' type.
    Whole(Tensor),
    /// Bytes.
    Stored(Tensor, Format),
}

impl Weight {
    /// Takes an f32 matrix of a CUDA device.
    pub fn new(weight: &Tensor, dtype: DType) -> Result<Self> {
        let (rows, cols) = weight.dims2()?;
        let weight = weight.contiguous()?;
        let gpu = device(&weight)?;
        let whole = if dtype == weight.dtype() {
            weight
        } else {
            let to = Array::new(gpu, dtype, rows * cols)?;
            kernels::cast(gpu, Values::of(&weight)?.at()?, to.all(), rows * cols)?;
            to.into_tensor((rows, cols))
        };
        Ok(Self { rows, cols, dtype, store: Store::Whole(whole) })
    }

    /// Takes a matrix as its file stores it.
    pub fn stored(gpu: &CudaDevice, matrix: &Quantized, dtype: DType) -> Result<Self> {
        let bytes = matrix.data().0;
        let held = Array::of(gpu, bytes)?.into_tensor(bytes.len());
        let (rows, cols) = (matrix.rows(), matrix.cols());
        Ok(Self { rows, cols, dtype, store: Store::Stored(held, matrix.format()) })
    }

    /// Calls `f(first row, rows)` for panels of the matrix that together are all of it.
    pub fn panels(&self, gpu: &CudaDevice, mut f: impl FnMut(usize, Matrix) -> Result<()>) -> Result<()> {
        match &self.store {
            Store::Whole(t) => f(0, Matrix::new(Values::of(t)?.at()?, self.rows, self.cols)),
            Store::Stored(bytes, format) => {
                let bytes = Values::of(bytes)?;
                let most = (PANEL / self.cols.max(1)).clamp(1, self.rows.max(1));
                let panel = Array::new(gpu, self.dtype, most * self.cols)?;
                for first in (0..self.rows).step_by(most) {
                    let count = most.min(self.rows - first);
                    let rows = (first, count, None);
                    kernels::decode(gpu, bytes.at()?, (*format, self.cols), rows, panel.all())?;
                    f(first, Matrix::new(panel.all(), count, self.cols))?;
                }
                Ok(())
            }
        }
    }

    /// All values as f32, `[rows, cols]`.
    pub fn values(&self) -> Result<Tensor> {
        match &self.store {
            Store::Whole(t) => t.to_dtype(DType::F32),
            Store::Stored(bytes, format) => {
                let gpu = device(bytes)?;
                let to = Array::new(gpu, DType::F32, self.rows * self.cols)?;
                let rows = (0, self.rows, None);
                kernels::decode(gpu, Values::of(bytes)?.at()?, (*format, self.cols), rows, to.all())?;
                Ok(to.into_tensor((self.rows, self.cols)))
            }
        }
    }

    /// Some rows as f32, `[rows.len(), cols]`; all are of the matrix.
    pub fn lookup(&self, rows: &[u32]) -> Result<Tensor> {
        if rows.is_empty() {
            bail!("a lookup of no rows");
        }
        match &self.store {
            Store::Whole(t) => t.index_select(&Tensor::new(rows, t.device())?, 0)?.to_dtype(DType::F32),
            Store::Stored(bytes, format) => {
                let gpu = device(bytes)?;
                let (ids, to) = (Array::of(gpu, rows)?, Array::new(gpu, DType::F32, rows.len() * self.cols)?);
                let chosen = (0, rows.len(), Some(ids.all()));
                kernels::decode(gpu, Values::of(bytes)?.at()?, (*format, self.cols), chosen, to.all())?;
                Ok(to.into_tensor((rows.len(), self.cols)))
            }
        }
    }
}

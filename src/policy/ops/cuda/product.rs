//! Products of matrices, by cuBLAS: operands in f32 or bf16, sums in f32.

use candle_core::cuda_backend::cudarc::cublas::{result::gemm_ex, sys};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{DType, Result, bail};

use super::array::At;

/// A matrix row by row, `[rows, cols]`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    at: At<'a>,
    rows: usize,
    cols: usize,
    /// Values from the begin of a row to that of the next.
    step: usize,
    /// Whether memory holds it by columns.
    transposed: bool,
}

impl<'a> Matrix<'a> {
    pub fn new(at: At<'a>, rows: usize, cols: usize) -> Self {
        Self { at, rows, cols, step: cols, transposed: false }
    }

    pub fn rows(self) -> usize {
        self.rows
    }

    /// Columns from `first` on of a matrix.
    pub fn columns(self, first: usize, count: usize) -> Self {
        Self { at: self.at.plus(first), cols: count, ..self }
    }

    pub fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, transposed: !self.transposed, ..self }
    }
}

/// `c = factor · a b`, or plus what `c` holds.
pub fn product(gpu: &CudaDevice, a: Matrix, b: Matrix, factor: f32, add: bool, c: Matrix) -> Result<()> {
    if a.cols != b.rows || c.rows != a.rows || c.cols != b.cols || c.transposed || a.at.dtype != b.at.dtype {
        bail!(
            "product of [{}, {}] and [{}, {}] into [{}, {}], {:?} and {:?}",
            a.rows,
            a.cols,
            b.rows,
            b.cols,
            c.rows,
            c.cols,
            a.at.dtype,
            b.at.dtype
        );
    }
    if c.rows == 0 || c.cols == 0 {
        return Ok(());
    }
    let size = |n: usize| i32::try_from(n).map_err(|_| candle_core::Error::Msg(format!("a matrix of {n} columns")));
    let kind = |at: At| match at.dtype {
        DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        _ => sys::cudaDataType::CUDA_R_32F,
    };
    let turn = |m: Matrix| match m.transposed {
        true => sys::cublasOperation_t::CUBLAS_OP_T,
        false => sys::cublasOperation_t::CUBLAS_OP_N,
    };
    let beta = if add { 1f32 } else { 0f32 };
    // cuBLAS reads by columns, so what it sees and gives is transposed: cᵀ = bᵀ aᵀ.
    // SAFETY: the places hold matrices of these sizes, which whoever made them sees to; the factors are read at once.
    unsafe {
        gemm_ex(
            *gpu.cublas_handle().handle(),
            turn(b),
            turn(a),
            size(c.cols)?,
            size(c.rows)?,
            size(a.cols)?,
            (&raw const factor).cast(),
            b.at.pointer as *const _,
            kind(b.at),
            size(b.step)?,
            a.at.pointer as *const _,
            kind(a.at),
            size(a.step)?,
            (&raw const beta).cast(),
            c.at.pointer as *mut _,
            kind(c.at),
            size(c.step)?,
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
        )
    }
    .w()
}

//! Blocks whose activations are not kept: the backward pass computes them again from the block's input. Never changes
//! a result: the same operations see the same values.

use std::ops::Range;
use std::sync::Arc;

#[cfg(feature = "train-cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape as TensorShape, Tensor, Var};

use super::blocks::{Block, Pass, Ropes};
use super::ops::f32_slice;
#[cfg(feature = "train-cuda")]
use super::ops::{cuda_storage, cuda_tensor};
use super::{Lora, Shape};

/// One block of a forward pass, with the parts of the pass that it needs again.
pub(super) struct Recomputed {
    pub(super) block: Arc<Block>,
    /// Its linear layers, among the decoder's.
    pub(super) linears: Range<usize>,
    pub(super) shape: Arc<Shape>,
    pub(super) starts: Vec<usize>,
    pub(super) ropes: Ropes,
    pub(super) lora: Lora,
}

impl Recomputed {
    /// The block's output, [tokens, width], as an operation of its input and of its part of the adapter.
    pub(super) fn forward(self, x: &Tensor) -> crate::Result<Tensor> {
        let flat = self.lora.flat(self.linears.clone())?;
        let flat = match flat {
            Some(flat) => flat,
            None => Tensor::zeros(1, DType::F32, x.device())?,
        };
        Ok(x.contiguous()?.apply_op2(&flat, self)?)
    }

    fn compute(&self, x: &Tensor, flat: &Tensor) -> crate::Result<Tensor> {
        let lora = self.lora.with_flat(self.linears.clone(), flat)?;
        let pass = Pass { shape: &self.shape, starts: &self.starts, ropes: self.ropes.clone(), lora: Some(&lora) };
        self.block.forward(x, &pass)
    }
}

impl CustomOp2 for Recomputed {
    fn name(&self) -> &'static str {
        "recomputed-block"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, f: &CpuStorage, lf: &Layout) -> Result<(CpuStorage, TensorShape)> {
        let plain = |storage, layout: &Layout| {
            Tensor::from_slice(f32_slice(self.name(), storage, layout)?, layout.shape(), &candle_core::Device::Cpu)
        };
        let y = self.compute(&plain(x, lx)?, &plain(f, lf)?).map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(y.flatten_all()?.to_vec1()?), y.shape().clone()))
    }

    #[cfg(feature = "train-cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        f: &CudaStorage,
        lf: &Layout,
    ) -> Result<(CudaStorage, TensorShape)> {
        let y = self.compute(&cuda_tensor(x, lx)?, &cuda_tensor(f, lf)?).map_err(candle_core::Error::wrap)?;
        Ok((cuda_storage(&y)?, y.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, f: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (x, flat) = (Var::from_tensor(&x.detach())?, Var::from_tensor(&f.detach())?);
        let y = self.compute(x.as_tensor(), flat.as_tensor()).map_err(candle_core::Error::wrap)?;
        // The gradient of this sum in y is dy.
        let mut grads = (y * dy)?.sum_all()?.backward()?;
        Ok((grads.remove(&x), grads.remove(&flat)))
    }
}

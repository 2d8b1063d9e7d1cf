//! Several linear layers whose factors form one flat tensor. Knows nothing of what a block computes.

use candle_core::cuda_backend::CudaDevice;
use candle_core::{DType, Result, Tensor};

use super::array::{Array, At};
use super::layer::{Factors, Layer};
use crate::policy::ops::Adapted;
use crate::policy::ops::layers::flat;

/// The layers of a block.
pub struct Layers {
    pub layers: Vec<Layer>,
    /// Values of the flat tensor.
    len: usize,
    /// The type of their products.
    pub dtype: DType,
}

impl Layers {
    /// The layers, and the factors of all of them as one flat tensor through which gradients flow. `None` if they are
    /// not all on a CUDA device, with products of one type.
    pub fn new(x: &Tensor, specs: &[Adapted]) -> crate::Result<Option<(Self, Tensor)>> {
        let mut layers = Vec::new();
        let (slots, flat) = flat(specs, x.device())?;
        for (spec, slot) in specs.iter().zip(slots) {
            let Some(weight) = spec.weight.cuda(x) else { return Ok(None) };
            let bias = spec.bias.map(|bias| bias.detach().to_dtype(DType::F32)?.contiguous()).transpose()?;
            layers.push(Layer { weight: weight.clone(), bias, slot });
        }
        let dtype = layers[0].weight.dtype;
        let one = layers.iter().all(|layer| layer.weight.dtype == dtype);
        Ok(one.then(|| (Self { layers, len: flat.elem_count(), dtype }, flat)))
    }

    /// The factors in the products' type, from the flat tensor's values.
    pub fn factors(&self, gpu: &CudaDevice, flat: At) -> Result<Factors> {
        Factors::new(gpu, flat, self.len, self.dtype)
    }

    /// Zeroed gradients of all factors.
    pub fn zero_grads(&self, gpu: &CudaDevice) -> Result<Array> {
        Array::zeros(gpu, DType::F32, self.len)
    }
}

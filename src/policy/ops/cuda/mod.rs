//! The operations on a CUDA device, with kernels of our own and cuBLAS: the same formulas as on the CPU, in the same
//! files' order. Between operations activations are f32; inside the attention and the feed-forward block they are of
//! the weights' type. Nothing is copied to the host, and sums have a fixed order.

mod adamw;
mod array;
mod attention;
mod elementwise;
mod feed_forward;
mod head;
mod kernels;
mod launch;
mod layer;
mod layers;
mod linear;
mod product;
mod self_attention;
mod tiles;
mod weight;

use candle_core::cuda_backend::CudaDevice;
use candle_core::{CpuStorage, DType, Device, Result, Shape, Tensor, bail};

use super::plain;
pub use adamw::adamw;
pub use array::tensor;
pub use attention::attention;
pub use elementwise::{gelu, layer_norm, rms_norm, rope, swiglu};
pub use feed_forward::feed_forward;
pub use head::{token_distributions, token_logprobs};
pub use kernels::storage;
pub use linear::linear;
pub use self_attention::self_attention;
pub use weight::Weight;

/// Whether the operations here accept this tensor.
fn takes(t: &Tensor) -> bool {
    t.device().is_cuda() && t.dtype() == DType::F32
}

/// The device of a tensor on one.
pub fn device(t: &Tensor) -> Result<&CudaDevice> {
    match t.device() {
        Device::Cuda(gpu) => Ok(gpu),
        other => bail!("expected a tensor on a CUDA device, got one on {:?}", other.location()),
    }
}

/// What an operation of this folder says of the CPU.
fn not_here(op: &str) -> Result<(CpuStorage, Shape)> {
    bail!("{op} on a CUDA device was asked for a tensor on the CPU")
}

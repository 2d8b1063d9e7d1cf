//! The differentiable operations of the decoder: one file each, with its arguments, their checks and its form for the
//! CPU; those for CUDA are in `cuda`, and plain ones of tensor algebra in `plain`. Knows no architecture and no loss.
//!
//! Activations are f32, contiguous, with tokens first: `[tokens, width]` or `[tokens, heads, dim]`. Frozen weights are
//! stored in [`Frozen`] and never get a gradient; the gradients of inputs and LoRA factors are exact for the values
//! used.

mod accumulate;
mod activation;
mod adamw;
mod adapted;
mod attention;
#[cfg_attr(not(target_arch = "x86_64"), path = "bf16_elsewhere.rs")]
mod bf16;
mod card;
mod compare;
mod cpu;
#[cfg(feature = "train-cuda")]
mod cuda;
mod feed_forward;
mod frozen;
mod gemm;
mod layers;
mod linear;
mod logprobs;
mod mapped;
mod matrix;
mod norm;
mod plain;
mod quantized;
mod rope;
mod rope_table;
mod self_attention;
#[cfg(test)]
mod tests;
mod vectors;

#[cfg(feature = "train-cuda")]
use cuda as elsewhere;
#[cfg(not(feature = "train-cuda"))]
use plain as elsewhere;

pub use activation::{gelu, swiglu};
pub use adamw::{AdamWStep, adamw};
pub use adapted::{Adapted, LoraPair};
pub use attention::{attention, windowed_attention};
pub use card::{Card, card};
pub use compare::{GPU_KERNELS, KERNELS, precision};
pub(super) use cpu::slice as f32_slice;
#[cfg(feature = "train-cuda")]
pub(super) use cuda::{storage as cuda_storage, tensor as cuda_tensor};
pub use feed_forward::{FeedForward, feed_forward};
pub use frozen::{Frozen, element_bytes, embed};
pub use linear::linear;
pub use logprobs::{Distributions, token_distributions, token_logprobs};
pub(super) use mapped::map;
pub use norm::{layer_norm, rms_norm};
pub(super) use quantized::{Bytes, Format, Quantized};
pub use rope::rope;
pub use rope_table::{RopeStyle, RopeTable};
pub use self_attention::{SelfAttention, self_attention};

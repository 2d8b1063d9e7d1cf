//! What every trained adapter shares: gradients summed over micro-batches, clipping, AdamW. Knows no model and no loss.

mod adamw;
mod gradients;

pub use adamw::{AdamW, AdamWConfig, EPSILON, Moments};
pub use gradients::{Gradients, norm};

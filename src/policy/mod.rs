//! The differentiable model: decoder, adapters, heads. Never samples and never decides what to learn.
//!
//! A [`Decoder`] is one frozen base read from a GGUF file. A [`Lora`] turns it into a policy, a [`Lora`] with a
//! [`ValueHead`] into a critic; without one it is the initial model. All share the base's memory.

mod adapter_file;
mod arch;
mod decoder;
mod lora;
pub mod ops;
mod packed;

mod value_head;

pub use arch::{KNOWN_ARCHITECTURES, Shape};
pub use decoder::{Decoder, LinearInfo};
pub use lora::Lora;
pub use packed::{Packed, Targets};
pub use value_head::ValueHead;

#[cfg(test)]
mod tests;

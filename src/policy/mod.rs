//! The differentiable model: decoder, adapters, heads. Never samples and never decides what to learn.
//!
//! A [`Decoder`] is one frozen base read from a GGUF file. A [`Lora`] turns it into a policy, a [`Lora`] with a
//! [`ValueHead`] into a critic; without one it is the initial model. All share the base's memory.

mod adapter_file;
mod arch;
mod blocks;
mod decoder;
mod experts;
mod loader;
mod lora;
mod merge;
pub mod ops;
mod packed;
mod peft;
mod recompute;
mod shape;
mod start;
mod value_head;

use candle_core::Device;

use crate::error::{Error, Result};

pub use arch::{Architecture, Scales, Windows, architectures};
pub(crate) use arch::{CONVERTED_FROM, gptj_row};
pub use blocks::LinearInfo;
pub(crate) use decoder::activations;
pub use decoder::{Decoder, Form};
pub use lora::Lora;
pub use packed::{Packed, Targets};
pub use peft::PEFT_FILES;
pub use shape::{ExpertSizes, Shape, Window};
pub use value_head::ValueHead;

#[cfg(test)]
mod tests;

/// Bytes of memory that could be had on a device, where it tells.
pub fn free_memory(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu => crate::system::free_memory(),
        device => ops::card(device).map(|card| card.free),
    }
}

/// A device as people name it: `cpu`, or a card with its memory and driver.
pub fn describe(device: &Device) -> String {
    match ops::card(device) {
        Some(card) => card.to_string(),
        None if device.is_cpu() => "cpu".into(),
        None => format!("{:?}", device.location()),
    }
}

/// The device that a setting names: `auto` (the first GPU of a CUDA build, else the CPU), `cpu` or `cuda:N`.
///
/// # Errors
/// `Arg` for another word, `Unsupported` if the device isn't there or this build has no CUDA.
pub fn device(name: &str) -> Result<Device> {
    let gpu = |index: usize| {
        Device::new_cuda(index).map_err(|e| Error::unsupported(format!("device cuda:{index} can't be used: {e}")))
    };
    match name {
        "auto" => Ok(Device::cuda_if_available(0)?),
        "cpu" => Ok(Device::Cpu),
        _ => match name.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
            Some(index) => gpu(index),
            None => Err(Error::arg(format!("device is {name:?}, expected auto, cpu or cuda:N"))),
        },
    }
}

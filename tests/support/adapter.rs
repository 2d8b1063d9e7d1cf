//! An adapter that changes what a model says. Tests nothing.

use std::path::Path;

use apa::config::Dtype;
use apa::policy::{Decoder, Lora};
use candle_core::{Device, Tensor};

/// Writes an adapter of rank 4 for the model: fresh ones have B at zero, this one does not.
pub fn lively_adapter(model: &Path, alpha: f64, path: &Path) {
    let decoder = Decoder::load(model, &Device::Cpu, Dtype::F32).unwrap();
    let lora = Lora::new(&decoder, 4, alpha, None, 3).unwrap();
    for (name, var) in lora.named() {
        if name.ends_with("lora_b") {
            let values = (0..var.elem_count()).map(|i| 0.02 * (i as f32 * 1.7).sin()).collect();
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
        }
    }
    lora.write_gguf(path, &[]).unwrap();
}

//! Folds an adapter into its base: a model file that needs no adapter. Never rounds what it changed; that is a later step.

use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device};

use super::{Decoder, Lora};
use crate::error::{Error, Result};
use crate::gguf::{Gguf, Writer};

impl Lora {
    /// Writes `base` with W + (alpha / rank) · B A in the place of every weight that the adapter changes, as f32; all else
    /// stays as it is, metadata included. One weight is in memory at a time. `decoder` was loaded from `base`.
    ///
    /// # Errors
    /// `Arg` if the adapter or the decoder is of another base, `Io` if the file can't be written.
    pub fn write_merged(&self, base: &Path, decoder: &Decoder, to: &Path) -> Result<()> {
        self.check_base(decoder)?;
        let file = Gguf::open(base)?;
        if file.fingerprint()? != decoder.fingerprint() {
            return Err(Error::arg(format!("{} is not the base that was loaded", base.display())));
        }
        let mut merged = Writer::new();
        merged.copy_metadata(&file);
        for info in file.tensors() {
            let factors = self.factors().find(|f| f.tensor == info.name());
            let Some(factors) = factors else {
                merged.copy_tensor(&file, info.name())?;
                continue;
            };
            let scale = self.alpha / self.rank as f64;
            let (a, b) = (factors.a.as_detached_tensor(), factors.b.as_detached_tensor());
            let file = &file;
            merged.tensor_made(info.name(), info.shape(), GgmlDType::F32, move || {
                let exact =
                    |t: &candle_core::Tensor| -> Result<_> { Ok(t.to_device(&Device::Cpu)?.to_dtype(DType::F32)?) };
                let update = (exact(&b)?.matmul(&exact(&a)?)? * scale)?; // [out, in]
                Ok((file.dequantize(&factors.tensor, &Device::Cpu)? + update)?)
            })?;
        }
        merged.write(to)
    }
}

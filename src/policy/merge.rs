//! Merges an adapter into its base, as a model file that needs no adapter. Never rounds a changed weight; that is a
//! later step.

use std::path::Path;

use candle_core::quantized::GgmlDType;

use super::{Decoder, Lora};
use crate::error::{Error, Result};
use crate::gguf::{Gguf, Writer};

impl Lora {
    /// Writes `base` with W + (alpha / rank) · B A in place of every weight that the adapter changes, as f32;
    /// everything else is copied, metadata included. Holds one weight in memory at a time. `decoder` was loaded from
    /// `base`.
    ///
    /// # Errors
    /// `Arg` if the adapter or the decoder is of another base, `Io` if the file can't be written.
    pub fn write_merged(&self, base: &Path, decoder: &Decoder, to: &Path) -> Result<()> {
        self.check_base(decoder.fingerprint())?;
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
            let file = &file;
            merged.tensor_made(info.name(), info.shape(), GgmlDType::F32, move || {
                let (a, b) = (factors.a.as_detached_tensor(), factors.b.as_detached_tensor());
                let update = (b.matmul(&a)? * scale)?; // [out, in]
                Ok((file.dequantize(&factors.tensor, update.device())? + update)?)
            })?;
        }
        merged.write(to)
    }
}

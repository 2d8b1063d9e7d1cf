//! A loaded LoRA adapter, for contexts to use. Never trains or writes one.

use std::ffi::CString;
use std::path::Path;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::guard::{self, guarded};
use super::model::{MODEL_WRITES, Model};
use super::validate;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::lock::lock;

/// A loaded adapter. Freed when the last context that uses it is gone.
pub struct Adapter {
    pub(super) raw: *mut sys::llama_adapter_lora,
    pub(super) model: Arc<Model>,
}

// SAFETY: llama.cpp only reads an adapter after its initialisation.
unsafe impl Send for Adapter {}
// SAFETY: as above.
unsafe impl Sync for Adapter {}

impl Adapter {
    /// Loads an adapter GGUF for `model`. Contexts of the model may decode meanwhile: decoding does not read the
    /// model's list of adapters, which [`Context::set_adapter`](super::Context::set_adapter) ensures.
    ///
    /// # Errors
    /// `Model` if the file is missing, damaged, not a LoRA adapter, or made for another base.
    pub fn load(model: &Arc<Model>, path: &Path) -> Result<Arc<Adapter>> {
        let file = Gguf::open(path)?;
        validate::adapter(&file, model.architecture())?;
        let c_path = path
            .to_str()
            .and_then(|p| CString::new(p).ok())
            .ok_or_else(|| Error::arg(format!("{}: the path is not valid UTF-8", path.display())))?;
        let _writes = lock(&MODEL_WRITES);
        let doing = format!("loading adapter {}", path.display());
        // SAFETY: the model is alive, the path terminated, the file validated, other writers are locked out.
        let raw = guarded(&doing, || unsafe { guard::llama_adapter_lora_init(model.raw, c_path.as_ptr()) })?;
        if raw.is_null() {
            return Err(Error::model(format!(
                "{}: llama.cpp refused the adapter: made for another base than {}?",
                path.display(),
                model.name()
            )));
        }
        Ok(Arc::new(Adapter { raw, model: model.clone() }))
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        let _writes = lock(&MODEL_WRITES);
        // SAFETY: contexts hold an `Arc` of it, so none uses it any more; the model is still alive.
        unsafe { sys::llama_adapter_lora_free(self.raw) }
    }
}

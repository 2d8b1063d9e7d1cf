//! Embeddings: the mean of a model's last hidden states over a text, of unit length. Never samples, and uses no
//! adapter.

use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::guard::{self, guarded};
use super::model::{MODEL_WRITES, Model};
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::types::TokenId;

/// A context of one sequence that returns hidden states. Used by one thread at a time.
pub struct Embedder {
    raw: *mut sys::llama_context,
    /// Longest text, in tokens.
    room: u32,
    width: usize,
    model: Arc<Model>,
}

// SAFETY: a context isn't bound to a thread; `&mut self` keeps it to one at a time.
unsafe impl Send for Embedder {}

impl Embedder {
    /// Makes a context for texts of at most `room` tokens. It computes with one thread, because embeddings give way to
    /// answers.
    ///
    /// # Errors
    /// `Model` or `NoMem` if llama.cpp can't make the context.
    pub fn new(model: &Arc<Model>, room: u32) -> Result<Embedder> {
        let room = room.max(1);
        // SAFETY: reads a default structure.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = room;
        params.n_batch = room;
        // llama.cpp pools over one micro-batch, so the whole text must be one.
        params.n_ubatch = room;
        params.n_seq_max = 1;
        params.n_threads = 1;
        params.n_threads_batch = 1;
        params.embeddings = true;
        params.pooling_type = sys::LLAMA_POOLING_TYPE_MEAN;
        params.no_perf = true;
        let _writes = lock(&MODEL_WRITES);
        // SAFETY: the model is alive; the parameters are llama.cpp's defaults except for sizes of at least 1.
        let raw = guarded("making a context", || unsafe { guard::llama_init_from_model(model.raw, params) })?;
        if raw.is_null() {
            return Err(Error::nomem(format!(
                "llama.cpp can't make a context of {room} tokens: too large for memory?"
            )));
        }
        // SAFETY: reads the live model.
        let width = unsafe { sys::llama_model_n_embd(model.raw) }.max(0) as usize;
        Ok(Embedder { raw, room, width, model: model.clone() })
    }

    /// The embedding of a text. [width of the model], of length 1
    ///
    /// # Errors
    /// `Arg` for no token, too many, or one outside the vocabulary; `Model` or `NoMem` if llama.cpp failed.
    pub fn embed(&mut self, tokens: &[TokenId]) -> Result<Vec<f32>> {
        if tokens.is_empty() || tokens.len() > self.room as usize {
            return Err(Error::arg(format!("a text of {} tokens, expected 1 to {}", tokens.len(), self.room)));
        }
        let mut ids = tokens.iter().map(|&t| self.model.token(t).map(|t| t.0)).collect::<Result<Vec<i32>>>()?;
        // SAFETY: the array outlives the call, which only reads it; tokens and their number are checked above. The
        // model outlives what is packed in its name.
        let status = guarded("embedding", || unsafe {
            guard::apa_kernels_owner(self.model.packs_for());
            sys::llama_memory_clear(sys::llama_get_memory(self.raw), false);
            guard::llama_decode(self.raw, sys::llama_batch_get_one(ids.as_mut_ptr(), ids.len() as i32))
        })?;
        match status {
            0 => {}
            -2 => return Err(Error::nomem("embedding: llama.cpp could not allocate")),
            status => return Err(Error::model(format!("embedding failed with llama.cpp's status {status}"))),
        }
        // SAFETY: null, or a row of the model's width that lives until the next decode, which `&mut self` excludes.
        let row = unsafe {
            let row = sys::llama_get_embeddings_seq(self.raw, 0);
            if row.is_null() {
                return Err(Error::unsupported("this model gives no embeddings"));
            }
            std::slice::from_raw_parts(row, self.width)
        };
        let norm = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        if !norm.is_finite() || norm == 0.0 {
            return Err(Error::model("the model's hidden states are not numbers"));
        }
        Ok(row.iter().map(|x| (f64::from(*x) / norm) as f32).collect())
    }
}

impl Drop for Embedder {
    fn drop(&mut self) {
        // SAFETY: made by us, freed once; the model is still alive, being a field.
        unsafe { sys::llama_free(self.raw) }
    }
}

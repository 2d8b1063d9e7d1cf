//! A context: the KV cache of some sequences under one adapter, and the decoding of batches. Never chooses what to
//! decode.

use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::adapter::Adapter;
use super::affinity::DecoderPin;
use super::guard::{self, guarded};
use super::model::{MODEL_WRITES, Model};
use super::threads::Threads;
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::types::TokenId;

/// The size of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextOptions {
    /// Tokens of cache that all sequences share.
    pub context: u32,
    /// Most tokens per batch.
    pub batch: u32,
    /// Most sequences at a time.
    pub sequences: u32,
    /// Keeps K and V in 32-bit floats, and attention unfused: for exact comparisons.
    pub exact: bool,
}

/// A llama.cpp context with its adapter. Used by one thread at a time.
pub struct Context {
    raw: *mut sys::llama_context,
    options: ContextOptions,
    model: Arc<Model>,
    // Held until the context is freed: llama.cpp reads both.
    adapter: Option<Arc<Adapter>>,
    threads: Threads,
}

// SAFETY: a context isn't bound to a thread; `&mut self` keeps it to one at a time.
unsafe impl Send for Context {}

impl Context {
    /// Makes a context that decodes `model` without an adapter, with `threads` threads of its own.
    ///
    /// # Errors
    /// `Arg` for an option of 0, more sequences than a batch or the context has tokens, or threads beyond 1 to 512,
    /// `Model` or `NoMem` if llama.cpp can't make it.
    pub fn new(model: &Arc<Model>, threads: u32, options: ContextOptions) -> Result<Context> {
        Context::with(model, Threads::new(threads)?, options)
    }

    /// The same with existing threads.
    ///
    /// # Errors
    /// As [`Context::new`].
    pub fn with(model: &Arc<Model>, threads: Threads, options: ContextOptions) -> Result<Context> {
        if options.context == 0 || options.batch == 0 || options.sequences == 0 {
            return Err(Error::arg("a context needs at least one token, batch slot and sequence"));
        }
        let room = options.batch.min(options.context);
        if options.sequences > room {
            // llama.cpp ends the process over it.
            return Err(Error::arg(format!("{} sequences, expected at most {room}, a batch", options.sequences)));
        }
        // SAFETY: reads a default structure and a constant.
        let (mut params, most) = unsafe { (sys::llama_context_default_params(), sys::llama_max_parallel_sequences()) };
        if options.sequences as usize > most {
            return Err(Error::arg(format!("{} sequences, llama.cpp allows {most}", options.sequences)));
        }
        params.n_ctx = options.context;
        params.n_batch = options.batch;
        params.n_ubatch = options.batch;
        params.n_seq_max = options.sequences;
        params.n_threads = threads.count() as i32;
        params.n_threads_batch = threads.count() as i32;
        params.kv_unified = true;
        params.no_perf = true;
        if options.exact {
            params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
            params.type_k = sys::GGML_TYPE_F32;
            params.type_v = sys::GGML_TYPE_F32;
        }
        let _writes = lock(&MODEL_WRITES);
        // SAFETY: the model is alive; the parameters are llama.cpp's defaults except for checked sizes.
        let raw = guarded("making a context", || unsafe { guard::llama_init_from_model(model.raw, params) })?;
        if raw.is_null() {
            return Err(Error::nomem(format!(
                "llama.cpp can't make a context of {} tokens: too large for memory?",
                options.context
            )));
        }
        // SAFETY: both are alive, and the context keeps the pool so.
        unsafe { sys::llama_attach_threadpool(raw, threads.raw, threads.raw) };
        Ok(Context { raw, options, model: model.clone(), adapter: None, threads })
    }

    /// Decodes with `adapter` from now on (at scale 1: the file's own alpha / rank), or without one. Clears every
    /// sequence, since their caches belong to another adapter. Later decodes don't resize buffers: llama.cpp does that
    /// at the first decode with another adapter, reading the model's list of adapters, so one is done here.
    ///
    /// # Errors
    /// `Arg` if the adapter was loaded for another model; `Model` or `NoMem` if llama.cpp fails, after which the
    /// context is unusable.
    pub fn set_adapter(&mut self, adapter: Option<Arc<Adapter>>) -> Result<()> {
        if adapter.as_ref().is_some_and(|a| !Arc::ptr_eq(&a.model, &self.model)) {
            return Err(Error::arg("the adapter was loaded for another model"));
        }
        let (mut adapters, mut scales) = ([std::ptr::null_mut()], [1.0f32]);
        let n = adapter.iter().map(|a| adapters[0] = a.raw).count();
        let before = std::mem::replace(&mut self.adapter, adapter);
        {
            let _writes = lock(&MODEL_WRITES);
            // SAFETY: context and adapter are alive and of the same model; n of each array's elements are set.
            unsafe { sys::llama_set_adapters_lora(self.raw, adapters.as_mut_ptr(), n, scales.as_mut_ptr()) };
            self.settle()?;
        }
        // Its destructor writes to the model too, so it must not run under the lock.
        drop(before);
        Ok(())
    }

    /// Decodes one token on one thread, and clears it again.
    fn settle(&mut self) -> Result<()> {
        let mut warm = Batch::default();
        warm.add(0, 0, 0, true);
        // SAFETY: the context is alive.
        let clear = |raw| unsafe { sys::llama_memory_clear(sys::llama_get_memory(raw), false) };
        clear(self.raw);
        self.set_threads(1);
        let decoded = self.decode(&warm);
        self.set_threads(self.threads.count());
        clear(self.raw);
        match decoded? {
            true => Ok(()),
            false => Err(Error::nomem("an empty context has no room for a token")),
        }
    }

    /// The model it decodes.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Its size.
    pub fn options(&self) -> ContextOptions {
        self.options
    }

    /// Evaluates the batch. `Ok(false)` if the cache has no room for it, in which case nothing was changed.
    ///
    /// # Errors
    /// `Arg` for an empty batch or one that is too large, `Model` or `NoMem` if llama.cpp failed.
    pub fn decode(&mut self, batch: &Batch) -> Result<bool> {
        if batch.is_empty() || batch.len() > self.options.batch as usize {
            return Err(Error::arg(format!("a batch of {} tokens, expected 1 to {}", batch.len(), self.options.batch)));
        }
        if let Some(&seq) = batch.seqs.iter().find(|s| **s >= self.options.sequences as i32) {
            return Err(Error::arg(format!("sequence {seq}, the context has {}", self.options.sequences)));
        }
        if let Some(&token) = batch.tokens.iter().find(|t| **t as usize >= self.model.n_vocab()) {
            return Err(Error::arg(format!("token {token} is outside the vocabulary of {}", self.model.n_vocab())));
        }
        let mut seq_ids: Vec<*mut i32> = batch.seqs.iter().map(|s| std::ptr::from_ref(s).cast_mut()).collect();
        let n_seq_id = vec![1i32; batch.len()];
        let raw = sys::llama_batch {
            n_tokens: batch.len() as i32,
            token: batch.tokens.as_ptr().cast_mut(),
            embd: std::ptr::null_mut(),
            pos: batch.positions.as_ptr().cast_mut(),
            n_seq_id: n_seq_id.as_ptr().cast_mut(),
            seq_id: seq_ids.as_mut_ptr(),
            logits: batch.outputs.as_ptr().cast_mut(),
        };
        // SAFETY: all arrays are n_tokens long and outlive the call, which only reads them; tokens, sequences and size
        // are checked above, so that no assertion of GGML can fail on them. The model outlives what is packed in its
        // name.
        let decoded = guarded("decoding", || unsafe {
            guard::apa_kernels_owner(self.model.packs_for());
            guard::llama_decode(self.raw, raw)
        });
        match decoded? {
            0 => Ok(true),
            1 => Ok(false),
            -2 => Err(Error::nomem("decoding: llama.cpp could not allocate")),
            status => Err(Error::model(format!("decoding failed with llama.cpp's status {status}"))),
        }
    }

    /// Pins a thread that decodes with contexts of as many threads as this one.
    pub fn decoder_pin(&self) -> DecoderPin {
        DecoderPin::new(self.threads.affinity)
    }

    /// Sets how many of the pool's threads decode from now on; at least one, at most all.
    pub fn set_threads(&mut self, count: u32) {
        let count = count.clamp(1, self.threads.count()) as i32;
        // SAFETY: the context is alive; the count is within the attached pool's.
        unsafe { sys::llama_set_n_threads(self.raw, count, count) }
    }

    /// Logits of the batch's entry `index`, which must have requested them. [vocabulary]
    ///
    /// # Errors
    /// `Arg` if that entry has none.
    pub fn logits(&mut self, index: usize) -> Result<&[f32]> {
        // SAFETY: an index without logits gives null; else a row of the vocabulary's length, valid until the next
        // decode, which `&mut self` excludes while the slice lives.
        unsafe {
            let row = sys::llama_get_logits_ith(self.raw, i32::try_from(index).unwrap_or(i32::MAX));
            if row.is_null() {
                return Err(Error::arg(format!("entry {index} of the batch has no logits")));
            }
            Ok(std::slice::from_raw_parts(row, self.model.n_vocab()))
        }
    }

    /// Shares the positions `range` of one sequence with another. Copies nothing. Returns false, without effect, if the
    /// memory can't be shared in parts (recurrent models).
    pub fn share(&mut self, from: i32, to: i32, range: std::ops::Range<u32>) -> bool {
        let known = |seq: i32| (0..self.options.sequences as i32).contains(&seq);
        // SAFETY: reads the live model.
        let whole =
            unsafe { sys::llama_model_is_recurrent(self.model.raw) || sys::llama_model_is_hybrid(self.model.raw) };
        if whole || !known(from) || !known(to) || from == to {
            return false;
        }
        let (begin, end) = (range.start as i32, range.end as i32);
        // SAFETY: the context is alive, its sequences share one cache (`kv_unified`), and their ids are checked.
        unsafe { sys::llama_memory_seq_cp(sys::llama_get_memory(self.raw), from, to, begin, end) };
        true
    }

    /// Whether the last positions of a sequence can be removed without a trace: not from what a recurrent model
    /// remembers, nor once they have moved a window of attention.
    pub fn takes_back(&self) -> bool {
        // SAFETY: reads the live model.
        unsafe {
            let model = self.model.raw;
            !sys::llama_model_is_recurrent(model)
                && !sys::llama_model_is_hybrid(model)
                && sys::llama_model_n_swa(model) == 0
        }
    }

    /// Removes positions `from..` of a sequence. False if the memory can't be cut there (recurrent models).
    pub fn forget(&mut self, seq: i32, from: u32) -> bool {
        // SAFETY: the context is alive; sequence ids out of range are refused by the check.
        (0..self.options.sequences as i32).contains(&seq)
            && unsafe { sys::llama_memory_seq_rm(sys::llama_get_memory(self.raw), seq, from as i32, -1) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by us, freed once; model and adapter are still alive, being fields.
        unsafe { sys::llama_free(self.raw) }
    }
}

/// Tokens to evaluate together.
#[derive(Debug, Default)]
pub struct Batch {
    tokens: Vec<i32>,
    positions: Vec<i32>,
    seqs: Vec<i32>,
    outputs: Vec<i8>,
}

impl Batch {
    /// Adds a token of sequence `seq` at `position`, and returns its index. `output` asks for its logits.
    pub fn add(&mut self, token: TokenId, position: u32, seq: i32, output: bool) -> usize {
        self.tokens.push(token as i32);
        self.positions.push(position as i32);
        self.seqs.push(seq);
        self.outputs.push(i8::from(output));
        self.tokens.len() - 1
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether the batch has no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Removes all tokens.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.seqs.clear();
        self.outputs.clear();
    }
}

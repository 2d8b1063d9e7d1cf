//! llama.cpp as the reference: log-probabilities of given tokens, all in f32.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::OnceLock;

use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;

fn backend() -> &'static LlamaBackend {
    static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
    BACKEND.get_or_init(|| {
        crate::llama::leave_out_faulty_kernels();
        let mut backend = LlamaBackend::init().expect("llama.cpp starts once a process");
        backend.void_logs();
        backend
    })
}

fn open(path: &Path) -> LlamaModel {
    LlamaModel::load_from_file(backend(), path, &LlamaModelParams::default()).expect("llama.cpp loads the model")
}

/// The model's own tokens of a text, control tokens parsed.
pub fn tokenize(model: &Path, text: &str) -> Vec<u32> {
    open(model).vocab().tokenize(text.as_bytes(), false, true).iter().map(|token| token.0 as u32).collect()
}

/// Log-probability of every token after the first, at temperature 1.
pub fn logprobs(model: &Path, adapter: Option<&Path>, tokens: &[u32]) -> Vec<f64> {
    let mut model = open(model);
    let mut adapter = adapter.map(|path| model.lora_adapter_init(path).expect("llama.cpp loads the adapter"));
    let context = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(512))
        .with_n_batch(512)
        .with_type_k(KvCacheType::F32)
        .with_type_v(KvCacheType::F32)
        .with_flash_attention_policy(llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED)
        .with_n_threads(2)
        .with_n_threads_batch(2);
    let mut context = model.new_context(backend(), context).expect("a context");
    if let Some(adapter) = &mut adapter {
        context.lora_adapter_set(adapter, 1.0).expect("the adapter applies");
    }
    let mut batch = LlamaBatch::new(tokens.len(), 1);
    for (position, &token) in tokens.iter().enumerate() {
        batch.add(LlamaToken(token as i32), position as i32, &[0], true).expect("room in the batch");
    }
    context.decode(&mut batch).expect("llama.cpp decodes");
    let after = |(position, pair): (usize, &[u32])| log_softmax_at(context.get_logits_ith(position as i32), pair[1]);
    tokens.windows(2).enumerate().map(after).collect()
}

fn log_softmax_at(logits: &[f32], token: u32) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - most).exp()).sum();
    f64::from(logits[token as usize] - most) - sum.ln()
}

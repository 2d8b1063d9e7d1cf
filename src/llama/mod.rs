//! The only user of llama.cpp: models, contexts, adapters, sampling, chat templates. Never queues, records or trains.
//!
//! llama-cpp-2 is used where it suffices; contexts and adapters are thin owned handles over its -sys crate, because its
//! own can't swap an adapter while contexts live. GGML asserts kill the process, so everything is validated here first.

mod adapter;
mod affinity;
mod card;
mod chat;
mod compare;
mod context;
mod control;
mod embed;
mod exit;
mod guard;
mod integers;
mod jinja;
mod kernels;
mod log;
mod model;
mod name;
mod pieces;
mod prompt_tokens;
mod python;
mod quantize;
mod sampler;
mod score;
mod stack;
mod template;
mod threads;
mod tokenize;
mod validate;
mod validate_shape;

pub use adapter::Adapter;
pub use affinity::DecoderPin;
pub use card::card_memory;
pub use chat::{chat_tokens, rendered_tokens, template_of};
pub use compare::{KERNELS, kernels};
pub use context::{Batch, Context, ContextOptions};
pub use embed::Embedder;
pub use exit::exit_at_once;
pub use integers::{json_with_whole_integers, large_integer, parse_whole_integers};
pub use model::{Model, Placement, TextDecoder};
pub use prompt_tokens::PromptTokens;
pub use quantize::{FileType, quantize};
pub use sampler::Sampler;
pub use score::{row_kl, sampled_logprob, token_logprobs};
pub use template::{ChatTemplate, Conversation, Ending, Rendered};
pub use threads::{Threads, give_way_to_decoding};

/// For tests that use llama.cpp as it is: takes out of it what ends the process on some machines; see kernels.cpp.
#[cfg(test)]
pub(crate) fn leave_out_faulty_kernels() {
    // SAFETY: called before a model is loaded, by tests that have a process each or all do it.
    unsafe { guard::apa_kernels_leave_out_here() };
}

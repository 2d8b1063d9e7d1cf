//! `apa_engine`: opens, closes and inspects an engine, and tokenizes text with its model. Never generates.

use std::ffi::c_char;
use std::ops::Deref;
use std::sync::Arc;

use serde::Serialize;

use super::args;
use super::error::{apa_error, apa_status};
use super::guard::{guard, guard_infallible};
use super::hook;
use super::options::apa_options;
use super::registry::{self, handle};
use super::scorer::Scorer;
use super::service::Service;
use super::strings::{apa_string, string};
use crate::Engine;
use crate::error::{Error, Result};
use crate::request::{Unknown, parse_messages};

/// A serving, learning model. Owned by the caller who opened it, and freed with `apa_engine_free`; every call is safe
/// from any thread.
pub struct apa_engine {
    _opaque: [u8; 0],
}

handle!(apa_engine, 4, EngineObject);

/// An engine, with what runs beside it.
pub(super) struct EngineObject {
    engine: Engine,
    /// The application's reward function.
    pub(super) scorer: Scorer,
    pub(super) service: Service,
}

impl Deref for EngineObject {
    type Target = Engine;
    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl EngineObject {
    /// Ends everything and waits for it. The engine first, since everything that waits for it then ends at once.
    fn shutdown(&self) {
        self.engine.shutdown();
        self.scorer.stop();
        if let Err(error) = self.service.stop() {
            tracing::warn!(%error, "the HTTP service had failed");
        }
    }
}

/// The engine of a handle.
pub(super) fn engine(handle: *const apa_engine) -> Result<Arc<EngineObject>> {
    registry::get(handle)
}

/// Writes `value` as JSON text.
///
/// # Safety
/// `out` is NULL or writable.
pub(super) unsafe fn put_json(out: *mut *mut apa_string, value: &impl Serialize) -> Result<apa_status> {
    if !out.is_null() {
        let text = serde_json::to_string(value).map_err(|e| Error::io(format!("writing JSON: {e}")))?;
        // SAFETY: writable by the caller's contract.
        unsafe { args::put(out, string(&text)?) };
    }
    Ok(apa_status::APA_OK)
}

/// Opens the model and the data folder that the options name, recovers what was running, and starts the engine's
/// threads. Takes as long as the model takes to load.
///
/// Errors: `APA_ERR_ARG` for settings out of range, and without `model`; `APA_ERR_MODEL` for a model file that is
/// missing, damaged or of another kind, and for a data folder that belongs to another model; `APA_ERR_UNSUPPORTED` for
/// a model that doesn't generate; `APA_ERR_BUSY` if another engine holds the data folder (the message says who);
/// `APA_ERR_IO` for the disk; `APA_ERR_NOMEM`; `APA_ERR_CLOSED` if `options` was freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_engine_open(
    options: *const apa_options,
    engine: *mut *mut apa_engine,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: the out-parameters are NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            args::required("engine", engine)?;
            let config = registry::get(options)?.config()?;
            let opened = Engine::open(config)?;
            let object = EngineObject { engine: opened, scorer: Scorer::default(), service: Service::default() };
            args::put(engine, registry::insert(object)?);
            Ok(apa_status::APA_OK)
        })
    }
}

/// Stops the engine: new calls are refused, running generations end, every waiter wakes with `APA_ERR_CLOSED`. Returns
/// when its threads have ended and the data folder is free. A second time it does nothing. The handle stays to be
/// freed.
///
/// Errors: `APA_ERR_CLOSED` if `engine` was freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_engine_shutdown(engine: *mut apa_engine, error: *mut *mut apa_error) -> apa_status {
    // SAFETY: `error` is NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            self::engine(engine)?.shutdown();
            Ok(apa_status::APA_OK)
        })
    }
}

/// Shuts the engine down if that was not done, and frees it. Generations that were started on it end with
/// `APA_ERR_CLOSED` and are freed on their own, before or after. NULL and a second free are harmless. Inside a hook it
/// does not wait.
#[unsafe(no_mangle)]
pub extern "C" fn apa_engine_free(engine: *mut apa_engine) {
    guard_infallible((), || {
        let Some(engine) = registry::remove(engine) else { return };
        if hook::running() {
            // The engine's thread that runs the hook can't be waited for on itself.
            drop(std::thread::Builder::new().name("apa-free".into()).spawn(move || engine.shutdown()));
        } else {
            engine.shutdown();
        }
    });
}

/// Writes the state of the engine as a JSON object: `model`, `architecture`, `policy_version`, `serving_versions`,
/// `running` and `queued` (requests now), `completed`, `refused` (the queue was full), `generated_tokens`,
/// `prompt_tokens`, `drafted_tokens` (of answers, ahead), `accepted_tokens` (of those), `swaps` and `scheduler_panics`
/// (since the start), `cached_tokens`, `cache_capacity` (tokens),
/// `first_token`, `gap`, `gap_training` and `mask` (histograms of times, in seconds: to the first token, between two
/// tokens, those of the latter while the trainer worked, and what a format took to say which tokens may follow), `form`
/// (the weight format that is served), `trainer` (as `apa_trainer_status`), `alerts` (what is wrong and wants
/// attention, while serving goes on: objects with `kind`, a stable word, and `message`).
///
/// Errors: `APA_ERR_CLOSED` if `engine` was freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_engine_status(
    engine: *const apa_engine,
    json: *mut *mut apa_string,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: the out-parameters are NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            args::required("json", json)?;
            put_json(json, &self::engine(engine)?.status())
        })
    }
}

/// Writes the numbers of `apa_engine_status` and more as text in the format that Prometheus reads.
///
/// Errors: `APA_ERR_CLOSED` if `engine` was freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_engine_metrics(
    engine: *const apa_engine,
    text: *mut *mut apa_string,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: the out-parameters are NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            args::required("text", text)?;
            args::put(text, string(&self::engine(engine)?.metrics())?);
            Ok(apa_status::APA_OK)
        })
    }
}

/// Counts the tokens of `text`, including the model's beginning-of-sequence token if it uses one.
///
/// Errors: `APA_ERR_ARG` for text that is not UTF-8 or too long to be tokenized; `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_token_count(
    engine: *const apa_engine,
    text: *const c_char,
    text_len: usize,
    tokens: *mut usize,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: text is readable and the out-parameters NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            args::required("tokens", tokens)?;
            let count = self::engine(engine)?.tokenize(args::text("text", text, text_len)?)?.len();
            args::put(tokens, count);
            Ok(apa_status::APA_OK)
        })
    }
}

/// Applies the model's chat template to a JSON array of messages, `[{"role": "user", "content": "Hi"}]`, and writes the
/// text that the model would continue, a last message of the assistant included. `tokens`, which may be NULL, gets its
/// number of tokens.
///
/// Errors: `APA_ERR_ARG` for messages that are malformed or that the template refuses; `APA_ERR_UNSUPPORTED` if the
/// model has no template; `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_chat_render(
    engine: *const apa_engine,
    messages_json: *const c_char,
    messages_json_len: usize,
    text: *mut *mut apa_string,
    tokens: *mut usize,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: text is readable and the out-parameters NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            args::required("text", text)?;
            let engine = self::engine(engine)?;
            let messages = args::bytes("messages_json", messages_json, messages_json_len)?;
            let prompt = engine.conversation_prompt(&parse_messages(messages, Unknown::Refuse)?)?;
            let rendered = string(&engine.detokenize(&prompt))?;
            args::put(text, rendered);
            args::put(tokens, prompt.len());
            Ok(apa_status::APA_OK)
        })
    }
}

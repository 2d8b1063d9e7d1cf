//! `apa_gen`: one answer, pulled piece by piece or all at once. Never reads an event of a generation that was freed.

use std::ffi::{c_char, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::json;

use super::args;
use super::engine::{apa_engine, engine, put_json};
use super::error::{apa_error, apa_status};
use super::guard::{guard, guard_in_hook, guard_infallible};
use super::hook::{Slot, UserData};
use super::registry::{self, handle};
use super::strings::{apa_string, string};
use crate::Engine;
use crate::engine::{Event, GenerationStream, Next};
use crate::error::{Error, Result};
use crate::request::{Reader, Reading, Unknown, calls_json, parse_request};
use crate::types::{FinishReason, Generation};

/// A running or ended generation. Owned by the caller who started it, and freed with `apa_gen_free`; every call is safe
/// from any thread, but threads that pull the same generation share its text.
pub struct apa_gen {
    _opaque: [u8; 0],
}

handle!(apa_gen, 5, GenObject);

/// Called from a thread of the library when a generation has something to pull. It should set a flag, write to a pipe
/// or the like, and return, because decoding waits for it. It may call only `apa_gen_cancel` and the frees.
pub type apa_wake_fn = Option<unsafe extern "C" fn(user_data: *mut c_void)>;

/// Called by `apa_generate`, on its caller's thread, with more text: whole codepoints, not NUL-terminated, valid until
/// it returns. 0 continues; a positive number ends the generation as cancelled; a negative one ends it with
/// `APA_ERR_CALLBACK`. It may call any function of this library, and must not leave by an exception or `longjmp`.
pub type apa_text_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, text: *const c_char, text_len: usize) -> i32>;

type Wake = unsafe extern "C" fn(*mut c_void);

pub(super) struct GenObject {
    stream: GenerationStream,
    /// How its text is read.
    reading: Reading,
    /// The outcome; set by the pull that sees the end, for all later ones.
    end: OnceLock<Result<Arc<Generation>>>,
    freed: AtomicBool,
    /// Outlives the object in the engine's hands.
    wake: Arc<Slot<Wake>>,
}

/// The result of a pull.
enum Pulled {
    Text(String),
    Ended(Arc<Generation>),
    Nothing,
}

impl GenObject {
    fn start(engine: &Engine, request: &[u8]) -> Result<Self> {
        let request = parse_request(request, Unknown::Refuse)?;
        if request.stream || request.include_usage {
            return Err(Error::arg(
                "stream is for HTTP; here apa_gen_next streams and apa_generate may, expected neither field",
            ));
        }
        if request.n != 1 {
            return Err(Error::arg(format!("n is {}, expected 1: start a generation for each answer", request.n)));
        }
        let (request, reading) = request.resolve(engine)?;
        let stream = engine.generate(request)?;
        Ok(Self { stream, reading, end: OnceLock::new(), freed: AtomicBool::new(false), wake: Arc::new(Slot::new()) })
    }

    /// Makes the engine call the hook in the slot.
    fn watch(&self) {
        let slot = self.wake.clone();
        // SAFETY: the application's function, called as the header says.
        self.stream.set_wake(Arc::new(move || slot.run(|wake, user_data| unsafe { wake(user_data) })));
    }

    fn pull(&self, timeout: Option<Duration>) -> Result<Pulled> {
        let next = match self.end.get() {
            Some(_) => Ok(Next::Finished),
            None => self.stream.next(timeout),
        };
        if self.freed.load(Ordering::Acquire) {
            return Err(Error::closed("the apa_gen has been freed"));
        }
        match next {
            Ok(Next::Event(Event::Text(text))) => Ok(Pulled::Text(text)),
            Ok(Next::Timeout) => Ok(Pulled::Nothing),
            Ok(Next::Event(Event::Done(generation))) => {
                self.end.get_or_init(|| Ok(generation)).clone().map(Pulled::Ended)
            }
            // Another thread has pulled the end and is about to store it.
            Ok(Next::Finished) => self.end.wait().clone().map(Pulled::Ended),
            Err(e) => self.end.get_or_init(|| Err(e)).clone().map(Pulled::Ended),
        }
    }
}

fn ended(generation: &Generation) -> apa_status {
    match generation.finish {
        FinishReason::Cancelled => apa_status::APA_CANCELLED,
        FinishReason::Stop | FinishReason::Length => apa_status::APA_DONE,
    }
}

/// The JSON of `apa_gen_result`.
fn result_json(generation: &Generation, object: &GenObject) -> serde_json::Value {
    let (prompt, completion) = (generation.prompt.len(), generation.response.len());
    let mut result = json!({
        "id": generation.id,
        "policy_version": generation.policy_version,
        "text": generation.text,
        "finish_reason": generation.finish.as_str(),
        "seed": generation.sampling.seed,
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    });
    if generation.unrecorded {
        result["recorded"] = false.into();
    }
    let parts = Reader::parts(object.reading.clone(), &generation.text);
    if !parts.calls.is_empty() {
        result["tool_calls"] = calls_json(&generation.id.0, &parts.calls).into();
    }
    if !parts.reasoning.is_empty() {
        result["reasoning_content"] = parts.reasoning.into();
    }
    if parts.text != generation.text {
        result["content"] = parts.text.into();
    }
    let logprobs = object.stream.logprobs(0);
    if !logprobs.is_empty() {
        result["logprobs"] = json!(logprobs);
    }
    result
}

/// Queues a generation. The request is the JSON body of the HTTP service: `messages` (a chat) or `prompt` (plain text
/// or tokens), and optionally `max_tokens`, `temperature`, `top_k`, `top_p`, `min_p`, `repeat_penalty`,
/// `frequency_penalty`, `presence_penalty`, `logit_bias`, `response_format` or `grammar` (GBNF), `logprobs` (with
/// `top_logprobs` in a chat), `seed`, `stop`, `ignore_eos`, `user`, `parse_special`, `n` (1), `model` (any); in a chat
/// also `tools` with `tool_choice`, `reasoning_format`, `continue_final_message` and `add_generation_prompt`. A last
/// message of the assistant that calls no tools is a part of the prompt, with which the answer goes on, unless
/// `continue_final_message` is false.
///
/// Errors: `APA_ERR_ARG` for an unknown field or a value out of range (both named), an empty prompt, one longer than
/// the context, or a grammar that can't be used; `APA_ERR_BUSY` if the queue is full; `APA_ERR_UNSUPPORTED` for a chat
/// with a model that has no template; `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_gen_start(
    engine: *const apa_engine,
    request_json: *const c_char,
    request_json_len: usize,
    generation: *mut *mut apa_gen,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: text is readable and the out-parameters NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            args::required("generation", generation)?;
            let engine = self::engine(engine)?;
            let request = args::bytes("request_json", request_json, request_json_len)?;
            args::put(generation, registry::insert(GenObject::start(&engine, request)?)?);
            Ok(apa_status::APA_OK)
        })
    }
}

/// Writes the id of the generation, which feedback refers to.
///
/// Errors: `APA_ERR_CLOSED` if `generation` was freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_gen_id(
    generation: *const apa_gen,
    id: *mut *mut apa_string,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: the out-parameters are NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            args::required("id", id)?;
            let handle = string(&registry::get(generation)?.stream.id().0)?;
            args::put(id, handle);
            Ok(apa_status::APA_OK)
        })
    }
}

/// Waits at most `timeout_ms` milliseconds for more text; 0 polls, a negative number waits without limit.
///
/// `APA_OK`: `text` holds more text, in whole codepoints. `APA_TIMEOUT`: nothing yet. `APA_DONE`, `APA_CANCELLED`: the
/// generation has ended, and `apa_gen_result` has the details; every later call returns the same. `text` is written
/// with `APA_OK` only.
///
/// Errors: `APA_ERR_CLOSED` if the engine was shut down or `generation` freed, also while waiting; `APA_ERR_MODEL` if
/// decoding failed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_gen_next(
    generation: *mut apa_gen,
    timeout_ms: i64,
    text: *mut *mut apa_string,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: the out-parameters are NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            args::required("text", text)?;
            match registry::get(generation)?.pull(args::timeout(timeout_ms))? {
                Pulled::Text(piece) => {
                    args::put(text, string(&piece)?);
                    Ok(apa_status::APA_OK)
                }
                Pulled::Ended(generation) => Ok(ended(&generation)),
                Pulled::Nothing => Ok(apa_status::APA_TIMEOUT),
            }
        })
    }
}

/// Writes the whole of a generation that has ended as a JSON object: `id`, `policy_version` (the weights that made
/// every token of it), `text`, `finish_reason` (`stop`, `length` or `cancelled`), `seed`, `usage` (`prompt_tokens`,
/// `completion_tokens`, `total_tokens`); if they were asked for, `logprobs`: an array with an object a token, as in a
/// chat completion's `logprobs.content`; if `text` calls tools, `tool_calls`, as in a chat completion's message; if it
/// begins with reasoning, `reasoning_content`; and where it is more than what is said to the user, `content`, which is
/// just that. Pulled pieces are those of `text`.
/// `recorded`, false, is there only if the answer could not be recorded (the disk is full, its user was forgotten): it
/// can't be rated then.
///
/// Errors: `APA_ERR_BUSY` until `apa_gen_next` has given the end; the error that it ended with; `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_gen_result(
    generation: *const apa_gen,
    json: *mut *mut apa_string,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: the out-parameters are NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            args::required("json", json)?;
            let object = registry::get(generation)?;
            match object.end.get() {
                None => Err(Error::busy(
                    "the end of the generation has not been pulled, expected apa_gen_next to say so first",
                )),
                Some(Err(e)) => Err(e.clone()),
                Some(Ok(generation)) => put_json(json, &result_json(generation, &object)),
            }
        })
    }
}

/// Cancels the generation. Text generated so far can still be pulled; then comes `APA_CANCELLED`. May be called from
/// any thread at any time, also while another waits in `apa_gen_next`, and from inside a hook. Does not wait.
///
/// Errors: `APA_ERR_CLOSED` if `generation` was freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_gen_cancel(generation: *mut apa_gen, error: *mut *mut apa_error) -> apa_status {
    // SAFETY: `error` is NULL or writable, by the header's contract.
    unsafe {
        guard_in_hook(error, || {
            registry::get(generation)?.stream.cancel();
            Ok(apa_status::APA_OK)
        })
    }
}

/// Registers `wake`, which is called with `user_data` whenever there is something to pull, at once if there already is;
/// then pull with a timeout of 0 until `APA_TIMEOUT`. It replaces the earlier hook; NULL removes it. Once this or
/// `apa_gen_free` returns, the earlier hook is not running and never will be, so these calls wait for one that is.
///
/// Errors: `APA_ERR_CLOSED` if `generation` was freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_gen_set_wake(
    generation: *mut apa_gen,
    wake: apa_wake_fn,
    user_data: *mut c_void,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: `error` is NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            let object = registry::get(generation)?;
            object.wake.set(wake.map(|wake| (wake, UserData(user_data))));
            if wake.is_some() {
                object.watch();
            }
            Ok(apa_status::APA_OK)
        })
    }
}

/// Frees `generation`, cancelling it if it is running; another thread waiting in `apa_gen_next` gets `APA_ERR_CLOSED`.
/// NULL and a second free are harmless.
#[unsafe(no_mangle)]
pub extern "C" fn apa_gen_free(generation: *mut apa_gen) {
    guard_infallible((), || {
        let Some(object) = registry::remove(generation) else { return };
        object.freed.store(true, Ordering::Release);
        object.wake.set(None);
        object.stream.cancel();
    });
}

/// Generates, blocking: `on_text` (may be NULL) is called with each piece on the calling thread, and `result` (may be
/// NULL) gets the JSON of `apa_gen_result`. The request is that of `apa_gen_start`.
///
/// `APA_DONE`: the generation ended. `APA_CANCELLED`: `on_text` ended it; there is still a result.
///
/// Errors: as `apa_gen_start` and `apa_gen_next`; `APA_ERR_CALLBACK` if `on_text` returned a negative number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_generate(
    engine: *const apa_engine,
    request_json: *const c_char,
    request_json_len: usize,
    on_text: apa_text_fn,
    user_data: *mut c_void,
    result: *mut *mut apa_string,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: text is readable, the out-parameters NULL or writable, and `on_text` callable, by the header's contract.
    unsafe {
        guard(error, || {
            let request = args::bytes("request_json", request_json, request_json_len)?;
            let object = GenObject::start(&*self::engine(engine)?, request)?;
            let mut stopped = false;
            loop {
                match object.pull(None)? {
                    Pulled::Nothing => {}
                    Pulled::Ended(generation) => {
                        put_json(result, &result_json(&generation, &object))?;
                        return Ok(ended(&generation));
                    }
                    // After a stop the rest is awaited but not delivered.
                    Pulled::Text(_) if stopped => {}
                    Pulled::Text(piece) => {
                        match on_text.map_or(0, |f| f(user_data, piece.as_ptr().cast(), piece.len())) {
                            0 => {}
                            1.. => {
                                object.stream.cancel();
                                stopped = true;
                            }
                            code => return Err(Error::callback(format!("on_text returned {code}"))),
                        }
                    }
                }
            }
        })
    }
}

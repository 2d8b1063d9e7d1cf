//! The C API on a tiny model: the loop from C, and what several threads, hooks and early ends get.

use std::ffi::{c_char, c_void};
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use apa::ffi::*;
use serde_json::Value;

use crate::support::c::{c, compile, message, take};
use crate::support::capi::{Opened, json, open, try_start};
use crate::support::tiny::{TinySpec, tiny_model};

/// A handle that threads may share, as the header says they may.
struct Shared<T>(*mut T);
impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<T> {}
// SAFETY: handles of the C API are safe from any thread.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}
impl<T> Shared<T> {
    fn get(self) -> *mut T {
        self.0
    }
}

fn start(engine: *mut apa_engine, request: &str) -> *mut apa_gen {
    try_start(engine, request).unwrap()
}

/// The status and the text of a pull.
fn next(generation: *mut apa_gen, timeout_ms: i64) -> (apa_status, String) {
    let (mut text, mut error) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: locals.
    match unsafe { apa_gen_next(generation, timeout_ms, &raw mut text, &raw mut error) } {
        apa_status::APA_OK => (apa_status::APA_OK, take(text)),
        status if error.is_null() => (status, String::new()),
        status => (status, message(error)),
    }
}

/// Pulls to the end: how it ended, and all the text.
fn pull_all(generation: *mut apa_gen) -> (apa_status, String) {
    let mut whole = String::new();
    loop {
        match next(generation, -1) {
            (apa_status::APA_OK, text) => whole.push_str(&text),
            (status, _) => return (status, whole),
        }
    }
}

fn feedback(engine: *mut apa_engine, body: &str) -> (apa_status, String) {
    let (mut receipt, mut error, body) = (ptr::null_mut(), ptr::null_mut(), c(body));
    // SAFETY: terminated text and locals.
    match unsafe { apa_feedback(engine, body.as_ptr(), APA_NTS, &raw mut receipt, &raw mut error) } {
        apa_status::APA_OK => (apa_status::APA_OK, take(receipt)),
        status => (status, message(error)),
    }
}

/// A request that runs for seconds on a tiny model: random weights would end an answer by chance.
const LONG: &str = r#"{"prompt":"the","max_tokens":7000,"ignore_eos":true,"seed":2}"#;

const SHORT: &str = r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":8,"seed":3}"#;

#[test]
fn the_c_example_runs_the_whole_loop() {
    example_runs("gcc", "-std=c99", "embed.c");
}

#[test]
fn the_cpp_example_runs_the_whole_loop() {
    example_runs("g++", "-std=c++17", "embed.cpp");
}

fn example_runs(compiler: &str, standard: &str, source: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (program, model) = (dir.path().join("embed"), dir.path().join("tiny.gguf"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(source);
    compile(compiler, standard, &source, &program);
    tiny_model(&model, &TinySpec::new("llama")).unwrap();
    let output = Command::new(&program).arg(&model).arg(dir.path().join("data")).output().unwrap();
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {errors}\n{out}", output.status);
    assert!(out.contains("\"outcome\":\"published\""), "{out}");
    assert!(out.ends_with("versions: 0, then 1, back to 0\n"), "{out}");
    assert_eq!(errors, "", "the library printed something");

    let wrong = Command::new(&program).arg(dir.path().join("none.gguf")).arg(dir.path().join("d")).output().unwrap();
    let errors = String::from_utf8_lossy(&wrong.stderr);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(errors.starts_with("embed: ") && errors.contains("none.gguf") && errors.lines().count() == 1, "{errors}");
}

#[test]
fn an_answer_is_pulled_then_told_whole() {
    let opened = open(&[]);
    let generation = start(opened.engine, SHORT);
    let mut unended = ptr::null_mut();
    // SAFETY: locals.
    let early = unsafe { apa_gen_result(generation, &raw mut unended, ptr::null_mut()) };
    assert_eq!((early, unended.is_null()), (apa_status::APA_ERR_BUSY, true));
    let (status, text) = pull_all(generation);
    assert_eq!(status, apa_status::APA_DONE);
    assert_eq!(next(generation, 0).0, apa_status::APA_DONE, "the end is not repeated");
    // SAFETY: locals.
    let result = json(|out, error| unsafe { apa_gen_result(generation, out, error) });
    assert_eq!(result["text"], text.as_str());
    assert_eq!((&result["policy_version"], &result["seed"]), (&0.into(), &3.into()));
    let completion = result["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((1..=8).contains(&completion) && result["usage"]["prompt_tokens"].as_u64().unwrap() > 2, "{result}");
    let mut id = ptr::null_mut();
    // SAFETY: locals.
    assert_eq!(unsafe { apa_gen_id(generation, &raw mut id, ptr::null_mut()) }, apa_status::APA_OK);
    assert_eq!(result["id"], take(id).as_str());
    apa_gen_free(generation);
    apa_gen_free(generation);
    assert_eq!(next(generation, 0).0, apa_status::APA_ERR_CLOSED);

    let again = start(opened.engine, SHORT);
    assert_eq!(pull_all(again), (apa_status::APA_DONE, text), "the same seed gave another text");
    apa_gen_free(again);
}

#[test]
fn a_wrong_request_names_what_is_wrong() {
    let opened = open(&[]);
    let of = |request: &str| {
        let (status, text) = try_start(opened.engine, request).unwrap_err();
        assert_eq!(status, apa_status::APA_ERR_ARG, "{request}");
        text
    };
    assert!(of("{").contains("JSON"));
    assert!(of(r#"{"prompt":"a","temprature":1}"#).contains("temperature"));
    assert!(of(r#"{"prompt":"a","top_p":2}"#).contains("top_p is 2"));
    assert!(of(r#"{"prompt":"a","stream":true}"#).contains("stream"));
    assert!(of(r#"{"max_tokens":3}"#).contains("messages"));
    let long = format!(r#"{{"prompt":"{}"}}"#, "x ".repeat(40_000));
    assert!(!of(&long).is_empty());
}

#[test]
fn a_waiter_is_woken_by_a_cancel_from_another_thread() {
    let opened = open(&[]);
    let generation = Shared(start(opened.engine, LONG));
    assert_eq!(next(generation.get(), -1).0, apa_status::APA_OK);
    let waiter = thread::spawn(move || pull_all(generation.get()).0);
    // SAFETY: NULL for the error is allowed.
    let status = unsafe { apa_gen_cancel(generation.get(), ptr::null_mut()) };
    assert_eq!(status, apa_status::APA_OK);
    assert_eq!(waiter.join().unwrap(), apa_status::APA_CANCELLED);
    assert_eq!(next(generation.get(), -1).0, apa_status::APA_CANCELLED, "the end is not repeated");
    // SAFETY: locals.
    let result = json(|out, error| unsafe { apa_gen_result(generation.get(), out, error) });
    assert_eq!(result["finish_reason"], "cancelled");
    apa_gen_free(generation.get());
}

/// An engine of one slot with so much in front that what is started next waits.
fn crowded() -> (Opened, Vec<*mut apa_gen>, *mut apa_gen) {
    let opened = open(&[("serve.slots", "1"), ("serve.queue", "64")]);
    let before = (0..40).map(|_| start(opened.engine, LONG)).collect();
    let last = start(opened.engine, LONG);
    (opened, before, last)
}

#[test]
fn a_timeout_is_kept_and_zero_only_looks() {
    let (opened, before, last) = crowded();
    let begun = Instant::now();
    assert_eq!(next(last, 0).0, apa_status::APA_TIMEOUT);
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(next(last, 60).0, apa_status::APA_TIMEOUT);
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(60) && waited < Duration::from_secs(10), "{waited:?}");
    for generation in before {
        apa_gen_free(generation);
    }
    assert!(matches!(pull_all(last).0, apa_status::APA_DONE), "freed generations hold the slot");
    apa_gen_free(last);
    drop(opened);
}

#[test]
fn a_shutdown_wakes_a_waiter_with_closed() {
    let (opened, before, last) = crowded();
    let waiting = Shared(last);
    let waiter = thread::spawn(move || next(waiting.get(), -1).0);
    thread::sleep(Duration::from_millis(20));
    // SAFETY: NULL for the error is allowed.
    unsafe { apa_engine_shutdown(opened.engine, ptr::null_mut()) };
    assert_eq!(waiter.join().unwrap(), apa_status::APA_ERR_CLOSED);
    assert_eq!(next(last, -1).0, apa_status::APA_ERR_CLOSED);
    assert_eq!(try_start(opened.engine, SHORT).unwrap_err().0, apa_status::APA_ERR_CLOSED);
    // SAFETY: as above.
    assert_eq!(unsafe { apa_engine_shutdown(opened.engine, ptr::null_mut()) }, apa_status::APA_OK, "a second time");
    // The engine first, then what was started on it.
    apa_engine_free(opened.engine);
    apa_gen_free(last);
    before.into_iter().for_each(|generation| apa_gen_free(generation));
}

#[test]
fn a_free_wakes_a_waiter_with_closed() {
    let (_opened, before, last) = crowded();
    let waiting = Shared(last);
    let waiter = thread::spawn(move || next(waiting.get(), -1).0);
    thread::sleep(Duration::from_millis(20));
    apa_gen_free(last);
    assert_eq!(waiter.join().unwrap(), apa_status::APA_ERR_CLOSED);
    before.into_iter().for_each(|generation| apa_gen_free(generation));
}

#[test]
fn a_freed_engine_is_closed_to_every_call() {
    let opened = open(&[]);
    apa_engine_free(opened.engine);
    apa_engine_free(opened.engine);
    let (mut generation, mut feed) = (ptr::null_mut(), ptr::null_mut());
    let (engine, none) = (opened.engine, ptr::null_mut());
    let (mut text, mut count, mut version) = (ptr::null_mut(), 0, 0);
    // SAFETY: a freed handle is looked up, never followed; the rest are locals.
    let statuses = unsafe {
        [
            apa_engine_status(engine, &raw mut text, none),
            apa_engine_shutdown(engine, none),
            apa_token_count(engine, c"a".as_ptr(), 1, &raw mut count, none),
            apa_chat_render(engine, c"[]".as_ptr(), 2, &raw mut text, ptr::null_mut(), none),
            apa_generate(engine, c"{}".as_ptr(), 2, None, ptr::null_mut(), ptr::null_mut(), none),
            apa_feedback(engine, c"{}".as_ptr(), 2, ptr::null_mut(), none),
            apa_preference(engine, c"{}".as_ptr(), 2, ptr::null_mut(), none),
            apa_trainer_step(engine, ptr::null_mut(), none),
            apa_trainer_status(engine, &raw mut text, none),
            apa_policy_version(engine, &raw mut version, none),
            apa_policy_sync(engine, &raw mut version, none),
            apa_policy_activate(engine, 0, none),
            apa_policy_rollback(engine, ptr::null_mut(), none),
            apa_policy_list(engine, &raw mut text, none),
            apa_policy_snapshot(engine, 1, c"x".as_ptr(), 1, none),
            apa_policy_restore(engine, c"x".as_ptr(), 1, &raw mut version, none),
            apa_engine_metrics(engine, &raw mut text, none),
            apa_sample_add(engine, c"{}".as_ptr(), 2, ptr::null_mut(), none),
            apa_trainer_start(engine, none),
            apa_forget(engine, c"x".as_ptr(), 1, ptr::null_mut(), none),
            apa_unlearn(engine, c"x".as_ptr(), 1, ptr::null_mut(), none),
            apa_unlearn_plan(engine, c"x".as_ptr(), 1, ptr::null_mut(), none),
            apa_trainer_stop(engine, none),
            apa_reward_put(engine, c"x".as_ptr(), 1, 0.0, none),
            apa_http_start(engine, ptr::null(), 0, ptr::null_mut(), none),
            apa_http_stop(engine, none),
            apa_gen_start(engine, c"{}".as_ptr(), 2, &raw mut generation, none),
            apa_events_open(engine, &raw mut feed, none),
            apa_rewards_open(engine, &raw mut feed, none),
            apa_reward_set(engine, None, ptr::null_mut(), none),
        ]
    };
    assert!(statuses.iter().all(|status| *status == apa_status::APA_ERR_CLOSED), "{statuses:?}");
    assert!(text.is_null() && generation.is_null() && feed.is_null());
}

#[test]
fn an_engine_that_was_shut_down_refuses_work_and_tells_its_state() {
    let opened = open(&[]);
    let (engine, none, request) = (opened.engine, ptr::null_mut(), c(SHORT));
    let generation = start(engine, SHORT);
    let (mut feed, mut text, mut version, mut new) = (ptr::null_mut(), ptr::null_mut(), 7, ptr::null_mut());
    let sample = c(r#"{"prompt": "a", "completion": "b"}"#);
    // SAFETY: terminated text and locals.
    unsafe {
        assert_eq!(apa_events_open(engine, &raw mut feed, none), apa_status::APA_OK);
        assert_eq!(apa_engine_shutdown(engine, none), apa_status::APA_OK);
        assert_eq!(apa_engine_shutdown(engine, none), apa_status::APA_OK);
        let refused = [
            apa_gen_start(engine, request.as_ptr(), APA_NTS, &raw mut new, none),
            apa_generate(engine, request.as_ptr(), APA_NTS, None, ptr::null_mut(), ptr::null_mut(), none),
            apa_feed_next(feed, -1, &raw mut text, none),
            apa_sample_add(engine, sample.as_ptr(), APA_NTS, ptr::null_mut(), none),
            apa_forget(engine, c"ann".as_ptr(), APA_NTS, ptr::null_mut(), none),
            apa_unlearn(engine, c"ann".as_ptr(), APA_NTS, ptr::null_mut(), none),
            apa_unlearn_plan(engine, c"ann".as_ptr(), APA_NTS, ptr::null_mut(), none),
            apa_reward_put(engine, c"x".as_ptr(), APA_NTS, 0.0, none),
            apa_trainer_step(engine, ptr::null_mut(), none),
            apa_trainer_start(engine, none),
            apa_trainer_stop(engine, none),
            apa_policy_activate(engine, 0, none),
            apa_policy_snapshot(engine, 0, c"x".as_ptr(), APA_NTS, none),
            apa_policy_restore(engine, c"x".as_ptr(), APA_NTS, &raw mut version, none),
            apa_policy_sync(engine, &raw mut version, none),
            apa_events_open(engine, &raw mut feed, none),
            apa_http_start(engine, ptr::null(), 0, ptr::null_mut(), none),
        ];
        assert!(refused.iter().all(|status| *status == apa_status::APA_ERR_CLOSED), "{refused:?}");
        // What only looks goes on until the free.
        assert_eq!(apa_policy_version(engine, &raw mut version, none), apa_status::APA_OK);
    }
    let (status, _) = pull_all(generation);
    assert!(matches!(status, apa_status::APA_ERR_CLOSED | apa_status::APA_DONE), "{status:?}");
    assert_eq!(version, 0);
    // SAFETY: locals.
    assert_eq!(json(|out, error| unsafe { apa_engine_status(engine, out, error) })["running"], 0);
    apa_gen_free(generation);
    apa_feed_free(feed);
}

/// Members of the answers of calls, held against the comments of the header.
#[test]
fn the_header_names_every_member_of_what_it_returns() {
    let header = include_str!("../../include/apa.h");
    let comment = |function: &str| {
        let end = header.find(&format!("apa_status {function}(")).unwrap();
        &header[header[..end].rfind("/**").unwrap()..end]
    };
    let named = |function: &str, value: &Value| {
        for member in value.as_object().unwrap().keys() {
            assert!(comment(function).contains(&format!("`{member}`")), "{function} doesn't name {member}");
        }
    };
    let opened = open(&[]);
    let engine = opened.engine;
    let logprobs = start(engine, r#"{"prompt":"the","max_tokens":4,"logprobs":1}"#);
    pull_all(logprobs);
    let parameters = r#"{"type":"object","properties":{},"additionalProperties":false}"#;
    let tool = format!(r#"{{"type":"function","function":{{"name":"now","parameters":{parameters}}}}}"#);
    let messages = r#"[{"role":"user","content":"a"}]"#;
    let request = format!(r#"{{"messages":{messages},"tools":[{tool}],"tool_choice":"required","max_tokens":400}}"#);
    let calling = start(engine, &request);
    pull_all(calling);
    // SAFETY: locals, and text with its length.
    unsafe {
        named("apa_engine_status", &json(|out, error| apa_engine_status(engine, out, error)));
        named("apa_trainer_status", &json(|out, error| apa_trainer_status(engine, out, error)));
        named("apa_gen_result", &json(|out, error| apa_gen_result(logprobs, out, error)));
        let called = json(|out, error| apa_gen_result(calling, out, error));
        named("apa_gen_result", &called);
        let function = &called["tool_calls"][0]["function"];
        // As they were written, with or without spaces.
        let arguments: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
        assert_eq!((&function["name"], arguments), (&"now".into(), serde_json::json!({})));
        named("apa_policy_list", &json(|out, error| apa_policy_list(engine, out, error))[0]);
        named("apa_trainer_step", &json(|out, error| apa_trainer_step(engine, out, error)));
        let mut ids = Vec::new();
        for reward in ["1", "-1"] {
            let sample = c(&format!(r#"{{"prompt": "a", "completion": "b{reward}", "reward": {reward}}}"#));
            let receipt = json(|out, error| apa_sample_add(engine, sample.as_ptr(), APA_NTS, out, error));
            named("apa_sample_add", &receipt);
            ids.push(receipt["generation_id"].as_str().unwrap().to_owned());
        }
        let said = c(&format!(r#"{{"generation_id": "{}", "thumbs": "up"}}"#, ids[0]));
        named("apa_feedback", &json(|out, error| apa_feedback(engine, said.as_ptr(), APA_NTS, out, error)));
        let said = c(&format!(r#"{{"chosen_id": "{}", "rejected_id": "{}"}}"#, ids[0], ids[1]));
        named("apa_preference", &json(|out, error| apa_preference(engine, said.as_ptr(), APA_NTS, out, error)));
        let mut feed = ptr::null_mut();
        assert_eq!(apa_events_open(engine, &raw mut feed, ptr::null_mut()), apa_status::APA_OK);
        named("apa_trainer_step", &json(|out, error| apa_trainer_step(engine, out, error)));
        for _ in 0..2 {
            named("apa_events_open", &json(|out, error| apa_feed_next(feed, 10_000, out, error)));
        }
        apa_feed_free(feed);
        named("apa_unlearn_plan", &json(|out, error| apa_unlearn_plan(engine, c"ann".as_ptr(), APA_NTS, out, error)));
        named("apa_unlearn", &json(|out, error| apa_unlearn(engine, c"nobody".as_ptr(), APA_NTS, out, error)));
        let forgotten = json(|out, error| apa_forget(engine, c"ann".as_ptr(), APA_NTS, out, error));
        named("apa_forget", &forgotten);
    }
    apa_gen_free(logprobs);
    apa_gen_free(calling);
}

#[test]
fn null_is_an_argument_error_for_a_live_engine_too() {
    let opened = open(&[]);
    let (engine, none, generation) = (opened.engine, ptr::null_mut(), start(opened.engine, SHORT));
    pull_all(generation);
    let (no_text, no_string, text) = (ptr::null::<c_char>(), ptr::null_mut::<*mut apa_string>(), c("{}"));
    let (mut string, mut count, mut feed, mut new) = (ptr::null_mut(), 0, ptr::null_mut(), ptr::null_mut());
    // SAFETY: NULL text and results are refused; the others are terminated or locals.
    let statuses = unsafe {
        assert_eq!(apa_events_open(engine, &raw mut feed, none), apa_status::APA_OK);
        [
            apa_engine_status(engine, ptr::null_mut(), none),
            apa_engine_metrics(engine, ptr::null_mut(), none),
            apa_token_count(engine, no_text, 1, &raw mut count, none),
            apa_token_count(engine, no_text, APA_NTS, &raw mut count, none),
            apa_token_count(engine, text.as_ptr(), usize::MAX - 1, &raw mut count, none),
            apa_token_count(engine, text.as_ptr(), 2, ptr::null_mut(), none),
            apa_chat_render(engine, no_text, 1, &raw mut string, ptr::null_mut(), none),
            apa_chat_render(engine, text.as_ptr(), 2, ptr::null_mut(), ptr::null_mut(), none),
            apa_gen_start(engine, no_text, 1, &raw mut new, none),
            apa_gen_start(engine, text.as_ptr(), 2, ptr::null_mut(), none),
            apa_gen_id(generation, ptr::null_mut(), none),
            apa_gen_next(generation, 0, ptr::null_mut(), none),
            apa_gen_result(generation, ptr::null_mut(), none),
            apa_generate(engine, no_text, 1, None, ptr::null_mut(), ptr::null_mut(), none),
            apa_feedback(engine, no_text, 1, no_string, none),
            apa_preference(engine, no_text, 1, no_string, none),
            apa_sample_add(engine, no_text, 1, no_string, none),
            apa_forget(engine, no_text, 1, no_string, none),
            apa_forget(engine, no_text, 0, no_string, none),
            apa_trainer_status(engine, ptr::null_mut(), none),
            apa_policy_version(engine, ptr::null_mut(), none),
            apa_policy_list(engine, ptr::null_mut(), none),
            apa_policy_snapshot(engine, 0, no_text, 1, none),
            apa_policy_snapshot(engine, 0, no_text, 0, none),
            apa_policy_restore(engine, no_text, 1, ptr::null_mut(), none),
            apa_events_open(engine, ptr::null_mut(), none),
            apa_rewards_open(engine, ptr::null_mut(), none),
            apa_feed_next(feed, 0, ptr::null_mut(), none),
            apa_reward_put(engine, no_text, 1, 0.0, none),
            apa_reward_put(engine, no_text, 0, 0.0, none),
            apa_http_start(engine, no_text, 1, ptr::null_mut(), none),
        ]
    };
    for (i, status) in statuses.into_iter().enumerate() {
        assert_eq!(status, apa_status::APA_ERR_ARG, "call {i}");
    }
    assert!(string.is_null() && new.is_null() && count == 0);
    apa_feed_free(feed);
    apa_gen_free(generation);
}

unsafe extern "C" fn collect(user_data: *mut c_void, text: *const c_char, text_len: usize) -> i32 {
    // SAFETY: the tests pass a `(String, i32)`; the text is readable for its length.
    let ((whole, answer), text) =
        unsafe { (&mut *user_data.cast::<(String, i32)>(), std::slice::from_raw_parts(text.cast::<u8>(), text_len)) };
    whole.push_str(std::str::from_utf8(text).unwrap_or("not whole codepoints"));
    *answer
}

/// A blocking generation whose callback answers `answer`: the status, what the callback saw, and the result.
fn generate(
    engine: *mut apa_engine,
    request: &str,
    answer: i32,
) -> (apa_status, String, *mut apa_string, *mut apa_error) {
    let mut seen = (String::new(), answer);
    let (mut result, mut error, request) = (ptr::null_mut(), ptr::null_mut(), c(request));
    // SAFETY: terminated text and locals, of the types that `collect` expects.
    let status = unsafe {
        let seen = (&raw mut seen).cast();
        apa_generate(engine, request.as_ptr(), APA_NTS, Some(collect), seen, &raw mut result, &raw mut error)
    };
    (status, seen.0, result, error)
}

#[test]
fn the_blocking_call_shows_each_piece_and_may_be_stopped() {
    let opened = open(&[]);
    let (status, seen, result, _) = generate(opened.engine, SHORT, 0);
    assert_eq!(status, apa_status::APA_DONE);
    let result: Value = serde_json::from_str(&take(result)).unwrap();
    assert_eq!(result["text"], seen.as_str());

    let (status, _, result, _) = generate(opened.engine, LONG, 1);
    assert_eq!(status, apa_status::APA_CANCELLED);
    let result: Value = serde_json::from_str(&take(result)).unwrap();
    assert_eq!(result["finish_reason"], "cancelled");

    let (status, _, result, error) = generate(opened.engine, LONG, -7);
    assert_eq!((status, result.is_null()), (apa_status::APA_ERR_CALLBACK, true));
    assert_eq!(message(error), "on_text returned -7");
}

#[derive(Default)]
struct Woken {
    calls: AtomicU32,
    inside: AtomicI32,
}

unsafe extern "C" fn wake(user_data: *mut c_void) {
    // SAFETY: the test passes a `Woken` that outlives the hook.
    let woken = unsafe { &*user_data.cast::<Woken>() };
    woken.calls.fetch_add(1, Ordering::SeqCst);
    let mut version = 0;
    // SAFETY: a local; refused before the handle is looked at.
    let status = unsafe { apa_policy_sync(ptr::null(), &raw mut version, ptr::null_mut()) };
    woken.inside.store(status as i32, Ordering::SeqCst);
}

#[test]
fn a_wake_hook_announces_what_can_be_pulled_and_ends_with_the_free() {
    let opened = open(&[]);
    let generation = start(opened.engine, SHORT);
    let woken = Woken::default();
    let data = (&raw const woken).cast_mut().cast();
    // SAFETY: the hook and its data outlive the generation.
    let status = unsafe { apa_gen_set_wake(generation, Some(wake), data, ptr::null_mut()) };
    assert_eq!(status, apa_status::APA_OK);
    let mut seen = 0;
    let deadline = Instant::now() + Duration::from_secs(60);
    'pulled: loop {
        while woken.calls.load(Ordering::SeqCst) == seen {
            assert!(Instant::now() < deadline, "no wake for what is left");
            thread::sleep(Duration::from_millis(1));
        }
        seen = woken.calls.load(Ordering::SeqCst);
        loop {
            match next(generation, 0).0 {
                apa_status::APA_OK => {}
                apa_status::APA_TIMEOUT => break,
                status => {
                    assert_eq!(status, apa_status::APA_DONE);
                    break 'pulled;
                }
            }
        }
    }
    assert_eq!(woken.inside.load(Ordering::SeqCst), apa_status::APA_ERR_ARG as i32, "calls from a hook are refused");

    let other = start(opened.engine, LONG);
    // SAFETY: as above.
    unsafe { apa_gen_set_wake(other, Some(wake), data, ptr::null_mut()) };
    apa_gen_free(other);
    let calls = woken.calls.load(Ordering::SeqCst);
    thread::sleep(Duration::from_millis(50));
    assert_eq!(woken.calls.load(Ordering::SeqCst), calls, "a hook ran after the free");
    apa_gen_free(generation);
}

#[test]
fn several_threads_generate_together() {
    let opened = open(&[("serve.slots", "4")]);
    let engine = Shared(opened.engine);
    let alone = generate(opened.engine, SHORT, 0).1;
    let threads: Vec<_> = (0..8).map(|_| thread::spawn(move || pull_all(start(engine.get(), SHORT)))).collect();
    for thread in threads {
        let (status, text) = thread.join().unwrap();
        assert_eq!((status, text.is_empty()), (apa_status::APA_DONE, alone.is_empty()));
    }
}

#[test]
fn tokens_are_counted_and_chats_rendered() {
    let opened = open(&[]);
    let mut count = 0;
    // SAFETY: text with its length and locals.
    let status = unsafe { apa_token_count(opened.engine, c"abc".as_ptr(), 3, &raw mut count, ptr::null_mut()) };
    assert_eq!(status, apa_status::APA_OK);
    assert!((1..=4).contains(&count), "{count}");
    let chat = c(r#"[{"role":"user","content":"abc"}]"#);
    let (mut text, mut tokens) = (ptr::null_mut(), 0);
    // SAFETY: as above.
    let status = unsafe {
        apa_chat_render(opened.engine, chat.as_ptr(), APA_NTS, &raw mut text, &raw mut tokens, ptr::null_mut())
    };
    assert_eq!(status, apa_status::APA_OK);
    let text = take(text);
    assert!(text.contains("user") && text.contains("abc") && tokens > count, "{text:?} {tokens}");
}

#[test]
fn feedback_is_acknowledged_and_wrong_feedback_explained() {
    let opened = open(&[]);
    let id = |request: &str| {
        let generation = start(opened.engine, request);
        pull_all(generation);
        // SAFETY: locals.
        let result = json(|out, error| unsafe { apa_gen_result(generation, out, error) });
        apa_gen_free(generation);
        result["id"].as_str().unwrap().to_owned()
    };
    let (one, two) = (id(SHORT), id(r#"{"prompt":"the","max_tokens":4}"#));
    let (status, receipt) =
        feedback(opened.engine, &format!(r#"{{"generation_id":"{one}","thumbs":"up","user":"ann"}}"#));
    assert_eq!(status, apa_status::APA_OK);
    let receipt: Value = serde_json::from_str(&receipt).unwrap();
    assert_eq!((&receipt["generation_id"], &receipt["replaces_earlier"]), (&one.as_str().into(), &false.into()));
    let (_, receipt) = feedback(opened.engine, &format!(r#"{{"generation_id":"{one}","rating":-0.5,"user":"ann"}}"#));
    assert!(receipt.contains("\"replaces_earlier\":true"), "{receipt}");
    let (status, _) = feedback(opened.engine, &format!(r#"{{"generation_id":"{one}","signal":"copied"}}"#));
    assert_eq!(status, apa_status::APA_OK);
    // SAFETY: locals.
    let trainer = json(|out, error| unsafe { apa_trainer_status(opened.engine, out, error) });
    assert!(trainer["pending_ratings"].as_u64().unwrap() >= 1, "{trainer}");

    for (body, expected) in [
        (r#"{"generation_id":"nobody","rating":1}"#.to_owned(), "nobody"),
        (format!(r#"{{"generation_id":"{one}","rating":1.5}}"#), "rating is 1.5"),
        (format!(r#"{{"generation_id":"{one}","rating":NaN}}"#), "JSON"),
        (format!(r#"{{"generation_id":"{one}","ratng":1}}"#), "rating"),
    ] {
        let (status, text) = feedback(opened.engine, &body);
        assert_eq!(status, apa_status::APA_ERR_ARG, "{body}");
        assert!(text.contains(expected), "{text}");
    }

    let prefer = |body: String| {
        let (mut receipt, body) = (ptr::null_mut(), c(&body));
        // SAFETY: terminated text and locals.
        let status =
            unsafe { apa_preference(opened.engine, body.as_ptr(), APA_NTS, &raw mut receipt, ptr::null_mut()) };
        (status, if receipt.is_null() { String::new() } else { take(receipt) })
    };
    let (status, receipt) = prefer(format!(r#"{{"chosen_id":"{one}","rejected_id":"{two}"}}"#));
    assert!(status == apa_status::APA_OK && receipt.contains("preference_id"), "{receipt}");
    assert_eq!(prefer(format!(r#"{{"chosen_id":"{one}","rejected_id":"x"}}"#)).0, apa_status::APA_ERR_ARG);
}

#[test]
fn the_initial_version_is_listed_and_there_is_nothing_before_it() {
    let opened = open(&[]);
    let mut version = 9;
    // SAFETY: locals.
    unsafe {
        assert_eq!(apa_policy_version(opened.engine, &raw mut version, ptr::null_mut()), apa_status::APA_OK);
        assert_eq!(version, 0);
        version = 9;
        assert_eq!(apa_policy_sync(opened.engine, &raw mut version, ptr::null_mut()), apa_status::APA_OK);
        assert_eq!(version, 0);
        assert_eq!(apa_policy_sync(opened.engine, ptr::null_mut(), ptr::null_mut()), apa_status::APA_OK);
        version = 9;
        assert_eq!(apa_policy_activate(opened.engine, 41, ptr::null_mut()), apa_status::APA_ERR_ARG);
        assert_eq!(apa_policy_rollback(opened.engine, &raw mut version, ptr::null_mut()), apa_status::APA_ERR_ARG);
    }
    assert_eq!(version, 9, "written by a failure");
    // SAFETY: locals.
    let list = json(|out, error| unsafe { apa_policy_list(opened.engine, out, error) });
    assert_eq!((list.as_array().unwrap().len(), &list[0]["active"]), (1, &true.into()));
    // SAFETY: locals.
    let status = json(|out, error| unsafe { apa_engine_status(opened.engine, out, error) });
    assert_eq!((&status["architecture"], &status["policy_version"]), (&"llama".into(), &0.into()));
}

unsafe extern "C" fn log_line(user_data: *mut c_void, level: i32, json: *const c_char, json_len: usize) {
    // SAFETY: the test passes a `Mutex` that outlives the hook; the line is readable for its length.
    let (lines, json) = unsafe {
        (&*user_data.cast::<std::sync::Mutex<Vec<(i32, Vec<u8>)>>>(), std::slice::from_raw_parts(json.cast(), json_len))
    };
    lines.lock().unwrap().push((level, json.to_vec()));
}

#[test]
fn the_log_goes_to_the_hook_until_it_is_taken_back() {
    let lines: std::sync::Mutex<Vec<(i32, Vec<u8>)>> = Default::default();
    let data = (&raw const lines).cast_mut().cast();
    // SAFETY: the hook's data outlives it: it is taken back below.
    unsafe {
        assert_eq!(apa_log_set(9, Some(log_line), data, ptr::null_mut()), apa_status::APA_ERR_ARG);
        assert_eq!(apa_log_set(3, Some(log_line), data, ptr::null_mut()), apa_status::APA_OK);
    }
    tracing::info!(version = 3u64, "policy published");
    tracing::debug!("not wanted");
    // SAFETY: as above.
    unsafe { assert_eq!(apa_log_set(0, None, ptr::null_mut(), ptr::null_mut()), apa_status::APA_OK) };
    tracing::error!("nobody listens");
    // Other tests of this process may log meanwhile; nobody else logs with this target.
    let mut lines = lines.into_inner().unwrap();
    lines.retain(|(_, json)| String::from_utf8_lossy(json).contains(concat!("\"", module_path!(), "\"")));
    assert_eq!(lines.len(), 1);
    let line: Value = serde_json::from_slice(&lines[0].1).unwrap();
    assert_eq!((lines[0].0, &line["level"], &line["version"]), (3, &"info".into(), &3.into()));
    assert_eq!(line["message"], "policy published");
}

//! The C API on a tiny model: samples, rewards, news, snapshots, and the service beside an application.

use std::ffi::{c_char, c_void};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ptr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use apa::ffi::*;
use serde_json::{Value, json as object};

use crate::support::c::{c, message, take};
use crate::support::capi::{Opened, json, open, try_start};

const OK: apa_status = apa_status::APA_OK;

/// A call without a result: its status and, for a failure, its message.
fn call(call: impl FnOnce(*mut *mut apa_error) -> apa_status) -> (apa_status, String) {
    let mut error = ptr::null_mut();
    let status = call(&raw mut error);
    (status, if error.is_null() { String::new() } else { message(error) })
}

/// Answers, and gives the id.
fn answer(engine: *mut apa_engine, seed: u32) -> String {
    let request = object!({"prompt": "the", "max_tokens": 8, "seed": seed}).to_string();
    let generation = try_start(engine, &request).unwrap();
    let (mut text, mut id) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: locals.
    unsafe {
        while apa_gen_next(generation, -1, &raw mut text, ptr::null_mut()) == OK {
            apa_string_free(text);
        }
        assert_eq!(apa_gen_id(generation, &raw mut id, ptr::null_mut()), OK);
    }
    apa_gen_free(generation);
    take(id)
}

fn add(engine: *mut apa_engine, sample: &Value) -> Result<Value, (apa_status, String)> {
    let (mut receipt, sample) = (ptr::null_mut(), sample.to_string());
    // SAFETY: text with its length and locals.
    match call(|e| unsafe { apa_sample_add(engine, sample.as_ptr().cast(), sample.len(), &raw mut receipt, e) }) {
        (OK, _) => Ok(serde_json::from_str(&take(receipt)).unwrap()),
        failed => Err(failed),
    }
}

fn trainer(engine: *mut apa_engine) -> Value {
    // SAFETY: locals.
    json(|out, error| unsafe { apa_trainer_status(engine, out, error) })
}

/// News of a feed in the time given.
fn next(feed: *mut apa_feed, timeout_ms: i64) -> Result<Value, apa_status> {
    let mut news = ptr::null_mut();
    // SAFETY: locals.
    match unsafe { apa_feed_next(feed, timeout_ms, &raw mut news, ptr::null_mut()) } {
        OK => Ok(serde_json::from_str(&take(news)).unwrap()),
        status => Err(status),
    }
}

fn events(engine: *mut apa_engine) -> *mut apa_feed {
    let mut feed = ptr::null_mut();
    // SAFETY: locals.
    assert_eq!(call(|e| unsafe { apa_events_open(engine, &raw mut feed, e) }).0, OK);
    feed
}

/// Two rated samples and the version that a step makes of them.
fn step(engine: *mut apa_engine) -> u64 {
    for (completion, reward) in [("abc", 1.0), ("cba", -1.0)] {
        add(engine, &object!({"prompt": "the", "completion": completion, "reward": reward})).unwrap();
    }
    // SAFETY: locals.
    let outcome = json(|out, error| unsafe { apa_trainer_step(engine, out, error) });
    assert_eq!(outcome["outcome"], "published", "{outcome}");
    outcome["version"].as_u64().unwrap()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn answers_made_elsewhere_are_recorded_and_trained_on() {
    let Opened { engine, .. } = &open(&[]);
    let chat = object!([{"role": "user", "content": "hi"}]);
    let first = add(*engine, &object!({"messages": chat, "completion": "abc", "reward": 0.5, "user": "ann"})).unwrap();
    assert!(first["feedback_id"].is_u64() && first["policy_version"] == 0, "{first}");
    let second = add(*engine, &object!({"prompt": [5, 6], "completion": [7, 8]})).unwrap();
    assert!(second["feedback_id"].is_null(), "{second}");
    assert_eq!(trainer(*engine)["pending_ratings"], 1);
    let id = c(second["generation_id"].as_str().unwrap());
    // SAFETY: terminated text.
    assert_eq!(call(|e| unsafe { apa_reward_put(*engine, id.as_ptr(), APA_NTS, -0.5, e) }).0, OK);
    assert_eq!(trainer(*engine)["pending_ratings"], 2);
    // SAFETY: locals.
    let outcome = json(|out, error| unsafe { apa_trainer_step(*engine, out, error) });
    assert_eq!((&outcome["outcome"], &outcome["metrics"]["samples"]), (&"published".into(), &2.into()), "{outcome}");

    for (sample, expected) in [
        (object!({"completion": "a"}), "neither messages nor prompt"),
        (object!({"prompt": "a"}), "completion is missing"),
        (object!({"prompt": "a", "completion": ""}), "completion is empty"),
        (object!({"prompt": "a", "completion": "b", "reward": 2}), "reward is 2"),
        (object!({"prompt": "a", "completion": [4_000_000]}), "outside the vocabulary"),
        (object!({"prompt": "a", "completion": vec![1; 9000]}), "expected at most 8192"),
        (object!({"prompt": "a", "completion": "b", "rewrad": 1}), "reward"),
    ] {
        let (status, text) = add(*engine, &sample).unwrap_err();
        assert!(status == apa_status::APA_ERR_ARG && text.contains(expected), "{text}");
    }
}

#[test]
fn a_user_is_forgotten() {
    let Opened { engine, .. } = &open(&[]);
    add(*engine, &object!({"prompt": "the", "completion": "abc", "reward": 1, "user": "ann"})).unwrap();
    add(*engine, &object!({"prompt": "the", "completion": "abc", "reward": 1, "user": "bob"})).unwrap();
    let forget = |user: &str| {
        // SAFETY: text with its length and locals.
        json(|out, error| unsafe { apa_forget(*engine, user.as_ptr().cast(), user.len(), out, error) })
    };
    let gone = forget("ann");
    assert_eq!((&gone["generations"], &gone["feedback"]), (&1.into(), &1.into()), "{gone}");
    assert_eq!(trainer(*engine)["pending_ratings"], 1);
    assert_eq!(forget("ann")["generations"], 0);
    // No version learned from bob.
    // SAFETY: text with its length and locals.
    let planned = json(|out, error| unsafe { apa_unlearn_plan(*engine, c"bob".as_ptr(), 3, out, error) });
    assert_eq!(planned, object!({"unlearning": null}));
    // SAFETY: text with its length and locals.
    let gone = json(|out, error| unsafe { apa_unlearn(*engine, c"bob".as_ptr(), 3, out, error) });
    assert_eq!((&gone["generations"], &gone["unlearning"]), (&1.into(), &serde_json::Value::Null), "{gone}");
    for forget in [apa_forget, apa_unlearn, apa_unlearn_plan] {
        // SAFETY: NULL is allowed for empty text.
        let nobody = call(|e| unsafe { forget(*engine, ptr::null(), 0, ptr::null_mut(), e) });
        assert_eq!(nobody, (apa_status::APA_ERR_ARG, "user is empty, expected a name".into()));
    }
}

#[test]
fn news_of_learning_come_in_order_and_end_with_the_engine() {
    let Opened { engine, .. } = &open(&[]);
    let feed = events(*engine);
    assert_eq!(next(feed, 0), Err(apa_status::APA_TIMEOUT));
    assert_eq!(step(*engine), 1);
    let published = next(feed, 1000).unwrap();
    assert_eq!(published, object!({"event": "version_published", "version": 1, "parent": 0}));
    let done = next(feed, 1000).unwrap();
    assert_eq!(
        (&done["event"], &done["version"], &done["metrics"]["samples"]),
        (&"step_done".into(), &1.into(), &2.into())
    );
    // SAFETY: NULL is allowed.
    assert_eq!(call(|e| unsafe { apa_policy_rollback(*engine, ptr::null_mut(), e) }).0, OK);
    assert_eq!(next(feed, 1000).unwrap(), object!({"event": "version_activated", "version": 0}));
    // SAFETY: a live handle.
    unsafe { apa_engine_shutdown(*engine, ptr::null_mut()) };
    assert_eq!(next(feed, -1), Err(apa_status::APA_ERR_CLOSED));
    apa_feed_free(feed);
    apa_feed_free(feed);
    assert_eq!(next(feed, -1), Err(apa_status::APA_ERR_CLOSED));
}

#[test]
fn answers_are_scored_by_pull() {
    let Opened { engine, .. } = &open(&[]);
    let mut jobs = ptr::null_mut();
    // SAFETY: locals.
    assert_eq!(call(|e| unsafe { apa_rewards_open(*engine, &raw mut jobs, e) }).0, OK);
    let id = answer(*engine, 1);
    let job = next(jobs, 10_000).unwrap();
    assert_eq!((&job["event"], &job["generation_id"]), (&"answer".into(), &id.as_str().into()), "{job}");
    assert!(job["prompt"].as_str().unwrap().contains("the") && job["completion_tokens"].as_u64() >= Some(1), "{job}");
    let put = |id: &str, reward: f64| {
        // SAFETY: text with its length.
        call(|e| unsafe { apa_reward_put(*engine, id.as_ptr().cast(), id.len(), reward, e) })
    };
    assert_eq!(put(&id, 0.25).0, OK);
    assert_eq!(trainer(*engine)["pending_ratings"], 1);
    for (id, reward) in [("nobody", 0.5), (id.as_str(), 1.5), (id.as_str(), f64::NAN)] {
        assert_eq!(put(id, reward).0, apa_status::APA_ERR_ARG);
    }
    apa_feed_free(jobs);
}

/// Scores by the seed's parity is not possible from outside; so: in turn 0.5, none, failure, out of range.
unsafe extern "C" fn in_turn(user_data: *mut c_void, json: *const c_char, json_len: usize, reward: *mut f64) -> i32 {
    // SAFETY: the test passes a `Mutex` that outlives the function; the text is readable and `reward` writable.
    let (seen, json) =
        unsafe { (&*user_data.cast::<Mutex<Vec<Value>>>(), std::slice::from_raw_parts(json.cast::<u8>(), json_len)) };
    let mut seen = seen.lock().unwrap();
    seen.push(serde_json::from_slice(json).unwrap());
    // SAFETY: as above.
    unsafe { reward.write(if seen.len() == 1 { 0.5 } else { 7.0 }) };
    [0, 1, -3, 0][(seen.len() - 1) % 4]
}

#[test]
fn answers_are_scored_by_a_function_until_it_is_taken_back() {
    let Opened { engine, .. } = &open(&[]);
    let seen: Mutex<Vec<Value>> = Mutex::default();
    let data = (&raw const seen).cast_mut().cast();
    let feed = events(*engine);
    // SAFETY: the function and its data outlive the engine's use: it is taken back below.
    assert_eq!(call(|e| unsafe { apa_reward_set(*engine, Some(in_turn), data, e) }).0, OK);
    let ids: Vec<_> = (0..4).map(|seed| answer(*engine, seed)).collect();
    until("the function was not called for each answer", || seen.lock().unwrap().len() == 4);
    let failed = next(feed, 10_000).unwrap();
    assert_eq!((&failed["event"], &failed["code"]), (&"error".into(), &"callback_error".into()), "{failed}");
    assert!(failed["message"].as_str().unwrap().ends_with(&format!("{}: the reward function returned -3", ids[2])));
    assert_eq!(next(feed, 10_000).unwrap()["code"], "invalid_argument");
    assert_eq!(trainer(*engine)["pending_ratings"], 1, "only the first answer got a reward");
    // SAFETY: NULL takes it back.
    assert_eq!(call(|e| unsafe { apa_reward_set(*engine, None, ptr::null_mut(), e) }).0, OK);
    answer(*engine, 9);
    assert_eq!(seen.lock().unwrap().len(), 4, "called after it was taken back");
    apa_feed_free(feed);
}

#[test]
fn learning_in_the_background_is_started_and_stopped() {
    let Opened { engine, .. } = &open(&[("train.batch", "2"), ("train.auto", "true")]);
    // SAFETY: a live handle.
    let set =
        |on: bool| unsafe { call(|e| if on { apa_trainer_start(*engine, e) } else { apa_trainer_stop(*engine, e) }) };
    until("the trainer did not load", || trainer(*engine)["state"] == "idle");
    assert_eq!((set(false).0, &trainer(*engine)["auto"]), (OK, &false.into()));
    for (completion, reward) in [("abc", 1.0), ("cba", -1.0), ("bca", 0.0)] {
        add(*engine, &object!({"prompt": "the", "completion": completion, "reward": reward})).unwrap();
    }
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!((&trainer(*engine)["steps"], &trainer(*engine)["pending_ratings"]), (&0.into(), &3.into()));
    assert_eq!(set(true).0, OK);
    until("no step began", || trainer(*engine)["steps"] == 1);

    let Opened { engine, .. } = &open(&[("train.enabled", "false")]);
    // SAFETY: a live handle.
    let (status, text) = call(|e| unsafe { apa_trainer_start(*engine, e) });
    assert_eq!(status, apa_status::APA_ERR_UNSUPPORTED, "{text}");
}

#[test]
fn a_version_is_carried_to_another_engine_in_a_file() {
    let (one, two, dir) = (open(&[]), open(&[]), tempfile::tempdir().unwrap());
    let path = c(dir.path().join("version.apa").to_str().unwrap());
    // SAFETY: terminated text and locals.
    let snapshot = |version| call(|e| unsafe { apa_policy_snapshot(one.engine, version, path.as_ptr(), APA_NTS, e) });
    assert_eq!(snapshot(0).0, apa_status::APA_ERR_ARG, "the initial model has no files");
    step(one.engine);
    assert_eq!(snapshot(7).0, apa_status::APA_ERR_ARG);
    assert_eq!(snapshot(1), (OK, String::new()));
    let restore = |path: *const c_char, version: &mut u64| {
        // SAFETY: terminated text and locals.
        call(|e| unsafe { apa_policy_restore(two.engine, path, APA_NTS, version, e) })
    };
    let mut version = 9;
    assert_eq!(restore(c"/nowhere/version.apa".as_ptr(), &mut version).0, apa_status::APA_ERR_IO);
    assert_eq!((restore(c"".as_ptr(), &mut version).0, version), (apa_status::APA_ERR_ARG, 9));
    assert_eq!(restore(path.as_ptr(), &mut version), (OK, String::new()));
    assert_eq!(version, 1);
    let greedy = |engine| {
        let request = object!({"prompt": "the", "max_tokens": 12, "temperature": 0, "logprobs": 0}).to_string();
        let generation = try_start(engine, &request).unwrap();
        let mut text = ptr::null_mut();
        // SAFETY: locals.
        unsafe {
            while apa_gen_next(generation, -1, &raw mut text, ptr::null_mut()) == OK {
                apa_string_free(text);
            }
        }
        // SAFETY: locals.
        let result = json(|out, error| unsafe { apa_gen_result(generation, out, error) });
        apa_gen_free(generation);
        (result["policy_version"].clone(), result["logprobs"].clone(), result["text"].clone())
    };
    assert_eq!(greedy(one.engine), greedy(two.engine), "the weights are not the same");
    // Training goes on from it.
    assert_eq!(step(two.engine), 2);
    // SAFETY: NULL is allowed.
    assert_eq!(call(|e| unsafe { apa_policy_rollback(two.engine, ptr::null_mut(), e) }).0, OK);
    assert_eq!(call(|e| unsafe { apa_policy_rollback(two.engine, &raw mut version, e) }).0, OK);
    assert_eq!(version, 0);
}

#[test]
fn metrics_are_the_text_that_prometheus_reads() {
    let Opened { engine, .. } = &open(&[]);
    answer(*engine, 1);
    let mut text = ptr::null_mut();
    // SAFETY: locals.
    assert_eq!(call(|e| unsafe { apa_engine_metrics(*engine, &raw mut text, e) }).0, OK);
    assert!(take(text).contains("\napa_requests_completed_total 1\n"));
}

#[cfg(feature = "daemon")]
#[test]
fn the_service_runs_beside_an_application() {
    let Opened { engine, .. } = &open(&[]);
    // SAFETY: text with its length and locals.
    let start = |address: &str, bound: *mut *mut apa_string| unsafe {
        call(|e| apa_http_start(*engine, address.as_ptr().cast(), address.len(), bound, e))
    };
    let mut bound = ptr::null_mut();
    assert_eq!(start("127.0.0.1:0", &raw mut bound), (OK, String::new()));
    let address = take(bound);
    let get = |path: &str| {
        let mut stream = TcpStream::connect(&address).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: apa\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok().map(|_| text)
    };
    assert!(get("/health").unwrap().contains("\"status\":\"ok\""));
    assert_eq!(start("127.0.0.1:0", ptr::null_mut()).0, apa_status::APA_ERR_BUSY, "it runs already");
    // SAFETY: a live handle.
    let stop = || unsafe { call(|e| apa_http_stop(*engine, e)) };
    assert_eq!((stop(), stop().0), ((OK, String::new()), OK));
    assert!(get("/health").is_none(), "it still answers");
    for strange in ["nowhere", ":", "127.0.0.1", "127.0.0.1:99999", "[::1", "\0:1", "1.2.3.4.5:1", "http://127.0.0.1:1"]
    {
        let (status, text) = start(strange, ptr::null_mut());
        assert!(
            matches!(status, apa_status::APA_ERR_ARG | apa_status::APA_ERR_IO) && !text.is_empty(),
            "{strange}: {text}"
        );
    }
    assert_eq!(start("0.0.0.0:0", ptr::null_mut()).0, apa_status::APA_ERR_ARG, "beyond loopback without keys");
    assert_eq!(start("127.0.0.1:0", &raw mut bound).0, OK);
    let address = take(bound);
    apa_engine_free(*engine);
    assert!(TcpStream::connect(address).is_err(), "it outlived its engine");
}

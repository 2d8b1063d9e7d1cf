//! What becomes of an engine one of whose threads panics: it says so, and goes on or ends; no call hangs. The panics
//! are those of a listener's hook, which the engine's threads call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use apa::engine::{Feed, News, Topic, TrainerState, Wake};
use apa::types::*;
use apa::{Code, Engine};
use serde_json::{Value, json};

use crate::support::engine::{answer, finish, open_with, published, rate_some, request};
use crate::support::server::Server;

/// Panics as often as that on the threads whose name begins so.
fn panics(threads: &'static str, times: u32) -> Wake {
    let left = AtomicU32::new(times);
    Arc::new(move || {
        let here = std::thread::current().name().is_some_and(|name| name.starts_with(threads));
        let one = |left: u32| left.checked_sub(1);
        if here && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one).is_ok() {
            panic!("a bug, for this test");
        }
    })
}

fn learning(engine: &Engine) -> Arc<Feed> {
    engine.subscribe(Topic::Learning).unwrap()
}

fn alerts(engine: &Engine) -> Vec<String> {
    let status = serde_json::to_value(engine.status()).unwrap();
    let kind = |alert: &Value| alert["kind"].as_str().unwrap().to_owned();
    status["alerts"].as_array().unwrap().iter().map(kind).collect()
}

/// Runs `call` on a thread of its own, which must end in time.
fn in_time<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, outcome) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(call()));
    outcome.recv_timeout(Duration::from_secs(60)).expect("the call hangs")
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_panic_of_the_trainer_is_told_and_it_goes_on_from_the_version_on_record() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| c.train.batch = 4).unwrap();
    let (news, hook) = (learning(&engine), learning(&engine));
    rate_some(&engine, 4);
    until("the trainer is ready", || engine.status().trainer.state == TrainerState::Idle);
    hook.set_wake(panics("apa-train", 1));
    let step = engine.clone();
    // It panics once the version is on record, and before anybody was told of it.
    let error = in_time(move || step.train_step()).unwrap_err();
    assert_eq!(error.code(), Code::Panic, "{error}");
    until("an alert", || alerts(&engine) == ["trainer_panicked"]);
    assert!(engine.metrics().contains("\napa_trainer_panics_total 1\n"));
    let told = std::iter::from_fn(|| news.next(Some(Duration::from_secs(20))).unwrap());
    let mut panic = told.filter(|news| matches!(news, News::Error { code: "internal_error", .. }));
    assert!(panic.next().is_some());
    // Answers are given meanwhile, and the next order finds a trainer.
    answer(&engine, "the", 9);
    rate_some(&engine, 4);
    let step = engine.clone();
    let (version, _) = published(in_time(move || step.train_step()).unwrap());
    let versions = engine.versions().unwrap();
    assert_eq!((version, versions[2].parent), (PolicyVersion(2), Some(PolicyVersion(1))));
    assert_eq!(answer(&engine, "the", 9).policy_version, version);
    assert!(alerts(&engine).is_empty(), "{:?}", alerts(&engine));
    assert_eq!(engine.status().trainer.pending_ratings, 0);
}

#[test]
fn a_trainer_that_panics_again_and_again_waits_longer_each_time_and_closes_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| (c.train.batch, c.train.auto) = (4, true)).unwrap();
    let hook = learning(&engine);
    hook.set_wake(panics("apa-train", u32::MAX));
    rate_some(&engine, 4);
    until("it panics", || engine.metrics().contains("\napa_trainer_panics_total 1\n"));
    rate_some(&engine, 4);
    std::thread::sleep(Duration::from_secs(2));
    assert!(engine.metrics().contains("\napa_trainer_panics_total 1\n"), "it spins");
    assert!(engine.status().trainer.reason.unwrap().contains("starts again in 5 s"));
    in_time(move || engine.shutdown());
}

#[tokio::test]
async fn the_schedulers_end_closes_every_call_and_health_says_so() {
    let server = Server::of(&crate::support::tiny::TinySpec::new("llama"), |c| c.serve.max_tokens = 500).await;
    let engine = server.engine.clone();
    let error = in_time(move || {
        let endless = |seed| {
            let mut asked = request(&engine, "the", seed);
            asked.sampling.logit_bias = (285..288).map(|token| (token, -100.0)).collect();
            engine.generate(asked).unwrap()
        };
        let (first, second) = (endless(1), endless(2));
        first.set_wake(panics("apa-scheduler", 1));
        let errors = (finish(&first).unwrap_err().code(), finish(&second).unwrap_err().code());
        assert_eq!(errors, (Code::Closed, Code::Closed));
        assert_eq!(engine.status().load.running + engine.status().load.queued, 0);
        for _ in 0..200 {
            let later = engine.generate(request(&engine, "the", 3)).and_then(|stream| finish(&stream));
            assert_eq!(later.err().unwrap().code(), Code::Closed);
        }
        engine.activate(PolicyVersion(0)).unwrap_err()
    });
    assert_eq!(error.code(), Code::Closed, "{error}");
    let (status, health) = server.get("/health").await;
    assert_eq!((status.as_u16(), &health["status"]), (503, &json!("closed")), "{health}");
    assert_eq!(health["alerts"][0]["kind"], "scheduler_panicked", "{health}");
    let (status, body) = server.post("/v1/completions", json!({"prompt": "the"})).await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (503, &json!("closed")), "{body}");
    let metrics = server.client.get(format!("{}/metrics", server.url)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("\napa_scheduler_panics_total 1\n"), "{metrics}");
    server.close().await;
}

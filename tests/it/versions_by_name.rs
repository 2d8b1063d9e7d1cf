//! Requests that ask for a version by its number, beside those that take the one that serves, on a tiny model.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::server::{Server, message};
use crate::support::tiny::TinySpec;

/// A server with `count` versions beside the initial model.
async fn taught(count: usize) -> Server {
    let server = Server::of(&TinySpec::new("llama"), |config| config.gate.examine = false).await;
    for seed in 0..count as u64 {
        for (i, rating) in [1.0, -1.0, 1.0, -1.0].into_iter().enumerate() {
            let answer = server.say(10 * seed + i as u64).await;
            let said = json!({"generation_id": answer["choices"][0]["generation_id"], "rating": rating});
            assert_eq!(server.post("/v1/feedback", said).await.0, StatusCode::OK);
        }
        let (status, outcome) = server.post("/v1/trainer/step", json!({})).await;
        assert_eq!((status, &outcome["outcome"]), (StatusCode::OK, &"published".into()), "{outcome}");
    }
    server
}

async fn ask(server: &Server, model: &str, max_tokens: u32) -> (StatusCode, Value) {
    let messages = json!([{"role": "user", "content": "hello"}]);
    let body = json!({"model": model, "messages": messages, "max_tokens": max_tokens, "seed": 1});
    server.post("/v1/chat/completions", body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_gets_the_version_that_it_names_and_no_other() {
    let server = taught(2).await;
    for (model, version) in [("any@0", 0), ("any@1", 1), ("any@2", 2), ("any@active", 2), ("any", 2), ("any@0", 0)] {
        let (status, answer) = ask(&server, model, 4).await;
        assert_eq!((status, &answer["policy_version"]), (StatusCode::OK, &version.into()), "{model}: {answer}");
        // Kept by its own client alone: the next one may name another.
    }
    let (status, error) = ask(&server, "any@9", 4).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{error}");
    assert!(message(&error).contains('9'), "{error}");

    let (_, models) = server.get("/v1/models").await;
    let names: Vec<&str> = models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["tiny llama", "tiny llama@2", "tiny llama@1", "tiny llama@0"]);
    for (name, version) in [("tiny llama@1", Some(1)), ("tiny llama@active", Some(2)), ("tiny llama@9", None)] {
        let (status, model) = server.get(&format!("/v1/models/{name}")).await;
        assert_eq!(status == StatusCode::OK, version.is_some(), "{name}: {model}");
        assert_eq!(model["policy_version"].as_u64(), version, "{name}");
    }
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_whose_own_name_ends_like_a_version_is_found_by_it() {
    let server = Server::of(&TinySpec::new("llama"), |c| c.serve.alias = Some("org/name@3".into())).await;
    for (name, found) in [("org/name@3", true), ("org/name@3@0", true), ("org/name@3@9", false), ("any@0", true)] {
        let (status, answer) = ask(&server, name, 2).await;
        assert_eq!(status == StatusCode::OK, found, "{name}: {answer}");
        let (status, card) = server.get(&format!("/v1/models/{name}")).await;
        assert_eq!(status == StatusCode::OK, found && name != "any@0", "{name}: {card}");
    }
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_that_are_named_and_versions_that_are_activated_never_take_each_others_place() {
    let server = taught(2).await;
    for round in 0..12 {
        let wanted = 1 + round % 2;
        let (activated, named, other) = tokio::join!(
            server.post("/v1/policy/activate", json!({"version": wanted})),
            ask(&server, "any@0", 16),
            ask(&server, "any@0", 3),
        );
        assert_eq!(activated.0, StatusCode::OK, "{}", activated.1);
        for (status, answer) in [named, other] {
            assert_eq!((status, &answer["policy_version"]), (StatusCode::OK, &0.into()), "round {round}: {answer}");
        }
        let (_, answer) = ask(&server, "any", 2).await;
        assert_eq!(answer["policy_version"], wanted, "round {round}");
    }
    // Nothing is left beside the one that serves.
    let before = Instant::now();
    loop {
        let (_, status) = server.get("/v1/status").await;
        if status["serving_versions"] == json!([2]) {
            break;
        }
        assert!(before.elapsed() < Duration::from_secs(10), "{status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.close().await;
}

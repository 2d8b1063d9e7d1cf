//! The HTTP service on a tiny model, over a real socket.

use std::time::Duration;

use apa::config::HttpConfig;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::server::{Server, message};
use crate::support::tiny::{TinySpec, tiny_model};

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_answer_has_openais_shape_and_is_on_record() {
    let server = Server::start().await;
    let answer = server.say(1).await;
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["policy_version"], 0);
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(["stop", "length"].contains(&choice["finish_reason"].as_str().unwrap()), "{answer}");
    let usage = &answer["usage"];
    let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);

    let (status, stored) = server.get(&format!("/v1/generations/{}", answer["id"].as_str().unwrap())).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(stored["text"], choice["message"]["content"]);
    assert_eq!(stored["response"].as_array().unwrap().len() as u64, usage["completion_tokens"]);
    assert_eq!(stored["sampling"]["seed"], 1);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_adds_up_to_the_answer_and_ends_with_done() {
    let server = Server::start().await;
    let body = json!({"prompt": "the", "seed": 3, "max_tokens": 20, "stream": true,
        "stream_options": {"include_usage": true}});
    let events = server.stream("/v1/completions", body).await;
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    let chunks: Vec<Value> = events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    let text: String = chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
    let usage = &chunks.last().unwrap()["usage"];
    assert!(chunks.last().unwrap()["choices"].as_array().unwrap().is_empty());
    let last = &chunks[chunks.len() - 2];
    assert_eq!(last["policy_version"], 0);

    let (_, stored) = server.get(&format!("/v1/generations/{}", last["id"].as_str().unwrap())).await;
    assert_eq!(stored["text"], text);
    assert_eq!(stored["finish"], last["choices"][0]["finish_reason"]);
    assert_eq!(usage["completion_tokens"], stored["response"].as_array().unwrap().len());

    let body = json!({"messages": [{"role": "user", "content": "hi"}], "stream": true, "max_tokens": 5});
    let events = server.stream("/v1/chat/completions", body).await;
    let first: Value = serde_json::from_str(&events[0]).unwrap();
    assert_eq!(first["object"], "chat.completion.chunk");
    assert_eq!(first["choices"][0]["delta"]["role"], "assistant");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_gives_the_same_answer_however_it_is_asked_for() {
    let server = Server::start().await;
    let body = json!({"prompt": "once", "seed": 9, "max_tokens": 16});
    let (_, whole) = server.post("/v1/completions", body.clone()).await;
    let mut streamed = body;
    streamed["stream"] = true.into();
    let events = server.stream("/v1/completions", streamed).await;
    let pieces = events.iter().filter_map(|e| serde_json::from_str::<Value>(e).ok());
    let text: String = pieces.filter_map(|c| c["choices"][0]["text"].as_str().map(str::to_owned)).collect();
    assert_eq!(whole["choices"][0]["text"], text);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_400_and_a_sentence_that_helps() {
    let server = Server::start().await;
    let id = server.say(1).await["id"].as_str().unwrap().to_owned();
    let long = "word ".repeat(4000);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("/v1/chat/completions", b"{".to_vec(), "not valid JSON"),
        ("/v1/chat/completions", b"\xff\xfe".to_vec(), "UTF-8"),
        ("/v1/chat/completions", b"[]".to_vec(), "JSON object"),
        ("/v1/chat/completions", b"{}".to_vec(), "messages"),
        ("/v1/chat/completions", br#"{"messages": "hi"}"#.to_vec(), "messages is a string"),
        ("/v1/completions", br#"{"prompt": "a", "temperature": "hot"}"#.to_vec(), "temperature is a string"),
        ("/v1/completions", br#"{"prompt": "a", "max_tokens": -1}"#.to_vec(), "max_tokens is -1"),
        ("/v1/completions", br#"{"prompt": [999999]}"#.to_vec(), "999999"),
        ("/v1/completions", json!({"prompt": long}).to_string().into_bytes(), "token"),
        ("/v1/feedback", json!({"generation_id": id, "rating": 1.5}).to_string().into_bytes(), "rating is 1.5"),
        ("/v1/feedback", json!({"generation_id": id, "rating": "NaN"}).to_string().into_bytes(), "rating is a string"),
        ("/v1/feedback", format!(r#"{{"generation_id": "{id}", "rating": NaN}}"#).into_bytes(), "not valid JSON"),
        ("/v1/feedback", json!({"generation_id": id}).to_string().into_bytes(), "expected one of rating"),
        ("/v1/policy/activate", br#"{"version": "one"}"#.to_vec(), "version"),
        ("/v1/policy/rollback", Vec::new(), "initial"),
    ];
    for (path, body, part) in cases {
        let shown = String::from_utf8_lossy(&body).chars().take(80).collect::<String>();
        let (status, answer) = server.call(Method::POST, path, body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {shown}: {answer}");
        assert!(message(&answer).contains(part), "{path} {shown}: {answer}");
        assert_eq!(answer["error"]["type"], "invalid_request_error", "{answer}");
    }
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistyped_field_is_refused_by_its_nearest_name_and_nothing_is_done() {
    let server = Server::start().await;
    let id = server.say(1).await["id"].as_str().unwrap().to_owned();
    let (other, sample) = (server.say(2).await["id"].clone(), json!({"prompt": "a", "completion": "b"}));
    let with = |mut body: Value, field: &str, value: Value| {
        body[field] = value;
        body
    };
    let cases = [
        ("/v1/feedback", json!({"generation_id": id, "comment": "c", "ratng": -1}), "rating"),
        ("/v1/feedback", json!({"generation_id": id, "ratng": -1}), "rating"),
        ("/v1/feedback", json!({"generation_id": id, "thumbs": "up", "usr": "ann"}), "user"),
        ("/v1/samples", with(sample.clone(), "rewrd", 1.into()), "reward"),
        ("/v1/samples", with(sample, "usr", "ann".into()), "user"),
        ("/v1/preferences", json!({"chosen_id": id, "rejected_id": other, "usr": "ann"}), "user"),
        ("/v1/policy/activate", json!({"version": 0, "hole": true}), "whole"),
        ("/v1/policy/adopt", json!({"nme": "000001"}), "name"),
        ("/v1/feedback/reviews", json!({"user": "ann", "verdict": "trust", "verdct": "hold"}), "verdict"),
        ("/v1/forget", json!({"user": "ann", "unlern": true}), "unlearn"),
        ("/v1/embeddings", json!({"input": "a", "dimension": 9}), "dimensions"),
        ("/v1/score", json!({"prompt": "a", "completions": ["b"], "parse_specal": true}), "parse_special"),
        ("/v1/rerank", json!({"query": "a", "documents": ["b"], "topn": 1}), "top_n"),
        ("/tokenize", json!({"content": "a", "add_specal": true}), "add_special"),
        ("/detokenize", json!({"tokens": [1], "token": [2]}), "tokens"),
    ];
    for (path, body, meant) in cases {
        let (status, answer) = server.post(path, body.clone()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {body}: {answer}");
        assert!(message(&answer).ends_with(&format!("did you mean {meant:?}?")), "{path} {body}: {answer}");
    }
    for path in ["/v1/trainer/step", "/v1/trainer/rollout", "/v1/policy/rollback"] {
        let (status, answer) = server.post(path, json!({"version": 1})).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {answer}");
        assert_eq!(message(&answer), "unknown field \"version\", expected none", "{path}");
    }
    let (_, record) = server.get(&format!("/v1/generations/{id}")).await;
    assert_eq!(record["feedback"], json!([]));
    // Clients of these APIs send more than is known here.
    let (status, _) = server.post("/v1/completions", json!({"prompt": "a", "max_tokens": 1, "service_tier": 1})).await;
    assert_eq!(status, StatusCode::OK);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_gets_404_and_a_body_too_large_413() {
    let server = Server::with(HttpConfig { body_limit: 10_000, ..HttpConfig::default() }).await;
    for (method, path, body) in [
        (Method::GET, "/v1/generations/nobody", json!({})),
        (Method::POST, "/v1/feedback", json!({"generation_id": "nobody", "rating": 1})),
        (Method::POST, "/v1/policy/activate", json!({"version": 7})),
        (Method::GET, "/v2/models", json!({})),
    ] {
        let (status, answer) = server.call(method, path, body.to_string()).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}: {answer}");
        assert!(!message(&answer).is_empty());
    }
    let (status, _) = server.get("/v1/feedback").await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    let (status, answer) = server.post("/v1/completions", json!({"prompt": "a".repeat(10_000)})).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(message(&answer).contains("10000 bytes"), "{answer}");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ratings_and_a_step_publish_a_version_that_answers_until_rolled_back() {
    let server = Server::start().await;
    for seed in 0..4 {
        let id = server.say(seed).await["id"].clone();
        let rating = if seed % 2 == 0 { 1.0 } else { -1.0 };
        let (status, receipt) = server.post("/v1/feedback", json!({"generation_id": id, "rating": rating})).await;
        assert_eq!((status, &receipt["policy_version"]), (StatusCode::OK, &json!(0)), "{receipt}");
    }
    let (_, trainer) = server.get("/v1/trainer").await;
    assert_eq!(trainer["pending_ratings"], 4);

    let (status, outcome) = server.post("/v1/trainer/step", json!({})).await;
    assert_eq!((status, &outcome["outcome"]), (StatusCode::OK, &json!("published")), "{outcome}");
    assert_eq!(outcome["version"], 1);
    assert_eq!(server.say(1).await["policy_version"], 1);
    let (_, versions) = server.get("/v1/policy/versions").await;
    let active: Vec<&Value> = versions["data"].as_array().unwrap().iter().map(|v| &v["active"]).collect();
    assert_eq!(active, [false, true], "{versions}");

    let (status, back) = server.post("/v1/policy/rollback", json!({})).await;
    assert_eq!((status, &back["policy_version"]), (StatusCode::OK, &json!(0)), "{back}");
    assert_eq!(server.say(1).await["policy_version"], 0);
    let (status, _) = server.post("/v1/policy/activate", json!({"version": 1})).await;
    assert_eq!(status, StatusCode::OK);
    let by_adapter = server.say(1).await;
    assert_eq!(by_adapter["policy_version"], 1);

    // The same version by weights of its own, which another seed's can be told from.
    let whole = server.folder.path().join("data/whole");
    let activate = json!({"version": 1, "whole": true});
    let (status, refused) = server.post("/v1/policy/activate", activate.clone()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(message(&refused).contains("whole/1.gguf"), "{refused}");
    std::fs::create_dir(&whole).unwrap();
    tiny_model(&whole.join("1.gguf"), &TinySpec { seed: 8, ..TinySpec::new("llama") }).unwrap();
    let (status, answer) = server.post("/v1/policy/activate", activate).await;
    assert_eq!((status, &answer["policy_version"]), (StatusCode::OK, &json!(1)), "{answer}");
    let by_file = server.say(1).await;
    assert_eq!(by_file["policy_version"], 1);
    assert_ne!(by_file["choices"][0], by_adapter["choices"][0]);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_cancels_its_answer() {
    let server = Server::start().await;
    // An answer may end by itself before its client is gone; not every one of ten seeds does.
    for seed in 0..10 {
        let body = json!({"prompt": "on and on", "max_tokens": 400, "seed": seed, "stream": true});
        let request = server.client.post(format!("{}/v1/completions", server.url)).body(body.to_string());
        let mut response = request.send().await.unwrap();
        let first = response.chunk().await.unwrap().unwrap();
        drop(response);
        let first = String::from_utf8_lossy(&first);
        let line = first.lines().find_map(|l| l.strip_prefix("data: ")).unwrap();
        let id = serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
        let stored = loop {
            match server.get(&format!("/v1/generations/{id}")).await {
                (StatusCode::OK, stored) => break stored,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        if stored["finish"] == "cancelled" {
            return server.close().await;
        }
    }
    panic!("no answer was cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_keys_set_only_their_holders_and_probes_get_in() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), "secret-of-sixteen-and-more\n").unwrap();
    let server = Server::with(HttpConfig { keys: Some(keys.path().into()), ..HttpConfig::default() }).await;
    let (status, answer) = server.get("/v1/models").await;
    assert_eq!((status, &answer["error"]["code"]), (StatusCode::UNAUTHORIZED, &json!("invalid_api_key")));
    let with = |key: &str| server.client.get(format!("{}/v1/models", server.url)).bearer_auth(key).send();
    assert_eq!(with("wrong").await.unwrap().status(), StatusCode::UNAUTHORIZED);
    assert_eq!(with("secret-of-sixteen-and-more").await.unwrap().status(), StatusCode::OK);
    assert_eq!(server.get("/health").await.0, StatusCode::OK);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn models_health_and_metrics_describe_the_engine() {
    let server = Server::start().await;
    server.say(1).await;
    let (_, models) = server.get("/v1/models").await;
    let name = models["data"][0]["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("/v1/models/{name}")).await.0, StatusCode::OK);
    assert_eq!(server.get("/v1/models/other").await.0, StatusCode::NOT_FOUND);
    assert_eq!(server.get("/health").await.1["status"], "ok");
    assert_eq!(server.get("/v1/status").await.1["completed"], 1);
    let page = server.client.get(format!("{}/metrics", server.url)).send().await.unwrap().text().await.unwrap();
    for line in ["apa_requests_completed_total 1", "apa_held_users 0", "apa_verdicts{ruling=\"refused\"} 0"] {
        assert!(page.contains(&format!("\n{line}\n")), "{page}");
    }
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_lets_running_answers_end() {
    let mut server = Server::start().await;
    let body = json!({"prompt": "to the end", "max_tokens": 200, "seed": 5, "stream": true});
    let request = server.client.post(format!("{}/v1/completions", server.url)).body(body.to_string());
    let response = request.send().await.unwrap();
    server.ask_to_stop();
    assert!(response.text().await.unwrap().trim_end().ends_with("data: [DONE]"));
    server.served.await.unwrap().unwrap();
    tokio::task::spawn_blocking(move || server.engine.shutdown()).await.unwrap();
}

#[test]
fn the_document_of_the_api_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/HTTP.md");
    let now = apa::http::markdown();
    if std::env::var_os("APA_UPDATE_HTTP").is_some() {
        std::fs::write(path, &now).unwrap();
    }
    let document = std::fs::read_to_string(path).unwrap();
    assert!(now == document, "docs/HTTP.md is not what the endpoints say: run make docs");
}

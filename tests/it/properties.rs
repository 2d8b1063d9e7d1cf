//! What holds for every request, over HTTP, on a tiny model: its names, its template, how it is sampled by default.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::server::Server;
use crate::support::tiny::TinySpec;

async fn sampled(server: &Server, more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (status, answer) = server.post("/v1/chat/completions", body).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let id = answer["choices"][0]["generation_id"].as_str().unwrap();
    server.get(&format!("/v1/generations/{id}")).await.1["sampling"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_says_nothing_of_sampling_gets_the_settings_and_its_own_values_win() {
    let server = Server::of(&TinySpec::new("llama"), |config| {
        config.serve.sampling.temperature = Some(0.5);
        config.serve.sampling.top_p = Some(0.75);
    })
    .await;
    let (_, props) = server.get("/props").await;
    let params = &props["default_generation_settings"]["params"];
    assert_eq!((&params["temperature"], &params["top_p"], &params["min_p"]), (&0.5.into(), &0.75.into(), &0.0.into()));
    let default = sampled(&server, json!({})).await;
    assert_eq!((&default["temperature"], &default["top_p"], &default["top_k"]), (&0.5.into(), &0.75.into(), &0.into()));
    let own = sampled(&server, json!({"temperature": 1, "top_k": 7})).await;
    assert_eq!((&own["temperature"], &own["top_p"], &own["top_k"]), (&1.0.into(), &0.75.into(), &7.into()));
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_goes_by_its_name_and_by_the_one_it_was_asked_for() {
    let server = Server::of(&TinySpec::new("llama"), |config| config.serve.alias = Some("short".into())).await;
    let names = [("tiny llama", true), ("short", true), ("short@0", true), ("short@7", false), ("tiny", false)];
    for (name, known) in names {
        let (status, model) = server.get(&format!("/v1/models/{name}")).await;
        assert_eq!(status == StatusCode::OK, known, "{name}: {model}");
        assert_eq!(model["id"].as_str().is_some_and(|id| id.contains("@0")), name.contains("@0"), "{model}");
    }
    let (_, models) = server.get("/v1/models").await;
    let listed: Vec<&str> = models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(listed, ["tiny llama", "short", "tiny llama@0"]);
    let (_, props) = server.get("/props").await;
    assert_eq!((&props["model_alias"], &props["model"]), (&"short".into(), &"tiny llama".into()));
    assert_eq!(props["default_generation_settings"]["n_ctx"], 2048);
    assert!(props["chat_template"].as_str().unwrap().contains("<|im_start|>"));
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_is_applied_as_for_an_answer() {
    let server = Server::start().await;
    let messages = json!([{"role": "user", "content": "hello"}]);
    let (status, made) = server.post("/apply-template", json!({"messages": messages})).await;
    assert_eq!(status, StatusCode::OK, "{made}");
    assert_eq!(made["prompt"], "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n");
    let (status, error) = server.post("/apply-template", json!({"messages": []})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{error}");
    server.close().await;
}

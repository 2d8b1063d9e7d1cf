//! The same answers in Anthropic's and in OpenAI's newer form, over a real socket: events in their order, and what is
//! kept of responses and for whom.

use apa::config::HttpConfig;
use apa::http::{Scope, add_key};
use apa::types::GenerationId;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::on_disk;
use crate::support::server::{Server, message};
use crate::support::tiny::{TOOLS, TinySpec};

/// Events with their names, which their data repeats.
async fn events(server: &Server, path: &str, mut body: Value) -> Vec<Value> {
    body["stream"] = true.into();
    let request = server.client.post(format!("{}{path}", server.url)).body(body.to_string());
    let text = request.send().await.unwrap().text().await.unwrap();
    let blocks = text.split("\n\n").filter(|block| block.contains("data: "));
    blocks
        .map(|block| {
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            let data: Value = serde_json::from_str(field("data: ")).unwrap();
            assert_eq!(data["type"], field("event: "), "{block}");
            data
        })
        .collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    kinds.dedup();
    kinds
}

async fn tools_server() -> Server {
    Server::of(&TinySpec { template: TOOLS, ..TinySpec::new("llama") }, |config| config.serve.max_tokens = 300).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_streamed_in_the_order_that_its_clients_expect() {
    let server = tools_server().await;
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 12, "temperature": 0});
    let (status, whole) = server.post("/v1/messages", body.clone()).await;
    assert_eq!(status, StatusCode::OK, "{whole}");
    let told = events(&server, "/v1/messages", body).await;
    assert_eq!(kinds(&told)[..2], ["message_start", "content_block_start"]);
    assert_eq!(kinds(&told)[2..], ["content_block_delta", "content_block_stop", "message_delta", "message_stop"]);
    let text: String = told.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
    assert_eq!(whole["content"], json!([{"type": "text", "text": text}]));
    let last = &told[told.len() - 2];
    assert_eq!(last["delta"]["stop_reason"], whole["stop_reason"]);
    assert_eq!(last["usage"], whole["usage"]);
    assert!(whole["policy_version"] == 0 && whole["id"].as_str().unwrap().starts_with("gen-"), "{whole}");
    let (status, refused) = server.post("/v1/messages", json!({"messages": []})).await;
    assert!(status == StatusCode::BAD_REQUEST && message(&refused).starts_with("messages is empty"), "{refused}");
    assert_eq!(refused["type"], "error");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_the_assistant_is_continued() {
    let server = tools_server().await;
    let counted = async |messages: Value| {
        let (status, count) = server.post("/v1/messages/count_tokens", json!({"messages": messages})).await;
        assert_eq!(status, StatusCode::OK, "{count}");
        count["input_tokens"].as_u64().unwrap()
    };
    let asked = json!({"role": "user", "content": "hi"});
    let open = counted(json!([asked, {"role": "assistant", "content": "It"}])).await;
    let closed = counted(json!([asked, {"role": "assistant", "content": "It"}, asked])).await;
    assert!(open < closed && open > counted(json!([asked])).await);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_is_streamed_in_the_order_that_its_clients_expect() {
    let server = tools_server().await;
    let body = json!({"input": "hi", "max_output_tokens": 12, "temperature": 0, "metadata": {"a": "b"}});
    let (status, whole) = server.post("/v1/responses", body.clone()).await;
    assert_eq!(status, StatusCode::OK, "{whole}");
    let told = events(&server, "/v1/responses", body).await;
    let numbers: Vec<u64> = told.iter().map(|event| event["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..told.len() as u64).collect::<Vec<_>>());
    let kinds = kinds(&told);
    let begun = ["response.created", "response.in_progress", "response.output_item.added"];
    assert_eq!(kinds[..3], begun);
    let ended = ["response.output_text.done", "response.content_part.done", "response.output_item.done"];
    assert_eq!(kinds[kinds.len() - 4..kinds.len() - 1], ended);
    let last = &told.last().unwrap()["response"];
    assert_eq!(kinds.last().unwrap().strip_prefix("response."), last["status"].as_str());
    for same in ["status", "usage", "incomplete_details", "metadata", "policy_version", "store"] {
        assert_eq!(last[same], whole[same], "{same}");
    }
    assert_eq!(last["output"][0]["content"], whole["output"][0]["content"]);
    assert_eq!(whole["metadata"], json!({"a": "b"}));
    // What a client reads later is what it was told.
    let (_, kept) = server.get(&format!("/v1/responses/{}", whole["id"].as_str().unwrap())).await;
    assert_eq!(kept, whole);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_goes_on_from_one_and_its_user_may_have_it_forgotten() {
    let server = tools_server().await;
    let ask = async |body: Value| server.post("/v1/responses", body).await;
    let (_, first) = ask(json!({"input": "the first", "max_output_tokens": 4, "user": "ann"})).await;
    let second = json!({"input": "the second", "max_output_tokens": 4, "previous_response_id": first["id"],
        "instructions": "Be brief."});
    let (status, second) = ask(second).await;
    assert_eq!(status, StatusCode::OK, "{second}");
    let (_, stored) = server.get(&format!("/v1/generations/{}", second["id"].as_str().unwrap())).await;
    let (_, text) = server.post("/detokenize", json!({"tokens": stored["prompt"]})).await;
    let text = text["content"].as_str().unwrap();
    let at = |words: &str| text.find(words).unwrap_or_else(|| panic!("no {words} in {text}"));
    assert!(at("Be brief.") < at("the first") && at("the first") < at("the second"), "{text}");
    let long = "x".repeat(70_000);
    let (_, untold) = ask(json!({"input": "hi", "metadata": {"a": long}, "max_output_tokens": 2})).await;
    assert_eq!(untold["store"], false, "too long to be kept");
    let (_, third) = ask(json!({"input": "the third", "max_output_tokens": 4})).await;
    let third = format!("/v1/responses/{}", third["id"].as_str().unwrap());
    for expected in [StatusCode::OK, StatusCode::NOT_FOUND] {
        assert_eq!(server.call(Method::DELETE, &third, "").await.0, expected);
    }
    server.post("/v1/forget", json!({"user": "ann"})).await;
    let (status, gone) = ask(json!({"input": "more", "previous_response_id": second["id"]})).await;
    assert!(status == StatusCode::NOT_FOUND && message(&gone).contains("not kept"), "{gone}");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answers_that_go_on_from_a_forgotten_one_go_with_it_whoever_asked_for_them() {
    let server = tools_server().await;
    let ask = async |body: Value| {
        let (status, answer) = server.post("/v1/responses", body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer["id"].as_str().unwrap().to_owned()
    };
    let after = |previous: &str, user: Value| {
        json!({"input": "go on", "previous_response_id": previous, "user": user,
        "max_output_tokens": 4})
    };
    let hers = ask(json!({"input": "my PIN is zanzibar", "user": "ann", "max_output_tokens": 4})).await;
    let unnamed = ask(after(&hers, Value::Null)).await;
    let his = ask(after(&unnamed, "bob".into())).await;
    // Neither what is not kept nor what is dropped loses the trace.
    let mut untold = after(&his, "eve".into());
    untold["store"] = false.into();
    let untold = ask(untold).await;
    server.call(Method::DELETE, &format!("/v1/responses/{unnamed}"), "").await;
    let apart = ask(json!({"input": "something else", "user": "bob", "max_output_tokens": 4})).await;
    let record = async |id: &str| server.get(&format!("/v1/generations/{id}")).await;
    assert_eq!(record(&unnamed).await.1["user"], "ann", "it has the user of the one before it");
    let words = server.engine.tokenize_bare("zanzibar").unwrap();
    let words: Vec<u8> = words.iter().flat_map(|token| token.to_le_bytes()).collect();
    let data = server.folder.path().join("data");
    assert!(on_disk(&data, b"zanzibar") && on_disk(&data, &words));

    let (_, gone) = server.post("/v1/forget", json!({"user": "ann"})).await;
    assert_eq!((&gone["generations"], &gone["overwritten"]), (&json!(4), &json!(true)), "{gone}");
    for id in [&hers, &unnamed, &his, &untold] {
        assert_eq!(record(id).await.0, StatusCode::NOT_FOUND);
    }
    assert_eq!(record(&apart).await.0, StatusCode::OK);
    assert!(!on_disk(&data, b"zanzibar") && !on_disk(&data, &words), "her words are still on disk");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_is_kept_for_whom_it_was_made() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    let [app, other] = ["app", "other"].map(|name| add_key(&file, name, Scope::Client, None).unwrap());
    let server = Server::with(HttpConfig { keys: Some(file), ..HttpConfig::default() }).await;
    // In the header of Anthropic's clients.
    let ask = async |key: &str, body: Value| {
        let request = server.client.post(format!("{}/v1/responses", server.url)).header("x-api-key", key);
        let response = request.body(body.to_string()).send().await.unwrap();
        (response.status(), response.json::<Value>().await.unwrap())
    };
    let (status, first) = ask(&app, json!({"input": "a", "max_output_tokens": 2})).await;
    assert_eq!(status, StatusCode::OK, "{first}");
    let next = json!({"input": "b", "max_output_tokens": 2, "previous_response_id": first["id"]});
    assert_eq!(ask(&app, next.clone()).await.0, StatusCode::OK);
    assert_eq!(ask(&other, next.clone()).await.0, StatusCode::NOT_FOUND);
    // The user whom the key named stays the user.
    let (_, anns) = ask(&app, json!({"input": "a", "user": "ann", "max_output_tokens": 2})).await;
    let (_, after) = ask(&app, json!({"input": "b", "max_output_tokens": 2, "previous_response_id": anns["id"]})).await;
    let after = GenerationId(after["id"].as_str().unwrap().into());
    assert_eq!(server.engine.generation(&after).unwrap().unwrap().user.as_deref(), Some("app/ann"));
    assert_eq!(ask("nobody's", next).await.0, StatusCode::UNAUTHORIZED);
    server.close().await;
}

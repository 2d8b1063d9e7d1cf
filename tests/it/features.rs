//! What shapes and describes an answer (log-probabilities, biases, formats, several answers) over HTTP and through C,
//! on a tiny model; and that what can't be done is an error for that request alone.

use apa::ffi::{apa_generate, apa_status};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::capi;
use crate::support::server::{Server, message};

fn chat(members: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hello"}], "seed": 5, "max_tokens": 8});
    for (key, value) in members.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

impl Server {
    async fn ok(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.post(path, body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer
    }

    async fn chat_ok(&self, members: Value) -> Value {
        self.ok("/v1/chat/completions", chat(members)).await
    }

    /// The chunks of a stream that ended well.
    async fn chunks(&self, path: &str, body: Value) -> Vec<Value> {
        let events = self.stream(path, body).await;
        assert_eq!(events.last().map(String::as_str), Some("[DONE]"), "{events:?}");
        events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).unwrap()).collect()
    }
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn logprobs_are_the_models_own_whole_and_streamed() {
    let server = Server::start().await;
    let asked = json!({"logprobs": true, "top_logprobs": 20, "temperature": 0.5, "seed": 3});
    let answer = server.chat_ok(asked.clone()).await;
    let told = answer["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert!(!told.is_empty(), "{answer}");
    let bytes: Vec<u8> =
        told.iter().flat_map(|t| t["bytes"].as_array().unwrap()).map(|b| b.as_u64().unwrap() as u8).collect();
    assert_eq!(String::from_utf8_lossy(&bytes), content(&answer));
    for token in &told {
        let top: Vec<f64> =
            token["top_logprobs"].as_array().unwrap().iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
        assert_eq!(top.len(), 20);
        assert!(top.is_sorted_by(|a, b| a >= b), "{top:?}");
        assert!(top.iter().map(|l| l.exp()).sum::<f64>() <= 1.0 + 1e-4, "{top:?}");
        assert!(token["logprob"].as_f64().unwrap() <= top[0]);
    }
    // The temperature changes the draw, not what is told of it: the most probable first token's log-probability stays.
    let hot = server
        .chat_ok(json!({"logprobs": true, "top_logprobs": 1, "temperature": 2.0, "seed": 4, "max_tokens": 1}))
        .await;
    let best = |t: &Value| t["top_logprobs"][0]["logprob"].as_f64().unwrap();
    assert!((best(&hot["choices"][0]["logprobs"]["content"][0]) - best(&told[0])).abs() < 1e-3, "{hot}");

    let mut streamed = chat(asked);
    streamed["stream"] = true.into();
    let chunks = server.chunks("/v1/chat/completions", streamed).await;
    let pieces: Vec<Value> =
        chunks.iter().filter_map(|c| c["choices"][0]["logprobs"]["content"].as_array()).flatten().cloned().collect();
    let ids = |tokens: &[Value]| tokens.iter().map(|t| t["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&pieces), ids(&told));

    let plain = server.chat_ok(json!({})).await;
    assert!(plain["choices"][0]["logprobs"].is_null(), "{plain}");
    let text = server.ok("/v1/completions", json!({"prompt": "the", "logprobs": 2, "seed": 3, "max_tokens": 6})).await;
    let told = &text["choices"][0]["logprobs"];
    let lengths =
        ["tokens", "token_logprobs", "top_logprobs", "text_offset"].map(|k| told[k].as_array().unwrap().len());
    assert!(lengths[0] > 0 && lengths.iter().all(|n| *n == lengths[0]), "{told}");
    assert_eq!(told["top_logprobs"][0].as_object().unwrap().len(), 2, "{told}");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bias_of_100_forces_a_token_and_is_on_record() {
    let server = Server::start().await;
    let tokens = server.ok("/tokenize", json!({"content": "q"})).await["tokens"].clone();
    let q = tokens[0].to_string();
    let answer = server.chat_ok(json!({"logit_bias": {&q: 100}, "max_tokens": 5})).await;
    assert_eq!(content(&answer), "qqqqq");
    let (_, stored) = server.get(&format!("/v1/generations/{}", answer["id"].as_str().unwrap())).await;
    assert_eq!(stored["sampling"]["logit_bias"][&q], 100.0, "{stored}");
    let banned = server.chat_ok(json!({"logit_bias": {&q: -100}, "temperature": 10, "max_tokens": 200})).await;
    assert!(!content(&banned).contains('q'), "{banned}");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_keeps_to_its_schema_or_grammar_and_ends_with_it() {
    let server = Server::start().await;
    let schema = json!({"type": "object", "additionalProperties": false, "required": ["mood", "sure"], "properties": {
        "mood": {"enum": ["good", "bad"]}, "sure": {"type": "boolean"}}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "m", "strict": true, "schema": schema}});
    for seed in 0..5 {
        let answer = server.chat_ok(json!({"response_format": format, "seed": seed, "max_tokens": 200})).await;
        let value: Value = serde_json::from_str(content(&answer)).unwrap_or_else(|e| panic!("{e}: {answer}"));
        assert!(["good", "bad"].contains(&value["mood"].as_str().unwrap()) && value["sure"].is_boolean(), "{answer}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
    let object = server.chat_ok(json!({"response_format": {"type": "json_object"}, "max_tokens": 4})).await;
    assert!(content(&object).starts_with('{'), "{object}");

    let grammar = "root ::= \"é\" [a-c]{3} \"!\"";
    let body = json!({"prompt": "x", "grammar": grammar, "temperature": 0, "stream": true, "max_tokens": 30});
    let chunks = server.chunks("/v1/completions", body).await;
    let text: String = chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
    let middle = text.strip_prefix('é').and_then(|t| t.strip_suffix('!')).unwrap_or_else(|| panic!("{text:?}"));
    assert!(middle.len() == 3 && middle.chars().all(|c| ('a'..='c').contains(&c)), "{text:?}");
    let (_, stored) = server.get(&format!("/v1/generations/{}", chunks[0]["id"].as_str().unwrap())).await;
    assert!(stored["sampling"]["format"]["grammar"].as_str().unwrap().starts_with("root"), "{stored}");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_done_is_a_400_with_its_reason_and_the_next_request_works() {
    let server = Server::start().await;
    let schema = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}});
    let cases = [
        (json!({"grammar": "root ::= (\"a\""}), "line 1"),
        (json!({"grammar": "root ::= root \"a\""}), "allows none"),
        (json!({"grammar": "root ::= <nothing>"}), "vocabulary"),
        (json!({"grammar": format!("root ::= {}\"a\"", "(".repeat(100_000))}), "parentheses"),
        (schema(json!({"type": "rainbow"})), "response_format.json_schema.schema: type is"),
        (schema(json!({"$ref": "#/nowhere"})), "#/nowhere"),
        (json!({"response_format": {"type": "xml"}}), "expected text, json_object"),
        (json!({"logit_bias": {"999999": 1}}), "token 999999"),
        (
            json!({"logit_bias": (0..301).map(|i| (i.to_string(), json!(1))).collect::<serde_json::Map<_, _>>()}),
            "301 entries",
        ),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"n": 9}), "n is 9"),
    ];
    for (members, part) in cases {
        let (status, answer) = server.post("/v1/chat/completions", chat(members.clone())).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{part}: {answer}");
        assert!(message(&answer).contains(part), "{part}: {answer}");
        server.chat_ok(json!({"max_tokens": 2})).await;
    }
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grammar_whose_readings_double_with_every_token_is_served_like_others() {
    let server = Server::start().await;
    let answer = server
        .chat_ok(json!({"grammar": "root ::= \"q\" root \"x\" | \"q\" root \"y\" | \"z\"", "max_tokens": 60,
            "logit_bias": {"113": 100}}))
        .await;
    assert_eq!(answer["choices"][0]["message"]["content"], "q".repeat(60), "{answer}");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_answers_are_generations_of_their_own() {
    let server = Server::start().await;
    let whole = server.chat_ok(json!({"n": 3})).await;
    let choices = whole["choices"].as_array().unwrap();
    let mut tokens = 0;
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        let (_, stored) = server.get(&format!("/v1/generations/{}", choice["generation_id"].as_str().unwrap())).await;
        assert_eq!(stored["text"], choice["message"]["content"]);
        assert_eq!(stored["sampling"]["seed"], 5 + index);
        tokens += stored["response"].as_array().unwrap().len();
    }
    assert_eq!((choices.len(), &whole["usage"]["completion_tokens"]), (3, &json!(tokens)), "{whole}");
    assert_eq!(whole["id"], choices[0]["generation_id"]);

    let body = chat(json!({"n": 3, "stream": true, "stream_options": {"include_usage": true}}));
    let chunks = server.chunks("/v1/chat/completions", body).await;
    for (index, choice) in choices.iter().enumerate() {
        let of_it = chunks.iter().filter_map(|c| c["choices"].get(0)).filter(|c| c["index"] == index);
        let text: String = of_it.filter_map(|c| c["delta"]["content"].as_str()).collect();
        assert_eq!(choice["message"]["content"], text);
    }
    assert_eq!(chunks.last().unwrap()["usage"], whole["usage"]);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_becomes_tokens_and_back() {
    let server = Server::start().await;
    let text = "the sea, é <|im_end|>";
    let tokens = server.ok("/tokenize", json!({"content": text})).await["tokens"].clone();
    assert!(tokens.as_array().unwrap().len() > 5, "{tokens}");
    assert_eq!(server.ok("/detokenize", json!({"tokens": tokens})).await["content"], text);
    let (status, answer) = server.post("/detokenize", json!({"tokens": [1, 999_999]})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(message(&answer).contains("999999"), "{answer}");
    for (path, body) in [("/tokenize", json!({})), ("/detokenize", json!({"tokens": [-1]}))] {
        assert_eq!(server.post(path, body).await.0, StatusCode::BAD_REQUEST, "{path}");
    }
    server.close().await;
}

#[test]
fn a_program_in_c_gets_a_format_and_logprobs() {
    let opened = capi::open(&[]);
    let request = r#"{"prompt":"x","grammar":"root ::= \"yes\" | \"no\"","logprobs":1,"max_tokens":9,"seed":1}"#;
    // SAFETY: text with its length and locals.
    let result = capi::json(|out, error| unsafe {
        let status =
            apa_generate(opened.engine, request.as_ptr().cast(), request.len(), None, std::ptr::null_mut(), out, error);
        if status == apa_status::APA_DONE { apa_status::APA_OK } else { status }
    });
    assert!(["yes", "no"].contains(&result["text"].as_str().unwrap()), "{result}");
    let told = result["logprobs"].as_array().unwrap();
    let text: String = told.iter().map(|t| t["token"].as_str().unwrap()).collect();
    assert_eq!(result["text"], text);
    assert!(told.iter().all(|t| t["logprob"].as_f64().unwrap() < 0.0), "{result}");

    let (status, text) = capi::try_start(opened.engine, r#"{"prompt":"x","grammar":"root := 1"}"#).unwrap_err();
    assert_eq!(status, apa_status::APA_ERR_ARG);
    assert!(text.contains("expected ::="), "{text}");
    let (_, text) = capi::try_start(opened.engine, r#"{"prompt":"x","n":2}"#).unwrap_err();
    assert!(text.contains("n is 2"), "{text}");
}

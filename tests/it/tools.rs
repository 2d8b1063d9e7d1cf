//! Tools, reasoning and answers without an end, over a real socket: what is told whole is what is streamed.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::server::{Server, message};
use crate::support::tiny::{END, TEMPLATE, TOOLS, TinySpec, vocabulary};

async fn server(template: &'static str) -> Server {
    Server::of(&TinySpec { template, ..TinySpec::new("llama") }, |config| config.serve.max_tokens = 300).await
}

fn weather() -> Value {
    let parameters = json!({"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"],
        "additionalProperties": false});
    json!([{"type": "function", "function": {"name": "weather", "parameters": parameters}}])
}

fn asked(members: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Is it warm?"}], "max_tokens": 300});
    for (key, value) in members.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// The message and the end of an answer, put together from its chunks as clients do it.
async fn streamed(server: &Server, mut body: Value) -> (Value, Value, usize) {
    body["stream"] = true.into();
    let (mut message, mut finish, mut most) = (json!({"role": "assistant", "content": ""}), Value::Null, 0);
    let mut calls: Vec<Value> = Vec::new();
    for event in server.stream("/v1/chat/completions", body).await {
        let Ok(chunk) = serde_json::from_str::<Value>(&event) else { continue };
        let choice = &chunk["choices"][0];
        finish = choice["finish_reason"].clone();
        for key in ["content", "reasoning_content"] {
            if let Some(more) = choice["delta"][key].as_str() {
                let before = message[key].as_str().unwrap_or_default();
                message[key] = format!("{before}{more}").into();
            }
        }
        for delta in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = delta["index"].as_u64().unwrap() as usize;
            let more = delta["function"]["arguments"].as_str().unwrap();
            if index == calls.len() {
                assert!(more.is_empty() && delta["id"].is_string(), "{delta}");
                calls.push(json!({"id": delta["id"], "type": "function", "function": delta["function"]}));
            } else {
                assert!(delta["id"].is_null(), "{delta}");
                let arguments = &mut calls[index]["function"]["arguments"];
                *arguments = format!("{}{more}", arguments.as_str().unwrap()).into();
                most += 1;
            }
        }
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
        if message["content"].as_str().unwrap().trim().is_empty() {
            message["content"] = Value::Null;
        }
    }
    (message, finish, most)
}

/// Without the ids of the generation, which differ.
fn plain(mut message: Value) -> Value {
    for call in message["tool_calls"].as_array_mut().into_iter().flatten() {
        assert!(call["id"].as_str().unwrap().starts_with("call-"), "{call}");
        call["id"] = Value::Null;
    }
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_whose_template_knows_no_tools_calls_them_or_says_something() {
    let server = server(TEMPLATE).await;
    let (mut called, mut said, mut pieces) = (0, 0, 0);
    for seed in 0..24 {
        let body = asked(json!({"tools": weather(), "seed": seed, "temperature": 3}));
        let (status, answer) = server.post("/v1/chat/completions", body.clone()).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        let choice = &answer["choices"][0];
        let (message, finish, most) = streamed(&server, body).await;
        pieces = pieces.max(most);
        assert_eq!((plain(message), &finish), (plain(choice["message"].clone()), &choice["finish_reason"]));
        match choice["message"]["tool_calls"].as_array() {
            Some(calls) => {
                assert_eq!((calls.len(), calls[0]["function"]["name"].as_str()), (1, Some("weather")));
                let arguments = calls[0]["function"]["arguments"].as_str().unwrap();
                let valid = [json!({"unit": "C"}), json!({"unit": "F"})];
                assert!(finish == "length" || valid.contains(&serde_json::from_str(arguments).unwrap()), "{choice}");
                called += 1;
            }
            None => {
                let text = choice["message"]["content"].as_str().unwrap();
                assert!(!text.contains("\"response\""), "{choice}");
                said += usize::from(!text.is_empty());
            }
        }
    }
    assert!(called > 0 && said > 0 && pieces > 2, "{called} calls, {said} texts, {pieces} pieces");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_calls_and_results_are_text_where_the_template_knows_none() {
    let server = server(TEMPLATE).await;
    let call =
        json!({"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{\"unit\":\"C\"}"}});
    let messages = json!([{"role": "user", "content": "Is it warm?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "12"}]);
    let body = json!({"messages": messages, "tools": weather()});
    let (status, rendered) = server.post("/apply-template", body).await;
    assert_eq!(status, StatusCode::OK, "{rendered}");
    let text = rendered["prompt"].as_str().unwrap();
    assert!(text.starts_with("<|im_start|>system\nYou can call these functions:"), "{text}");
    assert!(text.contains("<|im_start|>assistant\n{\"name\":\"weather\",\"arguments\":{\"unit\":\"C\"}}"), "{text}");
    assert!(text.contains("<|im_start|>user\n{\"result_of\":\"weather\",\"content\":\"12\"}"), "{text}");
    // The end of the loop, where clients no longer name the tools.
    let (_, rendered) = server.post("/apply-template", json!({"messages": messages})).await;
    assert!(rendered["prompt"].as_str().unwrap().contains("\"result_of\":\"weather\""), "{rendered}");
    // The older form says the same.
    let older = json!([{"role": "user", "content": "Is it warm?"},
        {"role": "assistant", "content": null,
            "function_call": {"name": "weather", "arguments": "{\"unit\":\"C\"}"}},
        {"role": "function", "name": "weather", "content": "12"}]);
    assert_eq!(server.post("/apply-template", json!({"messages": older})).await.1, rendered);
    let alone = |role: &str| json!({"messages": [{"role": role, "name": "weather", "content": "12"}]});
    let (_, tool) = server.post("/apply-template", alone("tool")).await;
    assert_eq!(server.post("/apply-template", alone("function")).await.1, tool);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_an_answer_goes_on_with_stays_one_where_tools_are_told_as_text() {
    let server = server(TEMPLATE).await;
    let said = json!([{"role": "user", "content": "Is it warm?"}, {"role": "assistant", "content": "It"}]);
    let body = json!({"messages": said, "tools": weather(), "max_tokens": 9, "seed": 2, "ignore_eos": true});
    let (_, rendered) = server.post("/apply-template", body.clone()).await;
    let text = rendered["prompt"].as_str().unwrap();
    assert!(text.contains("You can call these functions:") && text.ends_with("<|im_start|>assistant\nIt"), "{text}");
    let (status, answer) = server.post("/v1/chat/completions", body).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let choice = &answer["choices"][0];
    assert!(
        !choice["message"]["content"].as_str().unwrap().is_empty() && choice["finish_reason"] == "length",
        "{choice}"
    );
    // Nor is it a call where it reads like one.
    let like = r#"{"name": "weather", "arguments": {"else": 1}}"#;
    let grammar = format!("root ::= {}", serde_json::to_string(like).unwrap());
    let body = json!({"messages": said, "tools": weather(), "max_tokens": 200, "grammar": grammar});
    let (_, answer) = server.post("/v1/chat/completions", body).await;
    let message_of = &answer["choices"][0]["message"];
    assert_eq!((&message_of["content"], &message_of["tool_calls"]), (&json!(like), &Value::Null), "{answer}");
    let demanded = json!({"messages": said, "tools": weather(), "tool_choice": "required",
        "continue_final_message": true});
    let (status, refused) = server.post("/v1/chat/completions", demanded.clone()).await;
    assert!(status == StatusCode::BAD_REQUEST && message(&refused).starts_with("continue_final_message"), "{refused}");
    let unsaid = demanded.as_object().unwrap().iter().filter(|(key, _)| *key != "continue_final_message");
    let (_, called) = server.post("/v1/chat/completions", unsaid.map(|(k, v)| (k.clone(), v.clone())).collect()).await;
    assert_eq!(called["choices"][0]["finish_reason"], "tool_calls", "{called}");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_refuses_the_system_has_the_tools_told_by_the_user() {
    const NO_SYSTEM: &str = "{% for message in messages %}{% if message['role'] == 'system' %}\
        {{ raise_exception('no system') }}{% endif %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}";
    let server = server(NO_SYSTEM).await;
    let (status, rendered) = server.post("/apply-template", asked(json!({"tools": weather()}))).await;
    assert_eq!(status, StatusCode::OK, "{rendered}");
    let text = rendered["prompt"].as_str().unwrap();
    assert!(text.starts_with("user: You can call") && text.ends_with("\n\nIs it warm?"), "{text}");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_demanded_is_streamed_by_pieces_of_its_arguments() {
    for template in [TEMPLATE, TOOLS] {
        let server = server(template).await;
        let body = asked(json!({"tools": weather(), "tool_choice": "required", "seed": 3}));
        let (_, answer) = server.post("/v1/chat/completions", body.clone()).await;
        let (message, finish, most) = streamed(&server, body).await;
        assert!(finish == "tool_calls" && most > 2, "{message}");
        assert_eq!(plain(message), plain(answer["choices"][0]["message"].clone()));
        server.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reasoning_is_told_apart_streamed_and_whole_unless_it_is_not_wanted() {
    let server = server(TEMPLATE).await;
    let grammar = "root ::= \"<think>\\nWhy? So.\\n</think>\\n\\nYes.\"";
    let body = asked(json!({"grammar": grammar}));
    let (_, answer) = server.post("/v1/chat/completions", body.clone()).await;
    let whole = &answer["choices"][0]["message"];
    assert_eq!((&whole["reasoning_content"], &whole["content"]), (&json!("Why? So."), &json!("Yes.")));
    let (message, ..) = streamed(&server, body).await;
    assert_eq!(message, *whole);
    let body = asked(json!({"grammar": grammar, "reasoning_format": "none"}));
    let (_, answer) = server.post("/v1/chat/completions", body).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "<think>\nWhy? So.\n</think>\n\nYes.");
    let (_, refused) = server.post("/v1/chat/completions", asked(json!({"reasoning_format": "x"}))).await;
    assert!(message_of(&refused).starts_with("reasoning_format is \"x\", expected auto"), "{refused}");
    server.close().await;
}

fn message_of(body: &Value) -> String {
    message(body).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_template_begins_to_think_is_reasoning() {
    const THINKS: &str = "{% for message in messages %}{{ message['content'] }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}";
    let server = server(THINKS).await;
    let body = asked(json!({"max_tokens": 20, "seed": 1, "ignore_eos": true}));
    let (_, answer) = server.post("/v1/chat/completions", body.clone()).await;
    let whole = &answer["choices"][0]["message"];
    assert!(whole["content"] == "" && !whole["reasoning_content"].as_str().unwrap().is_empty(), "{whole}");
    assert_eq!(streamed(&server, body).await.0, *whole);
    // Held to a format, all of it is the answer.
    let (_, answer) = server.post("/v1/chat/completions", asked(json!({"grammar": "root ::= \"Yes.\""}))).await;
    assert_eq!(answer["choices"][0]["message"], json!({"role": "assistant", "content": "Yes."}));
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_ignores_its_end_goes_on_to_the_limit() {
    let server = server(TEMPLATE).await;
    let end = vocabulary().iter().position(|token| token == END).unwrap();
    for temperature in [0, 1, 10] {
        let body = |ignore: bool| {
            asked(json!({"logit_bias": {end.to_string(): 100}, "ignore_eos": ignore, "max_tokens": 9,
                "temperature": temperature}))
        };
        let (_, short) = server.post("/v1/chat/completions", body(false)).await;
        assert_eq!(short["choices"][0]["finish_reason"], "stop");
        let (_, long) = server.post("/v1/chat/completions", body(true)).await;
        assert_eq!(
            (&long["choices"][0]["finish_reason"], &long["usage"]["completion_tokens"]),
            (&json!("length"), &json!(9))
        );
    }
    // A format still ends where nothing else may follow.
    let body = asked(json!({"grammar": "root ::= \"Yes.\"", "ignore_eos": true}));
    let (_, ended) = server.post("/v1/chat/completions", body).await;
    assert_eq!(ended["choices"][0]["finish_reason"], "stop", "{ended}");
    server.close().await;
}

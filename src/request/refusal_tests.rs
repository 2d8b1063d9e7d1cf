//! Tests of what is said of requests that can't be read.

use super::tests::{chat, refusal};
use super::*;

#[test]
fn a_refusal_names_the_field_and_what_was_expected() {
    assert_eq!(refusal(r#""temperature":11"#), "temperature is 11, expected a number from 0 to 10");
    assert_eq!(refusal(r#""temperature":"hot""#), "temperature is a string, expected a number from 0 to 10");
    assert_eq!(refusal(r#""top_p":1.1"#), "top_p is 1.1, expected a number from 0 to 1");
    assert_eq!(refusal(r#""top_k":1.5"#), "top_k is 1.5, expected a whole number from 0 to 1048576");
    assert_eq!(refusal(r#""max_tokens":0"#), "max_tokens is 0, expected a whole number from 1 to 4294967295");
    assert_eq!(refusal(r#""n":9"#), "n is 9, expected a whole number from 1 to 8");
    assert_eq!(refusal(r#""logit_bias":{"a":1}"#), "logit_bias has \"a\", expected a token's number");
    assert_eq!(refusal(r#""logit_bias":{"7":101}"#), "logit_bias of 7 is 101, expected a number from -100 to 100");
    assert!(refusal(r#""top_logprobs":3"#).starts_with("top_logprobs is set without logprobs"));
    assert_eq!(
        refusal(r#""logprobs":true,"top_logprobs":21"#),
        "top_logprobs is 21, expected a whole number from 0 to 20"
    );
    assert!(
        refusal(r#""response_format":{"type":"xml"}"#).starts_with("response_format: type is \"xml\", expected text")
    );
    assert!(refusal(r#""response_format":{}"#).starts_with("response_format: type is missing, expected text"));
    assert!(refusal(r#""response_format":{"type":5}"#).starts_with("response_format: type is 5, expected text"));
    assert!(refusal(r#""response_format":{"type":"json_schema"}"#).contains("json_schema is missing"));
    assert!(refusal(r#""grammar":"root ::= \"a\"","response_format":{"type":"json_object"}"#).contains("both grammar"));
    assert_eq!(refusal(r#""stop":"""#), "stop has a string of 0 bytes, expected 1 to 256 bytes each");
    assert_eq!(refusal(r#""stop":[1]"#), "stop is 1, expected a string or an array of strings");
    assert_eq!(refusal(r#""seed":1.5"#), "seed is 1.5, expected a 64-bit whole number");
    assert_eq!(refusal(r#""stream":"yes""#), "stream is a string, expected true or false");
    assert!(refusal(r#""tools":[{}]"#).starts_with("tools[0]: type is missing, expected function"));
    assert_eq!(refusal(r#""tools":[{"type":"x"}]"#), "tools[0]: type is \"x\", expected function");
    assert!(refusal(r#""tools":["f"]"#).starts_with("tools[0]: it is a string, expected {\"type\""));
    let refused = refusal(r#""tools":[{"type":"function","function":"f"}]"#);
    assert_eq!(refused, "tools[0]: function is a string, expected an object");
    let of = |function: &str| refusal(&format!(r#""tools":[{{"type":"function","function":{function}}}]"#));
    assert_eq!(of(r#"{"name":5}"#), "tools[0]: function.name is 5, expected a string");
    assert_eq!(of("{}"), "tools[0]: function.name is missing, expected a string");
    assert!(of(r#"{"name":"a b"}"#).starts_with("tools[0]: function.name is \"a b\", expected 1 to 64 letters"));
    let typed = of(r#"{"name":"f","parameters":{"type":"string"}}"#);
    assert_eq!(typed, "tools[0]: function.parameters.type is \"string\", expected \"object\"");
    let twice = r#""tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"f"}}]"#;
    assert_eq!(refusal(twice), "tools[0] and tools[1] are both named \"f\", expected one");
    let tool = r#""tools":[{"type":"function","function":{"name":"f"}}]"#;
    assert!(refusal(&format!(r#"{tool},"tool_choice":"any""#)).contains("tool_choice is \"any\", expected \"none\""));
    let choice = |choice: &str| refusal(&format!(r#"{tool},"tool_choice":{choice}"#));
    assert_eq!(
        choice(r#"{"type":"allowed_tools","mode":"x","tools":[{"name":"f"}]}"#),
        "tool_choice: mode is \"x\", expected auto or required"
    );
    assert_eq!(
        choice(r#"{"type":"function","name":"zz"}"#),
        "tool_choice names \"zz\", which is not among the tools, expected one of them"
    );
    assert_eq!(choice(r#"{"type":"x"}"#), "tool_choice: type is \"x\", expected function or allowed_tools");
    assert!(refusal(&format!(r#"{tool},"tool_choice":{{"function":{{"name":"g"}}}}"#)).contains("not among the tools"));
    for demand in [r#""required""#, r#"{"type":"function","function":{"name":"f"}}"#] {
        let refused = refusal(&format!(r#""tool_choice":{demand}"#));
        assert_eq!(refused, "tool_choice demands a call, and there are no tools, expected at least one");
    }
    assert_eq!(refusal(r#""temprature":1"#), "unknown field \"temprature\", did you mean \"temperature\"?");
    assert_eq!(chat("{}").unwrap_err().message(), "messages is missing");
    assert_eq!(chat("[]").unwrap_err().message(), "the body is an array, expected a JSON object");
    assert!(chat("{").unwrap_err().message().starts_with("the body is not valid JSON: "));
    let nameless = chat(r#"{"messages":[{"content":"hi"}]}"#).unwrap_err();
    assert_eq!(nameless.message(), "messages[0]: role is missing");
}

#[test]
fn a_format_that_says_two_things_or_none_is_refused() {
    let refusal = |format: &str| {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"hi"}}],"response_format":{format}}}"#);
        chat(&body).expect_err(format).message().to_owned()
    };
    assert!(refusal(r#"{"type":"text","json_schema":{"schema":{}}}"#).contains("type is text"));
    assert!(refusal(r#"{"type":"json_schema"}"#).contains("json_schema is missing"));
    assert!(refusal(r#"{"type":"json_schema","json_schema":{}}"#).contains("has no schema"));
    assert!(refusal(r#"{"type":"json_schema","json_schema":3}"#).contains("json_schema is 3"));
    assert!(refusal(r#"{"type":"json_schema","json_schema":{"schema":{}},"schema":{}}"#).contains("one of them"));
    assert!(refusal(r#"{"type":"json_schema","schema":"x"}"#).contains("the schema is a string"));
}

#[test]
fn an_error_repeats_only_the_beginning_of_a_long_word() {
    let long = "x".repeat(5000);
    for members in [
        format!(r#""tool_choice":"{long}""#),
        format!(r#""response_format":{{"type":"{long}"}}"#),
        format!(r#""reasoning_format":"{long}""#),
    ] {
        let said = refusal(&members);
        assert!(said.len() < 300 && said.contains("xxx...\""), "{said}");
    }
    let blocks = format!(r#"{{"messages":[{{"role":"user","content":[{{"type":"{long}"}}]}}]}}"#);
    assert!(parse_anthropic(blocks.as_bytes(), Unknown::Ignore).unwrap_err().message().len() < 200);
}

/// Also for a required key: that another one is missing is not the whole error.
#[test]
fn a_mistyped_key_is_answered_with_the_name_it_is_nearest_to() {
    let request = |body: &str| parse_request(body.as_bytes(), Unknown::Refuse).unwrap_err().message().to_owned();
    let chat = |member: &str| request(&format!(r#"{{"messages":[{{"role":"user","content":"a"}}],{member}}}"#));
    let message = |members: &str| request(&format!(r#"{{"messages":[{{{members}}}]}}"#));
    let sample = |body: &str| parse_sample(body.as_bytes()).unwrap_err().message().to_owned();
    let said = |body: &str| parse_feedback(body.as_bytes()).unwrap_err().message().to_owned();
    for (error, key, name) in [
        (request(r#"{"mesages":[]}"#), "mesages", "messages"),
        (request(r#"{"promt":"a"}"#), "promt", "prompt"),
        (request(r#"{"prompt":"a","maxTokens":4}"#), "maxTokens", "max_tokens"),
        (chat(r#""temprature":1"#), "temprature", "temperature"),
        (chat(r#""tool_choise":"none""#), "tool_choise", "tool_choice"),
        (chat(r#""toplogprobs":2"#), "toplogprobs", "top_logprobs"),
        (message(r#""rol":"user","content":"a""#), "rol", "role"),
        (message(r#""role":"user","contnet":"a""#), "contnet", "content"),
        (message(r#""role":"assistant","tool_call":[]"#), "tool_call", "tool_calls"),
        (chat(r#""response_format":{"type":"json_schema","json_shema":{}}"#), "json_shema", "json_schema"),
        (chat(r#""response_format":{"type":"json_schema","json_schema":{"shema":{}}}"#), "shema", "schema"),
        (chat(r#""tools":[{"type":"function","function":{"nme":"a"}}]"#), "nme", "name"),
        (chat(r#""tools":[{"type":"function","function":{"name":"a","paramters":{}}}]"#), "paramters", "parameters"),
        (sample(r#"{"promt":"a","completion":"b"}"#), "promt", "prompt"),
        (sample(r#"{"prompt":"a","completon":"b"}"#), "completon", "completion"),
        (sample(r#"{"prompt":"a","completion":"b","temprature":1}"#), "temprature", "temperature"),
        (said(r#"{"generationId":"a","rating":1}"#), "generationId", "generation_id"),
        (said(r#"{"generation_id":"a","rating":1,"coment":"b"}"#), "coment", "comment"),
    ] {
        assert!(error.ends_with(&format!("unknown field {key:?}, did you mean {name:?}?")), "{key}: {error}");
    }
    assert_eq!(request(r#"{"model":"a"}"#), "the request has neither messages nor prompt, expected one of them");
    assert_eq!(said(r#"{"rating":1}"#), "generation_id is missing");
}

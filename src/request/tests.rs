//! Tests of how bodies are read, and of what refusals say.

use super::*;
use crate::error::Code;
use crate::types::{Format, Sampling, Signal};
use serde_json::json;

pub(super) fn chat(body: &str) -> Result<ParsedRequest> {
    parse_chat(body.as_bytes(), Unknown::Refuse)
}

/// The error message for a chat body with these extra members.
pub(super) fn refusal(members: &str) -> String {
    let body = format!(r#"{{"messages":[{{"role":"user","content":"hi"}}],{members}}}"#);
    chat(&body).expect_err(members).message().to_owned()
}

#[test]
fn a_chat_body_is_read_with_every_field() {
    let request = chat(
        r#"{"model":"m","messages":[{"role":"system","content":"be brief"},
            {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}],
            "max_tokens":7,"temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.05,"repeat_penalty":1.1,
            "frequency_penalty":-1,"presence_penalty":1.5,"seed":-1,"stop":["x","y"],"user":"ann","n":3,
            "logit_bias":{"7":-100},"logprobs":true,"top_logprobs":2,
            "stream":true,"stream_options":{"include_usage":true},"tools":[],"response_format":{"type":"text"}}"#,
    )
    .unwrap();
    let messages = vec![json!({"role": "system", "content": "be brief"}), json!({"role": "user", "content": "ab"})];
    assert_eq!(request.prompts, [Prompt::Chat(Conversation { messages, ..Conversation::default() })]);
    let sampling = Sampling {
        temperature: 0.5,
        top_k: 40,
        top_p: 0.9,
        min_p: 0.05,
        repeat_penalty: 1.1,
        frequency_penalty: -1.0,
        presence_penalty: 1.5,
        logit_bias: [(7, -100.0)].into(),
        format: None,
        ignore_eos: false,
        seed: Some(u64::MAX),
    };
    assert_eq!(request.each.sampling, sampling);
    assert_eq!((request.each.max_tokens, request.each.stop.len()), (Some(7), 2));
    assert_eq!((request.n, request.each.logprobs), (3, Some(2)));
    assert_eq!((request.each.user.as_deref(), request.model.as_deref()), (Some("ann"), Some("m")));
    assert!(request.stream && request.include_usage);
}

#[test]
fn unset_and_null_fields_leave_the_plain_policy() {
    let request = chat(r#"{"messages":[{"role":"user","content":"hi"}],"temperature":null,"stop":null}"#).unwrap();
    assert_eq!(request.each.sampling, Sampling::default());
    assert_eq!((request.each.max_tokens, request.stream), (None, false));
}

#[test]
fn a_format_is_a_grammar_or_a_schema() {
    let format = |members: &str| {
        chat(&format!(r#"{{"messages":[{{"role":"user","content":"hi"}}],{members}}}"#)).unwrap().each.sampling.format
    };
    assert_eq!(format(r#""grammar":"root ::= \"a\"""#), Some(Format::Grammar("root ::= \"a\"".into())));
    let object = Some(Format::JsonSchema(json!({"type": "object"})));
    assert_eq!(format(r#""response_format":{"type":"json_object"}"#), object);
    let schema = r#""response_format":{"type":"json_schema",
        "json_schema":{"name":"x","strict":true,"schema":{"type":"object"}}}"#;
    assert_eq!(format(schema), object);
    let beside = r#""response_format":{"type":"json_schema","schema":{"type":"object"}}"#;
    assert_eq!(format(beside), object);
    let named = Some(Format::JsonSchema(json!({"required": ["age"], "type": "object"})));
    for form in [r#""schema":{"required":["age"]}"#, r#""json_schema":{"schema":{"required":["age"]}}"#] {
        assert_eq!(format(&format!(r#""response_format":{{"type":"json_object",{form}}}"#)), named);
    }
}

#[test]
fn a_tool_is_demanded_by_name_by_a_few_or_any() {
    let forced = |choice: &str| {
        let tool = |name| {
            format!(
                r##"{{"type":"function","function":{{"name":"{name}","parameters":
            {{"$defs":{{"P":{{"type":"integer"}}}},"properties":{{"p":{{"$ref":"#/$defs/P"}}}}}}}}}}"##
            )
        };
        let body = format!(
            r#"{{"messages":[{{"role":"user","content":"hi"}}],"tools":[{},{}],"tool_choice":{choice}}}"#,
            tool("f"),
            tool("g")
        );
        chat(&body).map(|request| match request.each.sampling.format {
            Some(Format::JsonSchema(schema)) => schema["anyOf"]
                .as_array()
                .unwrap()
                .iter()
                .map(|call| call["properties"]["name"]["const"].as_str().unwrap().to_owned())
                .collect(),
            _ => Vec::new(),
        })
    };
    let named = |names: &[&str]| Ok(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    assert_eq!(forced(r#""auto""#), named(&[]));
    assert_eq!(forced(r#""required""#), named(&["f", "g"]));
    assert_eq!(forced(r#"{"type":"function","function":{"name":"g"}}"#), named(&["g"]));
    assert_eq!(forced(r#"{"type":"function","name":"g"}"#), named(&["g"]));
    let tools = r#""tools":[{"type":"function","function":{"name":"f"}}]"#;
    assert_eq!(
        forced(&format!(r#"{{"type":"allowed_tools","allowed_tools":{{"mode":"required",{tools}}}}}"#)),
        named(&["f"])
    );
    assert_eq!(forced(&format!(r#"{{"type":"allowed_tools","mode":"auto",{tools}}}"#)), named(&[]));
    for (choice, message) in [
        (r#""some""#, "tool_choice is \"some\""),
        (r#"{"type":"function","function":{"name":"h"}}"#, "not among the tools"),
        (r#"{"type":"allowed_tools","tools":[]}"#, "mode is missing"),
        (r#"{"type":"function"}"#, "names no function"),
        ("3", "tool_choice is 3"),
    ] {
        assert!(forced(choice).unwrap_err().message().contains(message), "{choice}");
    }
}

#[test]
fn the_arguments_of_a_demanded_call_are_an_object_and_its_references_begin_there() {
    let forced = |parameters: &str| {
        let body = format!(
            r#"{{"messages":[{{"role":"user","content":"hi"}}],"tool_choice":"required",
            "tools":[{{"type":"function","function":{{"name":"f","parameters":{parameters}}}}}]}}"#
        );
        chat(&body).map(|request| match request.each.sampling.format {
            Some(Format::JsonSchema(schema)) => schema["anyOf"][0]["properties"]["arguments"].clone(),
            _ => Value::Null,
        })
    };
    assert_eq!(forced("{}").unwrap(), json!({"$id": "tool:f", "type": "object"}));
    assert_eq!(forced(r#"{"$id":"x","type":"object"}"#).unwrap(), json!({"$id": "x", "type": "object"}));
    assert!(forced(r#"{"type":"string"}"#).unwrap_err().message().contains("expected \"object\""));
}

#[test]
fn a_completion_asks_for_logprobs_with_a_number() {
    let of = |members: &str| parse_completion(format!(r#"{{"prompt":"a",{members}}}"#).as_bytes(), Unknown::Refuse);
    assert_eq!(of(r#""logprobs":0"#).unwrap().each.logprobs, Some(0));
    assert_eq!(of(r#""logprobs":null"#).unwrap().each.logprobs, None);
    assert_eq!(of(r#""logprobs":6"#).unwrap_err().message(), "logprobs is 6, expected a whole number from 0 to 5");
}

#[test]
fn invalid_utf8_is_refused_with_its_place() {
    let error = parse_chat(b"{\"a\xff\":1}", Unknown::Ignore).unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Arg, "the body is not valid UTF-8 from byte 3 on"));
}

#[test]
fn unknown_fields_are_skipped_only_where_asked() {
    let body = br#"{"prompt":"hi","service_tier":"auto"}"#;
    assert!(parse_completion(body, Unknown::Ignore).is_ok());
    let error = parse_completion(body, Unknown::Refuse).unwrap_err();
    assert!(error.message().starts_with("unknown field \"service_tier\", expected one of messages, "), "{error}");
}

#[test]
fn a_prompt_is_text_one_text_or_tokens() {
    let prompt = |json: &str| {
        parse_completion(format!(r#"{{"prompt":{json}}}"#).as_bytes(), Unknown::Refuse).map(|mut r| r.prompts.remove(0))
    };
    assert_eq!(prompt(r#""hi""#).unwrap(), Prompt::Text("hi".into()));
    assert_eq!(prompt(r#"["hi"]"#).unwrap(), Prompt::Text("hi".into()));
    assert_eq!(prompt("[1,2]").unwrap(), Prompt::Tokens(vec![1, 2]));
    for wrong in ["[]", "[1,-2]", "[1,\"a\"]", "[\"a\",7]", "7", "[4294967296]"] {
        assert_eq!(prompt(wrong).unwrap_err().code(), Code::Arg, "{wrong}");
    }
}

#[test]
fn either_body_is_told_by_its_key() {
    let of = |json: &str| parse_request(json.as_bytes(), Unknown::Refuse);
    assert!(matches!(of(r#"{"prompt":"hi"}"#).unwrap().prompts[0], Prompt::Text(_)));
    assert!(matches!(of(r#"{"messages":[{"role":"user","content":""}]}"#).unwrap().prompts[0], Prompt::Chat(_)));
    assert!(parse_completion(br#"{"prompt":"","messages":[]}"#, Unknown::Refuse).is_err());
    assert!(of("{}").is_err() && of(r#"{"messages":[],"prompt":""}"#).is_err());
}

#[test]
fn feedback_is_a_rating_a_thumb_or_a_correction() {
    let of = |json: &str| parse_feedback(json.as_bytes());
    let signal = |json: &str| of(json).unwrap().signal;
    assert_eq!(signal(r#"{"generation_id":"g","rating":-0.5}"#), Signal::Rating(-0.5));
    assert_eq!(signal(r#"{"generation_id":"g","thumbs":"down"}"#), Signal::Rating(-1.0));
    assert_eq!(signal(r#"{"generation_id":"g","correction":"so"}"#), Signal::Correction("so".into()));
    let message = |json: &str| of(json).unwrap_err().message().to_owned();
    assert_eq!(message(r#"{"generation_id":"g","rating":2}"#), "rating is 2, expected a number from -1 to 1");
    assert_eq!(
        message(r#"{"generation_id":"g","rating":"NaN"}"#),
        "rating is a string, expected a number from -1 to 1"
    );
    assert_eq!(message(r#"{"rating":1}"#), "generation_id is missing");
    assert!(message(r#"{"generation_id":"g"}"#).starts_with("the feedback says nothing"));
    assert!(message(r#"{"generation_id":"g","rating":1,"thumbs":"up"}"#).contains("several things"));
    assert!(message(r#"{"generation_id":"g","thumbs":"sideways"}"#).contains("expected \"up\" or \"down\""));
}

#[test]
fn a_preference_needs_two_answers() {
    let of = |json: &str| parse_preference(json.as_bytes());
    let preference = of(r#"{"chosen_id":"a","rejected_id":"b","user":"ann"}"#).unwrap();
    assert_eq!((preference.chosen.0.as_str(), preference.rejected.0.as_str()), ("a", "b"));
    assert!(of(r#"{"chosen_id":"a","rejected_id":"a"}"#).unwrap_err().message().contains("same generation"));
    assert_eq!(of(r#"{"chosen_id":"a"}"#).unwrap_err().message(), "rejected_id is missing");
}

#[test]
fn whole_numbers_are_read_however_they_are_written() {
    let request = chat(
        r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":16.0,"seed":42.0,"n":1.0,"top_k":40.0,"top_p":0,
            "logprobs":true,"top_logprobs":0.0}"#,
    )
    .unwrap();
    assert_eq!((request.each.max_tokens, request.n, request.each.logprobs), (Some(16), 1, Some(0)));
    assert_eq!(
        (request.each.sampling.seed, request.each.sampling.top_k, request.each.sampling.top_p),
        (Some(42), 40, 0.0)
    );
    let seed = |text: &str| {
        let body = format!(r#"{{"prompt":[1.0, 2],"seed":{text},"logprobs":false}}"#);
        parse_completion(body.as_bytes(), Unknown::Refuse).map(|r| r.each.sampling.seed)
    };
    assert_eq!(seed("-1").unwrap(), Some(u64::MAX));
    assert_eq!(seed("-2.0").unwrap(), Some(u64::MAX - 1));
    assert_eq!(seed("18446744073709551615").unwrap(), Some(u64::MAX));
    for wrong in ["1e300", "0.5", "\"7\""] {
        assert!(seed(wrong).unwrap_err().message().contains("expected a 64-bit whole number"), "{wrong}");
    }
}

#[test]
fn an_assistant_may_have_said_nothing_refused_or_called() {
    let of = |message: &str| -> Result<Value> {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"hi"}},{message}]}}"#);
        match chat(&body)?.prompts.remove(0) {
            Prompt::Chat(conversation) => Ok(conversation.messages[1].clone()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(of(r#"{"role":"assistant","content":null}"#).unwrap()["content"], "");
    assert_eq!(of(r#"{"role":"assistant"}"#).unwrap()["content"], "");
    assert_eq!(of(r#"{"role":"assistant","content":null,"refusal":"No."}"#).unwrap()["content"], "No.");
    assert_eq!(of(r#"{"role":"assistant","content":[{"type":"refusal","refusal":"No."}]}"#).unwrap()["content"], "No.");
    let called =
        of(r#"{"role":"assistant","function_call":{"name":"f","arguments":"{\"n\":12345678901234567890123}"}}"#);
    let function = &called.unwrap()["tool_calls"][0]["function"];
    assert_eq!(function["name"], "f");
    // As a text that templates write as the original number.
    assert_eq!(function["arguments"]["n"], "\u{10fffd}12345678901234567890123");
    assert_eq!(of(r#"{"role":"user"}"#).unwrap_err().message(), "messages[1]: content is missing");
    assert_eq!(
        of(r#"{"role":"user","contnt":"x","content":"y"}"#).unwrap_err().message(),
        "messages[1]: unknown field \"contnt\", did you mean \"content\"?"
    );
}

#[test]
fn tools_are_chosen_by_name_or_from_those_allowed() {
    let tools = r#""tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"g"}}]"#;
    let of = |choice: &str| {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"hi"}}],{tools},"tool_choice":{choice}}}"#);
        chat(&body).map(|r| (r.tools, r.each.sampling.format.is_some()))
    };
    let one = vec!["g".to_owned()];
    assert_eq!(of(r#"{"type":"function","name":"g"}"#).unwrap(), (one.clone(), true));
    assert_eq!(of(r#"{"type":"function","function":{"name":"g"}}"#).unwrap(), (one, true));
    let inside = r#"{"type":"allowed_tools",
        "allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"g"}}]}}"#;
    assert_eq!(of(inside).unwrap(), (vec!["g".to_owned()], false));
    let beside = r#"{"type":"allowed_tools","mode":"required","tools":[{"type":"function","name":"f"}]}"#;
    assert_eq!(of(beside).unwrap(), (vec!["f".to_owned()], true));
    assert!(of(&inside.replace("auto", "any")).unwrap_err().message().contains("mode is \"any\""));
    assert!(of(&beside.replace("\"f\"", "\"h\"")).unwrap_err().message().contains("not among the tools"));
}

#[test]
fn a_whole_number_may_be_written_as_a_float() {
    let body = |members: &str| format!(r#"{{"prompt":"a",{members}}}"#);
    let of = |members: &str| parse_completion(body(members).as_bytes(), Unknown::Refuse);
    assert_eq!(of(r#""seed":1e18"#).unwrap().each.sampling.seed, Some(1_000_000_000_000_000_000));
    assert_eq!(of(r#""seed":-1e18"#).unwrap().each.sampling.seed, Some(-1_000_000_000_000_000_000_i64 as u64));
    assert!(of(r#""seed":1e20"#).unwrap_err().message().contains("expected a 64-bit whole number"));
    assert!(of(r#""seed":18446744073709551616"#).is_err(), "2^64");
    assert!(of(r#""seed":-9223372036854775809"#).is_err(), "below -2^63");
    assert_eq!(of(r#""seed":-9223372036854775808"#).unwrap().each.sampling.seed, Some(1 << 63));
    assert!(of(r#""best_of":1.0,"max_tokens":16.0,"n":1.0,"logprobs":2.0,"top_k":4e1"#).is_ok());
    assert!(of(r#""best_of":2.0"#).is_err());
}

#[test]
fn large_integers_in_the_arguments_of_calls_and_in_tools_keep_their_digits() {
    let written = |body: &str, anthropic: bool| {
        let read = if anthropic { parse_anthropic } else { parse_chat };
        let Prompt::Chat(chat) = read(body.as_bytes(), Unknown::Ignore).unwrap().prompts.remove(0) else { panic!() };
        crate::llama::json_with_whole_integers(&json!([chat.messages, chat.tools]))
    };
    let n = "-12345678901234567890123";
    let user = r#"{"role":"user","content":"hi"}"#;
    for arguments in [format!(r#""{{\"n\": {n}}}""#), format!(r#"{{"n":{n}}}"#)] {
        let call = format!(r#"{{"type":"function","function":{{"name":"f","arguments":{arguments}}}}}"#);
        let said = format!(r#"{{"role":"assistant","tool_calls":[{call}]}}"#);
        let text = written(&format!(r#"{{"messages":[{user},{said}]}}"#), false);
        assert!(text.contains(&format!(r#""arguments":{{"n":{n}}}"#)), "{text}");
    }
    let block = format!(r#"{{"type":"tool_use","id":"c","name":"f","input":{{"n":{n}}}}}"#);
    let used = format!(r#"{{"role":"assistant","content":[{block}]}}"#);
    let text = written(&format!(r#"{{"messages":[{user},{used}]}}"#), true);
    assert!(text.contains(&format!(r#""arguments":{{"n":{n}}}"#)), "{text}");
    let parameters = format!(r#"{{"properties":{{"n":{{"default":{n},"type":"integer"}}}}}}"#);
    let tool = format!(r#"{{"type":"function","function":{{"name":"f","parameters":{parameters}}}}}"#);
    let text = written(&format!(r#"{{"messages":[{user}],"tools":[{tool}]}}"#), false);
    assert!(text.contains(&format!(r#""default":{n}"#)), "{text}");

    // Elsewhere it is a number as before, and no text.
    let message = |members: &str| refusal(members);
    assert!(message(&format!(r#""seed":{n}"#)).starts_with("seed is -1.2345678901234568e+22"));
    let content = format!(r#"{{"messages":[{{"role":"user","content":{n}}}]}}"#);
    assert!(chat(&content).unwrap_err().message().contains("content is -1.23"));
    let input = format!(r#"{{"input":[{{"role":"user","content":{n}}}]}}"#);
    let refused = parse_responses(input.as_bytes(), Unknown::Ignore).unwrap_err();
    assert!(refused.message().contains("content is a number"), "{refused}");
}

#[test]
fn a_completion_may_have_several_prompts_and_echo_them() {
    let of = |members: &str| parse_completion(format!(r#"{{{members}}}"#).as_bytes(), Unknown::Refuse);
    let several = of(r#""prompt":["a",[1,2],"b"],"echo":true"#).unwrap();
    let wanted = [Prompt::Text("a".into()), Prompt::Tokens(vec![1, 2]), Prompt::Text("b".into())];
    assert_eq!((several.prompts.as_slice(), several.echo), (&wanted[..], true));
    assert_eq!(of(r#""prompt":"<s>","parse_special":true"#).unwrap().prompts, [Prompt::Special("<s>".into())]);
    let message = |members: &str| of(members).unwrap_err().message().to_owned();
    assert_eq!(message(r#""prompt":["a",{}]"#), "prompt[1] is an object, expected a string or tokens");
    assert_eq!(message(r#""prompt":[[1],["a"]]"#), "prompt[1] has a string among its tokens, expected tokens' numbers");
    assert!(message(r#""prompt":["a","b","c","d","e"],"n":8"#).contains("ask for 40 answers, expected at most 32"));
    assert_eq!(message(r#""prompt":"a","suffix":"b""#), "suffix is not supported");
    assert!(message(r#""prompt":"a","echo":true,"logprobs":0"#).starts_with("echo with logprobs is not supported"));
}

//! Tests of how bodies are read, and of what refusals say.

use super::*;
use crate::error::Code;
use crate::types::{Format, Sampling, Signal};
use serde_json::json;

fn chat(body: &str) -> Result<ParsedRequest> {
    parse_chat(body.as_bytes(), Unknown::Refuse)
}

/// The error message for a chat body with these extra members.
fn refusal(members: &str) -> String {
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
fn a_chat_ends_as_it_is_asked_to() {
    use crate::llama::Ending;
    let of = |members: &str| -> Result<(Ending, bool)> {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"hi"}}]{members}}}"#);
        match chat(&body)?.prompts.remove(0) {
            Prompt::Chat(conversation) => Ok((conversation.ending, conversation.parse_special)),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(of("").unwrap(), (Ending::Answer, false));
    assert_eq!(of(r#","add_generation_prompt":false,"parse_special":true"#).unwrap(), (Ending::Closed, true));
    assert_eq!(of(r#","continue_final_message":true,"add_generation_prompt":false"#).unwrap().0, Ending::Open);
    let both: Error = of(r#","continue_final_message":true,"add_generation_prompt":true"#).unwrap_err();
    assert!(both.message().contains("both true"), "{both}");
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

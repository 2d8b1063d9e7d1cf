//! The form in which a model calls tools whose chat template knows none: they are described in a system message, and
//! the answer is an object, a call or what is said. Never parses an answer.

use std::fmt::Write;

use serde_json::{Value, json};

use super::parts::Wrapped;
use crate::Engine;
use crate::error::{Error, Result};
use crate::llama::{Conversation, json_with_whole_integers};
use crate::types::Format;

/// The conversation as this model's template can write it: where that knows no tools, tools, calls and results are
/// text.
pub(crate) fn written(conversation: Conversation, engine: &Engine) -> Conversation {
    let uses = |message: &Value| message["tool_calls"].is_array() || is_result(message);
    if engine.template_knows_tools() || conversation.tools.is_empty() && !conversation.messages.iter().any(uses) {
        return conversation;
    }
    let Conversation { messages, tools, ending, parse_special } = conversation;
    let mut messages = as_text(messages);
    let plain = |messages| Conversation { messages, tools: Vec::new(), ending, parse_special };
    if tools.is_empty() {
        return plain(messages);
    }
    let told = instructions(&tools);
    let user_first = {
        let mut messages = messages.clone();
        put_before(&mut messages, "user", &told);
        plain(messages)
    };
    put_before(&mut messages, "system", &told);
    let system_first = plain(messages);
    // Some templates refuse messages of the system.
    if engine.rendered(&system_first).is_err() { user_first } else { system_first }
}

/// The format of an answer in this form: one of the calls, or a response, which itself may have a format. `None` if
/// that can't be said.
pub(super) fn format(calls: &[Value], response: Option<&Format>) -> Result<(Format, Wrapped)> {
    let (response, wrapped) = match response {
        None => (json!({"type": "string"}), Wrapped::Text),
        Some(Format::JsonSchema(schema)) => {
            let mut schema = schema.clone();
            if let Value::Object(map) = &mut schema {
                map.entry("$id").or_insert_with(|| "response:".into());
            }
            (schema, Wrapped::Json)
        }
        Some(Format::Grammar(_)) => {
            let what = "grammar with tools is not supported: the model's chat template knows no tools, and their calls \
                        have a format of their own";
            return Err(Error::unsupported(what));
        }
    };
    let response = json!({"type": "object", "properties": {"response": response}, "required": ["response"],
        "additionalProperties": false});
    let any: Vec<Value> = calls.iter().cloned().chain([response]).collect();
    Ok((Format::JsonSchema(json!({"anyOf": any})), wrapped))
}

/// What the model is told of the tools.
fn instructions(tools: &[Value]) -> String {
    let mut told = String::from("You can call these functions:\n");
    for tool in tools {
        // Writing to a string can't fail.
        let _ = writeln!(told, "{}", json_with_whole_integers(&tool["function"]));
    }
    told + "Answer with one JSON object. To call a function: {\"name\": \"the function\", \"arguments\": {\"its\": \
            \"arguments\"}}. To say something: {\"response\": \"what you say\"}."
}

/// Puts a text before the first message of that role: before its own text if it comes first of the conversation or is
/// the user's, else as a message of its own.
fn put_before(messages: &mut Vec<Value>, role: &str, text: &str) {
    let at = messages.iter().position(|message| message["role"] == role || message["role"] == "developer");
    match at.filter(|at| *at == 0 || role == "user").and_then(|at| messages.get_mut(at)) {
        Some(message) => {
            let own = message["content"].as_str().unwrap_or_default();
            message["content"] =
                if role == "user" { format!("{text}\n\n{own}") } else { format!("{own}\n\n{text}") }.into();
        }
        None => messages.insert(0, json!({"role": role, "content": text})),
    }
}

/// Whether a message is what a tool gave; `function` is the older word for `tool`.
fn is_result(message: &Value) -> bool {
    matches!(message["role"].as_str(), Some("tool" | "function"))
}

/// Calls as the text that made them, and their results as what a user says, several in one message: many templates
/// want users and assistants to take turns.
fn as_text(messages: Vec<Value>) -> Vec<Value> {
    let mut names: Vec<(Value, Value)> = Vec::new();
    let mut written: Vec<Value> = Vec::new();
    let mut after_result = false;
    for mut message in messages {
        let result = is_result(&message);
        if let Some(calls) = message["tool_calls"].as_array() {
            let call = |call: &Value| {
                names.push((call["id"].clone(), call["function"]["name"].clone()));
                let function = &call["function"];
                json_with_whole_integers(&json!({"name": function["name"], "arguments": function["arguments"]}))
            };
            let calls: Vec<String> = calls.iter().map(call).collect();
            let said = message["content"].as_str().filter(|said| !said.trim().is_empty()).map(str::to_owned);
            let lines: Vec<String> = said.into_iter().chain(calls).collect();
            message = json!({"role": message["role"], "content": lines.join("\n")});
        } else if result {
            let of = names.iter().rev().find(|(id, _)| !id.is_null() && *id == message["tool_call_id"]);
            let name = of.map(|(_, name)| name).or_else(|| message.get("name").filter(|name| name.is_string()));
            let content = json!({"result_of": name, "content": message["content"]}).to_string();
            if after_result && let Some(Value::String(before)) = written.last_mut().map(|m| &mut m["content"]) {
                before.push('\n');
                before.push_str(&content);
                continue;
            }
            message = json!({"role": "user", "content": content});
        }
        after_result = result;
        written.push(message);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_results_are_text_that_takes_turns() {
        let call = |id: &str, name: &str| json!({"id": id, "function": {"name": name, "arguments": {"a": 1}}});
        let messages = vec![
            json!({"role": "user", "content": "Both?"}),
            json!({"role": "assistant", "content": "", "tool_calls": [call("1", "add"), call("2", "now")]}),
            json!({"role": "tool", "tool_call_id": "2", "content": "noon"}),
            json!({"role": "tool", "tool_call_id": "1", "content": "2"}),
            json!({"role": "assistant", "content": "2 at noon."}),
            json!({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}),
            json!({"role": "function", "name": "add", "content": "0"}),
        ];
        let said: Vec<(String, String)> = as_text(messages)
            .iter()
            .map(|m| (m["role"].as_str().unwrap().into(), m["content"].as_str().unwrap().into()))
            .collect();
        let line = |role: &str, content: &str| (role.to_owned(), content.to_owned());
        assert_eq!(
            said,
            [
                line("user", "Both?"),
                line(
                    "assistant",
                    "{\"name\":\"add\",\"arguments\":{\"a\":1}}\n{\"name\":\"now\",\"arguments\":{\"a\":1}}"
                ),
                line("user", "{\"result_of\":\"now\",\"content\":\"noon\"}\n{\"result_of\":\"add\",\"content\":\"2\"}"),
                line("assistant", "2 at noon."),
                line("assistant", "{\"name\":\"add\",\"arguments\":{}}"),
                line("user", "{\"result_of\":\"add\",\"content\":\"0\"}"),
            ]
        );
    }

    #[test]
    fn instructions_join_the_first_system_message_or_the_first_of_the_user() {
        let hi = json!({"role": "user", "content": "hi"});
        let after = |messages: &[Value], role: &str| {
            let mut messages = messages.to_vec();
            put_before(&mut messages, role, "T");
            messages
        };
        assert_eq!(after(std::slice::from_ref(&hi), "system")[0], json!({"role": "system", "content": "T"}));
        let brief = json!({"role": "developer", "content": "brief"});
        assert_eq!(after(&[brief, hi.clone()], "system")[0], json!({"role": "developer", "content": "brief\n\nT"}));
        assert_eq!(after(&[hi], "user"), [json!({"role": "user", "content": "T\n\nhi"})]);
    }

    #[test]
    fn a_response_keeps_the_format_that_was_asked_for() {
        let (format, wrapped) = super::format(&[json!({"const": 1})], None).unwrap();
        let Format::JsonSchema(schema) = format else { panic!() };
        assert_eq!(schema["anyOf"][1]["properties"]["response"], json!({"type": "string"}));
        assert_eq!(wrapped, Wrapped::Text);
        let own = Format::JsonSchema(json!({"type": "integer"}));
        assert_eq!(super::format(&[], Some(&own)).unwrap().1, Wrapped::Json);
        assert!(super::format(&[], Some(&Format::Grammar("root ::= \"a\"".into()))).is_err());
    }
}

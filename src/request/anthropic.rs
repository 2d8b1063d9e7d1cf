//! Reads a body of Anthropic's Messages API as the chat that it asks for. Never answers it.

use serde_json::{Map, Value, json};

use super::Unknown;
use super::chat::chat_of;
use super::fields::{Fields, Names, kind, quoted, shown, word};
use super::parsed::ParsedRequest;
use crate::error::{Error, Result};

/// Fields that are read, of which errors suggest the nearest.
pub(crate) const ANTHROPIC_FIELDS: &[&str] = &[
    "model",
    "messages",
    "max_tokens",
    "system",
    "stop_sequences",
    "stream",
    "temperature",
    "top_k",
    "top_p",
    "tools",
    "tool_choice",
    "metadata",
    "output_config",
];

/// What this API calls the fields of a chat.
const NAMES: Names = &[
    ("stop", "stop_sequences"),
    ("user", "metadata.user_id"),
    ("response_format", "output_config.format"),
    ("json_schema", "schema"),
    ("function.name", "name"),
    ("function.parameters", "input_schema"),
];

/// Reads the body of `POST /v1/messages`. A last message of the assistant is continued.
///
/// # Errors
/// As [`super::parse_chat`], in this API's words.
pub fn parse_anthropic(body: &[u8], unknown: Unknown) -> Result<ParsedRequest> {
    let mut fields = Fields::parse(body, unknown)?;
    let mut chat = Map::new();
    for same in ["model", "max_tokens", "temperature", "top_k", "top_p", "stream"] {
        chat.extend(fields.take(same).map(|value| (same.to_owned(), value)));
    }
    let mut messages = Vec::new();
    if let Some(system) = fields.take("system") {
        let text = text_of(system).map_err(|e| e.context("system"))?;
        messages.push(json!({"role": "system", "content": text}));
    }
    let Value::Array(said) = fields.required("messages")? else {
        return Err(Error::arg("messages is no array, expected an array of messages"));
    };
    if said.is_empty() {
        return Err(Error::arg("messages is empty, expected at least one message"));
    }
    for (i, message) in said.into_iter().enumerate() {
        read_message(message, &mut messages).map_err(|e| e.context(format!("messages[{i}]")))?;
    }
    chat.insert("messages".into(), messages.into());
    match fields.take("stop_sequences") {
        None => {}
        Some(Value::Array(stops)) if stops.iter().all(Value::is_string) => {
            chat.insert("stop".into(), stops.into());
        }
        Some(other) => {
            return Err(Error::arg(format!("stop_sequences is {}, expected an array of strings", shown(&other))));
        }
    }
    if let Some(tools) = fields.take("tools") {
        chat.insert("tools".into(), tools_of(tools)?);
    }
    if let Some(choice) = fields.take("tool_choice") {
        chat.insert("tool_choice".into(), choice_of(&choice)?);
    }
    if let Some(metadata) = fields.object("metadata")? {
        chat.extend(metadata.get("user_id").map(|user| ("user".to_owned(), user.clone())));
    }
    if let Some(format) = fields.object("output_config")?.and_then(|mut config| config.shift_remove("format")) {
        chat.insert("response_format".into(), format);
    }
    fields.finish(ANTHROPIC_FIELDS)?;
    chat_of(Fields { map: chat, unknown, names: NAMES })
}

/// A text, or blocks of text.
fn text_of(value: Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Array(blocks) => blocks.into_iter().map(block_text).collect::<Result<Vec<_>>>().map(|all| all.concat()),
        Value::Null => Ok(String::new()),
        other => Err(Error::arg(format!("it is {}, expected a string or an array of text blocks", kind(&other)))),
    }
}

fn block_text(block: Value) -> Result<String> {
    match (block["type"].as_str(), block["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (Some("text"), None) => Err(Error::arg("a block of type text has no text")),
        (other, _) => Err(unsupported(other)),
    }
}

fn unsupported(kind: Option<&str>) -> Error {
    match kind {
        Some(kind) => Error::unsupported(format!("content blocks of type {} are not supported", quoted(kind))),
        None => Error::arg("a content block has no type, expected {\"type\": \"text\", \"text\": ...}"),
    }
}

/// Adds what a message says, in the form of chats: results of tools are messages of their own.
fn read_message(message: Value, out: &mut Vec<Value>) -> Result<()> {
    let role = message["role"].as_str().map(str::to_owned);
    let content = match message {
        Value::Object(mut map) => map.shift_remove("content").unwrap_or_default(),
        other => return Err(Error::arg(format!("it is {}, expected an object with role and content", kind(&other)))),
    };
    let blocks = match content {
        Value::String(text) => vec![json!({"type": "text", "text": text})],
        Value::Array(blocks) => blocks,
        other => return Err(Error::arg(format!("content is {}, expected a string or an array", kind(&other)))),
    };
    let mut said = Map::new();
    let (mut text, mut thought, mut calls) = (String::new(), String::new(), Vec::new());
    let user = match role.as_deref() {
        Some("user" | "system") => true,
        Some("assistant") => false,
        None => return Err(Error::arg("role is missing, expected user, assistant or system")),
        Some(other) => {
            return Err(Error::arg(format!("role is {}, expected user, assistant or system", quoted(other))));
        }
    };
    let before = out.len();
    for mut block in blocks {
        match (block["type"].as_str(), user) {
            (Some("tool_result"), true) => {
                if !matches!(block["tool_use_id"], Value::String(_) | Value::Null) {
                    let id = shown(&block["tool_use_id"]);
                    return Err(Error::arg(format!("tool_result: tool_use_id is {id}, expected a string")));
                }
                let content = text_of(block["content"].take()).map_err(|e| e.context("tool_result"))?;
                out.push(json!({"role": "tool", "tool_call_id": block["tool_use_id"], "content": content}));
            }
            (Some("tool_use"), false) if block["name"].is_string() => calls.push(json!({"id": block["id"],
                "type": "function", "function": {"name": block["name"], "arguments": block["input"]}})),
            (Some("thinking"), false) => thought += block["thinking"].as_str().unwrap_or_default(),
            // What no one but its author can read.
            (Some("redacted_thinking"), false) => {}
            _ => text += &block_text(block)?,
        }
    }
    if user && text.is_empty() && out.len() > before {
        return Ok(());
    }
    said.insert("role".into(), role.into());
    said.insert("content".into(), text.into());
    if !thought.is_empty() {
        said.insert("reasoning_content".into(), thought.into());
    }
    if !calls.is_empty() {
        said.insert("tool_calls".into(), calls.into());
    }
    out.push(said.into());
    Ok(())
}

/// Tools in the form of chats.
fn tools_of(tools: Value) -> Result<Value> {
    let Value::Array(tools) = tools else {
        return Err(Error::arg(format!("tools is {}, expected an array", kind(&tools))));
    };
    let tool = |(i, mut tool): (usize, Value)| match tool["type"].as_str() {
        _ if !tool.is_object() => {
            Err(Error::arg(format!("tools[{i}] is {}, expected an object with name and input_schema", kind(&tool))))
        }
        None | Some("custom") => {
            let (name, description) = (tool["name"].take(), tool["description"].take());
            let mut function = json!({"name": name, "parameters": tool["input_schema"].take()});
            if description.is_string() {
                function["description"] = description;
            }
            Ok(json!({"type": "function", "function": function}))
        }
        Some(other) => {
            Err(Error::unsupported(format!("tools[{i}]: tools of type {} are not supported", quoted(other))))
        }
    };
    tools.into_iter().enumerate().map(tool).collect::<Result<Vec<_>>>().map(Value::from)
}

fn choice_of(choice: &Value) -> Result<Value> {
    match (choice["type"].as_str(), &choice["name"]) {
        (Some("auto"), _) => Ok("auto".into()),
        (Some("any"), _) => Ok("required".into()),
        (Some("none"), _) => Ok("none".into()),
        (Some("tool"), Value::String(name)) => Ok(json!({"type": "function", "function": {"name": name}})),
        (Some("tool"), Value::Null) => Err(Error::arg("tool_choice has no name, expected that of a tool")),
        (Some("tool"), other) => Err(Error::arg(format!("tool_choice.name is {}, expected a string", shown(other)))),
        (Some(other), _) => {
            let other = quoted(other);
            Err(Error::arg(format!("tool_choice.type is {other}, expected auto, any, none or tool")))
        }
        (None, _) => {
            let expected = "{\"type\": ...} of auto, any, none or tool";
            Err(Error::arg(format!("tool_choice is {}, expected {expected}", word(choice))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Prompt;
    use super::*;

    fn read(body: Value) -> Result<ParsedRequest> {
        parse_anthropic(body.to_string().as_bytes(), Unknown::Ignore)
    }

    #[test]
    fn a_conversation_with_tools_is_the_chat_that_it_asks_for() {
        let request = read(json!({"model": "m", "max_tokens": 9, "system": [{"type": "text", "text": "Be brief."}],
            "stop_sequences": ["x"], "metadata": {"user_id": "ann"}, "tool_choice": {"type": "any"},
            "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
            "messages": [{"role": "user", "content": "hi"},
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "T", "signature": ""},
                    {"type": "text", "text": "Well."},
                    {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "2"},
                    {"type": "text", "text": "So?"}]}]}))
        .unwrap();
        let Prompt::Chat(conversation) = &request.prompts[0] else { panic!() };
        assert_eq!(
            json!(conversation.messages),
            json!([
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"},
            {"role": "assistant", "reasoning_content": "T", "content": "Well.", "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]},
            {"role": "tool", "tool_call_id": "c", "content": "2"}, {"role": "user", "content": "So?"}])
        );
        assert!(request.demands_call && request.tools == ["f"] && request.each.max_tokens == Some(9));
        assert_eq!((request.each.stop.len(), request.each.user.as_deref()), (1, Some("ann")));
    }

    #[test]
    fn what_is_wrong_is_named_in_the_words_of_this_api() {
        let refusal = |body: Value| read(body).unwrap_err().message().to_owned();
        assert!(refusal(json!({"max_tokens": 1})).contains("messages is missing"));
        let said = |content: Value| refusal(json!({"messages": [{"role": "user", "content": content}]}));
        assert_eq!(said(json!([{"type": "image"}])), "messages[0]: content blocks of type \"image\" are not supported");
        assert!(said(json!(5)).starts_with("messages[0]: content is a number"));
        let with =
            |key: &str, value: Value| refusal(json!({"messages": [{"role": "user", "content": "hi"}], key: value}));
        assert!(with("stop_sequences", json!("x")).starts_with("stop_sequences is a string"));
        assert!(
            with("tools", json!([{"type": "bash_20250124", "name": "bash"}])).starts_with("tools[0]: tools of type")
        );
        assert!(with("tool_choice", json!("auto")).starts_with("tool_choice is \"auto\", expected {\"type\""));
        assert!(with("tool_choice", json!({"type": "x"})).starts_with("tool_choice.type is \"x\", expected auto"));
        assert_eq!(
            with("output_config", json!({"format": {"type": "x"}})),
            "output_config.format: type is \"x\", expected text, json_object or json_schema"
        );
        assert!(
            with("output_config", json!({"format": {"type": "json_schema"}})).contains("format: schema is missing")
        );
        assert!(with("stop_sequences", json!([""])).starts_with("stop_sequences has a string of 0 bytes"));
        assert!(with("metadata", json!({"user_id": 5})).starts_with("metadata.user_id is 5"));
        assert_eq!(with("tools", json!([{"name": 5}])), "tools[0]: name is 5, expected a string");
        let tool = json!([{"name": "f", "input_schema": {"type": "string"}}]);
        assert_eq!(with("tools", tool), "tools[0]: input_schema.type is \"string\", expected \"object\"");
        assert!(with("tools", json!([["f"]])).starts_with("tools[0] is an array"));
        assert!(said(json!([["text"]])).contains("a content block has no type"));
        assert!(refusal(json!({"messages": [[]]})).starts_with("messages[0]: it is an array"));
    }
}

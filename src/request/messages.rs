//! Reads the messages of a chat. Never applies a template.

use serde_json::{Map, Value, json};

use super::Unknown;
use super::fields::{Fields, json, kind, quoted, shown};
use crate::error::{Error, Result};
use crate::llama::{Conversation, Ending, parse_whole_integers};

/// Members of a message that a template may use, all of them strings.
const KEPT: [&str; 4] = ["role", "name", "tool_call_id", "reasoning_content"];
/// All members of a message; those that are not kept don't reach the model.
pub(crate) const MEMBERS: [&str; 10] = [
    "role",
    "content",
    "name",
    "tool_call_id",
    "reasoning_content",
    "tool_calls",
    "function_call",
    "refusal",
    "annotations",
    "audio",
];

/// Reads a JSON array of chat messages, ready for the assistant's answer, or for the rest of a last message of the
/// assistant.
///
/// # Errors
/// `Arg` names the message, the field and what was expected.
pub fn parse_messages(body: &[u8], unknown: Unknown) -> Result<Conversation> {
    let messages = messages_of(json(body)?, unknown)?;
    Ok(Conversation { ending: ending_of(&messages), messages, ..Conversation::default() })
}

/// How messages end of which nothing is said: a last one of the assistant goes on, as with llama-server and
/// Anthropic's API, unless it calls tools. Two of them in a row are the template's concern.
pub(super) fn ending_of(messages: &[Value]) -> Ending {
    match messages.last() {
        Some(last) if last["role"] == "assistant" && last["tool_calls"].is_null() => Ending::Open,
        _ => Ending::Answer,
    }
}

/// The messages as templates expect them: content is text, and arguments of calls are objects.
pub(super) fn messages_of(value: Value, unknown: Unknown) -> Result<Vec<Value>> {
    let Value::Array(items) = value else {
        return Err(Error::arg(format!("messages is {}, expected an array of messages", shown(&value))));
    };
    if items.is_empty() {
        return Err(Error::arg("messages is empty, expected at least one message"));
    }
    let message = |(i, item)| message_of(item, unknown).map_err(|e: Error| e.context(format!("messages[{i}]")));
    items.into_iter().enumerate().map(message).collect()
}

fn message_of(value: Value, unknown: Unknown) -> Result<Value> {
    let Value::Object(map) = value else {
        return Err(Error::arg(format!("it is {}, expected an object with role and content", shown(&value))));
    };
    let mut fields = Fields::of(map, unknown);
    let mut message = Map::new();
    for key in KEPT {
        if let Some(text) = fields.string(key)? {
            message.insert(key.into(), text.into());
        }
    }
    let Some(role) = message.get("role").and_then(Value::as_str).map(str::to_owned) else {
        return Err(fields.missing("role"));
    };
    let refusal = fields.string("refusal")?;
    let content = match fields.take("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => parts.into_iter().map(text_of_part).collect::<Result<String>>()?,
        Some(other) => {
            return Err(Error::arg(format!("content is {}, expected a string or an array of parts", shown(&other))));
        }
        // An assistant's message may hold only tool calls or a refusal, and a tool may return nothing.
        None if matches!(role.as_str(), "assistant" | "tool" | "function") => refusal.unwrap_or_default(),
        None => return Err(fields.missing("content")),
    };
    message.insert("content".into(), content.into());
    let mut calls = match fields.take("tool_calls") {
        None => Vec::new(),
        Some(Value::Array(calls)) => calls.into_iter().map(call).collect::<Result<Vec<_>>>()?,
        Some(other) => return Err(Error::arg(format!("tool_calls is {}, expected an array", kind(&other)))),
    };
    // The older form of a single call.
    if let Some(function) = fields.take("function_call") {
        calls.push(call(json!({"type": "function", "function": function}))?);
    }
    if !calls.is_empty() {
        message.insert("tool_calls".into(), calls.into());
    }
    fields.take("annotations");
    fields.take("audio");
    fields.finish(&MEMBERS)?;
    Ok(message.into())
}

pub(super) fn text_of_part(part: Value) -> Result<String> {
    match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (Some("text"), None) => Err(Error::arg("a content part of type text has no text")),
        (Some("refusal"), _) if part["refusal"].is_string() => Ok(part["refusal"].as_str().unwrap_or_default().into()),
        (Some(other), _) => {
            Err(Error::unsupported(format!("content parts of type {} are not supported", quoted(other))))
        }
        (None, _) => Err(Error::arg("a content part has no type, expected {\"type\": \"text\", \"text\": ...}")),
    }
}

fn call(mut call: Value) -> Result<Value> {
    if !call["function"]["name"].is_string() {
        return Err(Error::arg("tool_calls has an entry without function.name"));
    }
    // The API sends arguments as a JSON string.
    if let Some(parsed) = call["function"]["arguments"].as_str().and_then(parse_whole_integers)
        && let Value::Object(_) = parsed
    {
        call["function"]["arguments"] = parsed;
    }
    Ok(call)
}

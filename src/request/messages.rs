//! Reads the messages of a chat. Never puts them through a template.

use serde_json::Value;

use super::Unknown;
use super::fields::{Fields, json, shown};
use crate::error::{Error, Result};
use crate::types::ChatMessage;

/// Reads a JSON array of chat messages.
///
/// # Errors
/// As [`parse_chat`].
pub fn parse_messages(body: &[u8], unknown: Unknown) -> Result<Vec<ChatMessage>> {
    messages_of(json(body)?, unknown)
}

pub(super) fn messages_of(value: Value, unknown: Unknown) -> Result<Vec<ChatMessage>> {
    let Value::Array(items) = value else {
        return Err(Error::arg(format!("messages is {}, expected an array of messages", shown(&value))));
    };
    if items.is_empty() {
        return Err(Error::arg("messages is empty, expected at least one message"));
    }
    items
        .into_iter()
        .enumerate()
        .map(|(i, item)| message_of(item, unknown).map_err(|e| e.context(format!("messages[{i}]"))))
        .collect()
}

fn message_of(value: Value, unknown: Unknown) -> Result<ChatMessage> {
    let Value::Object(map) = value else {
        return Err(Error::arg(format!("it is {}, expected an object with role and content", shown(&value))));
    };
    let mut fields = Fields { map, unknown };
    let role = fields.string("role")?.ok_or_else(|| Error::arg("role is missing"))?;
    let content = match fields.take("content") {
        None => return Err(Error::arg("content is missing")),
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => parts.into_iter().map(text_of_part).collect::<Result<String>>()?,
        Some(other) => {
            return Err(Error::arg(format!("content is {}, expected a string or an array of parts", shown(&other))));
        }
    };
    fields.finish(&["role", "content"])?;
    Ok(ChatMessage { role, content })
}

pub(super) fn text_of_part(part: Value) -> Result<String> {
    match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (Some("text"), None) => Err(Error::arg("a content part of type text has no text")),
        (Some(other), _) => Err(Error::unsupported(format!("content parts of type {other:?} are not supported"))),
        (None, _) => Err(Error::arg("a content part has no type, expected {\"type\": \"text\", \"text\": ...}")),
    }
}

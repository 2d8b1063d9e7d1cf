//! Reads a body of OpenAI's Responses API as the chat that it asks for. Never answers it, and knows no earlier one.

use serde_json::{Map, Value, json};

use super::chat::chat_of;
use super::fields::{Fields, Names, kind, quoted, round_but, shown};
use super::parsed::ParsedRequest;
use super::{Prompt, Unknown};
use crate::error::{Error, Result};
use crate::llama::Conversation;
use crate::types::GenerationId;

/// Fields that are read, of which errors suggest the nearest.
pub(crate) const RESPONSES_FIELDS: &[&str] = &[
    "model",
    "input",
    "instructions",
    "previous_response_id",
    "store",
    "max_output_tokens",
    "temperature",
    "top_p",
    "text",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "stream",
    "user",
    "safety_identifier",
    "metadata",
];

/// Fields that would change the answer.
const UNSUPPORTED: [&str; 3] = ["background", "conversation", "prompt"];

/// A request for a response.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedResponses {
    /// The chat, without what was said in earlier responses.
    pub request: ParsedRequest,
    /// The response that it goes on from.
    pub previous: Option<GenerationId>,
    /// Whether it may be gone on from.
    pub store: bool,
    /// What the input says, as messages of a chat.
    pub said: Vec<Value>,
    /// Fields that the response repeats.
    pub repeated: Map<String, Value>,
}

impl ParsedResponses {
    /// Puts what was said before in front of the input, behind the instructions.
    pub fn after(&mut self, earlier: Vec<Value>) {
        for prompt in &mut self.request.prompts {
            if let Prompt::Chat(Conversation { messages, .. }) = prompt {
                let at = messages.len().saturating_sub(self.said.len());
                messages.splice(at..at, earlier.iter().cloned());
            }
        }
    }
}

/// What this API calls the fields of a chat, where the request has a `user`, and where it has not.
const NAMES: [Names; 2] = [
    &[
        ("response_format", "text.format"),
        ("json_schema", "schema"),
        ("function.name", "name"),
        ("function.parameters", "parameters"),
    ],
    &[
        ("response_format", "text.format"),
        ("json_schema", "schema"),
        ("function.name", "name"),
        ("function.parameters", "parameters"),
        ("user", "safety_identifier"),
    ],
];

/// Reads the body of `POST /v1/responses`.
///
/// # Errors
/// As [`super::parse_chat`], in this API's words.
pub fn parse_responses(body: &[u8], unknown: Unknown) -> Result<ParsedResponses> {
    let mut fields = Fields::parse(body, unknown)?;
    for key in UNSUPPORTED {
        if fields.take(key).is_some_and(|value| value != false) {
            return Err(Error::unsupported(format!("{key} is not supported")));
        }
    }
    let previous = match fields.map.get("previous_response_id") {
        None | Some(Value::Null) => None,
        Some(_) => Some(fields.id("previous_response_id")?),
    };
    let mut repeated = Map::new();
    for key in ["instructions", "max_output_tokens", "metadata", "temperature", "text", "tool_choice", "tools", "top_p"]
    {
        repeated.extend(fields.map.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    let mut chat = Map::new();
    let names = NAMES[usize::from(fields.map.get("user").is_none_or(Value::is_null))];
    for (name, same) in [
        ("model", "model"),
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("stream", "stream"),
        ("tool_choice", "tool_choice"),
        ("parallel_tool_calls", "parallel_tool_calls"),
        ("safety_identifier", "user"),
        ("user", "user"),
    ] {
        chat.extend(fields.take(name).map(|value| (same.to_owned(), value)));
    }
    let most = fields.integer("max_output_tokens", 1, u64::from(u32::MAX))?;
    chat.extend(most.map(|tokens| ("max_tokens".to_owned(), tokens.into())));
    if let Some(tools) = fields.take("tools") {
        chat.insert("tools".into(), tools_of(tools)?);
    }
    if let Some(format) = fields.object("text")?.and_then(|mut text| text.shift_remove("format")) {
        chat.insert("response_format".into(), format);
    }
    let store = fields.choice("store")?.unwrap_or(true);
    let mut input = fields.required("input")?;
    // Arguments of calls are strings in it.
    round_but(&mut input, &[]);
    let said = input_of(input)?;
    let instructions = fields.string("instructions")?.map(|text| json!({"role": "system", "content": text}));
    let messages: Vec<Value> = instructions.into_iter().chain(said.iter().cloned()).collect();
    chat.insert("messages".into(), messages.into());
    // In this API an answer is a message of its own.
    chat.insert("continue_final_message".into(), false.into());
    fields.object("metadata")?;
    fields.finish(RESPONSES_FIELDS)?;
    let request = chat_of(Fields { map: chat, unknown, names })?;
    // As the chat has read them: arguments are objects.
    let said = request.prompts.iter().find_map(|prompt| match prompt {
        Prompt::Chat(Conversation { messages, .. }) => messages.get(messages.len().saturating_sub(said.len())..),
        _ => None,
    });
    let said = said.unwrap_or_default().to_vec();
    Ok(ParsedResponses { request, previous, store, said, repeated })
}

/// Tools in the form of chats.
fn tools_of(tools: Value) -> Result<Value> {
    let Value::Array(tools) = tools else {
        return Err(Error::arg(format!("tools is {}, expected an array", kind(&tools))));
    };
    let tool = |(i, tool): (usize, Value)| match (tool["type"].as_str().map(str::to_owned).as_deref(), tool) {
        (Some("function"), Value::Object(mut map)) => {
            map.shift_remove("type");
            map.retain(|_, value| !value.is_null());
            Ok(json!({"type": "function", "function": map}))
        }
        (Some(other), _) => {
            Err(Error::unsupported(format!("tools[{i}]: tools of type {} are not supported", quoted(other))))
        }
        (None, _) => Err(Error::arg(format!("tools[{i}]: type is missing, expected function"))),
    };
    tools.into_iter().enumerate().map(tool).collect::<Result<Vec<_>>>().map(Value::from)
}

/// The input as messages of a chat.
fn input_of(input: Value) -> Result<Vec<Value>> {
    let items = match input {
        Value::String(text) => return Ok(vec![json!({"role": "user", "content": text})]),
        Value::Array(items) if !items.is_empty() => items,
        Value::Array(_) => return Err(Error::arg("input is empty, expected a string or at least one item")),
        other => return Err(Error::arg(format!("input is {}, expected a string or an array of items", kind(&other)))),
    };
    let mut messages = Vec::new();
    let mut thought = String::new();
    for (i, item) in items.into_iter().enumerate() {
        read_item(item, &mut messages, &mut thought).map_err(|e| e.context(format!("input[{i}]")))?;
    }
    if messages.is_empty() {
        return Err(Error::arg("input says nothing, expected a message among its items"));
    }
    Ok(messages)
}

/// Adds what an item says. Calls in a row belong to one message of the assistant, and reasoning to the message that
/// follows it.
fn read_item(mut item: Value, messages: &mut Vec<Value>, thought: &mut String) -> Result<()> {
    let missing = |key: &str| Error::arg(format!("{key} is missing, expected a string"));
    match item["type"].as_str().map(str::to_owned).as_deref() {
        None | Some("message") => {
            let role = item["role"].as_str().ok_or_else(|| missing("role"))?.to_owned();
            let content = content_of(item["content"].take())?;
            let mut message = json!({"role": role, "content": content});
            if role == "assistant" && !thought.is_empty() {
                message["reasoning_content"] = std::mem::take(thought).into();
            }
            messages.push(message);
        }
        Some("function_call") => {
            let (id, name) = (&item["call_id"], item["name"].as_str().ok_or_else(|| missing("name"))?);
            let arguments = item["arguments"].as_str().ok_or_else(|| missing("arguments"))?;
            let call = json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
            match messages.last_mut().filter(|last| last["role"] == "assistant") {
                Some(last) => match last["tool_calls"].as_array_mut() {
                    Some(calls) => calls.push(call),
                    None => last["tool_calls"] = json!([call]),
                },
                None => {
                    let mut message = json!({"role": "assistant", "content": "", "tool_calls": [call]});
                    if !thought.is_empty() {
                        message["reasoning_content"] = std::mem::take(thought).into();
                    }
                    messages.push(message);
                }
            }
        }
        Some("function_call_output") => {
            if !matches!(item["call_id"], Value::String(_) | Value::Null) {
                return Err(Error::arg(format!("call_id is {}, expected a string", shown(&item["call_id"]))));
            }
            let content = content_of(item["output"].take())?;
            messages.push(json!({"role": "tool", "tool_call_id": item["call_id"], "content": content}));
        }
        Some("reasoning") => {
            let parts = item["content"].as_array().into_iter().flatten();
            parts.filter_map(|part| part["text"].as_str()).for_each(|text| thought.push_str(text));
        }
        Some(other) => {
            return Err(Error::unsupported(format!("items of type {} are not supported", quoted(other))));
        }
    }
    Ok(())
}

/// A text, or parts of text.
fn content_of(content: Value) -> Result<String> {
    let part = |part: Value| match (part["type"].as_str(), part["text"].as_str(), part["refusal"].as_str()) {
        (Some("input_text" | "output_text" | "text"), Some(text), _) | (Some("refusal"), _, Some(text)) => {
            Ok(text.to_owned())
        }
        (Some(other), ..) => {
            Err(Error::unsupported(format!("content parts of type {} are not supported", quoted(other))))
        }
        _ => Err(Error::arg("a content part has no type, expected {\"type\": \"input_text\", \"text\": ...}")),
    };
    match content {
        Value::String(text) => Ok(text),
        Value::Array(parts) => parts.into_iter().map(part).collect(),
        other => Err(Error::arg(format!("content is {}, expected a string or an array of parts", kind(&other)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<ParsedResponses> {
        parse_responses(body.to_string().as_bytes(), Unknown::Ignore)
    }

    fn messages(parsed: &ParsedResponses) -> Value {
        let Prompt::Chat(conversation) = &parsed.request.prompts[0] else { panic!() };
        json!(conversation.messages)
    }

    #[test]
    fn items_are_the_messages_of_a_chat() {
        let mut parsed = read(json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "T"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{\"a\": 1}"},
            {"type": "function_call_output", "call_id": "c", "output": "2"}], "instructions": "Be brief.",
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true}],
            "max_output_tokens": 7, "text": {"format": {"type": "text"}}, "previous_response_id": "gen-1"}))
        .unwrap();
        let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}});
        let said = json!([{"role": "user", "content": "hi"},
            {"role": "assistant", "reasoning_content": "T", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "2"}]);
        assert_eq!(json!(parsed.said), said);
        assert_eq!(messages(&parsed)[0], json!({"role": "system", "content": "Be brief."}));
        parsed.after(vec![json!({"role": "user", "content": "before"})]);
        assert_eq!(messages(&parsed)[1], json!({"role": "user", "content": "before"}));
        assert_eq!(messages(&parsed)[2], said[0]);
        assert_eq!((parsed.previous, parsed.store), (Some(GenerationId("gen-1".into())), true));
        assert_eq!((parsed.request.each.max_tokens, parsed.request.tools), (Some(7), vec!["f".to_owned()]));
    }

    #[test]
    fn what_is_wrong_is_named_in_the_words_of_this_api() {
        let refusal = |body: Value| read(body).unwrap_err().message().to_owned();
        assert!(refusal(json!({"model": "m"})).contains("input is missing"));
        assert!(refusal(json!({"input": []})).starts_with("input is empty"));
        assert!(
            refusal(json!({"input": [{"type": "item_reference", "id": "x"}]})).starts_with("input[0]: items of type")
        );
        assert!(refusal(json!({"input": [["hi"]]})).starts_with("input[0]: role is missing"));
        assert!(refusal(json!({"input": "hi", "tools": [["f"]]})).starts_with("tools[0]: type is missing"));
        assert!(refusal(json!({"input": "hi", "background": true})).starts_with("background is not supported"));
        assert!(
            refusal(json!({"input": "hi", "tools": [{"type": "web_search"}]})).starts_with("tools[0]: tools of type")
        );
        let with = |format: Value| refusal(json!({"input": "hi", "text": {"format": format}}));
        assert!(with(json!({"type": "x"})).starts_with("text.format: type is \"x\""));
        assert!(with(json!(5)).starts_with("text.format is 5"));
        assert!(with(json!({"type": "json_schema"})).starts_with("text.format: schema is missing"));
        let both = json!({"type": "json_schema", "json_schema": {"schema": {"type": "array"}}});
        assert!(read(json!({"input": "hi", "text": {"format": both}})).is_ok(), "the form of chats");
        assert!(refusal(json!({"input": "hi", "safety_identifier": 5})).starts_with("safety_identifier is 5"));
        assert!(refusal(json!({"input": "hi", "user": 5})).starts_with("user is 5"));
        assert!(refusal(json!({"input": "hi", "max_output_tokens": 0})).starts_with("max_output_tokens is 0"));
        assert!(refusal(json!({"input": "hi", "previous_response_id": 5})).starts_with("previous_response_id is 5"));
    }
}

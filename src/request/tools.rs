//! Reads tools and the conversations that use them. Never runs a tool.

use serde_json::{Value, json};

use super::Unknown;
use super::fields::{Fields, kind, quoted, round_but, shown, word};
use super::parsed::WrittenSchema;
use crate::error::{Error, Result};

/// Most tools per request.
const TOOLS: usize = 64;
/// Longest name of a tool, in bytes.
const NAME_BYTES: usize = 64;

/// The tools of a request.
#[derive(Default)]
pub(super) struct Tools {
    /// The tools as passed to the template.
    pub(super) given: Vec<Value>,
    pub(super) names: Vec<String>,
    /// The schema of a call of each.
    pub(super) calls: Vec<Value>,
    /// The parameters of each.
    pub(super) parameters: Vec<WrittenSchema>,
    /// Whether `tool_choice` demands a call.
    pub(super) forced: bool,
}

/// Takes `tools` and `tool_choice`.
pub(super) fn take(fields: &mut Fields) -> Result<Tools> {
    let given = match fields.take("tools") {
        None => Vec::new(),
        Some(Value::Array(items)) if items.len() <= TOOLS => items,
        Some(Value::Array(items)) => {
            return Err(Error::arg(format!("tools has {} entries, expected at most {TOOLS}", items.len())));
        }
        Some(other) => return Err(Error::arg(format!("tools is {}, expected an array", kind(&other)))),
    };
    let words = Words { name: fields.name("function.name"), parameters: fields.name("function.parameters") };
    let mut functions: Vec<(String, Value)> = Vec::new();
    for (i, tool) in given.iter().enumerate() {
        let (name, parameters) = function(tool, words).map_err(|e| e.context(format!("tools[{i}]")))?;
        if let Some(first) = functions.iter().position(|(other, _)| *other == name) {
            return Err(Error::arg(format!("tools[{first}] and tools[{i}] are both named {name:?}, expected one")));
        }
        functions.push((name, parameters));
    }
    let names: Vec<String> = functions.iter().map(|(name, _)| name.clone()).collect();
    let (forced, among) = match fields.take("tool_choice").map(|choice| choice_of(&choice)).transpose()? {
        None => (false, names),
        Some(Choice::None) => return Ok(Tools::default()),
        Some(Choice::Any { forced }) => (forced, names),
        Some(Choice::Of { forced, among }) => (forced, among),
    };
    if forced && functions.is_empty() {
        return Err(Error::arg("tool_choice demands a call, and there are no tools, expected at least one"));
    }
    if let Some(name) = among.iter().find(|name| !functions.iter().any(|(known, _)| known == *name)) {
        let name = quoted(name);
        return Err(Error::arg(format!(
            "tool_choice names {name}, which is not among the tools, expected one of them"
        )));
    }
    let (mut calls, mut parameters) = (Vec::new(), Vec::new());
    for (i, (name, schema)) in functions.into_iter().enumerate().filter(|(_, (name, _))| among.contains(name)) {
        calls.push(call_schema(&name, &schema));
        parameters.push(WrittenSchema { place: format!("tools[{i}].{}", words.parameters), schema });
    }
    Ok(Tools { given, names: among, calls, parameters, forced })
}

/// What the API calls the fields of a tool.
#[derive(Clone, Copy)]
struct Words {
    name: &'static str,
    parameters: &'static str,
}

/// The meaning of `tool_choice`.
enum Choice {
    None,
    Any { forced: bool },
    Of { forced: bool, among: Vec<String> },
}

/// Reads `tool_choice`, in the form of chats and in that of responses.
fn choice_of(choice: &Value) -> Result<Choice> {
    const EXPECTED: &str =
        "expected \"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": ...}}";
    let name = |tool: &Value| tool["function"]["name"].as_str().or(tool["name"].as_str()).map(str::to_owned);
    match (choice, choice["type"].as_str()) {
        (Value::String(word), _) => match word.as_str() {
            "none" => Ok(Choice::None),
            "auto" => Ok(Choice::Any { forced: false }),
            "required" => Ok(Choice::Any { forced: true }),
            other => Err(Error::arg(format!("tool_choice is {}, {EXPECTED}", quoted(other)))),
        },
        (Value::Object(_), Some("allowed_tools")) => {
            let allowed = if choice["allowed_tools"].is_object() { &choice["allowed_tools"] } else { choice };
            let forced = match allowed["mode"].as_str() {
                Some("auto") => false,
                Some("required") => true,
                _ => {
                    let mode = &allowed["mode"];
                    let mode = if mode.is_null() { "missing".to_owned() } else { word(mode) };
                    return Err(Error::arg(format!("tool_choice: mode is {mode}, expected auto or required")));
                }
            };
            let names = allowed["tools"].as_array().filter(|tools| !tools.is_empty());
            let names = names.and_then(|tools| tools.iter().map(name).collect::<Option<Vec<_>>>());
            match names {
                Some(among) => Ok(Choice::Of { forced, among }),
                None => Err(Error::arg("tool_choice has no tools with names, expected at least one")),
            }
        }
        (Value::Object(_), None | Some("function")) => match name(choice) {
            Some(name) => Ok(Choice::Of { forced: true, among: vec![name] }),
            None => Err(Error::arg(format!("tool_choice names no function, {EXPECTED}"))),
        },
        (Value::Object(_), Some(other)) => {
            let other = quoted(other);
            Err(Error::arg(format!("tool_choice: type is {other}, expected function or allowed_tools")))
        }
        (other, _) => Err(Error::arg(format!("tool_choice is {}, {EXPECTED}", shown(other)))),
    }
}

/// The schema of a call. References in the parameters are relative to the parameters.
fn call_schema(name: &str, parameters: &Value) -> Value {
    let mut parameters = parameters.clone();
    if let Value::Object(map) = &mut parameters {
        map.entry("$id").or_insert_with(|| format!("tool:{name}").into());
        map.entry("type").or_insert_with(|| "object".into());
    }
    json!({"type": "object", "properties": {"name": {"const": name}, "arguments": parameters},
        "required": ["name", "arguments"], "additionalProperties": false})
}

/// The name and parameters of a function.
fn function(tool: &Value, words: Words) -> Result<(String, Value)> {
    if !tool.is_object() {
        return Err(Error::arg(format!("it is {}, expected {{\"type\": \"function\", ...}}", shown(tool))));
    }
    match &tool["type"] {
        Value::String(kind) if kind == "function" => {}
        Value::Null => return Err(Error::arg("type is missing, expected function")),
        other => return Err(Error::arg(format!("type is {}, expected function", word(other)))),
    }
    let function = &tool["function"];
    if !matches!(function, Value::Object(_) | Value::Null) {
        return Err(Error::arg(format!("function is {}, expected an object", shown(function))));
    }
    let mistyped = |known: &str| {
        let map = function.as_object().cloned().unwrap_or_default();
        Fields::of(map, Unknown::Ignore).mistyped(&[known]).map(|e| e.context("function"))
    };
    let name = match &function["name"] {
        Value::String(name) => name,
        Value::Null => {
            let missing = || Error::arg(format!("{} is missing, expected a string", words.name));
            return Err(mistyped("name").unwrap_or_else(missing));
        }
        other => return Err(Error::arg(format!("{} is {}, expected a string", words.name, shown(other)))),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.';
    if name.is_empty() || name.len() > NAME_BYTES || !name.chars().all(plain) {
        let (field, name) = (words.name, quoted(name));
        let expected = format!("1 to {NAME_BYTES} letters, digits, _, - and .");
        return Err(Error::arg(format!("{field} is {name}, expected {expected}")));
    }
    match &function["parameters"] {
        Value::Null => match mistyped("parameters") {
            None => Ok((name.to_owned(), json!({"type": "object", "properties": {}}))),
            Some(error) => Err(error),
        },
        schema @ Value::Object(map) if map.get("type").is_none_or(|kind| kind == "object") => {
            let mut schema = schema.clone();
            // No template writes it, and the compiler wants numbers.
            round_but(&mut schema, &[]);
            Ok((name.to_owned(), schema))
        }
        Value::Object(map) => {
            let (field, found) = (words.parameters, word(&map["type"]));
            Err(Error::arg(format!("{field}.type is {found}, expected \"object\"")))
        }
        other => Err(Error::arg(format!("{} is {}, expected a JSON schema", words.parameters, shown(other)))),
    }
}

//! Reads tools and the conversations that use them. Never runs a tool.

use serde_json::{Value, json};

use super::Unknown;
use super::fields::{Fields, kind, shown};
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
    let functions = given.iter().enumerate();
    let functions: Vec<(String, Value)> = functions
        .map(|(i, tool)| function(tool).map_err(|e| e.context(format!("tools[{i}]"))))
        .collect::<Result<_>>()?;
    let names: Vec<String> = functions.iter().map(|(name, _)| name.clone()).collect();
    let (forced, among) = match fields.take("tool_choice").map(|choice| choice_of(&choice)).transpose()? {
        None => (false, names),
        Some(Choice::None) => return Ok(Tools::default()),
        Some(Choice::Any { forced }) => (forced, names),
        Some(Choice::Of { forced, among }) => (forced, among),
    };
    if forced && functions.is_empty() {
        return Err(Error::arg("tool_choice is required, but there are no tools"));
    }
    if among.iter().any(|name| !functions.iter().any(|(known, _)| known == name)) {
        return Err(Error::arg("tool_choice names a tool that is not among the tools"));
    }
    let calls = functions
        .iter()
        .filter(|(name, _)| among.contains(name))
        .map(|(name, parameters)| call_schema(name, parameters))
        .collect();
    Ok(Tools { given, names: among, calls, forced })
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
            _ => Err(Error::arg(format!("tool_choice is not known, {EXPECTED}"))),
        },
        (Value::Object(_), Some("allowed_tools")) => {
            let allowed = if choice["allowed_tools"].is_object() { &choice["allowed_tools"] } else { choice };
            let forced = match allowed["mode"].as_str() {
                Some("auto") => false,
                Some("required") => true,
                _ => return Err(Error::arg("tool_choice has no mode, expected auto or required")),
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
        (other, _) => Err(Error::arg(format!("tool_choice is {}, {EXPECTED}", kind(other)))),
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
fn function(tool: &Value) -> Result<(String, Value)> {
    if tool["type"] != "function" {
        return Err(Error::arg("its type is not function, which is the only one that is known"));
    }
    let function = &tool["function"];
    let mistyped = |known: &str| {
        let map = function.as_object().cloned().unwrap_or_default();
        Fields { map, unknown: Unknown::Ignore }.mistyped(&[known]).map(|e| e.context("function"))
    };
    let Some(name) = function["name"].as_str() else {
        return Err(mistyped("name").unwrap_or_else(|| Error::arg("function.name is missing")));
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.';
    if name.is_empty() || name.len() > NAME_BYTES || !name.chars().all(plain) {
        let expected = format!("1 to {NAME_BYTES} letters, digits, _, - and .");
        return Err(Error::arg(format!("function.name has other characters or is too long, expected {expected}")));
    }
    match &function["parameters"] {
        Value::Null => match mistyped("parameters") {
            None => Ok((name.to_owned(), json!({"type": "object", "properties": {}}))),
            Some(error) => Err(error),
        },
        schema @ Value::Object(map) if map.get("type").is_none_or(|kind| kind == "object") => {
            Ok((name.to_owned(), schema.clone()))
        }
        Value::Object(map) => {
            let found = shown(&map["type"]);
            Err(Error::arg(format!("function.parameters has the type {found}, expected \"object\"")))
        }
        other => Err(Error::arg(format!("function.parameters is {}, expected a JSON schema", kind(other)))),
    }
}

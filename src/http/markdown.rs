//! The API as docs/HTTP.md tells it, written from the OpenAPI document. Knows no endpoint itself.

use std::fmt::Write;

use serde_json::Value;

use super::openapi;

const HEAD: &str = "# HTTP API

Written from the OpenAPI document (`GET /openapi.json`; `GET /docs` shows it in a browser) by `make docs`; a test \
keeps it current.

Bodies are JSON. A field that is not named here is refused, with the nearest name if one is close; in requests for \
answers (chats, completions, messages, responses) it is ignored, since their clients send more. Errors are \
`{\"error\": {\"message\", \"type\", \"param\", \"code\"}}` with the status that fits. \
Where keys are configured, requests send theirs as `Authorization: Bearer KEY` or `X-Api-Key: KEY`; what is for \
operators refuses the keys of clients. An answer's id, whatever API gave it, is what `POST /v1/feedback` takes as \
`generation_id`. Fields without *required* may be left out or null.
";

/// The whole document.
pub fn markdown() -> String {
    let document: Value = serde_json::from_str(openapi::text()).unwrap_or_default();
    let mut out = String::from(HEAD);
    for (path, methods) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in methods.as_object().into_iter().flatten() {
            let text = |key: &str| operation[key].as_str().unwrap_or_default().trim().replace('\n', " ");
            let operators = if operation["tags"][0] == openapi::OPERATORS { " *For operators.*" } else { "" };
            // Writing to a string can't fail.
            let _ = writeln!(out, "\n## {} {path}\n", method.to_uppercase());
            let said = [text("summary"), text("description")].join(" ");
            let _ = writeln!(out, "{}.{operators}", said.trim().trim_end_matches('.'));
            let body = &operation["requestBody"]["content"]["application/json"]["schema"];
            write_fields(&mut out, &document, body);
        }
    }
    out
}

/// The schema that a reference names.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let pointer = schema["$ref"].as_str().and_then(|at| at.strip_prefix('#'));
    pointer.and_then(|at| document.pointer(at)).unwrap_or(schema)
}

fn write_fields(out: &mut String, document: &Value, schema: &Value) {
    let schema = resolved(document, schema);
    let Some(fields) = schema["properties"].as_object().filter(|fields| !fields.is_empty()) else { return };
    if let Some(text) = schema["description"].as_str() {
        let _ = writeln!(out, "\n{}", text.replace('\n', " "));
    }
    let _ = writeln!(out, "\n| field | is | |\n|---|---|---|");
    let required = |name: &String| schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
    for (name, field) in fields {
        let needed = if required(name) { "*required.* " } else { "" };
        let text = field["description"].as_str().unwrap_or_default().replace('\n', " ").replace('|', "\\|");
        let _ = writeln!(out, "| `{name}` | {} | {needed}{text} |", kind(document, field));
    }
    // What stands in an array of objects has fields of its own.
    for (name, field) in fields {
        if field["items"]["$ref"].is_string() {
            let _ = write!(out, "\nEach of `{name}`:");
            write_fields(out, document, &field["items"]);
        }
    }
}

/// What a field is, in words.
fn kind(document: &Value, field: &Value) -> String {
    let word = |name: &str| {
        match name {
            "integer" => "whole number",
            "boolean" => "true or false",
            other => other,
        }
        .to_owned()
    };
    let kinds = match &field["type"] {
        Value::String(one) => vec![one.as_str()],
        Value::Array(some) => some.iter().filter_map(Value::as_str).filter(|one| *one != "null").collect(),
        _ => return if resolved(document, field)["properties"].is_object() { "object".into() } else { "any".into() },
    };
    let name = kinds.first().copied().unwrap_or("any");
    let mut text = if name == "array" {
        let items = resolved(document, &field["items"]);
        format!("array of {}s", items["type"].as_str().map_or("value".into(), word))
    } else {
        word(name)
    };
    match (&field["minimum"], &field["maximum"]) {
        (Value::Null, Value::Null) => {}
        (low, Value::Null) => text += &format!(", from {low}"),
        (low, high) => text += &format!(", {low} to {high}"),
    }
    text
}

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
`generation_id`. In requests, fields without *required* may be left out or null; in answers they may be so too. Bodies \
and answers are told under [Objects](#objects).
";

/// The whole document.
pub fn markdown() -> String {
    let document: Value = serde_json::from_str(openapi::text()).unwrap_or_default();
    let mut out = String::from(HEAD);
    for (path, methods) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in methods.as_object().into_iter().flatten() {
            let operators = if operation["tags"][0] == openapi::OPERATORS { " *For operators.*" } else { "" };
            // Writing to a string can't fail.
            let _ = writeln!(out, "\n## {} {path}\n", method.to_uppercase());
            let said = [text(operation, "summary"), text(operation, "description")].join(" ");
            let _ = writeln!(out, "{}.{operators}", said.trim().trim_end_matches('.'));
            let sides = [("Body", &operation["requestBody"]), ("Answer", &operation["responses"]["200"])];
            for (side, kinds) in sides.map(|(side, of)| (side, of["content"].as_object())) {
                let of = |(kind, content): (&String, &Value)| match kind.as_str() {
                    "application/json" => said_kind(&content["schema"]),
                    kind => format!("{kind} of {}", said_kind(&content["schema"])),
                };
                let kinds: Vec<String> = kinds.into_iter().flatten().map(of).collect();
                if !kinds.is_empty() {
                    let _ = writeln!(out, "\n{side}: {}.", kinds.join(", or "));
                }
            }
        }
    }
    out += "\n# Objects\n";
    for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
        let _ = writeln!(out, "\n## {name}");
        write_object(&mut out, schema);
    }
    out
}

fn text(of: &Value, key: &str) -> String {
    of[key].as_str().unwrap_or_default().trim().replace('\n', " ")
}

/// An object's fields, or what else a schema is.
fn write_object(out: &mut String, schema: &Value) {
    let said = text(schema, "description");
    if !said.is_empty() {
        let _ = writeln!(out, "\n{said}");
    }
    if let Some(parts) = schema["allOf"].as_array() {
        for part in parts {
            match part["$ref"].is_string() {
                true => drop(writeln!(out, "\nThe fields of {}.", said_kind(part))),
                false => write_object(out, part),
            }
        }
        return;
    }
    if let Some(ways) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
        let _ = writeln!(out, "\nOne of:\n");
        for way in ways {
            let fields = way["properties"].as_object().into_iter().flatten();
            let fields: Vec<String> = fields.map(|(name, field)| format!("`{name}`: {}", said_kind(field))).collect();
            let kind = if fields.is_empty() { said_kind(way) } else { format!("{{{}}}", fields.join(", ")) };
            let said = text(way, "description");
            let _ = writeln!(out, "- {kind}{}{said}", if said.is_empty() { "" } else { ": " });
        }
        return;
    }
    let Some(fields) = schema["properties"].as_object().filter(|fields| !fields.is_empty()) else {
        let _ = writeln!(out, "\n{}.", said_kind(schema));
        return;
    };
    let _ = writeln!(out, "\n| field | is | |\n|---|---|---|");
    let required = |name: &String| schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
    for (name, field) in fields {
        let needed = if required(name) { "*required.* " } else { "" };
        // Of a field that may be null, what it is otherwise says it.
        let said = [field, &field["oneOf"][0]].map(|of| text(of, "description")).concat().replace('|', "\\|");
        let _ = writeln!(out, "| `{name}` | {} | {needed}{said} |", said_kind(field));
    }
}

/// What a schema stands for, in words.
fn said_kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|to| to.rsplit('/').next()) {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(ways) = schema["oneOf"].as_array() {
        let ways = ways.iter().filter(|way| way["type"] != "null").map(said_kind);
        return ways.collect::<Vec<_>>().join(" or ");
    }
    if let Some(words) = schema["enum"].as_array() {
        return words
            .iter()
            .map(|word| format!("`{}`", word.as_str().unwrap_or_default()))
            .collect::<Vec<_>>()
            .join(", ");
    }
    let kind = match &schema["type"] {
        Value::String(one) => one,
        Value::Array(some) => some.iter().filter_map(Value::as_str).find(|one| *one != "null").unwrap_or("any"),
        _ => "any",
    };
    let mut text = match kind {
        "array" => {
            let items = said_kind(&schema["items"]);
            let many = |kind: &str| match kind.strip_prefix("array") {
                Some(of) => format!("arrays{of}"),
                None if kind.ends_with(|last: char| last.is_ascii_alphabetic()) => format!("{kind}s"),
                None => kind.to_owned(),
            };
            format!("array of {}", items.split(" or ").map(many).collect::<Vec<_>>().join(" or "))
        }
        "object" if schema["additionalProperties"].is_object() => {
            format!("object of {}", said_kind(&schema["additionalProperties"]))
        }
        "integer" => "whole number".into(),
        "boolean" => "true or false".into(),
        "string" if schema["format"] == "binary" => "bytes".into(),
        other => other.into(),
    };
    match (&schema["minimum"], &schema["maximum"]) {
        (low, Value::Null) if low.is_null() || low == 0 => {}
        (low, Value::Null) => text += &format!(", from {low}"),
        (low, high) => text += &format!(", {low} to {high}"),
    }
    text
}

//! Holds answers of the HTTP API against its OpenAPI document: each field is named there, and of the kind said. Asks
//! for nothing itself.

use std::collections::BTreeMap;

use reqwest::{Method, StatusCode};
use serde_json::{Map, Value};

/// The OpenAPI document of a server.
pub struct Document(Value);

impl Document {
    pub fn new(document: Value) -> Self {
        Self(document)
    }

    /// Panics where an answer of this kind (`application/json`, `text/event-stream`) is not as the document says. What
    /// it says nothing of, such as what is no JSON, passes.
    pub fn check(&self, method: &Method, path: &str, status: StatusCode, kind: &str, answer: &Value) {
        let path = path.split('?').next().unwrap_or_default();
        let Some(known) = self.0["paths"].as_object().into_iter().flatten().find(|(known, _)| fits(known, path)) else {
            return;
        };
        let operation = &known.1[method.as_str().to_lowercase()];
        let responses = &operation["responses"];
        let response = responses.get(status.as_str()).unwrap_or(&responses["default"]);
        let schema = &response["content"][kind]["schema"];
        if let Err(fault) = self.fits(schema, answer, "") {
            panic!("{method} {path}, {status}: {fault}, which is not as the API's document says: {answer}");
        }
    }

    fn resolved<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let pointer = schema["$ref"].as_str().and_then(|at| at.strip_prefix('#'));
        pointer.map_or(schema, |at| self.0.pointer(at).unwrap_or_else(|| panic!("the document has no {at}")))
    }

    fn fits(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let schema = self.resolved(schema);
        if let Some(ways) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
            let faults: Vec<String> = ways.iter().filter_map(|way| self.fits(way, value, at).err()).collect();
            return if faults.len() < ways.len() { Ok(()) } else { Err(faults.join("; or ")) };
        }
        let (fields, required) = self.fields(schema);
        if let (Value::Object(object), false) = (value, fields.is_empty()) {
            if let Some(name) = required.iter().find(|name| !object.contains_key(**name)) {
                return Err(format!("{at} has no {name}"));
            }
            return object.iter().try_for_each(|(name, inner)| match fields.get(name.as_str()) {
                Some(field) => self.fits(field, inner, &format!("{at}.{name}")),
                None => Err(format!("{at}.{name} is not named")),
            });
        }
        let kinds: Vec<&str> = match &schema["type"] {
            Value::String(one) => vec![one],
            Value::Array(some) => some.iter().filter_map(Value::as_str).collect(),
            _ if fields.is_empty() => return Ok(()),
            _ => vec!["object"],
        };
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        if !kinds.contains(&kind) && (kind != "integer" || !kinds.contains(&"number")) {
            return Err(format!("{at} is of kind {kind}, not {kinds:?}"));
        }
        if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
            return Err(format!("{at} is {value}"));
        }
        match value {
            Value::Array(items) => {
                items.iter().try_for_each(|item| self.fits(&schema["items"], item, &format!("{at}[]")))
            }
            Value::Object(map) if schema["additionalProperties"].is_object() => map
                .iter()
                .try_for_each(|(name, v)| self.fits(&schema["additionalProperties"], v, &format!("{at}.{name}"))),
            _ => Ok(()),
        }
    }

    /// The fields of an object, and those that it must have.
    fn fields<'a>(&'a self, schema: &'a Value) -> (BTreeMap<&'a str, &'a Value>, Vec<&'a str>) {
        let own = schema["properties"].as_object().into_iter().flat_map(Map::iter);
        let mut fields: BTreeMap<&str, &Value> = own.map(|(name, field)| (name.as_str(), field)).collect();
        let mut required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for part in schema["allOf"].as_array().into_iter().flatten() {
            let (more, needed) = self.fields(self.resolved(part));
            fields.extend(more);
            required.extend(needed);
        }
        (fields, required)
    }
}

/// Whether a path is of this form, `/v1/models/{id}`.
fn fits(known: &str, path: &str) -> bool {
    let (known, path): (Vec<&str>, Vec<&str>) = (known.split('/').collect(), path.split('/').collect());
    known.len() == path.len() && known.iter().zip(&path).all(|(k, p)| k == p || k.starts_with('{'))
}

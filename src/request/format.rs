//! Reads the format that an answer is held to. Compiles nothing.

use serde_json::{Value, json};

use super::Unknown;
use super::fields::{Fields, shown};
use crate::error::{Error, Result};
use crate::types::Format;

impl Fields {
    /// The format that constrains the answer, by `response_format` or `grammar`.
    pub(super) fn format(&mut self) -> Result<Option<Format>> {
        let grammar = self.string("grammar")?.map(Format::Grammar);
        let format = match self.take("response_format") {
            None => None,
            Some(Value::Object(map)) => {
                let fields = Fields { map, unknown: self.unknown };
                fields.response_format().map_err(|e| e.context("response_format"))?
            }
            Some(other) => return Err(Error::arg(format!("response_format is {}, expected an object", shown(&other)))),
        };
        match (grammar, format) {
            (Some(_), Some(_)) => {
                Err(Error::arg("the request has both grammar and response_format, expected one of them"))
            }
            (grammar, format) => Ok(grammar.or(format)),
        }
    }

    fn response_format(mut self) -> Result<Option<Format>> {
        let kind = self.string("type")?;
        let schema = self.schema()?;
        self.finish(&["type", "json_schema", "schema"])?;
        match (kind.as_deref(), schema) {
            (Some("text"), None) => Ok(None),
            (Some("text"), Some(_)) => Err(Error::arg("type is text and there is a schema, expected json_schema")),
            (Some("json_object"), None) => Ok(Some(Format::JsonSchema(json!({"type": "object"})))),
            (Some("json_object"), Some(Value::Object(mut schema))) => {
                schema.entry("type").or_insert_with(|| "object".into());
                Ok(Some(Format::JsonSchema(schema.into())))
            }
            (Some("json_schema" | "json_object"), Some(schema)) => Ok(Some(Format::JsonSchema(schema))),
            (Some("json_schema"), None) => Err(Error::arg("json_schema is missing, expected an object with a schema")),
            _ => Err(Error::arg("type is not known, expected text, json_object or json_schema")),
        }
    }

    /// The schema of a response format, inside `json_schema` as in OpenAI's API, or beside the type as in others.
    fn schema(&mut self) -> Result<Option<Value>> {
        let beside = self.take("schema");
        let schema = match (self.take("json_schema"), beside) {
            (None, beside) => beside,
            (Some(_), Some(_)) => {
                return Err(Error::arg("there are both json_schema and schema, expected one of them"));
            }
            (Some(Value::Object(map)), None) => {
                let mut fields = Fields { map, unknown: Unknown::Ignore };
                let none = || Error::arg("json_schema has no schema, expected an object");
                let schema = fields.take("schema");
                Some(schema.ok_or_else(|| fields.mistyped(&["schema"]).unwrap_or_else(none))?)
            }
            (Some(other), None) => {
                return Err(Error::arg(format!("json_schema is {}, expected an object with a schema", shown(&other))));
            }
        };
        match schema {
            None | Some(Value::Object(_) | Value::Bool(_)) => Ok(schema),
            Some(other) => Err(Error::arg(format!("the schema is {}, expected an object", shown(&other)))),
        }
    }
}

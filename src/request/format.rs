//! Reads the format that an answer is held to. Compiles nothing.

use serde_json::{Value, json};

use super::Unknown;
use super::fields::{Fields, shown, word};
use crate::error::{Error, Result};
use crate::types::Format;

/// Fields of a response format: in some APIs the schema stands inside `json_schema` with its name, in others beside it.
const FORMAT_FIELDS: [&str; 6] = ["type", "json_schema", "schema", "name", "description", "strict"];

impl Fields {
    /// The format that constrains the answer, by `response_format` or `grammar`, and where its schema stands in the
    /// request.
    pub(super) fn format(&mut self) -> Result<Option<(Format, String)>> {
        let name = self.name("response_format");
        let grammar = self.string("grammar")?.map(|text| (Format::Grammar(text), "grammar".to_owned()));
        let format = match self.take("response_format") {
            None => None,
            Some(Value::Object(map)) => {
                let fields = Fields { map, unknown: self.unknown, names: self.names };
                let format = fields.response_format().map_err(|e| e.context(name))?;
                format.map(|(format, place)| (format, format!("{name}.{place}")))
            }
            Some(other) => return Err(Error::arg(format!("{name} is {}, expected an object", shown(&other)))),
        };
        match (grammar, format) {
            (Some(_), Some(_)) => {
                Err(Error::arg(format!("the request has both grammar and {name}, expected one of them")))
            }
            (grammar, format) => Ok(grammar.or(format)),
        }
    }

    fn response_format(mut self) -> Result<Option<(Format, &'static str)>> {
        let kind = self.take("type");
        let (schema, place) = self.schema()?;
        for other in ["name", "description", "strict"] {
            self.take(other);
        }
        let missing = self.name("json_schema");
        self.finish(&FORMAT_FIELDS)?;
        let schema = match (kind.as_ref().map(|kind| kind.as_str().unwrap_or_default()), schema) {
            (Some("text"), None) => return Ok(None),
            (Some("text"), Some(_)) => {
                return Err(Error::arg("type is text and there is a schema, expected json_schema"));
            }
            (Some("json_object"), None) => json!({"type": "object"}),
            (Some("json_object"), Some(Value::Object(mut schema))) => {
                schema.entry("type").or_insert_with(|| "object".into());
                schema.into()
            }
            (Some("json_schema" | "json_object"), Some(schema)) => schema,
            (Some("json_schema"), None) if missing == "schema" => {
                return Err(Error::arg("schema is missing, expected a JSON schema"));
            }
            (Some("json_schema"), None) => {
                return Err(Error::arg("json_schema is missing, expected an object with a schema"));
            }
            _ => {
                let found = kind.map_or("missing".to_owned(), |kind| word(&kind));
                return Err(Error::arg(format!("type is {found}, expected text, json_object or json_schema")));
            }
        };
        Ok(Some((Format::JsonSchema(schema), place)))
    }

    /// The schema of a response format, inside `json_schema` as in OpenAI's API for chats, or beside the type as in
    /// others, and which of them.
    fn schema(&mut self) -> Result<(Option<Value>, &'static str)> {
        let beside = self.take("schema");
        let (schema, place) = match (self.take("json_schema"), beside) {
            (None, beside) => (beside, "schema"),
            (Some(_), Some(_)) => {
                return Err(Error::arg("there are both json_schema and schema, expected one of them"));
            }
            (Some(Value::Object(map)), None) => {
                let mut fields = Fields::of(map, Unknown::Ignore);
                let none = || Error::arg("json_schema has no schema, expected an object");
                let schema = fields.take("schema");
                let schema = schema.ok_or_else(|| fields.mistyped(&["schema"]).unwrap_or_else(none))?;
                (Some(schema), "json_schema.schema")
            }
            (Some(other), None) => {
                return Err(Error::arg(format!("json_schema is {}, expected an object with a schema", shown(&other))));
            }
        };
        match schema {
            None | Some(Value::Object(_) | Value::Bool(_)) => Ok((schema, place)),
            Some(other) => Err(Error::arg(format!("the schema is {}, expected an object", shown(&other)))),
        }
    }
}

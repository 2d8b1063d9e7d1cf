//! Finds the properties that a schema names, where it says nothing of others: there are no others then. Never rewrites
//! a schema.
//!
//! JSON Schema allows any others there, and a model that is held to no more invents them, and repeats them, since no
//! grammar knows which keys it has seen. Clients mean the listed ones, and llama.cpp's converter takes them so.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::references::{References, escaped, is_resource};
use super::values::refuse;
use crate::error::Result;

/// Most steps, schemas and names, for all objects of a schema together: references lead to some again and again.
pub(super) const STEPS: usize = 100_000;
/// Keywords that say which properties there may be, other than by listing them.
const SAYING: [&str; 5] = ["additionalProperties", "unevaluatedProperties", "patternProperties", "const", "enum"];
/// Keywords with schemas that hold for the same value, a list each.
const LISTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];

/// Whether the schemas that hold for the same value as this one, by its `$ref`, `allOf`, `anyOf` or `oneOf`, share it
/// with another one that may name properties: this one itself, or each other.
pub(super) fn combines(map: &Map<String, Value>) -> bool {
    let all = map.get("allOf").and_then(Value::as_array).map_or(0, Vec::len);
    let others = ["$ref", "anyOf", "oneOf"].iter().filter(|key| map.contains_key(**key)).count();
    all + others > 1 || ["properties", "required"].iter().chain(&SAYING).any(|key| map.contains_key(*key))
}

/// The properties that a schema and all that hold for the same value name, in their order; `None` if they list none, or
/// say which others there may be. `at` is its position, `base` what its references are relative to, `left` the steps
/// that are left.
///
/// # Errors
/// `Arg` for a reference that leads nowhere, and for too many steps.
pub(super) fn names(
    references: &mut References,
    left: &mut usize,
    schema: &Value,
    at: &str,
    base: &str,
) -> Result<Option<Vec<String>>> {
    let mut named = Named { references, left, names: Vec::new(), listed: false, said: false, seen: HashSet::new() };
    named.add(schema, at, base)?;
    Ok((named.listed && !named.said).then_some(named.names))
}

struct Named<'a, 'b> {
    references: &'a mut References<'b>,
    left: &'a mut usize,
    names: Vec<String>,
    /// Whether some are listed.
    listed: bool,
    /// Whether something says which others there may be.
    said: bool,
    /// The targets of references that were added.
    seen: HashSet<usize>,
}

impl Named<'_, '_> {
    fn add(&mut self, schema: &Value, at: &str, base: &str) -> Result<()> {
        self.steps(1, at)?;
        let Value::Object(map) = schema else { return Ok(()) };
        self.said |= SAYING.iter().any(|key| map.contains_key(*key));
        if self.said {
            return Ok(());
        }
        let base = if is_resource(schema) { at } else { base };
        if let Some(Value::Object(members)) = map.get("properties") {
            self.steps(members.len(), at)?;
            self.listed = true;
            self.names.extend(members.keys().cloned());
        }
        let required = map.get("required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        self.steps(required.len(), at)?;
        self.names.extend(required.iter().filter_map(Value::as_str).map(str::to_owned));
        if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
            let number = self.references.resolve(reference, at, base, true)?;
            if self.seen.insert(number)
                && let Some((pointer, _)) = self.references.target(number)
                && let Some(target) = self.references.schema(&pointer)
            {
                let base = self.references.base_of(&pointer);
                self.add(target, &pointer, &base)?;
            }
        }
        for key in LISTS {
            for (i, part) in map.get(key).and_then(Value::as_array).into_iter().flatten().enumerate() {
                self.add(part, &format!("{at}/{}/{i}", escaped(key)), base)?;
            }
        }
        Ok(())
    }

    fn steps(&mut self, steps: usize, at: &str) -> Result<()> {
        match self.left.checked_sub(steps) {
            Some(left) => *self.left = left,
            None => return refuse(at, "allOf, anyOf, oneOf and $ref combine too many schemas"),
        }
        Ok(())
    }
}

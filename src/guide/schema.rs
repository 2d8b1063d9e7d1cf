//! Converts a client's JSON schema to one that the grammar compiler reads correctly, and refuses by name what is not
//! supported. Never compiles.
//!
//! Reads draft 2020-12 and the older spellings. References become `#/$defs/N`, so later steps need no names, anchors
//! and bases; annotations are dropped; keywords are put into the order that the compiler expects.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::references::{References, escaped, is_resource};
use super::values::{
    bounds, check_value, common, demands_nothing, digits, is_written, number, out_of_strings, refuse, short, types,
    whole,
};
use super::{FORMAT_BYTES, closed, formats, meet, pattern};
use crate::error::{Error, Result};

/// Deepest nesting of schemas.
const DEPTH: usize = 64;
/// Limit on the least common multiple of all `multipleOf`, in units of their last digit: the compiler makes that many
/// states.
const MULTIPLE: u64 = 20_000;
/// Limit on the work of comparing `patternProperties` with each other, repeated for each combination.
const PATTERN_PAIRS: usize = 5000;
/// White space between the parts of an answer, limited so that a weak model can't write blanks for ever.
const WHITE_SPACE: &str = r"(?: |\n{1,2}[ \t]{0,20})";
/// Only one spelling for each character of a string, or a key could be repeated in another one.
const ESCAPES: &str = r#"nrbtf\""#;

/// Keywords that don't affect validity.
const ANNOTATIONS: [&str; 20] = [
    "$schema",
    "$id",
    "id",
    "$anchor",
    "$comment",
    "$defs",
    "$dynamicAnchor",
    "$recursiveAnchor",
    "$vocabulary",
    "definitions",
    "title",
    "description",
    "default",
    "deprecated",
    "examples",
    "readOnly",
    "writeOnly",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
];
/// Keywords that are known but not supported, unless they demand nothing.
const REFUSED: [&str; 14] = [
    "$dynamicRef",
    "$recursiveRef",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "maxContains",
    "minContains",
    "not",
    "propertyNames",
    "then",
    "uniqueItems",
];
/// Order of the keywords for the compiler, which combines those before an applicator.
const ORDER: [&str; 26] = [
    "type",
    "properties",
    "patternProperties",
    "additionalProperties",
    "required",
    "minProperties",
    "maxProperties",
    "prefixItems",
    "items",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "const",
    "enum",
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
];

/// Converts a schema for the compiler.
///
/// # Errors
/// `Arg` naming the place in the schema, the keyword, and what was expected.
pub(super) fn prepare(schema: &Value) -> Result<Value> {
    convert(schema, 0).map_err(|e| e.context("the JSON schema"))
}

/// The same for a schema that will stand inside so many others; its errors name places in itself.
pub(super) fn convert(schema: &Value, depth: usize) -> Result<Value> {
    let length = schema.to_string().len();
    if length > FORMAT_BYTES {
        return Err(Error::arg(format!("it has {length} bytes, expected at most {FORMAT_BYTES}")));
    }
    let references = References::new(schema);
    let mut all = Prepare {
        references,
        multiples: Vec::new(),
        patterns: 0,
        combinations: 0,
        unwritten: None,
        naming: closed::STEPS,
    };
    let mut whole = match all.schema(schema, Here { at: "", base: "", depth, combined: false })? {
        Value::Object(map) => map,
        Value::Bool(true) => Map::new(),
        _ => return Err(Error::arg("it is false: nothing is valid")),
    };
    let mut defs = Map::new();
    // Converting a referenced schema may discover more references.
    let mut next = 0;
    while let Some((at, combined)) = all.references.target(next) {
        let target = all.references.schema(&at).unwrap_or(&Value::Bool(true));
        let base = all.references.base_of(&at);
        defs.insert(next.to_string(), all.schema(target, Here { at: &at, base: &base, depth: 0, combined })?);
        next += 1;
    }
    all.check_work()?;
    if !defs.is_empty() {
        whole.insert("$defs".into(), defs.into());
    }
    let mut whole = Value::from(whole);
    meet::check(&whole)?;
    whole["x-guidance"] = json!({"whitespace_pattern": WHITE_SPACE, "json_allowed_escapes": ESCAPES});
    Ok(whole)
}

struct Prepare<'a> {
    references: References<'a>,
    /// The digits of every `multipleOf`, and how many of them are after the decimal point.
    multiples: Vec<(u64, u32)>,
    patterns: usize,
    combinations: usize,
    /// The first name of a property that no pattern of `patternProperties` could be held against.
    unwritten: Option<String>,
    /// Steps that are left to look for the names of properties.
    naming: usize,
}

/// Where a schema stands.
#[derive(Clone, Copy)]
struct Here<'a> {
    /// Its position.
    at: &'a str,
    /// What its references are relative to.
    base: &'a str,
    /// Schemas that it is in.
    depth: usize,
    /// Whether others hold for the same value, which may name properties, too.
    combined: bool,
}

impl<'a> Here<'a> {
    /// A schema inside of this one, for a part of the value.
    fn part(self, at: &'a str) -> Here<'a> {
        Here { at, depth: self.depth + 1, combined: false, ..self }
    }

    /// A schema inside of this one, for the same value.
    fn same(self, at: &'a str) -> Here<'a> {
        Here { at, depth: self.depth + 1, ..self }
    }
}

impl Prepare<'_> {
    /// Converts one schema.
    fn schema(&mut self, schema: &Value, here: Here) -> Result<Value> {
        let Here { at, base, depth, combined } = here;
        let map = match schema {
            Value::Bool(_) => return Ok(schema.clone()),
            Value::Object(map) => map,
            other => return refuse(at, format!("it is {}, expected a schema", short(other))),
        };
        if depth > DEPTH {
            return refuse(at, format!("more than {DEPTH} schemas are inside each other"));
        }
        let base = if is_resource(schema) { at } else { base };
        let mut out: BTreeMap<&'static str, Value> = BTreeMap::new();
        let mut also: Vec<Value> = Vec::new();
        let combines = closed::combines(map);
        let inside = Here { base, combined: combined || combines, ..here };
        for (key, value) in map {
            self.keyword(map, key, value, inside, &mut out, &mut also)?;
        }
        if combines
            && !combined
            && let Some(names) = closed::names(&mut self.references, &mut self.naming, schema, at, base)?
        {
            out.insert("additionalProperties", false.into());
            if let Value::Object(all) = out.entry("properties").or_insert_with(|| json!({})) {
                for name in names {
                    all.entry(name).or_insert(Value::Bool(true));
                }
            }
        }
        bounds(map, at, &mut out)?;
        if !also.is_empty() {
            match out.entry("allOf").or_insert_with(|| json!([])) {
                Value::Array(parts) => parts.extend(also),
                _ => return refuse(at, "allOf is not an array"),
            }
        }
        let applicators = ["$ref", "allOf", "anyOf", "oneOf"].iter().filter(|key| out.contains_key(**key)).count();
        self.combinations += applicators + out.get("allOf").and_then(Value::as_array).map_or(0, Vec::len);
        // Inserted in this order, which serde_json keeps.
        Ok(ORDER.iter().filter_map(|key| Some(((*key).to_owned(), out.remove(key)?))).collect::<Map<_, _>>().into())
    }

    fn keyword(
        &mut self,
        map: &Map<String, Value>,
        key: &str,
        value: &Value,
        here: Here,
        out: &mut BTreeMap<&'static str, Value>,
        also: &mut Vec<Value>,
    ) -> Result<()> {
        let at = here.at;
        let inside = format!("{at}/{}", escaped(key));
        let name = ORDER.iter().find(|name| **name == key).copied();
        match key {
            "$ref" => {
                let Some(reference) = value.as_str() else { return refuse(at, "$ref is not a string") };
                let number = self.references.resolve(reference, at, here.base, here.combined)?;
                out.insert("$ref", format!("#/$defs/{number}").into());
            }
            "type" => out.extend([("type", types(value, at)?)]),
            "properties" | "patternProperties" => {
                let Value::Object(members) = value else { return refuse(at, format!("{key} is not an object")) };
                let mut all = Map::new();
                for (member, schema) in members {
                    let name = if key == "properties" {
                        if !member.chars().all(is_written) {
                            self.unwritten.get_or_insert_with(|| format!("{inside}/{}", escaped(member)));
                        }
                        member.clone()
                    } else {
                        self.patterns += 1;
                        pattern::translate(member).map_err(|e| e.context(format!("at {at}: {key}")))?
                    };
                    all.insert(name, self.schema(schema, here.part(&format!("{inside}/{}", escaped(member))))?);
                }
                out.extend(name.map(|name| (name, all.into())));
            }
            "allOf" | "anyOf" | "oneOf" | "prefixItems" => {
                let all = self.list(value, &inside, key, here)?;
                out.extend(name.map(|name| (name, all)));
            }
            // The form before draft 2020-12.
            "items" if value.is_array() => {
                let all = self.list(value, &inside, key, here)?;
                out.insert("prefixItems", all);
                if let Some(rest) = map.get("additionalItems") {
                    out.insert("items", self.schema(rest, here.part(&format!("{at}/additionalItems")))?);
                }
            }
            "additionalItems" => {}
            "items" | "additionalProperties" => {
                let schema = self.schema(value, here.part(&inside))?;
                out.extend(name.map(|name| (name, schema)));
            }
            "unevaluatedProperties" | "unevaluatedItems" => {
                let plain = if key == "unevaluatedItems" { "items" } else { "additionalProperties" };
                let elsewhere = ["$ref", "allOf", "anyOf", "oneOf"].iter().any(|k| map.contains_key(*k));
                let nothing = matches!(value, Value::Bool(true)) || value.as_object().is_some_and(Map::is_empty);
                if elsewhere && !nothing {
                    return refuse(at, format!("{key} beside $ref, allOf, anyOf or oneOf is not supported"));
                }
                if !map.contains_key(plain) {
                    let schema = self.schema(value, here.part(&inside))?;
                    out.insert(if plain == "items" { "items" } else { "additionalProperties" }, schema);
                }
            }
            "const" => {
                check_value(value, key, at)?;
                out.insert("const", value.clone());
            }
            "enum" => {
                let Some(values) = value.as_array().filter(|values| !values.is_empty()) else {
                    return refuse(at, "enum is not an array of at least one value");
                };
                values.iter().try_for_each(|value| check_value(value, key, at))?;
                out.insert("enum", value.clone());
            }
            "required" => {
                let strings = value.as_array().is_some_and(|all| all.iter().all(Value::is_string));
                if !strings {
                    return refuse(at, "required is not an array of strings");
                }
                out.insert("required", value.clone());
            }
            "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" => {
                let count = whole(value, key, at)?;
                out.extend(name.map(|name| (name, count.into())));
            }
            "multipleOf" => {
                let Some(step) = number(value).filter(|step| *step > 0.0) else {
                    return refuse(at, format!("multipleOf is {}, expected a number above 0", short(value)));
                };
                self.multiples.push(digits(step, at)?);
                out.insert("multipleOf", if step.fract() == 0.0 { (step as u64).into() } else { value.clone() });
            }
            "pattern" => {
                let Some(text) = value.as_str() else { return refuse(at, "pattern is not a string") };
                let text = pattern::translate(text)
                    .map_err(|e| if at.is_empty() { e } else { e.context(format!("at {at}")) })?;
                out.insert("pattern", text.into());
            }
            "format" => match (value.as_str(), formats::of(value.as_str().unwrap_or_default())) {
                (None, _) => return refuse(at, "format is not a string"),
                // It applies to strings only.
                _ if out_of_strings(map) => {}
                (_, Some(formats::Known::Pattern(text))) => also.push(json!({"pattern": text})),
                (Some(name), Some(formats::Known::Compiler)) => drop(out.insert("format", name.into())),
                (Some(name), None) => {
                    let known = formats::NAMES.join(", ");
                    return refuse(
                        at,
                        format!("format {} is not known, expected one of {known}", short(format_args!("{name:?}"))),
                    );
                }
            },
            // Handled together, below.
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {}
            key if ANNOTATIONS.contains(&key) => {}
            key if REFUSED.contains(&key) && !demands_nothing(map, key, value) => {
                return refuse(at, format!("{key} is not supported"));
            }
            // Not a keyword, so it has no effect.
            _ => {}
        }
        if key == "minProperties" {
            // An unlisted key may occur twice in a text, but it is one property.
            let required = map.get("required").and_then(Value::as_array).map_or(0, Vec::len);
            if whole(value, key, at)? > required as u64 + 1 {
                return refuse(at, "minProperties above the number of required properties and 1 is not supported");
            }
        }
        Ok(())
    }

    fn list(&mut self, value: &Value, inside: &str, key: &str, here: Here) -> Result<Value> {
        let Some(items) = value.as_array().filter(|items| !items.is_empty() || key == "items") else {
            return refuse(here.at, format!("{key} is not an array of at least one schema"));
        };
        let each = items.iter().enumerate();
        let all = each.map(|(i, item)| {
            let at = format!("{inside}/{i}");
            self.schema(item, if matches!(key, "items" | "prefixItems") { here.part(&at) } else { here.same(&at) })
        });
        all.collect::<Result<Vec<_>>>().map(Value::from)
    }

    /// Limits what takes the compiler long.
    fn check_work(&self) -> Result<()> {
        let places = self.multiples.iter().map(|(_, places)| *places).max().unwrap_or(0);
        let mut together = 1u64;
        for (coefficient, own) in &self.multiples {
            let scaled =
                coefficient.checked_mul(10u64.saturating_pow(places - own)).filter(|scaled| *scaled <= MULTIPLE);
            together = match scaled.map(|scaled| together / common(together, scaled) * scaled) {
                Some(multiple) if multiple <= MULTIPLE => multiple,
                _ => {
                    return Err(Error::arg(format!(
                        "multipleOf has too many digits, expected a least common multiple of at most {MULTIPLE}, in \
                         units of the last digit"
                    )));
                }
            };
        }
        if let Some(at) = self.unwritten.as_ref().filter(|_| self.patterns > 0) {
            return refuse(at, "a control character beside patternProperties is not supported");
        }
        let pairs = self.patterns * self.patterns.saturating_sub(1) / 2;
        if pairs.saturating_mul(self.combinations + 1) > PATTERN_PAIRS {
            return Err(Error::arg("patternProperties has too many patterns to keep apart"));
        }
        Ok(())
    }
}

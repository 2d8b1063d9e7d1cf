//! Checks the values of a JSON schema's keywords: types, counts, bounds, constants. Never descends into a schema.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Larger integers are not exact in the compiler.
const EXACT: f64 = 9_007_199_254_740_992.0;
const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];

pub(super) fn refuse<T>(at: &str, what: impl std::fmt::Display) -> Result<T> {
    let at: String = at.chars().take(200).collect();
    Err(Error::arg(if at.is_empty() { what.to_string() } else { format!("at {at}: {what}") }))
}

/// A text of the client, shortened for a message.
pub(super) fn short(value: impl std::fmt::Display) -> String {
    let text = value.to_string();
    let cut: String = text.chars().take(80).collect();
    if cut.len() < text.len() { format!("{cut}...") } else { cut }
}

pub(super) fn types(value: &Value, at: &str) -> Result<Value> {
    let known = |name: &Value| name.as_str().is_some_and(|name| TYPES.contains(&name));
    let mut names: Vec<Value> = match value {
        Value::String(_) => vec![value.clone()],
        Value::Array(names) if !names.is_empty() => names.clone(),
        other => return refuse(at, format!("type is {}, expected a type or an array of them", short(other))),
    };
    if let Some(other) = names.iter().find(|name| !known(name)) {
        return refuse(at, format!("type is {}, expected one of {}", short(other), TYPES.join(", ")));
    }
    // Integers are numbers, so `number` covers them.
    if names.iter().any(|name| name == "number") {
        names.retain(|name| name != "integer");
    }
    names.dedup();
    Ok(if names.len() == 1 { names.remove(0) } else { names.into() })
}

/// `minimum` and the like. In draft 4 the exclusive ones are flags of the others.
pub(super) fn bounds(map: &Map<String, Value>, at: &str, out: &mut BTreeMap<&'static str, Value>) -> Result<()> {
    let other = |name: &str| map.get(name).and_then(number);
    for (plain, exclusive, lower) in [("minimum", "exclusiveMinimum", true), ("maximum", "exclusiveMaximum", false)] {
        let read = |key: &str| match map.get(key) {
            None | Some(Value::Bool(_)) if key == exclusive => Ok(None),
            None => Ok(None),
            Some(value) => match number(value) {
                Some(n) if is_exact(value) => Ok(Some((n, exact(n)))),
                Some(_) => refuse(at, format!("{key} is {}, expected at most 2^53 from 0", short(value))),
                None => refuse(at, format!("{key} is {}, expected a number", short(value))),
            },
        };
        let (bound, mut excluded) = (read(plain)?, read(exclusive)?);
        let mut included = bound.clone();
        if map.get(exclusive) == Some(&Value::Bool(true)) {
            excluded = included.take();
        }
        // Keeps only the tighter one.
        match (&included, &excluded) {
            (Some((a, _)), Some((b, _))) if if lower { b >= a } else { b <= a } => included = None,
            (Some(_), Some(_)) => excluded = None,
            _ => {}
        }
        out.extend(included.map(|(_, value)| (plain, value)));
        let Some((bound, value)) = excluded else { continue };
        let far = if lower { ["maximum", "exclusiveMaximum"] } else { ["minimum", "exclusiveMinimum"] };
        let far = far.into_iter().filter_map(other).min_by(|a, b| (a - bound).abs().total_cmp(&(b - bound).abs()));
        match far.filter(|far| same_unit(bound, *far)) {
            None => out.extend([(exclusive, value)]),
            Some(far) => match bound + (far - bound) / STEPS {
                next if next == bound || !(1e-9..).contains(&next.abs()) => {
                    return refuse(at, format!("{exclusive} is {bound} beside {far}, which are too near each other"));
                }
                next => out.extend([(plain, next.into())]),
            },
        }
    }
    Ok(())
}

/// Parts of a range, of which the one at its excluded end is left out where [`same_unit`] holds.
const STEPS: f64 = 1e6;

/// Whether the compiler takes a bound that is excluded for one that is included: where it is whole, and the other one
/// has the same digits before its point and lies farther from 0.
fn same_unit(excluded: f64, other: f64) -> bool {
    excluded.fract() == 0.0 && other.trunc() == excluded && other != excluded
}

/// Whether the compiler, which computes in f64, knows a number exactly.
fn is_exact(value: &Value) -> bool {
    match (value.as_i64(), value.as_u64()) {
        (Some(n), _) => n.unsigned_abs() <= EXACT as u64,
        (None, Some(_)) => false,
        (None, None) => value.as_f64().is_some_and(|n| n.abs() <= EXACT),
    }
}

pub(super) fn number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|n| n.is_finite())
}

/// An integral number as an integer: 16.0 is 16.
fn exact(n: f64) -> Value {
    if n.fract() == 0.0 { (n as i64).into() } else { n.into() }
}

pub(super) fn whole(value: &Value, key: &str, at: &str) -> Result<u64> {
    match number(value) {
        Some(n) if n.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&n) => Ok(n as u64),
        _ => refuse(at, format!("{key} is {}, expected an integer from 0 to {}", short(value), u32::MAX)),
    }
}

/// The digits of a number, and how many of them are after the decimal point.
pub(super) fn digits(n: f64, at: &str) -> Result<(u64, u32)> {
    let text = n.to_string();
    let (before, behind) = text.split_once('.').unwrap_or((&text, ""));
    match format!("{before}{behind}").parse() {
        Ok(digits) if behind.len() <= 9 => Ok((digits, behind.len() as u32)),
        _ => refuse(at, format!("multipleOf is {}, which has too many digits", short(text))),
    }
}

pub(super) fn common(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common(b, a % b) }
}

/// Refuses values that can't be compared exactly.
pub(super) fn check_value(value: &Value, key: &str, at: &str) -> Result<()> {
    match value {
        Value::Number(n) if !is_exact(value) => {
            refuse(at, format!("{key} has {}, expected numbers of at most 2^53", short(n)))
        }
        Value::String(text) => written(text, key, at),
        Value::Array(items) => items.iter().try_for_each(|item| check_value(item, key, at)),
        Value::Object(members) => members.iter().try_for_each(|(name, member)| {
            written(name, key, at)?;
            check_value(member, key, at)
        }),
        _ => Ok(()),
    }
}

/// Whether answers can have a character in a string: not control characters without an escape of one letter, as the
/// other escapes are never used.
pub(super) fn is_written(c: char) -> bool {
    !(c < ' ' && !matches!(c, '\n' | '\r' | '\t' | '\u{8}' | '\u{c}') || c == '\u{7f}')
}

/// Refuses what [`is_written`] excludes.
pub(super) fn written(text: &str, key: &str, at: &str) -> Result<()> {
    match text.chars().find(|c| !is_written(*c)) {
        Some(c) => refuse(at, format!("{key} has the control character U+{:04X}, which is not supported", c as u32)),
        None => Ok(()),
    }
}

/// Whether the types exclude strings.
pub(super) fn out_of_strings(map: &Map<String, Value>) -> bool {
    match map.get("type") {
        Some(Value::String(name)) => name != "string",
        Some(Value::Array(names)) => !names.iter().any(|name| name == "string"),
        _ => false,
    }
}

/// Whether an unsupported keyword has a value that allows everything.
pub(super) fn demands_nothing(map: &Map<String, Value>, key: &str, value: &Value) -> bool {
    let empty = |value: &Value| value.as_object().is_some_and(Map::is_empty);
    match key {
        "uniqueItems" => *value == false || map.get("maxItems").and_then(number).is_some_and(|most| most <= 1.0),
        "minContains" | "maxContains" => !map.contains_key("contains"),
        "contains" => map.get("minContains").and_then(number) == Some(0.0) && !map.contains_key("maxContains"),
        "not" => *value == false,
        "propertyNames" => *value == true || empty(value) || *value == json!({"type": "string"}),
        "then" | "else" => !map.contains_key("if"),
        "if" => !map.contains_key("then") && !map.contains_key("else"),
        "dependencies" | "dependentRequired" | "dependentSchemas" => empty(value),
        _ => false,
    }
}

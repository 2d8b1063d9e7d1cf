//! Takes the members of a JSON object, with checks: errors name the field, its value and what was expected. Knows no
//! particular request.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::Unknown;
use crate::error::{Error, Result};
use crate::ledger::MAX_USER;
use crate::llama::{large_integer, parse_whole_integers};
use crate::members::Members;
use crate::types::{GenerationId, whole};

/// The members of a JSON object. Each is removed when it is read, so that only unknown ones remain.
pub(super) struct Fields {
    pub(super) map: Map<String, Value>,
    pub(super) unknown: Unknown,
    pub(super) names: Names,
}

/// What an API calls the fields that chats have by another name: pairs of the chat's name and its own.
pub(super) type Names = &'static [(&'static str, &'static str)];

impl Fields {
    pub(super) fn parse(body: &[u8], unknown: Unknown) -> Result<Self> {
        match json(body)? {
            Value::Object(map) => Ok(Self::of(map, unknown)),
            other => Err(Error::arg(format!("the body is {}, expected a JSON object", kind(&other)))),
        }
    }

    pub(super) fn of(map: Map<String, Value>, unknown: Unknown) -> Self {
        Self { map, unknown, names: &[] }
    }

    /// What the client calls a field.
    pub(super) fn name<'a>(&self, key: &'a str) -> &'a str {
        self.names.iter().find(|(chat, _)| *chat == key).map_or(key, |(_, own)| own)
    }

    /// Takes a member; null counts as missing.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.map.shift_remove(key).filter(|value| !value.is_null())
    }

    pub(super) fn number<T>(&mut self, key: &str, range: &RangeInclusive<T>) -> Result<Option<f64>>
    where
        T: Copy + Into<f64> + Display,
    {
        let Some(value) = self.take(key) else { return Ok(None) };
        let (low, high) = (range.start(), range.end());
        match value.as_f64() {
            Some(number) if ((*low).into()..=(*high).into()).contains(&number) => Ok(Some(number)),
            _ => {
                let (key, value) = (self.name(key), shown(&value));
                Err(Error::arg(format!("{key} is {value}, expected a number from {low} to {high}")))
            }
        }
    }

    pub(super) fn float(&mut self, key: &str, range: &RangeInclusive<f32>) -> Result<Option<f32>> {
        Ok(self.number(key, range)?.map(|number| number as f32))
    }

    pub(super) fn integer(&mut self, key: &str, low: u64, high: u64) -> Result<Option<u64>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match whole(&value) {
            Some(number) if (low..=high).contains(&number) => Ok(Some(number)),
            _ => {
                let (key, value) = (self.name(key), shown(&value));
                let expected =
                    if low == high { low.to_string() } else { format!("a whole number from {low} to {high}") };
                Err(Error::arg(format!("{key} is {value}, expected {expected}")))
            }
        }
    }

    pub(super) fn string(&mut self, key: &str) -> Result<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(Error::arg(format!("{} is {}, expected a string", self.name(key), shown(&other)))),
        }
    }

    /// An optional object.
    pub(super) fn object(&mut self, key: &str) -> Result<Option<Map<String, Value>>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(Error::arg(format!("{} is {}, expected an object", self.name(key), shown(&other)))),
        }
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<bool> {
        Ok(self.choice(key)?.unwrap_or(false))
    }

    /// An optional flag.
    pub(super) fn choice(&mut self, key: &str) -> Result<Option<bool>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(Error::arg(format!("{} is {}, expected true or false", self.name(key), shown(&other)))),
        }
    }

    pub(super) fn id(&mut self, key: &str) -> Result<GenerationId> {
        let id = self.string(key)?.ok_or_else(|| self.missing(key))?;
        match id.len() {
            1..=GenerationId::MAX_BYTES => Ok(GenerationId(id)),
            bytes => Err(Error::arg(format!("{key} has {bytes} bytes, expected 1 to {}", GenerationId::MAX_BYTES))),
        }
    }

    pub(super) fn user(&mut self) -> Result<Option<String>> {
        match self.string("user")? {
            Some(user) if user.len() > MAX_USER => {
                let (name, bytes) = (self.name("user"), user.len());
                Err(Error::arg(format!("{name} has {bytes} bytes, expected at most {MAX_USER}")))
            }
            user => Ok(user),
        }
    }

    /// Takes a member that is required.
    pub(super) fn required(&mut self, key: &str) -> Result<Value> {
        self.take(key).ok_or_else(|| self.missing(key))
    }

    /// The error for a missing member.
    pub(super) fn missing(&self, key: &str) -> Error {
        self.mistyped(&[key]).unwrap_or_else(|| Error::arg(format!("{key} is missing")))
    }

    /// The error for a member whose name is close to one of `known`, if there is one.
    pub(super) fn mistyped(&self, known: &[&str]) -> Option<Error> {
        let nearly = |key: &&String| matches!(nearest(key, known), Some((1.., _)));
        self.map.keys().find(nearly).map(|key| unknown_key(key, known))
    }

    /// Refuses members that were not taken, unless unknown fields are ignored.
    pub(super) fn finish(self, known: &[&str]) -> Result<()> {
        match self.map.keys().next() {
            Some(key) if self.unknown == Unknown::Refuse => Err(unknown_key(key, known)),
            _ => Ok(()),
        }
    }
}

/// The name closest to `key`, if it is close, and their edit distance.
fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<(usize, &'a str)> {
    let all = known.iter().map(|name| (strsim::damerau_levenshtein(key, name), *name));
    all.min().filter(|(distance, name)| *distance <= 1 + name.len() / 3)
}

fn unknown_key(key: &str, known: &[&str]) -> Error {
    let nearest = nearest(key, known);
    let key: String = key.chars().take(64).collect();
    match nearest {
        Some((0, name)) => Error::arg(format!("{name} does not belong in this kind of request")),
        Some((_, name)) => Error::arg(format!("unknown field {key:?}, did you mean {name:?}?")),
        None if known.is_empty() => Error::arg(format!("unknown field {key:?}, expected none")),
        None => Error::arg(format!("unknown field {key:?}, expected one of {}", known.join(", "))),
    }
}

/// The JSON of a body. What templates write keeps the digits of large integers, by [`parse_whole_integers`]: arguments
/// of calls, and tools. Elsewhere such a number is the nearest float, as JSON readers have it.
pub(super) fn json(body: &[u8]) -> Result<Value> {
    let text = std::str::from_utf8(body)
        .map_err(|e| Error::arg(format!("the body is not valid UTF-8 from byte {} on", e.valid_up_to())))?;
    let wrong = |e: serde_json::Error| match e.is_data() {
        true => Error::arg(format!("the body can't be read: {e}")),
        false => Error::arg(format!("the body is not valid JSON: {e}")),
    };
    // Of a name that stands twice one value would be dropped silently.
    let once = match text.trim_start().starts_with('{') {
        true => Value::Object(serde_json::from_str::<Members>(text).map_err(wrong)?.0),
        false => serde_json::from_str(text).map_err(wrong)?,
    };
    if has_large_integer(body)
        && let Some(mut value) = parse_whole_integers(text)
    {
        round_but(&mut value, &["arguments", "input", "tools"]);
        return Ok(value);
    }
    Ok(once)
}

/// Whether there are so many digits in a row, in a string or not, that they may be an integer of more than 64 bits.
fn has_large_integer(body: &[u8]) -> bool {
    body.chunk_by(|a, b| a.is_ascii_digit() && b.is_ascii_digit()).any(|run| run.len() >= LARGE_DIGITS)
}

/// Fewest digits of an integer that doesn't fit 64 bits.
const LARGE_DIGITS: usize = 19;

/// Turns large integers into floats, but for those inside members of these names that are no text themselves.
pub(super) fn round_but(value: &mut Value, kept: &[&str]) {
    match value {
        Value::String(text) => {
            if let Some(number) = large_integer(text) {
                *value = number;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| round_but(item, kept)),
        Value::Object(map) => {
            for (key, value) in map {
                if !kept.contains(&key.as_str()) || !(value.is_object() || value.is_array()) {
                    round_but(value, kept);
                }
            }
        }
        _ => {}
    }
}

/// A whole number below 0, in any notation.
pub(super) fn negative(value: &Value) -> Option<i64> {
    // A number below the smallest becomes that one as a float.
    let float = |x: &f64| x.fract() == 0.0 && *x > i64::MIN as f64 && *x < 0.0;
    value.as_i64().or_else(|| value.as_f64().filter(float).map(|x| x as i64))
}

/// Longest word of a client that an error repeats, in characters.
const WORD: usize = 64;

/// A client's word, as errors show it where a few words are expected: quoted, and shortened.
pub(super) fn quoted(word: &str) -> String {
    let short: String = word.chars().take(WORD).collect();
    if short.len() < word.len() { format!("{:?}", short + "...") } else { format!("{word:?}") }
}

/// A value where one of a few words is expected: the word itself, else as [`shown`].
pub(super) fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| shown(value), quoted)
}

/// A value as errors show it: numbers and flags literally, the rest by type, so that no prompt reaches a log.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        other => kind(other).to_owned(),
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

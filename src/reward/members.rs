//! The members of a line of judged answers: each once, and what they may be. Takes nothing from them.

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::types::{Sampling, TokenId, whole};

/// Checks what a line says that nothing is taken from: of an answer's temperature, and in lines of our own export of
/// when something was said and of which version. Other data sets have a `created` of their own kind.
pub(super) fn check_unused(map: &Map<String, Value>, exported: bool) -> Result<()> {
    let given = |key: &str| map.get(key).filter(|value| !value.is_null());
    let (coldest, hottest) = (Sampling::TEMPERATURE.start(), Sampling::TEMPERATURE.end());
    if let Some(value) = given("temperature")
        && !value.as_f64().is_some_and(|t| (f64::from(*coldest)..=f64::from(*hottest)).contains(&t))
    {
        return Err(wrong("temperature", value, &format!("a number from {coldest} to {hottest}")));
    }
    for (key, expected) in [("created", "milliseconds since 1970"), ("policy_version", "a version's number")] {
        if let Some(value) = given(key)
            && exported
            && whole(value).is_none_or(|number| i64::try_from(number).is_err())
        {
            return Err(wrong(key, value, &format!("{expected}, a whole number")));
        }
    }
    Ok(())
}

/// The error for a value, of which a few characters are shown.
pub(super) fn wrong(key: &str, value: &Value, expected: &str) -> Error {
    let shown: String = value.to_string().chars().take(32).collect();
    Error::arg(format!("{key} is {shown}, expected {expected}"))
}

pub(super) fn tokens_of(given: &Value) -> Result<Vec<TokenId>> {
    const TOKENS: &str = "an array of tokens' numbers";
    let Value::Array(items) = given else { return Err(wrong("prompt_tokens", given, TOKENS)) };
    let token = |(i, item): (usize, &Value)| {
        let id = whole(item).and_then(|id| TokenId::try_from(id).ok());
        id.ok_or_else(|| wrong(&format!("prompt_tokens[{i}]"), item, "a token's number"))
    };
    items.iter().enumerate().map(token).collect()
}

/// The members of a JSON object, each of which may stand there once: of two values one would be dropped silently.
pub(super) struct Members(pub(super) Map<String, Value>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(Members(Map::new()))
    }
}

impl<'de> Visitor<'de> for Members {
    type Value = Members;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> std::result::Result<Members, A::Error> {
        while let Some((key, value)) = members.next_entry::<String, Value>()? {
            let key_shown: String = key.chars().take(32).collect();
            if self.0.insert(key, value).is_some() {
                return Err(A::Error::custom(format!("{key_shown:?} stands there twice, expected each name once")));
            }
        }
        Ok(self)
    }
}

//! What the members of a line of judged answers may be. Takes nothing from them.

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

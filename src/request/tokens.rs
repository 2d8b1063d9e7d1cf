//! Reads what is to be tokenized, or made text again. Never tokenizes.

use serde_json::Value;

use super::Unknown;
use super::fields::{Fields, shown};
use crate::error::{Error, Result};
use crate::types::TokenId;

/// Reads `{content, add_special?}`: a text to tokenize, and whether to put the beginning-of-sequence token in front.
///
/// # Errors
/// `Arg` names the field and what was expected.
pub fn parse_tokenize(body: &[u8], unknown: Unknown) -> Result<(String, bool)> {
    let mut fields = Fields::parse(body, unknown)?;
    let content = fields.string("content")?.ok_or_else(|| Error::arg("content is missing"))?;
    let add_special = fields.flag("add_special")?;
    fields.finish(&["content", "add_special"])?;
    Ok((content, add_special))
}

/// Reads `{tokens}`: tokens to turn back into text.
///
/// # Errors
/// As [`parse_tokenize`].
pub fn parse_detokenize(body: &[u8], unknown: Unknown) -> Result<Vec<TokenId>> {
    let mut fields = Fields::parse(body, unknown)?;
    let Some(Value::Array(items)) = fields.take("tokens") else {
        return Err(Error::arg("tokens is missing, expected an array of tokens"));
    };
    fields.finish(&["tokens"])?;
    let token = |item: &Value| {
        let id = item.as_u64().and_then(|id| TokenId::try_from(id).ok());
        id.ok_or_else(|| Error::arg(format!("tokens has {}, expected tokens' numbers", shown(item))))
    };
    items.iter().map(token).collect()
}

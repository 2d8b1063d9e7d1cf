//! Reads requests to tokenize or detokenize. Never tokenizes.

use serde_json::Value;

use super::Unknown;
use super::fields::{Fields, shown};
use crate::error::{Error, Result};
use crate::types::{TokenId, whole};

/// Fields of a request to tokenize.
pub(crate) const TOKENIZE_FIELDS: &[&str] = &["content", "add_special", "parse_special"];

/// Fields of a request to detokenize.
pub(crate) const DETOKENIZE_FIELDS: &[&str] = &["tokens"];

/// A text to tokenize.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedTokenize {
    /// The text.
    pub content: String,
    /// Whether to add the model's beginning-of-sequence token.
    pub add_special: bool,
    /// Whether control tokens in the text count.
    pub parse_special: bool,
}

/// Reads `{content, add_special?, parse_special?}`.
///
/// # Errors
/// `Arg` names the field and what was expected.
pub fn parse_tokenize(body: &[u8]) -> Result<ParsedTokenize> {
    let mut fields = Fields::parse(body, Unknown::Refuse)?;
    let content = fields.string("content")?.ok_or_else(|| fields.missing("content"))?;
    let (add_special, parse_special) = (fields.flag("add_special")?, fields.flag("parse_special")?);
    fields.finish(TOKENIZE_FIELDS)?;
    Ok(ParsedTokenize { content, add_special, parse_special })
}

/// Reads `{tokens}`: tokens to convert to text.
///
/// # Errors
/// As [`parse_tokenize`].
pub fn parse_detokenize(body: &[u8]) -> Result<Vec<TokenId>> {
    let mut fields = Fields::parse(body, Unknown::Refuse)?;
    let items = match fields.required("tokens")? {
        Value::Array(items) => items,
        other => return Err(Error::arg(format!("tokens is {}, expected an array of tokens", shown(&other)))),
    };
    fields.finish(DETOKENIZE_FIELDS)?;
    let token = |item: &Value| {
        let id = whole(item).and_then(|id| TokenId::try_from(id).ok());
        id.ok_or_else(|| Error::arg(format!("tokens has {}, expected tokens' numbers", shown(item))))
    };
    items.iter().map(token).collect()
}

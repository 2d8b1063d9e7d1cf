//! Reads a request for embeddings. Never computes them.

use super::fields::{Fields, quoted};
use super::{Prompt, Unknown, prompts_of};
use crate::error::{Error, Result};

/// Most texts per request.
pub(crate) const EMBEDDINGS: usize = 256;

/// Fields of a request for embeddings.
pub(crate) const EMBEDDINGS_FIELDS: &[&str] =
    &["input", "model", "encoding_format", "dimensions", "user", "parse_special"];

/// Texts to embed, with the encoding of the result.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedEmbeddings {
    /// The texts, each as text or as tokens.
    pub input: Vec<Prompt>,
    /// Whether to return base64 of little-endian 32-bit floats instead of a list.
    pub base64: bool,
    /// The requested width; only the model's own is possible.
    pub dimensions: Option<u64>,
}

/// Reads the body of `POST /v1/embeddings`.
///
/// # Errors
/// As [`parse_chat`].
pub fn parse_embeddings(body: &[u8]) -> Result<ParsedEmbeddings> {
    let mut fields = Fields::parse(body, Unknown::Refuse)?;
    let input = fields.required("input")?;
    let special = fields.flag("parse_special")?;
    let input = prompts_of("input", input, special)?;
    if input.len() > EMBEDDINGS {
        return Err(Error::arg(format!("input has {} texts, expected at most {EMBEDDINGS}", input.len())));
    }
    let base64 = match fields.string("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            let other = quoted(other);
            return Err(Error::arg(format!("encoding_format is {other}, expected float or base64")));
        }
    };
    let dimensions = fields.integer("dimensions", 1, 1 << 20)?;
    let (_, _) = (fields.string("model")?, fields.user()?);
    fields.finish(EMBEDDINGS_FIELDS)?;
    Ok(ParsedEmbeddings { input, base64, dimensions })
}

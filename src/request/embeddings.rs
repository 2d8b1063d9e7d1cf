//! Reads a request for embeddings. Never computes them.

use serde_json::Value;

use super::fields::Fields;
use super::{Prompt, Unknown, prompt_of};
use crate::error::{Error, Result};

/// Largest number of texts in one request.
const EMBEDDINGS: usize = 256;

/// Texts to embed, and the encoding of the result.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedEmbeddings {
    /// The texts, each as text or as tokens.
    pub input: Vec<Prompt>,
    /// As base64 of little-endian 32-bit floats instead of a list.
    pub base64: bool,
}

/// Reads the body of `POST /v1/embeddings`.
///
/// # Errors
/// As [`parse_chat`].
pub fn parse_embeddings(body: &[u8], unknown: Unknown) -> Result<ParsedEmbeddings> {
    let mut fields = Fields::parse(body, unknown)?;
    let input = match fields.take("input").ok_or_else(|| Error::arg("input is missing"))? {
        Value::Array(items) if items.iter().any(|item| !item.is_number()) => items,
        other => vec![other],
    };
    if input.len() > EMBEDDINGS {
        return Err(Error::arg(format!("input has {} texts, expected at most {EMBEDDINGS}", input.len())));
    }
    let input = input.into_iter().map(|item| prompt_of("input", item)).collect::<Result<Vec<_>>>()?;
    let base64 = match fields.string("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(Error::arg("encoding_format is not known, expected float or base64")),
    };
    if fields.take("dimensions").is_some() {
        return Err(Error::unsupported("dimensions is not supported: embeddings are as wide as the model"));
    }
    let (_, _) = (fields.string("model")?, fields.user()?);
    fields.finish(&["input", "model", "encoding_format", "dimensions", "user"])?;
    Ok(ParsedEmbeddings { input, base64 })
}

//! Checks what llama.cpp asserts: a file that fails would end the process instead of giving an error. Never loads.

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::gguf::{Gguf, Value};

/// Checks a model file.
///
/// # Errors
/// `Model` naming the key and what was expected of it.
pub(super) fn model(file: &Gguf) -> Result<()> {
    let name = |e: Error| e.context(file.path().display());
    if let Some(kind) = file.opt_str("general.type").map_err(name)?
        && kind != "model"
    {
        return Err(Error::model(format!("{}: it holds a {kind}, expected a model", file.path().display())));
    }
    file.str("general.architecture").map_err(name)?;
    // llama.cpp reads text up to a NUL, so it would see another value than the one checked here.
    let cut = |value: &Value| matches!(value, Value::String(text) if text.contains('\0'));
    if let Some((key, _)) = file.metadata().iter().find(|(_, value)| cut(value)) {
        return Err(name(Error::model(format!("metadata key {key} has a NUL in its text"))));
    }
    vocabulary(file).map_err(name)?;
    super::validate_shape::shape(file).map_err(name)
}

fn vocabulary(file: &Gguf) -> Result<()> {
    let kind = file.str("tokenizer.ggml.model")?;
    if kind == "none" || kind == "no_vocab" {
        return Err(Error::model("it has no vocabulary, so no text can be generated"));
    }
    for key in ["tokenizer.ggml.pre", "tokenizer.chat_template"] {
        file.opt_str(key)?;
    }
    // Words with spaces in them, which llama.cpp's other tokenizers assert do not occur.
    if file.opt_str("tokenizer.ggml.pre")? == Some("whitespace") && kind != "whitespace" {
        return Err(Error::model(format!(
            "tokenizer.ggml.pre is whitespace and tokenizer.ggml.model {kind}, expected whitespace for both"
        )));
    }
    let tokens = file
        .opt_strings("tokenizer.ggml.tokens")?
        .ok_or_else(|| Error::model("metadata key tokenizer.ggml.tokens is missing"))?;
    let mut seen = HashSet::with_capacity(tokens.len());
    // Read as llama.cpp reads them: up to a NUL, with a distinct name for each empty one.
    let mut texts = tokens.iter().map(|token| token.split('\0').next().unwrap_or_default()).filter(|t| !t.is_empty());
    if let Some(twice) = texts.find(|text| !seen.insert(*text)) {
        return Err(Error::model(format!("the vocabulary holds the token {twice:?} twice")));
    }
    let length = |key: &str, n: Option<usize>| match n {
        Some(n) if n != tokens.len() => {
            Err(Error::model(format!("{key} has {n} entries, the vocabulary has {}", tokens.len())))
        }
        _ => Ok(()),
    };
    length("tokenizer.ggml.scores", file.opt_f32s("tokenizer.ggml.scores")?.map(<[f32]>::len))?;
    length("tokenizer.ggml.token_type", file.opt_i32s("tokenizer.ggml.token_type")?.map(<[i32]>::len))?;
    file.opt_strings("tokenizer.ggml.merges")?;
    if kind == "llama" && !seen.contains("\n") && !seen.contains("<0x0A>") {
        return Err(Error::model("the vocabulary has no newline token"));
    }
    Ok(())
}

/// Checks an adapter file for a model of `architecture`.
///
/// # Errors
/// `Model` saying what it is and what was expected.
pub(super) fn adapter(file: &Gguf, architecture: &str) -> Result<()> {
    let check = || -> Result<()> {
        let expect = |key: &str, expected: &str| {
            let found = file.str(key)?;
            if found == expected {
                return Ok(());
            }
            Err(Error::model(format!("{key} is {found:?}, expected {expected:?}")))
        };
        expect("general.type", "adapter")?;
        expect("adapter.type", "lora")?;
        expect("general.architecture", architecture)?;
        let alpha = file.f32("adapter.lora.alpha")?;
        if !alpha.is_finite() {
            return Err(Error::model(format!("adapter.lora.alpha is {alpha}, expected a number")));
        }
        if let Some(odd) = file.tensors().iter().find(|t| t.shape().len() != 2) {
            return Err(Error::model(format!(
                "tensor {} has {} dimensions, expected 2",
                odd.name(),
                odd.shape().len()
            )));
        }
        super::validate_shape::formats(file)
    };
    check().map_err(|e| e.context(file.path().display()))
}

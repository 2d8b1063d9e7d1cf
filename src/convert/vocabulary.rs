//! The vocabulary of a Hugging Face folder whose tokenizer is GPT-2's byte-level BPE. Splits no text; never writes.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::{object, shown};
use crate::error::{Error, Result};
use crate::files;
use crate::gguf::Writer;

const TOKENIZER: &str = "tokenizer.json";
const VOCABULARY: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const ADDED: &str = "added_tokens.json";

/// llama.cpp's kinds of tokens (`llama_token_type`).
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Tokens by id, and how they are joined.
pub(super) struct Vocabulary {
    tokens: Vec<String>,
    kinds: Vec<i32>,
    merges: Vec<String>,
}

/// A token that is found in text before words are split.
struct Added {
    id: u64,
    text: String,
    special: bool,
}

/// What the files say, before it is checked.
struct Parts {
    vocabulary: Map<String, Value>,
    merges: Vec<String>,
    added: Vec<Added>,
}

impl Vocabulary {
    /// Reads the vocabulary of a model whose embedding has `rows` rows; ids without a token are padded, as llama.cpp's
    /// converter does.
    ///
    /// # Errors
    /// `Model` naming the file and what is wrong in it, `Unsupported` for a tokenizer of another kind.
    pub(super) fn read(folder: &Path, rows: usize) -> Result<Self> {
        let one = folder.join(TOKENIZER);
        let (file, parts) = match one.exists() {
            true => (one.clone(), Parts::together(object(&one)?)),
            false => (folder.join(VOCABULARY), Parts::apart(folder)),
        };
        let made = parts.and_then(|parts| parts.join(rows));
        made.map_err(|e| e.context(file.display()))
    }

    /// Sets the metadata of a tokenizer.
    pub(super) fn describe(self, file: &mut Writer<'_>) {
        file.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.pre", "gpt-2");
        file.set("tokenizer.ggml.tokens", self.tokens).set("tokenizer.ggml.token_type", self.kinds);
        file.set("tokenizer.ggml.merges", self.merges).set("tokenizer.ggml.add_bos_token", false);
    }
}

impl Parts {
    /// Of tokenizer.json.
    fn together(mut all: Map<String, Value>) -> Result<Self> {
        let Some(Value::Object(mut model)) = all.remove("model") else {
            return Err(Error::model("model is missing, expected an object"));
        };
        check(&all, &model)?;
        let Some(Value::Object(vocabulary)) = model.remove("vocab") else {
            return Err(Error::model("model.vocab is missing, expected tokens with their ids"));
        };
        let Some(Value::Array(merges)) = model.remove("merges") else {
            return Err(Error::model("model.merges is missing, expected a list"));
        };
        let merges = merges.iter().map(|merge| match merge {
            Value::String(pair) => Ok(pair.clone()),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(a), Value::String(b)] => Ok(format!("{a} {b}")),
                _ => Err(Error::model(format!("merge {merge:.80} is no pair of tokens"))),
            },
            other => Err(Error::model(format!("merge {other:.80} is no pair of tokens"))),
        });
        let added = match all.remove("added_tokens") {
            None => Vec::new(),
            Some(Value::Array(added)) => added,
            Some(other) => return Err(Error::model(format!("added_tokens is {other:.80}, expected a list"))),
        };
        let added = added.iter().map(|one| {
            let special = one["special"].as_bool().unwrap_or(false);
            match (one["id"].as_u64(), one["content"].as_str()) {
                (Some(id), Some(text)) => Ok(Added { id, text: text.to_owned(), special }),
                _ => Err(Error::model(format!("added token {one:.80} lacks an id or a content"))),
            }
        });
        Ok(Self { vocabulary, merges: merges.collect::<Result<_>>()?, added: added.collect::<Result<_>>()? })
    }

    /// Of vocab.json, merges.txt and, where there is one, added_tokens.json.
    fn apart(folder: &Path) -> Result<Self> {
        let vocabulary = object(&folder.join(VOCABULARY))?;
        let path = folder.join(MERGES);
        let text = files::read_text(&path, files::MOST)
            .map_err(|e| Error::model(format!("{}: {e}; expected it beside {VOCABULARY}", path.display())))?;
        // The first line may tell a version.
        let lines = text.lines().enumerate().filter(|(i, line)| !line.is_empty() && (*i > 0 || !line.starts_with('#')));
        let merges = lines.map(|(_, line)| line.to_owned()).collect();
        let path = folder.join(ADDED);
        let added = if path.exists() { object(&path)? } else { Map::new() };
        let added = added.into_iter().map(|(text, id)| match id.as_u64() {
            Some(id) => Ok(Added { id, text, special: false }),
            None => Err(Error::model(format!("{}: the id of {text:.80} is {id:.40}", path.display()))),
        });
        Ok(Self { vocabulary, merges, added: added.collect::<Result<_>>()? })
    }

    fn join(self, rows: usize) -> Result<Vocabulary> {
        let mut tokens: Vec<Option<(String, i32)>> = vec![None; rows];
        let place = |text: &str, id: Option<u64>| {
            let id = id.and_then(|id| usize::try_from(id).ok()).filter(|id| *id < rows);
            id.ok_or_else(|| Error::model(format!("the id of token {text:.80} is not below vocab_size, {rows}")))
        };
        for (text, id) in self.vocabulary {
            let id = place(&text, id.as_u64())?;
            let kind = if looks_special(&text) { CONTROL } else { NORMAL };
            if let Some((other, _)) = tokens[id].replace((text, kind)) {
                return Err(Error::model(format!("token {other:.80} has id {id}, and so has another one")));
            }
        }
        for Added { id, text, special } in self.added {
            let id = place(&text, Some(id))?;
            let kind = if special || looks_special(&text) { CONTROL } else { USER_DEFINED };
            if let Some((other, _)) = &tokens[id]
                && *other != text
            {
                return Err(Error::model(format!("tokens {other:.80} and {text:.80} both have id {id}")));
            }
            tokens[id] = Some((text, kind));
        }
        let padded =
            |(id, token): (usize, Option<(String, i32)>)| token.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED));
        let (tokens, kinds): (Vec<String>, Vec<i32>) = tokens.into_iter().enumerate().map(padded).unzip();
        let mut known = HashMap::with_capacity(rows);
        for (id, token) in tokens.iter().enumerate() {
            if let Some(other) = known.insert(token.as_str(), id) {
                return Err(Error::model(format!("token {token:.80} has two ids, {other} and {id}")));
            }
        }
        for merge in &self.merges {
            let pair = merge.split_once(' ').filter(|(a, b)| !a.is_empty() && !b.is_empty() && !b.contains(' '));
            let (a, b) = pair.ok_or_else(|| Error::model(format!("merge {merge:.80} is no pair of tokens")))?;
            for part in [a, b, &format!("{a}{b}")] {
                if !known.contains_key(part) {
                    return Err(Error::model(format!("merge {merge:.80} is about {part:.80}, which is no token")));
                }
            }
        }
        Ok(Vocabulary { tokens, kinds, merges: self.merges })
    }
}

/// llama.cpp's converter takes such names for control tokens whatever is said of them.
fn looks_special(text: &str) -> bool {
    text.starts_with("<|") && text.ends_with("|>") && text.len() > 4
}

/// Refuses what GPT-2's tokenizer doesn't do.
fn check(all: &Map<String, Value>, model: &Map<String, Value>) -> Result<()> {
    let words = all.get("pre_tokenizer");
    let split = |key: &str| words.and_then(|words| words.get(key));
    let absent = |value: Option<&Value>| value.is_none_or(|v| v.is_null() || *v == Value::Bool(false) || *v == "");
    for (name, value, right, expected) in [
        ("model.type", model.get("type"), model.get("type").is_none_or(|kind| kind == "BPE"), "BPE"),
        ("pre_tokenizer.type", split("type"), split("type").is_some_and(|kind| kind == "ByteLevel"), "ByteLevel"),
        ("pre_tokenizer.use_regex", split("use_regex"), split("use_regex").is_none_or(|on| *on == true), "true"),
        ("pre_tokenizer.add_prefix_space", split("add_prefix_space"), absent(split("add_prefix_space")), "false"),
        ("normalizer", all.get("normalizer"), absent(all.get("normalizer")), "none"),
    ] {
        if !right {
            return Err(Error::unsupported(format!("{name} is {}, expected {expected}, as GPT-2's", shown(value))));
        }
    }
    for key in ["byte_fallback", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix"] {
        if !absent(model.get(key)) {
            let value = shown(model.get(key));
            return Err(Error::unsupported(format!("model.{key} is {value}, expected none, as GPT-2's")));
        }
    }
    Ok(())
}

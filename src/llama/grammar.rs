//! Holds an answer to a grammar or a JSON schema, token by token. Never chooses a token.

use std::ffi::CString;
use std::sync::Arc;
use std::time::{Duration, Instant};

use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_sys_2 as sys;
use serde_json::Value;

use super::gbnf;
use super::guard::{self, guarded};
use super::model::Model;
use crate::error::{Error, Result};
use crate::types::{Format, TokenId};

/// One step of a grammar takes no longer: llama.cpp follows every reading of an ambiguous one at once, and their number
/// may grow with each token.
const STEP: Duration = Duration::from_millis(500);
/// Longest schema, in bytes of JSON.
const SCHEMA_BYTES: usize = 64 << 10;
/// Most members of an object of a schema: the conversion takes time cubic in them.
const SCHEMA_MEMBERS: usize = 128;
/// Stack of the thread that converts: llama.cpp's regular expressions take some of it for each character of a name.
const SCHEMA_STACK: usize = 64 << 20;

/// The state of a grammar inside one answer.
pub(super) struct Grammar {
    raw: *mut sys::llama_sampler,
    /// Holds the vocabulary that llama.cpp reads.
    _model: Arc<Model>,
}

// SAFETY: a sampler isn't bound to a thread; `&mut self` keeps it to one at a time.
unsafe impl Send for Grammar {}

impl Grammar {
    /// At the beginning of an answer.
    ///
    /// # Errors
    /// `Arg` with what is wrong with the grammar or the schema.
    pub(super) fn new(model: &Arc<Model>, format: &Format) -> Result<Grammar> {
        let converted;
        let text = match format {
            Format::Grammar(text) => text,
            Format::JsonSchema(schema) => {
                converted = grammar_of(schema)?;
                &converted
            }
        };
        let known = |token: &str| model.tokenize(token, false, true).is_ok_and(|tokens| tokens.len() == 1);
        gbnf::check(text, &known).map_err(|e| match format {
            Format::Grammar(_) => e,
            Format::JsonSchema(_) => e.context("the JSON schema gives a grammar that can't be used"),
        })?;
        let text = CString::new(text.as_str()).map_err(|_| Error::arg("the grammar contains a zero byte"))?;
        // SAFETY: the texts are terminated, the vocabulary is alive; the function lets no exception out.
        let raw = unsafe { sys::llama_rs_sampler_init_grammar(model.vocab(), text.as_ptr(), c"root".as_ptr()) };
        if raw.is_null() {
            return Err(Error::arg("llama.cpp can't use the grammar"));
        }
        Ok(Grammar { raw, _model: model.clone() })
    }

    /// Whether the answer may go on with the token.
    pub(super) fn allows(&mut self, token: TokenId) -> Result<bool> {
        let mut one = [LlamaTokenData::new(llama_cpp_2::token::LlamaToken::new(token as i32), 0.0, 0.0)];
        self.apply(&mut one)?;
        Ok(one[0].logit() == 0.0)
    }

    /// Removes the tokens that the answer may not go on with.
    ///
    /// # Errors
    /// `Arg` if none is left.
    pub(super) fn mask(&mut self, tokens: &mut Vec<LlamaTokenData>) -> Result<()> {
        self.apply(tokens)?;
        tokens.retain(|t| t.logit() > f32::NEG_INFINITY);
        if tokens.is_empty() {
            return Err(Error::arg("the grammar allows none of the model's tokens here"));
        }
        Ok(())
    }

    /// Goes on with a token that is allowed: another one would end the process, if it is one that ends answers.
    pub(super) fn accept(&mut self, token: TokenId) -> Result<()> {
        let start = Instant::now();
        // SAFETY: the sampler is alive; the function lets no exception out.
        let status = unsafe { sys::llama_rs_sampler_accept(self.raw, token as i32) };
        if status != sys::LLAMA_RS_STATUS_OK {
            return Err(Error::arg(format!("the grammar does not go on after token {token}")));
        }
        in_time(start)
    }

    fn apply(&mut self, tokens: &mut [LlamaTokenData]) -> Result<()> {
        let start = Instant::now();
        let mut array = sys::llama_token_data_array {
            data: tokens.as_mut_ptr().cast(),
            size: tokens.len(),
            selected: -1,
            sorted: false,
        };
        // SAFETY: `LlamaTokenData` is a transparent wrapper of llama.cpp's type; a grammar only lowers the logits of
        // the array, which outlives the call. No stack of it is empty, which llama.cpp asserts: `accept` failed then.
        guarded("applying the grammar", || unsafe { guard::llama_sampler_apply(self.raw, &raw mut array) })?;
        in_time(start)
    }
}

impl Drop for Grammar {
    fn drop(&mut self) {
        // SAFETY: made by us, freed once.
        unsafe { sys::llama_sampler_free(self.raw) }
    }
}

fn in_time(start: Instant) -> Result<()> {
    if start.elapsed() > STEP {
        return Err(Error::arg(format!(
            "the grammar is too ambiguous: one token took more than {} milliseconds",
            STEP.as_millis()
        )));
    }
    Ok(())
}

/// llama.cpp's grammar for a JSON schema.
fn grammar_of(schema: &Value) -> Result<String> {
    check_schema(schema, schema)?;
    let text = schema.to_string();
    if text.len() > SCHEMA_BYTES {
        return Err(Error::arg(format!("the JSON schema has {} bytes, expected at most {SCHEMA_BYTES}", text.len())));
    }
    let convert = move || llama_cpp_2::json_schema_to_grammar(&text).ok();
    let thread = std::thread::Builder::new().name("apa-schema".into()).stack_size(SCHEMA_STACK).spawn(convert);
    let thread = thread.map_err(|e| Error::nomem(format!("can't start a thread to convert the JSON schema: {e}")))?;
    let grammar = thread.join().map_err(|_| Error::panic("converting the JSON schema panicked"))?;
    grammar.ok_or_else(|| {
        Error::arg(
            "the JSON schema can't be turned into a grammar: a type, bound or pattern that is not valid or not known",
        )
    })
}

/// What llama.cpp doesn't say, or doesn't survive.
fn check_schema(at: &Value, whole: &Value) -> Result<()> {
    match at {
        Value::Array(items) => items.iter().try_for_each(|item| check_schema(item, whole)),
        Value::Object(members) => {
            if members.len() > SCHEMA_MEMBERS {
                return Err(Error::arg(format!(
                    "the JSON schema has an object of {} members, expected at most {SCHEMA_MEMBERS}",
                    members.len()
                )));
            }
            if let Some(Value::String(reference)) = members.get("$ref") {
                let target = reference.strip_prefix('#').and_then(|pointer| whole.pointer(pointer));
                let shown: String = reference.chars().take(80).collect();
                match target {
                    None => return Err(Error::arg(format!("the JSON schema has no {shown:?}, which a $ref names"))),
                    // A circle of them would never end.
                    Some(target) if target.get("$ref").is_some() => {
                        return Err(Error::arg(format!("the $ref {shown:?} of the JSON schema names another $ref")));
                    }
                    Some(_) => {}
                }
            }
            members.values().try_for_each(|member| check_schema(member, whole))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_becomes_a_grammar_that_passes() {
        for schema in [
            json!({"type": "object"}),
            json!({"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer", "minimum": 1}},
                "required": ["name"], "additionalProperties": false}),
            json!({"$defs": {"tree": {"type": "object", "properties": {"kids": {"type": "array",
                "items": {"$ref": "#/$defs/tree"}}}}}, "$ref": "#/$defs/tree"}),
            json!({"enum": ["a", 1, null]}),
        ] {
            let grammar = grammar_of(&schema).unwrap();
            assert_eq!(gbnf::check(&grammar, &|_| false), Ok(()), "{schema}: {grammar}");
        }
    }

    #[test]
    fn a_schema_that_can_not_be_used_says_why() {
        let refusal = |schema: Value| grammar_of(&schema).expect_err("refused").message().to_owned();
        assert!(refusal(json!({"type": "rainbow"})).contains("can't be turned into a grammar"));
        assert!(refusal(json!({"$ref": "#/nowhere"})).contains("has no \"#/nowhere\""));
        let circle = json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
            "allOf": [{"$ref": "#/$defs/a"}]});
        assert!(refusal(circle).contains("names another $ref"));
        let wide: serde_json::Map<String, Value> = (0..500).map(|i| (format!("k{i}"), json!({}))).collect();
        assert!(refusal(json!({"type": "object", "properties": wide})).contains("500 members"));
        assert!(refusal(json!({"const": "x".repeat(100_000)})).contains("expected at most 65536"));
    }

    #[test]
    fn long_names_do_not_overflow_the_stack() {
        let long = "n\u{e9}".repeat(10_000);
        let schema = json!({"type": "object", "properties": {&long: {"type": "null"}}, "required": [&long]});
        assert!(grammar_of(&schema).is_ok());
    }
}

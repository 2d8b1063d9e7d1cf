//! Reads what a reward model is asked to score: answers to a prompt, or documents to a query. Scores nothing.

use serde_json::Value;

use super::fields::{Fields, kind};
use super::{Prompt, Unknown, one_prompt};
use crate::Engine;
use crate::error::{Error, Result};
use crate::llama::Conversation;
use crate::types::TokenId;

/// Most answers per request.
pub(crate) const SCORED: usize = 64;

/// Fields of a request for scores.
pub(crate) const SCORE_FIELDS: &[&str] = &["messages", "prompt", "completions", "model", "parse_special"];

/// Fields of a request to rerank.
pub(crate) const RERANK_FIELDS: &[&str] = &["query", "documents", "top_n", "return_documents", "model"];

/// Answers to score.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedScore {
    /// What they answer.
    pub prompt: Prompt,
    /// The answers.
    pub completions: Vec<String>,
}

/// A prompt and an answer, in tokens.
pub type PromptAndAnswer = (Vec<TokenId>, Vec<TokenId>);

impl ParsedScore {
    /// Tokenizes it with the engine's model. Answers to a chat end the model's turn.
    ///
    /// # Errors
    /// As [`Engine::conversation_prompt`] and [`Engine::tokenize`].
    pub fn resolve(self, engine: &Engine) -> Result<Vec<PromptAndAnswer>> {
        let ends_turn = matches!(self.prompt, Prompt::Chat(_));
        let prompt = self.prompt.tokens(engine)?;
        let answer = |text: &String| Ok((prompt.clone(), engine.completion_tokens(text, ends_turn)?));
        self.completions.iter().map(answer).collect()
    }
}

/// Documents to put in the order of their scores as answers to a query.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedRerank {
    /// The query as what a user says, and the documents as answers.
    pub score: ParsedScore,
    /// How many of them are wanted, the best ones.
    pub top: usize,
    /// Whether their texts are wanted, too.
    pub texts: bool,
}

/// Reads `{messages | prompt, completions: texts}`.
///
/// # Errors
/// `Arg` names the field and what was expected.
pub fn parse_score(body: &[u8]) -> Result<ParsedScore> {
    let mut fields = Fields::parse(body, Unknown::Refuse)?;
    let prompt = one_prompt(&mut fields, "request")?;
    let completions = texts("completions", fields.required("completions")?)?;
    fields.string("model")?;
    fields.finish(SCORE_FIELDS)?;
    Ok(ParsedScore { prompt, completions })
}

/// Reads `{query, documents: texts, top_n?, return_documents?}`.
///
/// # Errors
/// `Arg` names the field and what was expected.
pub fn parse_rerank(body: &[u8]) -> Result<ParsedRerank> {
    let mut fields = Fields::parse(body, Unknown::Refuse)?;
    let query = fields.string("query")?.ok_or_else(|| fields.missing("query"))?;
    let completions = texts("documents", fields.required("documents")?)?;
    let top = fields.integer("top_n", 1, SCORED as u64)?.map_or(completions.len(), |top| top as usize);
    let texts = fields.flag("return_documents")?;
    fields.string("model")?;
    fields.finish(RERANK_FIELDS)?;
    let messages = vec![serde_json::json!({"role": "user", "content": query})];
    let prompt = Prompt::Chat(Conversation { messages, ..Conversation::default() });
    Ok(ParsedRerank { score: ParsedScore { prompt, completions }, top, texts })
}

/// Texts, or objects with a text.
fn texts(name: &str, value: Value) -> Result<Vec<String>> {
    let items = match value {
        Value::String(one) => return Ok(vec![one]),
        Value::Array(items) => items,
        other => return Err(Error::arg(format!("{name} is {}, expected an array of strings", kind(&other)))),
    };
    let count = items.len();
    if !(1..=SCORED).contains(&count) {
        return Err(Error::arg(format!("{name} has {count} entries, expected 1 to {SCORED}")));
    }
    let text = |(i, item): (usize, Value)| match (item, name) {
        (Value::String(text), _) => Ok(text),
        (Value::Object(map), _) if map.get("text").is_some_and(Value::is_string) => {
            Ok(map.get("text").and_then(Value::as_str).unwrap_or_default().to_owned())
        }
        (other, _) => Err(Error::arg(format!("{name}[{i}] is {}, expected a string", kind(&other)))),
    };
    items.into_iter().enumerate().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_documents_are_texts_and_at_most_so_many() {
        let read = |body: &str| parse_score(body.as_bytes());
        let parsed = read(r#"{"prompt": "a", "completions": ["b", "c"]}"#).unwrap();
        assert_eq!((parsed.prompt, parsed.completions.len()), (Prompt::Text("a".into()), 2));
        let refusal = |body: &str| read(body).unwrap_err().message().to_owned();
        assert!(refusal(r#"{"completions": ["b"]}"#).contains("neither messages nor prompt"));
        assert!(refusal(r#"{"prompt": "a"}"#).contains("completions is missing"));
        assert_eq!(refusal(r#"{"prompt": "a", "completions": [1]}"#), "completions[0] is a number, expected a string");
        assert!(refusal(r#"{"prompt": "a", "completions": []}"#).contains("has 0 entries, expected 1 to 64"));
        let ranked = parse_rerank(br#"{"query": "q", "documents": ["b", {"text": "c"}], "top_n": 1}"#);
        let ranked = ranked.unwrap();
        assert_eq!((ranked.score.completions, ranked.top, ranked.texts), (vec!["b".into(), "c".into()], 1, false));
    }
}

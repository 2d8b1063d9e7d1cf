//! Reads fixed answers with rewards from JSON lines, for offline runs. Never tokenizes.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::prompts::{prompt_of, read_lines};
use crate::types::{FinishReason, PromptText, TokenId};

/// An answer as its file gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct FixedAnswer {
    /// The prompt.
    pub prompt: PromptText,
    /// The answer.
    pub response: String,
    /// The answer's reward.
    pub score: f64,
    /// Whether the answer ended by itself rather than at a limit.
    pub ended: bool,
    /// The exact tokens of prompt and answer, if the file has them.
    pub tokens: Option<(Vec<TokenId>, Vec<TokenId>)>,
}

#[derive(Deserialize)]
struct Fields {
    response: String,
    #[serde(alias = "reward")]
    score: f64,
    finish: Option<FinishReason>,
    prompt_tokens: Option<Vec<TokenId>>,
    response_tokens: Option<Vec<TokenId>>,
}

/// Reads JSON lines `{"prompt": [messages] or "text", "response": "text", "reward": number}`; returns each answer with
/// its line number, and the file's SHA-256. The `samples.jsonl` of a run is such a file; its `score`, `finish` and
/// tokens are used as they are, and other fields ignored.
///
/// # Errors
/// `Io` if the file can't be read, `Arg` naming an invalid line, or if there are fewer than two answers.
pub fn read_dataset(path: &Path) -> Result<(Vec<(usize, FixedAnswer)>, String)> {
    let (answers, sha256) = read_lines(path, parse)?;
    if answers.len() < 2 {
        let found = answers.len();
        return Err(Error::arg(format!("{} holds {found} answers, expected at least 2", path.display())));
    }
    Ok((answers, sha256))
}

fn parse(line: &[u8]) -> Result<FixedAnswer> {
    const EXPECTED: &str = r#"expected {"prompt": .., "response": "text", "reward": number}"#;
    let wrong = |e: serde_json::Error| Error::arg(format!("{e}, {EXPECTED}"));
    let value: Value = serde_json::from_slice(line).map_err(wrong)?;
    let prompt = prompt_of(&value)?;
    let fields: Fields = serde_json::from_value(value).map_err(wrong)?;
    let tokens = match (fields.prompt_tokens, fields.response_tokens) {
        (Some(prompt), Some(response)) => Some((prompt, response)),
        (None, None) => None,
        _ => return Err(Error::arg("prompt_tokens without response_tokens or the reverse, expected both or none")),
    };
    let ended = !matches!(fields.finish, Some(FinishReason::Length | FinishReason::Cancelled));
    Ok(FixedAnswer { prompt, response: fields.response, score: fields.score, ended, tokens })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_names_of_the_reward_and_a_run_s_own_samples_are_read() {
        let plain = parse(br#"{"prompt": "a", "response": "b", "reward": 0.5, "id": 7}"#).unwrap();
        assert_eq!((plain.score, plain.ended, plain.tokens), (0.5, true, None));
        let own = br#"{"step":1,"prompt":"a","response":"b","score":-1,"finish":"length","prompt_tokens":[1],
            "response_tokens":[2,3]}"#;
        let own = parse(own).unwrap();
        assert_eq!((own.score, own.ended, own.tokens), (-1.0, false, Some((vec![1], vec![2, 3]))));
    }

    #[test]
    fn what_is_no_rated_answer_is_refused() {
        for (line, part) in [
            ("{\"prompt\": \"a\", \"response\": \"b\"}", "missing field `score`"),
            ("{\"prompt\": \"a\", \"reward\": 1}", "missing field `response`"),
            ("{\"response\": \"b\", \"reward\": 1}", "no prompt"),
            ("{\"prompt\": \"a\", \"response\": \"b\", \"reward\": \"1\"}", "expected f64"),
            ("{\"prompt\": \"a\", \"response\": \"b\", \"reward\": 1e999}", "number out of range"),
            ("{\"prompt\": \"a\", \"response\": \"b\", \"reward\": 1, \"prompt_tokens\": []}", "expected both or none"),
        ] {
            let message = parse(line.as_bytes()).unwrap_err().message().to_owned();
            assert!(message.contains(part), "{line}: {message}");
        }
    }
}

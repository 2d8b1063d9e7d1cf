//! Prompts from JSON lines, and the order in which a run asks them. Never tokenizes.

use std::fs;
use std::path::Path;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha12Rng;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
pub use crate::types::PromptText;

/// Largest file of prompts, in bytes.
const MOST_BYTES: u64 = 1 << 30;

/// A prompt and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Its line in the file, from 1.
    pub line: usize,
    /// What it says.
    pub text: PromptText,
}

/// The prompts of a file of JSON lines (`{"prompt": [messages]}`, `{"prompt": "text"}` or `{"text": "text"}`), and its SHA-256.
/// Other fields are left alone; empty lines are skipped.
///
/// # Errors
/// `Io` if the file can't be read, `Arg` naming the line that is no prompt, or if there is none.
pub fn read_prompts(path: &Path) -> Result<(Vec<Prompt>, String)> {
    let (prompts, sha256) = read_lines(path, parse)?;
    if prompts.is_empty() {
        return Err(Error::arg(format!("{} holds no prompt", path.display())));
    }
    Ok((prompts.into_iter().map(|(line, text)| Prompt { line, text }).collect(), sha256))
}

/// What `parse` makes of each line that isn't empty, with its number from 1, and the file's SHA-256.
pub(super) fn read_lines<T>(path: &Path, parse: impl Fn(&[u8]) -> Result<T>) -> Result<(Vec<(usize, T)>, String)> {
    let at = |e: std::io::Error| Error::from(e).context(format!("reading {}", path.display()));
    let bytes = fs::metadata(path).map_err(at)?.len();
    if bytes > MOST_BYTES {
        return Err(Error::arg(format!("{} has {bytes} bytes, at most {MOST_BYTES} are read", path.display())));
    }
    let data = fs::read(path).map_err(at)?;
    let mut parsed = Vec::new();
    for (index, line) in data.split(|b| *b == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let item = parse(line).map_err(|e| e.context(format!("{}:{}", path.display(), index + 1)))?;
        parsed.push((index + 1, item));
    }
    Ok((parsed, sha256(&data)))
}

fn parse(line: &[u8]) -> Result<PromptText> {
    let value: Value = serde_json::from_slice(line).map_err(|e| wrong(&format!("no JSON ({e})")))?;
    prompt_of(&value)
}

fn wrong(what: &str) -> Error {
    Error::arg(format!(
        "{what}, expected {{\"prompt\": [messages]}}, {{\"prompt\": \"text\"}} or {{\"text\": \"text\"}}"
    ))
}

/// The prompt of a line.
pub(super) fn prompt_of(value: &Value) -> Result<PromptText> {
    let given = match (value.get("prompt"), value.get("text")) {
        (Some(prompt), _) => prompt,
        (None, Some(text @ Value::String(_))) => text,
        _ => return Err(wrong("no prompt")),
    };
    match given {
        Value::String(text) if text.is_empty() => Err(wrong("an empty prompt")),
        Value::Array(messages) if messages.is_empty() => Err(wrong("a prompt without messages")),
        _ => PromptText::deserialize(given)
            .map_err(|_| wrong("a prompt that is neither text nor messages with role and content")),
    }
}

fn sha256(data: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Which of `prompts` prompts a run with this seed asks at its places `first..first + count`: each once, in random order,
/// before any is asked again. A function of its arguments alone, so that a run that goes on needs no memory of it.
pub(super) fn order(prompts: usize, seed: u64, first: u64, count: usize) -> Vec<usize> {
    let size = prompts.max(1) as u64;
    let mut shuffled: (Option<u64>, Vec<usize>) = (None, Vec::new());
    let mut asked = Vec::with_capacity(count);
    for place in first..first + count as u64 {
        let round = place / size;
        if shuffled.0 != Some(round) {
            let mut all: Vec<usize> = (0..prompts).collect();
            let mut rng = ChaCha12Rng::seed_from_u64(seed);
            rng.set_stream(round);
            all.shuffle(&mut rng);
            shuffled = (Some(round), all);
        }
        asked.extend(shuffled.1.get((place % size) as usize));
    }
    asked
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ChatMessage;

    #[test]
    fn all_three_forms_of_a_prompt_are_read_and_empty_lines_skipped() {
        let chat = r#"{"prompt": [{"role": "user", "content": "hi"}], "id": 3}"#;
        let message = ChatMessage { role: "user".into(), content: "hi".into() };
        assert_eq!(parse(chat.as_bytes()).unwrap(), PromptText::Chat(vec![message]));
        assert_eq!(parse(br#"{"prompt": "a"}"#).unwrap(), PromptText::Text("a".into()));
        assert_eq!(parse(br#"{"text": "b"}"#).unwrap(), PromptText::Text("b".into()));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.jsonl");
        fs::write(&path, "\n{\"text\": \"b\"}\r\n\n").unwrap();
        let (prompts, _) = read_prompts(&path).unwrap();
        assert_eq!((prompts.len(), prompts[0].line), (1, 2));
    }

    #[test]
    fn what_is_no_prompt_is_refused() {
        for line in
            ["", "3", "{}", "{\"prompt\": []}", "{\"prompt\": \"\"}", "{\"prompt\": [{\"role\": 1}]}", "{\"text\": []}"]
        {
            assert!(parse(line.as_bytes()).is_err(), "{line}");
        }
    }

    #[test]
    fn every_prompt_is_asked_once_before_any_is_asked_again_wherever_a_run_begins() {
        let whole = order(7, 3, 0, 21);
        for round in whole.chunks(7) {
            let mut sorted = round.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4, 5, 6]);
        }
        assert_ne!(whole[..7], whole[7..14]);
        assert_eq!(order(7, 3, 5, 10), whole[5..15]);
        assert_ne!(order(7, 4, 0, 21), whole);
    }
}

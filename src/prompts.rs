//! Prompts from files of JSON lines, gzipped or not. Never tokenizes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::types::PromptText;

/// Largest file, in bytes, unpacked.
const MOST_BYTES: u64 = 1 << 30;
/// What a gzipped file begins with.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A prompt and its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Its line in the file, from 1.
    pub line: usize,
    /// The prompt.
    pub text: PromptText,
}

/// The prompts of a file of JSON lines, gzipped or not (`{"prompt": [messages]}`, `{"prompt": "text"}` or `{"text":
/// "text"}`), and its SHA-256, unpacked. Other fields are left alone; empty lines are skipped.
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

/// Parses each non-empty line; returns the results with their line numbers, from 1, and the file's SHA-256.
pub(crate) fn read_lines<T>(path: &Path, parse: impl Fn(&[u8]) -> Result<T>) -> Result<(Vec<(usize, T)>, String)> {
    let data = read(path).map_err(|e| Error::from(e).context(format!("reading {}", path.display())))?;
    if data.len() as u64 > MOST_BYTES {
        return Err(Error::arg(format!("{} holds more than {MOST_BYTES} bytes", path.display())));
    }
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

/// A file's bytes, unpacked; of a file over the limit, one byte more than the limit.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let (mut data, most) = (Vec::new(), MOST_BYTES + 1);
    File::open(path)?.take(most).read_to_end(&mut data)?;
    if !data.starts_with(&GZIP) {
        return Ok(data);
    }
    let mut plain = Vec::new();
    MultiGzDecoder::new(&data[..]).take(most).read_to_end(&mut plain)?;
    Ok(plain)
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
pub(crate) fn prompt_of(value: &Value) -> Result<PromptText> {
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
        let text = b"\n{\"text\": \"b\"}\r\n\n";
        std::fs::write(&path, text).unwrap();
        let read = read_prompts(&path).unwrap();
        assert_eq!((read.0.len(), read.0[0].line), (1, 2));
        let mut packed = flate2::write::GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, text).unwrap();
        packed.finish().unwrap();
        assert_eq!(read_prompts(&path).unwrap(), read);
    }

    #[test]
    fn what_is_no_prompt_is_refused() {
        for line in
            ["", "3", "{}", "{\"prompt\": []}", "{\"prompt\": \"\"}", "{\"prompt\": [{\"role\": 1}]}", "{\"text\": []}"]
        {
            assert!(parse(line.as_bytes()).is_err(), "{line}");
        }
    }
}

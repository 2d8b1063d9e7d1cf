//! Reads judged answers from files: one JSON object per line, plain or gzipped. Never tokenizes or stores them.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::members::{check_unused, tokens_of, wrong};
use crate::error::{Error, Result};
use crate::members::Members;
use crate::types::{ChatMessage, GenerationId, PromptText, RATINGS, TokenId};

/// Longest line, in bytes.
const LINE_BYTES: u64 = 16 << 20;
/// Largest file, in bytes, unpacked: a small gzip can hold endless zeros.
const FILE_BYTES: u64 = 4 << 30;
/// The byte order mark that some editors put before UTF-8.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Length of the identity of a piece of feedback, in characters.
const IDENTITY: usize = 32;

const EXPECTED: &str = "expected prompt, chosen and rejected; chosen and rejected transcripts or conversations; \
    prompt, \
                        completion and label or rating; or messages with rating or thumbs";

/// Members that rate one answer.
const RATES: [&str; 4] = ["rating", "label", "thumbs_up", "thumbs_down"];

/// The content of a line.
#[derive(Clone, Debug, PartialEq)]
pub enum Judged {
    /// One answer is better than another.
    Pair {
        /// The prompt of both.
        prompt: PromptText,
        /// The better answer.
        chosen: String,
        /// The worse answer.
        rejected: String,
    },
    /// An answer and how good it is.
    Rated {
        /// The prompt.
        prompt: PromptText,
        /// The answer.
        answer: String,
        /// The rating, in [-1, 1].
        rating: f64,
    },
    /// An answer with a named signal or a comment.
    Said {
        /// The prompt.
        prompt: PromptText,
        /// The answer.
        answer: String,
        /// The signal's name; `None` if there is only a comment.
        signal: Option<String>,
    },
}

/// A line and its origin.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its number in the file, from 1.
    pub line: usize,
    /// Its content.
    pub judged: Judged,
    /// The user, if the file names one.
    pub user: Option<String>,
    /// The comment, if there is one.
    pub comment: Option<String>,
    /// The prompt's exact tokens, in lines of our own export.
    pub prompt_tokens: Option<Vec<TokenId>>,
    /// The base model that those tokens belong to.
    pub base_sha256: Option<String>,
    /// Ids of the answer, or of the better and the worse one, in lines of our own export.
    pub answer_ids: Vec<GenerationId>,
    /// The identity of the piece of feedback, in lines of our own export.
    pub identity: Option<String>,
    /// Whether the line says that the user was anonymous, rather than saying nothing about users.
    pub anonymous: bool,
    /// Whether the better answer of a pair is a user's correction of the worse one.
    pub correction: bool,
}

/// A line that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its number in the file, from 1.
    pub line: usize,
    /// The reason.
    pub reason: String,
}

/// The lines of a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgements {
    /// The usable lines.
    pub entries: Vec<Entry>,
    /// The unusable lines.
    pub refused: Vec<Refused>,
    /// SHA-256 of the unpacked file.
    pub sha256: String,
}

/// Reads a file of JSON lines, gzipped or not: preference pairs (TRL's prompt, chosen and rejected as text or messages,
/// with the prompt in front of both or beside them; HH transcripts) and ratings (TRL's prompt, completion and label;
/// conversations with thumbs; our own export). Empty lines are skipped.
///
/// # Errors
/// `Io` if the file can't be read, `Arg` if it is too large. Unusable lines are not errors: they are in `refused`.
pub fn read_judgements(path: &Path) -> Result<Judgements> {
    read(path).map_err(|e| e.context(format!("reading {}", path.display())))
}

fn read(path: &Path) -> Result<Judgements> {
    let mut packed = BufReader::new(File::open(path)?);
    let gzipped = packed.fill_buf()?.starts_with(&GZIP);
    let plain: Box<dyn Read> = if gzipped { Box::new(MultiGzDecoder::new(packed)) } else { Box::new(packed) };
    let mut lines = BufReader::new(plain.take(FILE_BYTES));
    let (mut found, mut sum, mut bytes) = (Judgements::default(), Sha256::new(), Vec::new());
    for line in 1.. {
        bytes.clear();
        (&mut lines).take(LINE_BYTES).read_until(b'\n', &mut bytes)?;
        if bytes.is_empty() {
            break;
        }
        sum.update(&bytes);
        if bytes.len() as u64 == LINE_BYTES && !bytes.ends_with(b"\n") {
            found.refused.push(Refused { line, reason: format!("longer than {LINE_BYTES} bytes") });
            skip_line(&mut lines, &mut sum)?;
            continue;
        }
        if line == 1 && bytes.starts_with(BYTE_ORDER_MARK) {
            bytes.drain(..BYTE_ORDER_MARK.len());
        }
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        match parse(&bytes) {
            Ok(entry) => found.entries.push(Entry { line, ..entry }),
            Err(error) => found.refused.push(Refused { line, reason: error.message().to_owned() }),
        }
    }
    if lines.get_ref().limit() == 0 {
        return Err(Error::arg(format!("it holds more than {FILE_BYTES} bytes")));
    }
    found.sha256 = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(found)
}

/// Reads to the end of an overlong line without keeping it.
fn skip_line(lines: &mut impl BufRead, sum: &mut Sha256) -> Result<()> {
    loop {
        let bytes = lines.fill_buf()?;
        let (used, ends) = match bytes.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (bytes.len(), bytes.is_empty()),
        };
        sum.update(&bytes[..used]);
        lines.consume(used);
        if ends {
            return Ok(());
        }
    }
}

/// Reads one line; its number is left 0.
///
/// # Errors
/// `Arg` says what is wrong with it.
fn parse(line: &[u8]) -> Result<Entry> {
    let Members(map) = match line.trim_ascii_start().first() {
        Some(b'{') => serde_json::from_slice(line).map_err(|e| Error::arg(format!("no JSON ({e})")))?,
        _ => {
            let no_json = |e| Error::arg(format!("no JSON ({e})"));
            serde_json::from_slice::<IgnoredAny>(line).map_err(no_json)?;
            return Err(Error::arg(format!("no JSON object, {EXPECTED}")));
        }
    };
    let text = |key: &str| match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(wrong(key, other, "a text")),
    };
    let given = |key: &str| map.get(key).is_some_and(|value| !value.is_null());
    let judged = match (map.get("chosen"), map.get("rejected")) {
        (Some(chosen), Some(rejected)) => pair(map.get("prompt"), chosen, rejected)?,
        (None, None) => rated(&map)?,
        _ => return Err(Error::arg("there is one of chosen and rejected, expected both")),
    };
    let prompt_tokens = map.get("prompt_tokens").filter(|given| !given.is_null()).map(tokens_of).transpose()?;
    let (user, comment, base_sha256) = (text("user")?, text("comment")?, text("base_sha256")?);
    if user.as_ref().is_some_and(String::is_empty) {
        return Err(Error::arg("user is empty, expected a name or null"));
    }
    let ids = ["generation_id", "chosen_id", "rejected_id"];
    let answer_ids = ids.into_iter().filter_map(|key| text(key).transpose().map(|id| id.map(GenerationId)));
    let answer_ids = answer_ids.collect::<Result<_>>()?;
    let identity = text("feedback_identity")?;
    if let Some(id) = identity.as_ref().filter(|id| id.len() != IDENTITY || !id.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        let expected = format!("{IDENTITY} hexadecimal digits");
        return Err(wrong("feedback_identity", &id.as_str().into(), &expected));
    }
    let anonymous = map.get("user").is_some_and(Value::is_null);
    let correction = match map.get("correction") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(correction)) => *correction,
        Some(other) => return Err(wrong("correction", other, "true or false")),
    };
    if let Judged::Pair { .. } = judged {
        let of_one = RATES.iter().chain(&["signal", "completion", "messages"]);
        let of_one = of_one.chain(if correction { &[][..] } else { &["comment"] });
        if let Some(key) = of_one.copied().find(|key| given(key)) {
            let expected = "expected two lines, or the pair alone";
            return Err(Error::arg(format!("there is {key} beside chosen and rejected, {expected}")));
        }
    }
    check_unused(&map, base_sha256.is_some())?;
    Ok(Entry {
        line: 0,
        judged,
        user,
        comment,
        prompt_tokens,
        base_sha256,
        answer_ids,
        identity,
        anonymous,
        correction,
    })
}

fn pair(prompt: Option<&Value>, chosen: &Value, rejected: &Value) -> Result<Judged> {
    let (prompt, chosen, rejected) = match prompt {
        Some(prompt) => (prompt_of(prompt)?, answer_of("chosen", chosen)?, answer_of("rejected", rejected)?),
        None => {
            let (prompt, chosen) = conversation("chosen", chosen)?;
            let (other, rejected) = conversation("rejected", rejected)?;
            if prompt != other {
                return Err(Error::arg("chosen and rejected differ before their last answer, expected one prompt"));
            }
            (PromptText::Chat(prompt), chosen, rejected)
        }
    };
    if chosen.trim().is_empty() || rejected.trim().is_empty() {
        let which = if chosen.trim().is_empty() { "chosen" } else { "rejected" };
        return Err(Error::arg(format!("the {which} answer is empty")));
    }
    if chosen == rejected {
        return Err(Error::arg("both answers are the same"));
    }
    Ok(Judged::Pair { prompt, chosen, rejected })
}

fn rated(map: &Map<String, Value>) -> Result<Judged> {
    let (prompt, answer) = match (map.get("prompt"), map.get("completion"), map.get("messages")) {
        (Some(prompt), Some(completion), _) => (prompt_of(prompt)?, answer_of("completion", completion)?),
        (_, _, Some(messages)) => {
            let (prompt, answer) = conversation("messages", messages)?;
            (PromptText::Chat(prompt), answer)
        }
        _ => return Err(Error::arg(format!("no judged answer, {EXPECTED}"))),
    };
    if answer.trim().is_empty() {
        return Err(Error::arg("the answer is empty"));
    }
    let given = |key: &str| map.get(key).filter(|value| !value.is_null());
    let both = |a: &str, b: &str| given(a).is_some() && given(b).is_some();
    if both("completion", "messages") || both("prompt", "messages") {
        return Err(Error::arg("there are messages beside prompt and completion, expected one form"));
    }
    let thumbed =
        ["thumbs_up", "thumbs_down"].into_iter().any(|key| given(key).is_some_and(|n| n.as_f64() != Some(0.0)));
    if thumbed && (given("rating").is_some() || given("label").is_some()) {
        return Err(Error::arg("there are thumbs beside rating or label, expected one of them"));
    }
    let rates = RATES.into_iter().any(|key| given(key).is_some());
    let signal = match given("signal") {
        None => None,
        Some(Value::String(name)) => Some(name.clone()),
        Some(other) => return Err(wrong("signal", other, "a signal's name")),
    };
    if rates && signal.is_some() {
        return Err(Error::arg("there are both a rating and signal, expected one of them"));
    }
    let number = |n: f64| [0.0, 1.0].contains(&n).then_some(n == 1.0);
    let good = |label: &Value| label.as_bool().or_else(|| label.as_f64().and_then(number));
    let label = given("label").map(|label| good(label).ok_or_else(|| wrong("label", label, "true or false")));
    let label = label.transpose()?;
    let remark = map.get("comment").is_some_and(Value::is_string);
    if !rates && (signal.is_some() || remark) {
        return Ok(Judged::Said { prompt, answer, signal });
    }
    let thumbs = |key: &str| match given(key) {
        None => Ok(0.0),
        Some(value) => match value.as_f64().filter(|count| count.fract() == 0.0 && *count >= 0.0) {
            Some(count) => Ok(count),
            None => Err(wrong(key, value, "a number, how many there were")),
        },
    };
    let rating = match (given("rating"), label) {
        (Some(rating), _) => {
            let known = rating.as_f64().filter(|r| RATINGS.contains(r));
            known.ok_or_else(|| wrong("rating", rating, "a number from -1 to 1"))?
        }
        (None, Some(good)) => [-1.0, 1.0][usize::from(good)],
        (None, None) => {
            let (up, down) = (thumbs("thumbs_up")?, thumbs("thumbs_down")?);
            if up + down == 0.0 {
                let expected = "rating from -1 to 1, label true or false, or thumbs_up and thumbs_down";
                return Err(Error::arg(format!("no rating, expected {expected}")));
            }
            // Of several thumbs their mean: two against one say less than two alone.
            (up - down) / (up + down)
        }
    };
    if let (Some(_), Some(good)) = (given("rating"), label)
        && rating != 0.0
        && good != (rating > 0.0)
    {
        return Err(Error::arg("rating and label say the opposite of each other, expected one of them"));
    }
    Ok(Judged::Rated { prompt, answer, rating })
}

fn prompt_of(value: &Value) -> Result<PromptText> {
    match PromptText::deserialize(value) {
        Ok(PromptText::Chat(messages)) if messages.is_empty() => Err(Error::arg("the prompt has no messages")),
        Ok(PromptText::Text(text)) if text.is_empty() => Err(Error::arg("the prompt is empty")),
        Ok(prompt) => Ok(prompt),
        Err(_) => Err(Error::arg("the prompt is neither text nor messages with role and content")),
    }
}

/// An answer as text, or as the single message that TRL writes.
fn answer_of(key: &str, value: &Value) -> Result<String> {
    if let Value::String(text) = value {
        return Ok(text.clone());
    }
    match Vec::<ChatMessage>::deserialize(value).map(<[ChatMessage; 1]>::try_from) {
        Ok(Ok([message])) => Ok(message.content),
        _ => Err(Error::arg(format!("{key} is neither text nor one message with role and content"))),
    }
}

/// A conversation and its last answer, from messages or from an HH transcript.
fn conversation(key: &str, value: &Value) -> Result<(Vec<ChatMessage>, String)> {
    let messages = match value {
        Value::String(text) => transcript(text),
        _ => Vec::deserialize(value).unwrap_or_default(),
    };
    match split_last(messages) {
        Some((prompt, answer)) if answer.role == "assistant" && !prompt.is_empty() => Ok((prompt, answer.content)),
        _ => Err(Error::arg(format!(
            "{key} is no conversation that ends with an answer, expected messages, or a transcript of turns that begin \
             with \"Human:\" and \"Assistant:\""
        ))),
    }
}

fn split_last(mut messages: Vec<ChatMessage>) -> Option<(Vec<ChatMessage>, ChatMessage)> {
    let last = messages.pop()?;
    Some((messages, last))
}

fn transcript(text: &str) -> Vec<ChatMessage> {
    const ROLES: [(&str, &str); 2] = [("Human:", "user"), ("Assistant:", "assistant")];
    let mut messages: Vec<ChatMessage> = Vec::new();
    for part in text.split("\n\n") {
        let turn = ROLES.iter().find_map(|(mark, role)| Some((*role, part.trim_start().strip_prefix(mark)?)));
        match (turn, messages.last_mut()) {
            (Some((role, said)), _) => {
                messages.push(ChatMessage { role: role.into(), content: said.trim().to_owned() });
            }
            // A blank line inside a turn.
            (None, Some(message)) => {
                message.content.push_str("\n\n");
                message.content.push_str(part);
            }
            (None, None) if part.trim().is_empty() => {}
            (None, None) => return Vec::new(),
        }
    }
    messages.into_iter().map(|m| ChatMessage { content: m.content.trim().to_owned(), ..m }).collect()
}

#[cfg(test)]
#[path = "formats_tests.rs"]
mod tests;

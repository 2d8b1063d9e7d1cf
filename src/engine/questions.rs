//! What examinations ask, read from files: prompts, perhaps with the format of their answers, and anchors. Never asks.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::llama::{Model, PromptTokens};
use crate::policy::Decoder;
use crate::prompts::{prompt_of, read_lines};
use crate::reward::{Grader, Source};
use crate::types::*;

/// Seconds that an anchor's command may take.
const ANCHOR_TIME: Duration = Duration::from_secs(60);

/// A prompt and the format that its answer should have.
#[derive(Clone)]
pub(super) struct Question {
    pub prompt: Vec<TokenId>,
    pub format: Option<Format>,
}

pub(super) struct Anchor {
    pub name: String,
    pub prompt: Vec<TokenId>,
    pub text: PromptText,
    pub check: Check,
}

/// What an anchor's answer must hold.
pub(super) enum Check {
    Graded(Grader),
    Format(Format),
}

/// An anchor as the file has it; its prompt is parsed apart.
#[derive(Deserialize)]
struct Line {
    name: Option<String>,
    regex: Option<String>,
    command: Option<String>,
    #[serde(flatten)]
    asks: Asks,
}

/// The format that a line asks for.
#[derive(Deserialize)]
struct Asks {
    schema: Option<Value>,
    grammar: Option<String>,
}

impl Asks {
    /// The format that an answer should have, once it is known that the model can be held to it.
    fn format(&self, model: &Model) -> Result<Option<Format>> {
        let format = match (&self.schema, &self.grammar) {
            (None, None) => return Ok(None),
            (Some(schema), None) => Format::JsonSchema(schema.clone()),
            (None, Some(grammar)) => Format::Grammar(grammar.clone()),
            (Some(_), Some(_)) => return Err(Error::arg("schema stands beside grammar, expected one of them")),
        };
        model.guide(&format)?;
        Ok(Some(format))
    }
}

/// A prompt as users would ask it: a conversation if the model has a template, else plain text.
pub(super) fn asked(line: &str, tokens: &PromptTokens) -> Result<Vec<TokenId>> {
    let message = ChatMessage { role: "user".into(), content: line.to_owned() };
    tokens.of(&PromptText::Chat(vec![message])).or_else(|_| tokens.of(&PromptText::Text(line.to_owned())))
}

pub(super) fn anchors(
    path: &Path,
    tokens: &PromptTokens,
    decoder: &Arc<Decoder>,
    model: &Arc<Model>,
) -> Result<Vec<Anchor>> {
    let (lines, _) = read_lines(path, |line| {
        let value: Value = serde_json::from_slice(line).map_err(|e| Error::arg(format!("no JSON ({e})")))?;
        let text = prompt_of(&value)?;
        let line: Line = serde_json::from_value(value).map_err(|e| Error::arg(e.to_string()))?;
        let format = line.asks.format(model)?;
        let whose = line.name.as_ref().map_or_else(|| "an anchor".to_owned(), |name| format!("the anchor {name}"));
        let who = format!("the command of {whose} (gate.anchors)");
        let graded =
            |source: String| source.parse::<Source>()?.open_as(&who, ANCHOR_TIME, decoder, model).map(Check::Graded);
        let check = match (line.regex, line.command, format) {
            (Some(regex), None, None) => graded(format!("regex:{regex}"))?,
            (None, Some(command), None) => graded(format!("command:{command}"))?,
            (None, None, Some(format)) => Check::Format(format),
            _ => return Err(Error::arg("an anchor has one of \"regex\", \"command\", \"schema\" and \"grammar\"")),
        };
        Ok((line.name, text, check))
    })?;
    if lines.is_empty() {
        tracing::warn!(path = %path.display(), "gate.anchors names a file without anchors: none holds a version back");
    }
    let anchor = |(number, (name, text, check)): (usize, (Option<String>, PromptText, Check))| {
        let name = name.unwrap_or_else(|| format!("line {number}"));
        let prompt = tokens.of(&text)?;
        Ok(Anchor { name, prompt, text, check })
    };
    lines.into_iter().map(anchor).collect()
}

/// The prompts of a file, each with the format that its answer should have.
pub(super) fn questions(path: &Path, model: &Arc<Model>) -> Result<Vec<Question>> {
    let tokens = PromptTokens::new(model);
    let (lines, _) = read_lines(path, |line| {
        let value: Value = serde_json::from_slice(line).map_err(|e| Error::arg(format!("no JSON ({e})")))?;
        let prompt = tokens.of(&prompt_of(&value)?)?;
        let asks: Asks = serde_json::from_value(value).map_err(|e| Error::arg(e.to_string()))?;
        Ok(Question { prompt, format: asks.format(model)? })
    })?;
    if lines.is_empty() {
        return Err(Error::arg(format!("{} holds no prompt", path.display())));
    }
    Ok(lines.into_iter().map(|(_, question)| question).collect())
}

//! The JSON of OpenAI's chat and text completions, whole and in chunks. Generates nothing.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::dialect::{Dialect, End, Said, Whole};
use super::error::ApiError;
use crate::llama::TextDecoder;
use crate::request::{Delta, call_id, calls_json};
use crate::types::{Alternative, FinishReason, Generation, GenerationId, TokenLogprob};

/// Which of the two APIs.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Chat,
    Text,
}

/// Fields shared by all parts of one response.
pub(super) struct Shape {
    pub(super) kind: Kind,
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) include_usage: bool,
    /// Answers to each prompt.
    pub(super) per_prompt: usize,
    pub(super) choices: Vec<Choice>,
}

/// Offsets of tokens in the text of an answer, in characters. A token that doesn't complete a character has the offset
/// of that character.
#[derive(Default)]
struct Offsets {
    characters: usize,
    decoder: TextDecoder,
}

impl Offsets {
    fn next(&mut self, token: &TokenLogprob) -> usize {
        let complete = self.decoder.push(&token.chosen.bytes).chars().count();
        let begin = self.characters;
        self.characters += complete;
        begin
    }
}

/// A token in a completion's log-probabilities: its text, or for bytes that are none by themselves `bytes:\xe2\x80`, as
/// OpenAI wrote them, so that no two of them are one.
fn name_of(token: &Alternative) -> String {
    match std::str::from_utf8(&token.bytes) {
        Ok(_) => token.token.clone(),
        Err(_) => token.bytes.iter().fold("bytes:".to_owned(), |name, byte| name + &format!("\\x{byte:02x}")),
    }
}

/// The reason in OpenAI's words, which have none for a cancelled answer: it counts as cut short.
fn finish_reason(finish: FinishReason, calls: usize, broken_off: bool) -> &'static str {
    match finish {
        _ if calls > 0 && !broken_off => "tool_calls",
        FinishReason::Stop => "stop",
        FinishReason::Length | FinishReason::Cancelled => "length",
    }
}

/// One of the answers.
pub(super) struct Choice {
    index: usize,
    id: String,
    /// Whether log-probabilities were requested.
    logprobs: bool,
    /// Offset at the end of the chunks sent so far.
    offsets: Offsets,
    /// The prompt's text, if it is echoed before the answer.
    echo: String,
    calls: usize,
}

impl Choice {
    pub(super) fn new(index: usize, id: &GenerationId, logprobs: bool, echo: String) -> Self {
        Self { index, id: id.to_string(), logprobs, offsets: Offsets::default(), echo, calls: 0 }
    }
}

impl Dialect for Shape {
    fn whole(&mut self, answers: &[Whole]) -> Value {
        let mut choices = std::mem::take(&mut self.choices);
        let choice = |(choice, answer): (&mut Choice, &Whole)| {
            let Whole { parts, generation, logprobs, .. } = answer;
            let (field, text) = match self.kind {
                Kind::Text => ("text", json!(format!("{}{}", choice.echo, generation.text))),
                Kind::Chat => {
                    let mut message = json!({"role": "assistant", "content": parts.text});
                    if !parts.reasoning.is_empty() {
                        message["reasoning_content"] = json!(parts.reasoning);
                    }
                    if !parts.calls.is_empty() {
                        message["tool_calls"] = calls_json(&choice.id, &parts.calls).into();
                        if parts.text.trim().is_empty() {
                            message["content"] = Value::Null;
                        }
                    }
                    ("message", message)
                }
            };
            let told = if choice.logprobs { self.logprobs(logprobs, &mut choice.offsets) } else { Value::Null };
            let mut shown = json!({
                "index": choice.index, field: text, "logprobs": told,
                "finish_reason": finish_reason(generation.finish, parts.calls.len(), parts.broken_off),
                "generation_id": choice.id, "policy_version": generation.policy_version,
            });
            tell_if_unrecorded(&mut shown, generation);
            shown
        };
        let object = match self.kind {
            Kind::Chat => "chat.completion",
            Kind::Text => "text_completion",
        };
        let mut body = self.body(object, choices.iter_mut().zip(answers).map(choice).collect());
        body["policy_version"] = json!(answers.first().map(|answer| answer.generation.policy_version));
        body["usage"] = self.usage(answers.iter().map(|answer| &answer.generation));
        body
    }

    /// The first chunks: the role of a chat, or the echoed prompt of a completion.
    fn head(&mut self) -> Vec<Said> {
        let opening = |choice: &Choice| match self.kind {
            Kind::Chat => Some(json!({"role": "assistant", "content": ""})),
            Kind::Text => (!choice.echo.is_empty()).then(|| json!(choice.echo)),
        };
        let chunk = |choice| Some(Said::data(&self.chunk(choice, opening(choice)?, Value::Null, Value::Null)));
        self.choices.iter().filter_map(chunk).collect()
    }

    fn piece(&mut self, at: usize, deltas: Vec<Delta>, logprobs: &[TokenLogprob]) -> Vec<Said> {
        let mut choices = std::mem::take(&mut self.choices);
        let mut said = Vec::new();
        if let Some(choice) = choices.get_mut(at) {
            let mut told = self.told(choice, logprobs);
            let mut pieces: Vec<Value> = deltas.into_iter().map(|delta| self.delta(choice, delta)).collect();
            if pieces.is_empty() && !told.is_null() {
                pieces.push(self.said(String::new()));
            }
            for piece in pieces {
                said.push(Said::data(&self.chunk(choice, piece, told.take(), Value::Null)));
            }
        }
        self.choices = choices;
        said
    }

    fn last(&mut self, at: usize, end: &End) -> Vec<Said> {
        let (Some(choice), generation) = (self.choices.get(at), &end.generation) else { return Vec::new() };
        let finish = finish_reason(generation.finish, choice.calls, end.broken_off);
        let mut last = self.chunk(choice, self.nothing(), Value::Null, finish.into());
        last["policy_version"] = json!(generation.policy_version);
        tell_if_unrecorded(&mut last["choices"][0], generation);
        vec![Said::data(&last)]
    }

    /// The last chunk of an answer that failed: the error beside its choice.
    fn failed(&mut self, at: usize, error: &ApiError) -> Vec<Said> {
        let Some(choice) = self.choices.get(at) else { return Vec::new() };
        let mut last = self.chunk(choice, self.nothing(), Value::Null, Value::Null);
        last["error"] = error.body()["error"].clone();
        vec![Said::data(&last)]
    }

    /// The token counts, if they were requested.
    fn end(&mut self, done: &[Arc<Generation>]) -> Vec<Said> {
        let counts = self.include_usage.then(|| {
            let mut counts = self.body(self.chunk_object(), Vec::new());
            counts["usage"] = self.usage(done.iter());
            Said::data(&counts)
        });
        counts.into_iter().chain([Said { event: None, data: "[DONE]".into() }]).collect()
    }
}

impl Shape {
    fn delta(&self, choice: &mut Choice, delta: Delta) -> Value {
        match delta {
            Delta::Text(text) => self.said(text),
            Delta::Reasoning(text) => json!({"reasoning_content": text}),
            Delta::Call { index, name } => {
                choice.calls = index + 1;
                json!({"tool_calls": [{"index": index, "id": call_id(&choice.id, index), "type": "function",
                    "function": {"name": name, "arguments": ""}}]})
            }
            Delta::Arguments { index, text } => {
                json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
            }
        }
    }

    fn said(&self, text: String) -> Value {
        match self.kind {
            Kind::Chat => json!({"content": text}),
            Kind::Text => json!(text),
        }
    }

    fn nothing(&self) -> Value {
        match self.kind {
            Kind::Chat => json!({}),
            Kind::Text => json!(""),
        }
    }

    /// Log-probabilities of a chunk, of which there may be none: text is held back until its characters are complete.
    fn told(&self, choice: &mut Choice, logprobs: &[TokenLogprob]) -> Value {
        if logprobs.is_empty() { Value::Null } else { self.logprobs(logprobs, &mut choice.offsets) }
    }

    fn logprobs(&self, tokens: &[TokenLogprob], offsets: &mut Offsets) -> Value {
        if matches!(self.kind, Kind::Chat) {
            return json!({"content": tokens, "refusal": null});
        }
        let offsets: Vec<usize> = tokens.iter().map(|token| offsets.next(token)).collect();
        let top = |t: &TokenLogprob| -> Map<String, Value> {
            t.top_logprobs.iter().map(|a| (name_of(a), json!(a.logprob))).collect()
        };
        json!({
            "tokens": tokens.iter().map(|t| name_of(&t.chosen)).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|t| t.chosen.logprob).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    }

    fn chunk(&self, choice: &Choice, piece: Value, logprobs: Value, finish: Value) -> Value {
        let field = match self.kind {
            Kind::Chat => "delta",
            Kind::Text => "text",
        };
        let choice = json!({
            "index": choice.index, field: piece, "logprobs": logprobs, "finish_reason": finish,
            "generation_id": choice.id,
        });
        let mut body = self.body(self.chunk_object(), vec![choice]);
        if self.include_usage {
            body["usage"] = Value::Null;
        }
        body
    }

    fn chunk_object(&self) -> &'static str {
        match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Text => "text_completion",
        }
    }

    fn body(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices,
        })
    }

    /// A prompt counts once, however many answers it got.
    fn usage<'a>(&self, generations: impl Iterator<Item = &'a Arc<Generation>> + Clone) -> Value {
        let prompt = generations.clone().map(|g| g.prompt.len()).sum::<usize>() / self.per_prompt.max(1);
        let completion: usize = generations.map(|g| g.response.len()).sum();
        json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
    }
}

/// Adds `recorded: false` to an answer that can't be rated.
pub(super) fn tell_if_unrecorded(choice: &mut Value, generation: &Generation) {
    if generation.unrecorded {
        choice["recorded"] = false.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_tokens_of_bytes_that_are_no_text_have_two_names() {
        let token =
            |token: &str, bytes: &[u8]| Alternative { token: token.into(), logprob: 0.0, bytes: bytes.into(), id: 0 };
        assert_eq!(name_of(&token("\u{fffd}", b"\xe2\x80")), r"bytes:\xe2\x80");
        assert_eq!(name_of(&token("\u{fffd}", b"\xf0")), r"bytes:\xf0");
        assert_eq!(name_of(&token("é", "é".as_bytes())), "é");
    }
}

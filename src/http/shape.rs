//! The JSON of OpenAI's chat and text completions, whole and in chunks. Generates nothing.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::llama::TextDecoder;
use crate::request::{Call, Reader, calls_json};
use crate::types::{FinishReason, Generation, GenerationId, TokenLogprob};

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

/// The reason in OpenAI's words, which have none for a cancelled answer: it counts as cut short.
fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
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
    /// The log-probabilities of an answer that is returned whole.
    pub(super) told: Vec<TokenLogprob>,
    /// Offset at the end of the chunks sent so far.
    offsets: Offsets,
    /// The prompt's text, if it is echoed before the answer.
    echo: String,
    /// Parses tool calls, if the answer may make any.
    reader: Option<Reader>,
}

impl Choice {
    pub(super) fn new(index: usize, id: &GenerationId, logprobs: bool, tools: &Arc<[String]>, echo: String) -> Self {
        let reader = (!tools.is_empty()).then(|| Reader::new(tools.clone()));
        Self { index, id: id.to_string(), logprobs, told: Vec::new(), offsets: Offsets::default(), echo, reader }
    }
}

impl Shape {
    pub(super) fn whole(&self, choices: &mut [Choice], generations: &[Arc<Generation>]) -> Value {
        let choice = |(choice, generation): (&mut Choice, &Arc<Generation>)| {
            let mut finish = finish_reason(generation.finish);
            let (field, text) = match (self.kind, &mut choice.reader) {
                (Kind::Text, _) => ("text", json!(format!("{}{}", choice.echo, generation.text))),
                (Kind::Chat, None) => ("message", json!({"role": "assistant", "content": generation.text})),
                (Kind::Chat, Some(reader)) => {
                    let shown = reader.push(&generation.text);
                    let (rest, calls) = reader.finish();
                    let content = shown + &rest;
                    let mut message = json!({"role": "assistant", "content": content});
                    if !calls.is_empty() {
                        finish = "tool_calls";
                        message["tool_calls"] = self.calls(&choice.id, calls, false);
                        if content.trim().is_empty() {
                            message["content"] = Value::Null;
                        }
                    }
                    ("message", message)
                }
            };
            let told = if choice.logprobs { self.logprobs(&choice.told, &mut choice.offsets) } else { Value::Null };
            let mut shown = json!({
                "index": choice.index, field: text, "logprobs": told, "finish_reason": finish,
                "generation_id": choice.id, "policy_version": generation.policy_version,
            });
            tell_if_unrecorded(&mut shown, generation);
            shown
        };
        let object = match self.kind {
            Kind::Chat => "chat.completion",
            Kind::Text => "text_completion",
        };
        let mut body = self.body(object, choices.iter_mut().zip(generations).map(choice).collect());
        body["policy_version"] = json!(generations.first().map(|g| g.policy_version));
        body["usage"] = self.usage(generations);
        body
    }

    /// The first chunk: the role of a chat, or the echoed prompt of a completion.
    pub(super) fn head(&self, choice: &Choice) -> Option<Value> {
        let opening = match self.kind {
            Kind::Chat => json!({"role": "assistant", "content": ""}),
            Kind::Text if choice.echo.is_empty() => return None,
            Kind::Text => json!(choice.echo),
        };
        Some(self.chunk(choice, opening, Value::Null, Value::Null))
    }

    /// A chunk of text; `None` if there is nothing to send yet.
    pub(super) fn piece(&self, choice: &mut Choice, text: String, logprobs: &[TokenLogprob]) -> Option<Value> {
        let text = match &mut choice.reader {
            Some(reader) => reader.push(&text),
            None => text,
        };
        if text.is_empty() && logprobs.is_empty() {
            return None;
        }
        let piece = match self.kind {
            Kind::Chat => json!({"content": text}),
            Kind::Text => json!(text),
        };
        let logprobs = self.told(choice, logprobs);
        Some(self.chunk(choice, piece, logprobs, Value::Null))
    }

    /// The last chunks of an answer, with any text or calls held back.
    pub(super) fn last(&self, choice: &mut Choice, generation: &Generation, logprobs: &[TokenLogprob]) -> Vec<Value> {
        let mut chunks = Vec::new();
        let mut finish = finish_reason(generation.finish);
        if let Some(reader) = &mut choice.reader {
            let (rest, calls) = reader.finish();
            if !rest.is_empty() {
                chunks.push(self.chunk(choice, json!({"content": rest}), Value::Null, Value::Null));
            }
            if !calls.is_empty() {
                finish = "tool_calls";
                let calls = self.calls(&choice.id, calls, true);
                chunks.push(self.chunk(choice, json!({"tool_calls": calls}), Value::Null, Value::Null));
            }
        }
        let nothing = match self.kind {
            Kind::Chat => json!({}),
            Kind::Text => json!(""),
        };
        let logprobs = self.told(choice, logprobs);
        let mut last = self.chunk(choice, nothing, logprobs, finish.into());
        last["policy_version"] = json!(generation.policy_version);
        tell_if_unrecorded(&mut last["choices"][0], generation);
        chunks.push(last);
        chunks
    }

    /// Calls in OpenAI's form, which are numbered in a stream.
    fn calls(&self, generation: &str, calls: Vec<Call>, numbered: bool) -> Value {
        let mut calls = calls_json(generation, calls);
        if numbered {
            calls.iter_mut().enumerate().for_each(|(i, call)| call["index"] = i.into());
        }
        calls.into()
    }

    /// The last chunk of an answer that failed: the error beside its choice.
    pub(super) fn failed(&self, choice: &Choice, error: Value) -> Value {
        let nothing = match self.kind {
            Kind::Chat => json!({}),
            Kind::Text => json!(""),
        };
        let mut last = self.chunk(choice, nothing, Value::Null, Value::Null);
        last["error"] = error["error"].clone();
        last
    }

    /// The token counts, if they were requested.
    pub(super) fn counts(&self, generations: &[Arc<Generation>]) -> Option<Value> {
        self.include_usage.then(|| {
            let mut counts = self.body(self.chunk_object(), Vec::new());
            counts["usage"] = self.usage(generations);
            counts
        })
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
            t.top_logprobs.iter().map(|a| (a.token.clone(), json!(a.logprob))).collect()
        };
        json!({
            "tokens": tokens.iter().map(|t| &t.chosen.token).collect::<Vec<_>>(),
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
    fn usage(&self, generations: &[Arc<Generation>]) -> Value {
        let prompt = generations.iter().map(|g| g.prompt.len()).sum::<usize>() / self.per_prompt.max(1);
        let completion: usize = generations.iter().map(|g| g.response.len()).sum();
        json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
    }
}

/// Adds `recorded: false` to an answer that can't be rated.
fn tell_if_unrecorded(choice: &mut Value, generation: &Generation) {
    if generation.unrecorded {
        choice["recorded"] = false.into();
    }
}

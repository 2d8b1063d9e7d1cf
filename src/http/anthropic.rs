//! Anthropic's Messages API: its endpoints, and answers in its form. Generates as all other endpoints do.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::answers::*;
use super::auth::Caller;
use super::body::Body;
use super::dialect::{Dialect, End, Said, Whole};
use super::dialect_schemas::*;
use super::error::{ApiError, ApiResult};
use super::generate::{begin, tell};
use super::schemas::*;
use super::shape::tell_if_unrecorded;
use super::{App, blocking};
use crate::error::Error;
use crate::request::{Delta, Unknown, call_id, parse_anthropic};
use crate::types::{FinishReason, Generation, TokenLogprob};

/// Answer a conversation in the form of Anthropic's Messages API; with stream as its server-sent events
#[utoipa::path(post, path = "/v1/messages", request_body = MessagesRequest,
    responses((status = 200, content((Message = "application/json"), (Object = "text/event-stream"))),
        (status = 400, body = ErrorBody),
        (status = 429, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn messages(
    State(app): State<Arc<App>>,
    Extension(by): Extension<Caller>,
    Body(body): Body,
) -> ApiResult<Response> {
    let (asked, started) = begin(&app, by, move || parse_anthropic(&body, Unknown::Ignore)).await?;
    let Some(first) = started.first() else { return Err(Error::closed("no answer was begun").into()) };
    let dialect = Messages {
        id: first.id().to_string(),
        model: app.model.clone(),
        prompt_tokens: first.prompt_tokens(),
        open: None,
        blocks: 0,
        called: false,
    };
    tell(dialect, started, asked.stream).await
}

/// Tokens of the prompt that a message would be answered to
#[utoipa::path(post, path = "/v1/messages/count_tokens", request_body = MessagesRequest,
    responses((status = 200, body = InputTokens), (status = 400, body = ErrorBody)))]
pub(super) async fn count_tokens(State(app): State<Arc<App>>, Body(body): Body) -> ApiResult<Json<InputTokens>> {
    blocking(move || {
        let (request, _) = parse_anthropic(&body, Unknown::Ignore)?.resolve(&app.engine)?;
        Ok(Json(InputTokens { input_tokens: request.prompt.len() }))
    })
    .await
}

/// A block of the answer that goes on.
#[derive(Clone, Copy, PartialEq)]
enum Open {
    Thinking,
    Text,
    Call(usize),
}

/// One message.
struct Messages {
    id: String,
    model: String,
    prompt_tokens: usize,
    open: Option<Open>,
    /// Blocks that were begun.
    blocks: usize,
    /// Whether one of them is a call.
    called: bool,
}

fn stop_reason(generation: &Generation, calls: bool, broken_off: bool, stop: Option<&String>) -> &'static str {
    match generation.finish {
        _ if calls && !broken_off => "tool_use",
        FinishReason::Stop if stop.is_some() => "stop_sequence",
        FinishReason::Stop => "end_turn",
        FinishReason::Length | FinishReason::Cancelled => "max_tokens",
    }
}

fn event(name: &'static str, mut data: Value) -> Said {
    data["type"] = name.into();
    Said { event: Some(name), data: data.to_string() }
}

impl Messages {
    fn message(&self, content: Value) -> Value {
        json!({"id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": null, "stop_sequence": null,
            "usage": {"input_tokens": self.prompt_tokens, "output_tokens": 0}})
    }

    /// Begins a block, unless it goes on.
    fn turn_to(&mut self, next: Open, block: Value, out: &mut Vec<Said>) {
        if self.open == Some(next) {
            return;
        }
        self.close(out);
        out.push(event("content_block_start", json!({"index": self.blocks, "content_block": block})));
        self.open = Some(next);
        self.blocks += 1;
    }

    fn close(&mut self, out: &mut Vec<Said>) {
        if self.open.take().is_some() {
            out.push(event("content_block_stop", json!({"index": self.blocks - 1})));
        }
    }

    fn more(&self, delta: Value) -> Said {
        event("content_block_delta", json!({"index": self.blocks.saturating_sub(1), "delta": delta}))
    }
}

impl Dialect for Messages {
    fn whole(&mut self, answers: &[Whole]) -> Value {
        let Some(Whole { parts, generation, stop, .. }) = answers.first() else { return Value::Null };
        let mut content = Vec::new();
        if !parts.reasoning.is_empty() {
            content.push(json!({"type": "thinking", "thinking": parts.reasoning, "signature": ""}));
        }
        if !parts.text.is_empty() {
            content.push(json!({"type": "text", "text": parts.text}));
        }
        for (i, call) in parts.calls.iter().enumerate() {
            // Of a call that broke off there is no object.
            let input = serde_json::from_str::<Value>(&call.arguments).unwrap_or_else(|_| json!({}));
            content.push(json!({"type": "tool_use", "id": call_id(&self.id, i), "name": call.name, "input": input}));
        }
        let mut message = self.message(content.into());
        message["stop_reason"] =
            stop_reason(generation, !parts.calls.is_empty(), parts.broken_off, stop.as_ref()).into();
        message["stop_sequence"] = json!(stop);
        message["usage"]["output_tokens"] = generation.response.len().into();
        message["policy_version"] = json!(generation.policy_version);
        tell_if_unrecorded(&mut message, generation);
        message
    }

    fn head(&mut self) -> Vec<Said> {
        vec![event("message_start", json!({"message": self.message(json!([]))}))]
    }

    fn piece(&mut self, _: usize, deltas: Vec<Delta>, _: &[TokenLogprob]) -> Vec<Said> {
        let mut out = Vec::new();
        for delta in deltas {
            let more = match delta {
                Delta::Reasoning(text) => {
                    let block = json!({"type": "thinking", "thinking": "", "signature": ""});
                    self.turn_to(Open::Thinking, block, &mut out);
                    json!({"type": "thinking_delta", "thinking": text})
                }
                Delta::Text(text) => {
                    self.turn_to(Open::Text, json!({"type": "text", "text": ""}), &mut out);
                    json!({"type": "text_delta", "text": text})
                }
                Delta::Call { index, name } => {
                    let block = json!({"type": "tool_use", "id": call_id(&self.id, index), "name": name, "input": {}});
                    self.turn_to(Open::Call(index), block, &mut out);
                    self.called = true;
                    continue;
                }
                Delta::Arguments { text, .. } => json!({"type": "input_json_delta", "partial_json": text}),
            };
            out.push(self.more(more));
        }
        out
    }

    fn last(&mut self, _: usize, end: &End) -> Vec<Said> {
        let mut out = Vec::new();
        self.close(&mut out);
        let reason = stop_reason(&end.generation, self.called, end.broken_off, end.stop.as_ref());
        let usage = json!({"input_tokens": self.prompt_tokens, "output_tokens": end.generation.response.len()});
        let mut data = json!({"delta": {"stop_reason": reason, "stop_sequence": end.stop}, "usage": usage,
            "policy_version": end.generation.policy_version});
        tell_if_unrecorded(&mut data, &end.generation);
        out.push(event("message_delta", data));
        out.push(event("message_stop", json!({})));
        out
    }

    fn failed(&mut self, _: usize, error: &ApiError) -> Vec<Said> {
        vec![event("error", error.body())]
    }

    fn end(&mut self, _: &[Arc<Generation>]) -> Vec<Said> {
        Vec::new()
    }
}

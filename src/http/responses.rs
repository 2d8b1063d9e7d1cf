//! OpenAI's Responses API: its endpoints, and answers in its form. Generates as all other endpoints do.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::answers::*;
use super::auth::Caller;
use super::body::Body;
use super::control::{PathText, text};
use super::dialect::{Dialect, End, Said, Whole};
use super::dialect_schemas::*;
use super::error::{ApiError, ApiResult};
use super::generate::{begin, tell};
use super::schemas::*;
use super::shape::tell_if_unrecorded;
use super::{App, blocking};
use crate::Engine;
use crate::error::Error;
use crate::ledger::KeptResponse;
use crate::llama::parse_whole_integers;
use crate::request::{Delta, ParsedResponses, Parts, Unknown, call_id, calls_json, parse_responses};
use crate::system::unix_millis;
use crate::types::{FinishReason, Generation, GenerationId, TokenLogprob};

/// Answer in the form of OpenAI's Responses API; with stream as its server-sent events
#[utoipa::path(post, path = "/v1/responses", request_body = ResponsesRequest,
    responses((status = 200, content((ResponseBody = "application/json"), (Object = "text/event-stream"))),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 429, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn respond(
    State(app): State<Arc<App>>,
    Extension(by): Extension<Caller>,
    Body(body): Body,
) -> ApiResult<Response> {
    let mut parsed = blocking(move || Ok(parse_responses(&body, Unknown::Ignore)?)).await?;
    if let Some(previous) = parsed.previous.clone() {
        let (app, by, each) = (app.clone(), by.clone(), &mut parsed.request.each);
        each.origin = Some(previous.clone());
        let earlier = blocking(move || {
            by.check(&app, &previous)?;
            let user = app.engine.generation(&previous)?.and_then(|g| by.name_of(g.user));
            Ok((app.engine.said_until(&previous)?, user))
        });
        let (earlier, user) = earlier.await?;
        each.user = each.user.take().or(user);
        parsed.after(earlier);
    }
    let ParsedResponses { request, previous, store, said, repeated } = parsed;
    let (asked, started) = begin(&app, by, move || Ok(request)).await?;
    let Some(first) = started.first() else { return Err(Error::closed("no answer was begun").into()) };
    let dialect = Responses {
        engine: app.engine.clone(),
        id: first.id().clone(),
        created: unix_millis() / 1000,
        model: app.model.clone(),
        keep: store.then_some(said),
        previous,
        repeated,
        sequence: 0,
        items: Vec::new(),
        parts: Parts::default(),
    };
    tell(dialect, started, asked.stream).await
}

/// A response that is kept
#[utoipa::path(get, path = "/v1/responses/{id}", params(("id" = String, Path)),
    responses((status = 200, body = ResponseBody), (status = 404, body = ErrorBody)))]
pub(super) async fn response(
    State(app): State<Arc<App>>,
    Extension(by): Extension<Caller>,
    path: PathText,
) -> ApiResult<Json<Value>> {
    let id = GenerationId(text(path)?);
    blocking(move || {
        by.check(&app, &id)?;
        Ok(Json(app.engine.response(&id)?.body))
    })
    .await
}

/// Forget what a response said; its answer stays on record
#[utoipa::path(delete, path = "/v1/responses/{id}", params(("id" = String, Path)),
    responses((status = 200, body = Dropped), (status = 404, body = ErrorBody)))]
pub(super) async fn drop_response(
    State(app): State<Arc<App>>,
    Extension(by): Extension<Caller>,
    path: PathText,
) -> ApiResult<Json<Dropped>> {
    let id = GenerationId(text(path)?);
    blocking(move || {
        by.check(&app, &id)?;
        app.engine.drop_response(&id)?;
        Ok(Json(Dropped { id, object: "response", deleted: true }))
    })
    .await
}

/// An item of the output.
enum Item {
    Reasoning(String),
    Text(String),
    Call { index: usize, name: String, arguments: String },
}

/// One response.
struct Responses {
    engine: Engine,
    id: GenerationId,
    created: u64,
    model: String,
    /// What the request said, if the response is to be kept.
    keep: Option<Vec<Value>>,
    previous: Option<GenerationId>,
    repeated: Map<String, Value>,
    /// Events that were sent.
    sequence: u64,
    items: Vec<Item>,
    /// The same as parts.
    parts: Parts,
}

impl Responses {
    fn item(&self, at: usize, status: &str) -> Value {
        let id = self.item_id(at);
        match self.items.get(at) {
            None => Value::Null,
            Some(Item::Reasoning(text)) => {
                let content =
                    if text.is_empty() { json!([]) } else { json!([{"type": "reasoning_text", "text": text}]) };
                json!({"id": id, "type": "reasoning", "summary": [], "content": content, "status": status})
            }
            Some(Item::Text(text)) => {
                let content = if status == "in_progress" { json!([]) } else { json!([said(text)]) };
                json!({"id": id, "type": "message", "role": "assistant", "status": status, "content": content})
            }
            Some(Item::Call { index, name, arguments }) => json!({"id": id, "type": "function_call", "name": name,
                "call_id": call_id(&self.id.0, *index), "arguments": arguments, "status": status}),
        }
    }

    fn item_id(&self, at: usize) -> String {
        format!("item-{}-{at}", self.id)
    }

    fn body(&self, status: &str, output: Vec<Value>) -> Value {
        let mut body = json!({
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "error": null,
            "incomplete_details": null, "instructions": null, "max_output_tokens": null, "metadata": {},
            "model": self.model, "output": output, "parallel_tool_calls": true,
            "previous_response_id": self.previous, "store": self.keep.is_some(), "temperature": null,
            "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_p": null,
            "truncation": "disabled", "usage": null,
        });
        for (key, value) in &self.repeated {
            body[key] = value.clone();
        }
        body
    }

    /// The response at its end; it is kept if that was asked for.
    fn ended(&mut self, generation: &Generation) -> (&'static str, Value) {
        let finished =
            generation.finish == FinishReason::Stop || !self.parts.calls.is_empty() && !self.parts.broken_off;
        let status = if finished { "completed" } else { "incomplete" };
        let last = self.items.len().saturating_sub(1);
        let output = (0..self.items.len()).map(|at| self.item(at, if at < last { "completed" } else { status }));
        let mut body = self.body(status, output.collect());
        if !finished {
            body["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        let (input, output) = (generation.prompt.len(), generation.response.len());
        body["usage"] = json!({"input_tokens": input, "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": output, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": input + output});
        body["policy_version"] = json!(generation.policy_version);
        tell_if_unrecorded(&mut body, generation);
        let Some(mut said) = self.keep.take().filter(|_| !generation.unrecorded) else {
            body["store"] = false.into();
            return (status, body);
        };
        let mut answer = json!({"role": "assistant", "content": self.parts.text});
        if !self.parts.reasoning.is_empty() {
            answer["reasoning_content"] = self.parts.reasoning.clone().into();
        }
        if !self.parts.calls.is_empty() {
            let mut calls = calls_json(&self.id.0, &self.parts.calls);
            for call in &mut calls {
                let arguments = call["function"]["arguments"].as_str().and_then(parse_whole_integers);
                call["function"]["arguments"] = arguments.unwrap_or_else(|| json!({}));
            }
            answer["tool_calls"] = calls.into();
        }
        said.push(answer);
        let kept = KeptResponse { previous: self.previous.clone(), said, body };
        let stored = self.engine.keep_response(&self.id, &kept);
        let mut body = kept.body;
        // One that is too long for it.
        body["store"] = stored.is_ok().into();
        (status, body)
    }

    fn event(&mut self, name: &'static str, mut data: Value) -> Said {
        data["type"] = name.into();
        data["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        Said { event: Some(name), data: data.to_string() }
    }

    /// An event of the item that goes on.
    fn of_item(&mut self, name: &'static str, mut data: Value) -> Said {
        let at = self.items.len().saturating_sub(1);
        data["item_id"] = self.item_id(at).into();
        data["output_index"] = at.into();
        self.event(name, data)
    }

    fn add(&mut self, item: Item, out: &mut Vec<Said>) {
        self.close("completed", out);
        let part = matches!(item, Item::Text(_));
        self.items.push(item);
        let at = self.items.len() - 1;
        let item = self.item(at, "in_progress");
        out.push(self.event("response.output_item.added", json!({"output_index": at, "item": item})));
        if part {
            let data = json!({"content_index": 0, "part": said("")});
            out.push(self.of_item("response.content_part.added", data));
        }
    }

    /// Ends the item that goes on, if there is one.
    fn close(&mut self, status: &str, out: &mut Vec<Said>) {
        let Some(at) = self.items.len().checked_sub(1) else { return };
        match &self.items[at] {
            Item::Reasoning(text) => {
                let data = json!({"content_index": 0, "text": text});
                out.push(self.of_item("response.reasoning_text.done", data));
            }
            Item::Text(text) => {
                let (done, part) = (json!({"content_index": 0, "text": text, "logprobs": []}), said(text));
                out.push(self.of_item("response.output_text.done", done));
                out.push(self.of_item("response.content_part.done", json!({"content_index": 0, "part": part})));
            }
            Item::Call { name, arguments, .. } => {
                let data = json!({"name": name, "arguments": arguments});
                out.push(self.of_item("response.function_call_arguments.done", data));
            }
        }
        let item = self.item(at, status);
        out.push(self.event("response.output_item.done", json!({"output_index": at, "item": item})));
    }
}

/// A part of a message.
fn said(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

impl Dialect for Responses {
    fn whole(&mut self, answers: &[Whole]) -> Value {
        let Some(Whole { parts, generation, .. }) = answers.first() else { return Value::Null };
        self.parts = parts.clone();
        let reasoning = (!parts.reasoning.is_empty()).then(|| Item::Reasoning(parts.reasoning.clone()));
        let text = (!parts.text.is_empty()).then(|| Item::Text(parts.text.clone()));
        let calls = parts.calls.iter().cloned().enumerate();
        let calls = calls.map(|(index, call)| Item::Call { index, name: call.name, arguments: call.arguments });
        self.items = reasoning.into_iter().chain(text).chain(calls).collect();
        self.ended(generation).1
    }

    fn head(&mut self) -> Vec<Said> {
        let begun = json!({"response": self.body("in_progress", Vec::new())});
        vec![self.event("response.created", begun.clone()), self.event("response.in_progress", begun)]
    }

    fn piece(&mut self, _: usize, deltas: Vec<Delta>, _: &[TokenLogprob]) -> Vec<Said> {
        let mut out = Vec::new();
        for delta in deltas {
            self.parts.add(delta.clone());
            let fresh = match (&delta, self.items.last()) {
                (Delta::Reasoning(_), Some(Item::Reasoning(_))) | (Delta::Text(_), Some(Item::Text(_))) => None,
                (Delta::Reasoning(_), _) => Some(Item::Reasoning(String::new())),
                (Delta::Text(_), _) => Some(Item::Text(String::new())),
                (Delta::Call { index, name }, _) => {
                    Some(Item::Call { index: *index, name: name.clone(), arguments: String::new() })
                }
                (Delta::Arguments { .. }, _) => None,
            };
            if let Some(fresh) = fresh {
                self.add(fresh, &mut out);
            }
            let (Delta::Reasoning(more) | Delta::Text(more) | Delta::Arguments { text: more, .. }) = delta else {
                continue;
            };
            let (name, data) = match self.items.last_mut() {
                None => continue,
                Some(Item::Reasoning(text)) => {
                    text.push_str(&more);
                    ("response.reasoning_text.delta", json!({"content_index": 0, "delta": more}))
                }
                Some(Item::Text(text)) => {
                    text.push_str(&more);
                    ("response.output_text.delta", json!({"content_index": 0, "delta": more, "logprobs": []}))
                }
                Some(Item::Call { arguments, .. }) => {
                    arguments.push_str(&more);
                    ("response.function_call_arguments.delta", json!({"delta": more}))
                }
            };
            out.push(self.of_item(name, data));
        }
        out
    }

    fn last(&mut self, _: usize, end: &End) -> Vec<Said> {
        let mut out = Vec::new();
        self.parts.broken_off = end.broken_off;
        let (status, body) = self.ended(&end.generation);
        self.close(status, &mut out);
        let name = if status == "completed" { "response.completed" } else { "response.incomplete" };
        out.push(self.event(name, json!({"response": body})));
        out
    }

    fn failed(&mut self, _: usize, error: &ApiError) -> Vec<Said> {
        let error = error.body();
        let mut body = self.body("failed", Vec::new());
        body["error"] = json!({"code": "server_error", "message": error["error"]["message"]});
        vec![self.event("response.failed", json!({"response": body}))]
    }

    fn end(&mut self, _: &[Arc<Generation>]) -> Vec<Said> {
        Vec::new()
    }
}

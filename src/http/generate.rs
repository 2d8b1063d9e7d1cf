//! The two OpenAI-shaped ways to generate, streamed or at once. Knows shapes; the engine knows the rest.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};

use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::events::Events;
use super::{App, blocking};
use crate::engine::Event;
use crate::error::{Error, Result};
use crate::request::{ParsedRequest, Unknown, parse_chat, parse_completion};
use crate::types::{Generation, unix_millis};

/// POST /v1/chat/completions
pub(super) async fn chat(State(app): State<Arc<App>>, Body(body): Body) -> ApiResult<Response> {
    answer(app, Kind::Chat, move || parse_chat(&body, Unknown::Ignore)).await
}

/// POST /v1/completions
pub(super) async fn completion(State(app): State<Arc<App>>, Body(body): Body) -> ApiResult<Response> {
    answer(app, Kind::Text, move || parse_completion(&body, Unknown::Ignore)).await
}

async fn answer(
    app: Arc<App>,
    kind: Kind,
    parse: impl FnOnce() -> Result<ParsedRequest> + Send + 'static,
) -> ApiResult<Response> {
    let engine = app.engine.clone();
    // Templates and tokenizers take a while on long prompts.
    let (stream, include_usage, generation) = blocking(move || {
        let parsed = parse()?;
        let (stream, include_usage) = (parsed.stream, parsed.include_usage);
        let generation = engine.generate(parsed.resolve(&engine)?)?;
        Ok((stream, include_usage, generation))
    })
    .await?;
    let shape = Shape {
        kind,
        id: generation.id().to_string(),
        created: unix_millis() / 1000,
        model: app.model.clone(),
        include_usage,
    };
    let events = Events::new(generation);
    if stream { Ok(streamed(shape, events)) } else { at_once(shape, events).await }
}

async fn at_once(shape: Shape, mut events: Events) -> ApiResult<Response> {
    while let Some(event) = events.next().await {
        if let Event::Done(generation) = event? {
            return Ok(Json(shape.whole(&generation)).into_response());
        }
    }
    Err(Error::closed("the generation ended without a result").into())
}

fn streamed(shape: Shape, events: Events) -> Response {
    let head = stream::iter(shape.head().map(data));
    let rest = events.flat_map(move |event| stream::iter(shape.chunks(event)));
    Sse::new(head.chain(rest).map(Ok::<_, Infallible>)).keep_alive(KeepAlive::default()).into_response()
}

fn data(chunk: Value) -> sse::Event {
    sse::Event::default().data(chunk.to_string())
}

#[derive(Clone, Copy)]
enum Kind {
    Chat,
    Text,
}

/// What all pieces of one answer share.
struct Shape {
    kind: Kind,
    id: String,
    created: u64,
    model: String,
    include_usage: bool,
}

impl Shape {
    fn whole(&self, generation: &Generation) -> Value {
        let mut choice = match self.kind {
            Kind::Chat => json!({"index": 0, "message": {"role": "assistant", "content": generation.text}}),
            Kind::Text => json!({"index": 0, "text": generation.text}),
        };
        choice["logprobs"] = Value::Null;
        choice["finish_reason"] = generation.finish.as_str().into();
        let object = match self.kind {
            Kind::Chat => "chat.completion",
            Kind::Text => "text_completion",
        };
        let mut body = self.body(object, vec![choice]);
        body["policy_version"] = json!(generation.policy_version);
        body["usage"] = usage(generation);
        body
    }

    /// A chat stream opens with the role.
    fn head(&self) -> Option<Value> {
        let opening = json!({"role": "assistant", "content": ""});
        matches!(self.kind, Kind::Chat).then(|| self.chunk(opening, Value::Null))
    }

    fn chunks(&self, event: Result<Event>) -> Vec<sse::Event> {
        match event {
            Ok(Event::Text(text)) => vec![data(self.chunk(self.piece(&text), Value::Null))],
            Ok(Event::Done(generation)) => {
                let finish = generation.finish.as_str().into();
                let nothing = match self.kind {
                    Kind::Chat => json!({}),
                    Kind::Text => json!(""),
                };
                let mut last = self.chunk(nothing, finish);
                last["policy_version"] = json!(generation.policy_version);
                let mut chunks = vec![data(last)];
                if self.include_usage {
                    let mut counts = self.body(self.chunk_object(), Vec::new());
                    counts["usage"] = usage(&generation);
                    chunks.push(data(counts));
                }
                chunks.push(sse::Event::default().data("[DONE]"));
                chunks
            }
            // No [DONE]: a client must not take what came so far for the whole answer.
            Err(error) => vec![data(ApiError::from(error).body())],
        }
    }

    fn piece(&self, text: &str) -> Value {
        match self.kind {
            Kind::Chat => json!({"content": text}),
            Kind::Text => json!(text),
        }
    }

    fn chunk(&self, piece: Value, finish: Value) -> Value {
        let field = match self.kind {
            Kind::Chat => "delta",
            Kind::Text => "text",
        };
        let choice = json!({"index": 0, field: piece, "logprobs": null, "finish_reason": finish});
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
}

fn usage(generation: &Generation) -> Value {
    let (prompt, completion) = (generation.prompt.len(), generation.response.len());
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
}

//! The two OpenAI-shaped generation endpoints, streamed or whole. Handles the sequence of events; `shape` makes the
//! JSON.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use serde_json::Value;

use super::auth::Caller;
use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::events::Events;
use super::schemas::*;
use super::shape::{Choice, Kind, Shape};
use super::{App, blocking};
use crate::engine::{Engine, Event, GenerationStream};
use crate::error::{Error, Result};
use crate::request::{ParsedRequest, Prompt, Unknown, parse_chat, parse_completion};
use crate::system::unix_millis;

/// Answer a conversation; with stream as server-sent events
#[utoipa::path(post, path = "/v1/chat/completions", request_body = ChatRequest,
    responses((status = 200, body = Object), (status = 400, body = ErrorBody),
        (status = 429, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn chat(
    State(app): State<Arc<App>>,
    Extension(by): Extension<Caller>,
    Body(body): Body,
) -> ApiResult<Response> {
    answer(app, by, Kind::Chat, move || parse_chat(&body, Unknown::Ignore)).await
}

/// Continue a text; with stream as server-sent events
#[utoipa::path(post, path = "/v1/completions", request_body = CompletionRequest,
    responses((status = 200, body = Object), (status = 400, body = ErrorBody),
        (status = 429, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn completion(
    State(app): State<Arc<App>>,
    Extension(by): Extension<Caller>,
    Body(body): Body,
) -> ApiResult<Response> {
    answer(app, by, Kind::Text, move || parse_completion(&body, Unknown::Ignore)).await
}

async fn answer(
    app: Arc<App>,
    by: Caller,
    kind: Kind,
    parse: impl FnOnce() -> Result<ParsedRequest> + Send + 'static,
) -> ApiResult<Response> {
    if app.draining() {
        return Err(Error::closed("the service is about to end and takes nothing new").into());
    }
    let engine = app.engine.clone();
    // Templates and tokenizers are slow on long prompts.
    let (stream, include_usage, logprobs, n, tools, started) = blocking(move || {
        let mut parsed = parse()?;
        parsed.each.user = by.user(parsed.each.user.take())?;
        let (stream, include_usage, logprobs) = (parsed.stream, parsed.include_usage, parsed.each.logprobs.is_some());
        let tools: Arc<[String]> = std::mem::take(&mut parsed.tools).into();
        Ok((stream, include_usage, logprobs, parsed.n, tools, start(&engine, parsed)?))
    })
    .await?;
    let choice =
        |(i, (echo, g)): (usize, &(String, GenerationStream))| Choice::new(i, g.id(), logprobs, &tools, echo.clone());
    let choices: Vec<Choice> = started.iter().enumerate().map(choice).collect();
    let generations: Vec<GenerationStream> = started.into_iter().map(|(_, generation)| generation).collect();
    let shape = Shape {
        kind,
        id: generations.first().map(|g| g.id().to_string()).unwrap_or_default(),
        created: unix_millis() / 1000,
        model: app.model.clone(),
        include_usage,
        per_prompt: n as usize,
    };
    let events = generations.into_iter().map(Events::new).collect();
    if stream { Ok(streamed(shape, choices, events)) } else { at_once(shape, choices, events).await }
}

/// Starts a generation for each answer, grouped by prompt, with the text to echo before it. If one is refused, those
/// started before it are cancelled.
fn start(engine: &Engine, parsed: ParsedRequest) -> Result<Vec<(String, GenerationStream)>> {
    let (n, echo) = (parsed.n, parsed.echo);
    let given = |prompt: &Prompt| match prompt {
        Prompt::Text(text) | Prompt::Special(text) if echo => text.clone(),
        Prompt::Tokens(tokens) if echo => engine.detokenize(tokens),
        _ => String::new(),
    };
    let texts: Vec<String> = parsed.prompts.iter().map(given).collect();
    let all = parsed.resolve_all(engine)?.into_iter().zip(texts);
    let mut started = Vec::new();
    for (request, text) in all {
        for i in 0..n {
            let mut request = request.clone();
            // With a given seed, each answer still has its own.
            request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(u64::from(i)));
            started.push((text.clone(), engine.generate(request)?));
        }
    }
    Ok(started)
}

async fn at_once(shape: Shape, mut choices: Vec<Choice>, events: Vec<Events>) -> ApiResult<Response> {
    let mut generations = Vec::with_capacity(events.len());
    for (choice, mut events) in choices.iter_mut().zip(events) {
        while let Some(event) = events.next().await {
            let (event, logprobs) = event?;
            choice.told.extend(logprobs);
            if let Event::Done(generation) = event {
                generations.push(generation);
            }
        }
    }
    if generations.len() < choices.len() {
        return Err(Error::closed("the generation ended without a result").into());
    }
    Ok(Json(shape.whole(&mut choices, &generations)).into_response())
}

fn streamed(shape: Shape, mut choices: Vec<Choice>, events: Vec<Events>) -> Response {
    let head: Vec<Value> = choices.iter().filter_map(|choice| shape.head(choice)).collect();
    let numbered = events.into_iter().enumerate().map(|(i, events)| events.map(move |event| (i, event)));
    let (mut done, mut failed) = (Vec::new(), 0);
    let rest = stream::select_all(numbered).flat_map(move |(i, event)| {
        let Some(choice) = choices.get_mut(i) else { return stream::iter(Vec::new()) };
        let mut chunks = Vec::new();
        match event {
            Ok((Event::Text(text), logprobs)) => chunks.extend(shape.piece(choice, text, &logprobs).map(data)),
            Ok((Event::Done(generation), logprobs)) => {
                chunks.extend(shape.last(choice, &generation, &logprobs).into_iter().map(data));
                done.push(generation);
            }
            // The other answers continue; `error` tells the client that this one is incomplete.
            Err(error) => {
                chunks.push(data(shape.failed(choice, ApiError::from(error).body())));
                failed += 1;
            }
        }
        // An ended choice sends nothing more, so this holds once, after the last one ends.
        if done.len() + failed == choices.len() {
            chunks.extend(shape.counts(&done).map(data));
            chunks.push(sse::Event::default().data("[DONE]"));
        }
        stream::iter(chunks)
    });
    let all = stream::iter(head.into_iter().map(data)).chain(rest);
    Sse::new(all.map(Ok::<_, Infallible>)).keep_alive(KeepAlive::default()).into_response()
}

fn data(chunk: Value) -> sse::Event {
    sse::Event::default().data(chunk.to_string())
}

//! The endpoints that generate, streamed or whole: handles the sequence of events for all of them. Makes no JSON: the
//! dialects do.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};

use super::auth::Caller;
use super::body::Body;
use super::dialect::{Dialect, End, Whole};
use super::dialect_schemas::*;
use super::error::{ApiError, ApiResult};
use super::events::{Events, Piece};
use super::schemas::*;
use super::shape::{Choice, Kind, Shape};
use super::{App, blocking};
use crate::engine::{Engine, Event, GenerationStream};
use crate::error::{Error, Result};
use crate::request::{ParsedRequest, Prompt, Reader, Reading, Unknown, parse_chat, parse_completion};
use crate::system::unix_millis;
use crate::types::GenerationId;

/// Answer a conversation; with stream as server-sent events
#[utoipa::path(post, path = "/v1/chat/completions", request_body = ChatRequest,
    responses(
        (status = 200, content((ChatCompletion = "application/json"), (ChatCompletionChunk = "text/event-stream"))),
        (status = 400, body = ErrorBody),
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
    responses((status = 200, content((Completion = "application/json"), (CompletionChunk = "text/event-stream"))),
        (status = 400, body = ErrorBody),
        (status = 429, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn completion(
    State(app): State<Arc<App>>,
    Extension(by): Extension<Caller>,
    Body(body): Body,
) -> ApiResult<Response> {
    answer(app, by, Kind::Text, move || parse_completion(&body, Unknown::Ignore)).await
}

/// A running answer, and how it is read.
pub(super) struct Started {
    generation: GenerationStream,
    reading: Reading,
    /// The text of the prompt, if that is wanted before it.
    echo: String,
    prompt_tokens: usize,
}

impl Started {
    pub(super) fn id(&self) -> &GenerationId {
        self.generation.id()
    }

    pub(super) fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }
}

/// What all dialects need to know of a request.
pub(super) struct Asked {
    pub(super) stream: bool,
    include_usage: bool,
    logprobs: bool,
    n: u32,
}

async fn answer(
    app: Arc<App>,
    by: Caller,
    kind: Kind,
    parse: impl FnOnce() -> Result<ParsedRequest> + Send + 'static,
) -> ApiResult<Response> {
    let (asked, started) = begin(&app, by, parse).await?;
    let choice = |(i, one): (usize, &Started)| Choice::new(i, one.generation.id(), asked.logprobs, one.echo.clone());
    let choices: Vec<Choice> = started.iter().enumerate().map(choice).collect();
    let shape = Shape {
        kind,
        id: started.first().map(|one| one.generation.id().to_string()).unwrap_or_default(),
        created: unix_millis() / 1000,
        model: app.model.clone(),
        include_usage: asked.include_usage,
        per_prompt: asked.n as usize,
        choices,
    };
    tell(shape, started, asked.stream).await
}

/// Starts what a body asks for.
pub(super) async fn begin(
    app: &Arc<App>,
    by: Caller,
    parse: impl FnOnce() -> Result<ParsedRequest> + Send + 'static,
) -> ApiResult<(Asked, Vec<Started>)> {
    if app.draining() {
        return Err(Error::closed("the service is about to end and takes nothing new").into());
    }
    let engine = app.engine.clone();
    // Templates and tokenizers are slow on long prompts.
    blocking(move || {
        let mut parsed = parse()?;
        parsed.each.user = by.user(parsed.each.user.take())?;
        let ParsedRequest { stream, include_usage, n, .. } = parsed;
        let asked = Asked { stream, include_usage, logprobs: parsed.each.logprobs.is_some(), n };
        Ok((asked, start(&engine, parsed)?))
    })
    .await
}

/// Tells answers as they come, or whole.
pub(super) async fn tell(dialect: impl Dialect, started: Vec<Started>, stream: bool) -> ApiResult<Response> {
    let (events, readings) =
        started.into_iter().map(|one| (Events::new(one.generation), one.reading)).unzip::<_, _, Vec<_>, Vec<_>>();
    if stream { Ok(streamed(dialect, events, readings)) } else { at_once(dialect, events, readings).await }
}

/// Starts a generation for each answer, grouped by prompt. If one is refused, those started before it are cancelled.
fn start(engine: &Engine, parsed: ParsedRequest) -> Result<Vec<Started>> {
    let (n, echo) = (parsed.n, parsed.echo);
    let given = |prompt: &Prompt| match prompt {
        Prompt::Text(text) | Prompt::Special(text) if echo => text.clone(),
        Prompt::Tokens(tokens) if echo => engine.detokenize(tokens),
        _ => String::new(),
    };
    let texts: Vec<String> = parsed.prompts.iter().map(given).collect();
    let several = texts.len() > 1;
    let all = parsed.resolve_all(engine)?.into_iter().zip(texts);
    let mut started = Vec::new();
    for (place, ((request, reading), echo)) in all.enumerate() {
        for i in 0..n {
            let mut request = request.clone();
            // With a given seed, each answer still has its own.
            request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(u64::from(i)));
            let prompt_tokens = request.prompt.len();
            let generation = engine.generate(request);
            let generation = generation.map_err(|e| if several { e.context(format!("prompt[{place}]")) } else { e })?;
            started.push(Started { generation, reading: reading.clone(), echo: echo.clone(), prompt_tokens });
        }
    }
    Ok(started)
}

async fn at_once(mut dialect: impl Dialect, events: Vec<Events>, readings: Vec<Reading>) -> ApiResult<Response> {
    let mut answers = Vec::with_capacity(events.len());
    for (mut events, reading) in events.into_iter().zip(readings) {
        let (mut told, mut ended) = (Vec::new(), None);
        while let Some(event) = events.next().await {
            let Piece { event, logprobs, stop } = event?;
            told.extend(logprobs);
            if let Event::Done(generation) = event {
                ended = Some((generation, stop));
            }
        }
        let (generation, stop) = ended.ok_or_else(|| Error::closed("the generation ended without a result"))?;
        answers.push(Whole { parts: Reader::parts(reading, &generation.text), generation, logprobs: told, stop });
    }
    Ok(Json(dialect.whole(&answers)).into_response())
}

fn streamed(mut dialect: impl Dialect, events: Vec<Events>, readings: Vec<Reading>) -> Response {
    let head = dialect.head();
    let mut readers: Vec<Reader> = readings.into_iter().map(Reader::new).collect();
    let numbered = events.into_iter().enumerate().map(|(i, events)| events.map(move |event| (i, event)));
    let (mut done, mut failed) = (Vec::new(), 0);
    let rest = stream::select_all(numbered).flat_map(move |(i, event)| {
        let Some(reader) = readers.get_mut(i) else { return stream::iter(Vec::new()) };
        let mut said = Vec::new();
        match event {
            Ok(Piece { event: Event::Text(text), logprobs, .. }) => {
                said.extend(dialect.piece(i, reader.push(&text), &logprobs));
            }
            Ok(Piece { event: Event::Done(generation), logprobs, stop }) => {
                said.extend(dialect.piece(i, reader.finish(), &logprobs));
                let broken_off = reader.broke_off();
                said.extend(dialect.last(i, &End { generation: generation.clone(), broken_off, stop }));
                done.push(generation);
            }
            // The other answers continue; the error tells the client that this one is incomplete.
            Err(error) => {
                said.extend(dialect.failed(i, &ApiError::from(error)));
                failed += 1;
            }
        }
        // An ended choice sends nothing more, so this holds once, after the last one ends.
        if done.len() + failed == readers.len() {
            said.extend(dialect.end(&done));
        }
        stream::iter(said)
    });
    let all = stream::iter(head).chain(rest).map(|said| Ok::<_, Infallible>(sse::Event::from(said)));
    Sse::new(all).keep_alive(KeepAlive::default()).into_response()
}

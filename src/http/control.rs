//! Everything but generating: tokens, feedback, versions, trainer, models, health. One engine call a handler.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::{App, blocking};
use crate::engine::{Engine, GenerationRecord, Status, StepOutcome, TrainerStatus};
use crate::error::Error;
use crate::ledger::Forgotten;
use crate::request::{self, Unknown};
use crate::types::{FeedbackReceipt, Generation, GenerationId, PolicyVersion};

type Shared = State<Arc<App>>;
type PathText = Result<Path<String>, PathRejection>;

fn text(path: PathText) -> ApiResult<String> {
    path.map(|Path(text)| text).map_err(|e| Error::arg(e.body_text()).into())
}

pub(super) async fn models(State(app): Shared) -> Json<Value> {
    Json(json!({"object": "list", "data": [model_card(&app)]}))
}

pub(super) async fn model(State(app): Shared, path: PathText) -> ApiResult<Json<Value>> {
    let id = text(path)?;
    if id != app.model {
        return Err(ApiError::not_found(format!("no model {id}, this server has {}", app.model)));
    }
    Ok(Json(model_card(&app)))
}

fn model_card(app: &App) -> Value {
    let version = app.engine.status().policy_version;
    json!({"id": app.model, "object": "model", "created": app.started, "owned_by": "apad", "policy_version": version})
}

pub(super) async fn tokenize(State(app): Shared, Body(body): Body) -> ApiResult<Json<Value>> {
    blocking(move || {
        let (content, add_special) = request::parse_tokenize(&body, Unknown::Ignore)?;
        let tokens = if add_special { app.engine.tokenize(&content)? } else { app.engine.tokenize_bare(&content)? };
        Ok(Json(json!({"tokens": tokens})))
    })
    .await
}

pub(super) async fn detokenize(State(app): Shared, Body(body): Body) -> ApiResult<Json<Value>> {
    blocking(move || {
        let tokens = request::parse_detokenize(&body, Unknown::Ignore)?;
        let known = app.engine.vocabulary();
        if let Some(token) = tokens.iter().find(|t| **t as usize >= known) {
            return Err(Error::arg(format!("token {token} is outside the vocabulary of {known}")).into());
        }
        Ok(Json(json!({"content": app.engine.detokenize(&tokens)})))
    })
    .await
}

pub(super) async fn generation(State(app): Shared, path: PathText) -> ApiResult<Json<GenerationRecord>> {
    let id = GenerationId(text(path)?);
    let unknown = ApiError::not_found(format!("no generation {id}"));
    blocking(move || app.engine.generation_record(&id)?.map(Json).ok_or(unknown)).await
}

fn known_generation(engine: &Engine, id: &GenerationId) -> ApiResult<Generation> {
    engine.generation(id)?.ok_or_else(|| ApiError::not_found(format!("no generation {id}")))
}

pub(super) async fn feedback(State(app): Shared, Body(body): Body) -> ApiResult<Json<FeedbackReceipt>> {
    let feedback = request::parse_feedback(&body, Unknown::Ignore)?;
    blocking(move || {
        known_generation(&app.engine, &feedback.generation_id)?;
        Ok(Json(app.engine.feedback(feedback)?))
    })
    .await
}

pub(super) async fn preference(State(app): Shared, Body(body): Body) -> ApiResult<Json<Value>> {
    let preference = request::parse_preference(&body, Unknown::Ignore)?;
    blocking(move || {
        known_generation(&app.engine, &preference.chosen)?;
        known_generation(&app.engine, &preference.rejected)?;
        let user = preference.user.as_deref();
        let id = app.engine.prefer(&preference.chosen, &preference.rejected, user)?;
        Ok(Json(json!({"preference_id": id})))
    })
    .await
}

/// `{user}`: deletes what they said and were told.
pub(super) async fn forget(State(app): Shared, Body(body): Body) -> ApiResult<Json<Forgotten>> {
    let user = request::parse_forget(&body, Unknown::Ignore)?;
    blocking(move || Ok(Json(app.engine.forget(&user)?))).await
}

pub(super) async fn reviews(State(app): Shared) -> ApiResult<Json<Value>> {
    let reviews = blocking(move || Ok(app.engine.reviews()?)).await?;
    Ok(Json(json!({"object": "list", "data": reviews})))
}

pub(super) async fn review(State(app): Shared, Body(body): Body) -> ApiResult<Json<Value>> {
    let (user, verdict) = request::parse_review(&body, Unknown::Ignore)?;
    blocking(move || {
        app.engine.review(&user, verdict)?;
        Ok(Json(json!({"user": user, "verdict": verdict})))
    })
    .await
}

pub(super) async fn versions(State(app): Shared) -> ApiResult<Json<Value>> {
    let versions = blocking(move || Ok(app.engine.versions()?)).await?;
    Ok(Json(json!({"object": "list", "data": versions})))
}

pub(super) async fn activate(State(app): Shared, Body(body): Body) -> ApiResult<Json<Value>> {
    #[derive(serde::Deserialize)]
    struct Activate {
        version: PolicyVersion,
    }
    let Activate { version } = serde_json::from_slice(&body)
        .map_err(|e| Error::arg(format!("{e}, expected a body like {{\"version\": 3}}")))?;
    blocking(move || {
        if !app.engine.versions()?.iter().any(|v| v.version == version) {
            return Err(ApiError::not_found(format!("no policy version {version}")));
        }
        app.engine.activate(version)?;
        Ok(Json(json!({"policy_version": version})))
    })
    .await
}

pub(super) async fn rollback(State(app): Shared) -> ApiResult<Json<Value>> {
    blocking(move || Ok(Json(json!({"policy_version": app.engine.rollback()?})))).await
}

pub(super) async fn trainer(State(app): Shared) -> Json<TrainerStatus> {
    Json(app.engine.status().trainer)
}

pub(super) async fn step(State(app): Shared) -> ApiResult<Json<StepOutcome>> {
    let Ok(permit) = app.step.clone().try_acquire_owned() else {
        return Err(Error::busy("a step that was asked for is still running").into());
    };
    blocking(move || {
        // Held by the thread that trains, not by the request: its client may leave.
        let _permit = permit;
        Ok(Json(app.engine.train_step()?))
    })
    .await
}

pub(super) async fn status(State(app): Shared) -> Json<Status> {
    Json(app.engine.status())
}

pub(super) async fn health(State(app): Shared) -> Json<Value> {
    Json(json!({"status": "ok", "model": app.model, "policy_version": app.engine.status().policy_version}))
}

pub(super) async fn metrics(State(app): Shared) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, Status::METRICS_TYPE)], app.engine.status().metrics())
}

pub(super) async fn no_route(method: Method, uri: Uri) -> ApiError {
    ApiError::not_found(format!("no route {method} {}", uri.path()))
}

pub(super) async fn no_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

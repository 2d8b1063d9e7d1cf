//! Most endpoints but generation: tokens, feedback, versions, trainer, health. One engine call per handler.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::IntoResponse;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::answers::*;
use super::auth::Caller;
use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::schemas::*;
use super::{App, blocking};
use crate::engine::{Engine, GenerationRecord, PublishOutcome, Status, TrainerStatus, VersionRecord};
use crate::error::Error;
use crate::request::{self, Forget, Prompt};
use crate::types::{FeedbackReceipt, GenerationId, PolicyVersion};

type Shared = State<Arc<App>>;
type By = Extension<Caller>;
pub(super) type PathText = Result<Path<String>, PathRejection>;

pub(super) fn text(path: PathText) -> ApiResult<String> {
    path.map(|Path(text)| text).map_err(|e| Error::arg(e.body_text()).into())
}

/// Tokens of a text
#[utoipa::path(post, path = "/tokenize", request_body = TokenizeRequest,
    responses((status = 200, body = Tokens), (status = 400, body = ErrorBody)))]
pub(super) async fn tokenize(State(app): Shared, Body(body): Body) -> ApiResult<Json<Tokens>> {
    blocking(move || {
        let asked = request::parse_tokenize(&body)?;
        let tokens = app.engine.tokenize_as(&asked.content, asked.add_special, asked.parse_special)?;
        Ok(Json(Tokens { tokens }))
    })
    .await
}

/// Text of tokens
#[utoipa::path(post, path = "/detokenize", request_body = DetokenizeRequest,
    responses((status = 200, body = Text), (status = 400, body = ErrorBody)))]
pub(super) async fn detokenize(State(app): Shared, Body(body): Body) -> ApiResult<Json<Text>> {
    blocking(move || {
        let tokens = request::parse_detokenize(&body)?;
        let known = app.engine.vocabulary();
        if let Some(token) = tokens.iter().find(|t| **t as usize >= known) {
            return Err(Error::arg(format!("token {token} is outside the vocabulary of {known}")).into());
        }
        Ok(Json(Text { content: app.engine.detokenize(&tokens) }))
    })
    .await
}

/// Set when the request's future is dropped because its client left.
struct Abandons(Arc<AtomicBool>);

impl Drop for Abandons {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Embeddings of the base model: the mean of its last hidden states, of length 1
#[utoipa::path(post, path = "/v1/embeddings", request_body = EmbeddingsRequest,
    responses((status = 200, body = Embeddings), (status = 400, body = ErrorBody), (status = 429, body = ErrorBody)))]
pub(super) async fn embeddings(State(app): Shared, Body(body): Body) -> ApiResult<Json<Embeddings>> {
    if app.draining() {
        return Err(Error::closed("the service is about to end and takes nothing new").into());
    }
    let abandoned = Arc::new(AtomicBool::new(false));
    let _client = Abandons(abandoned.clone());
    blocking(move || {
        let parsed = request::parse_embeddings(&body)?;
        let engine = &app.engine;
        let width = engine.embedding_width();
        if let Some(dimensions) = parsed.dimensions.filter(|wanted| *wanted != width as u64) {
            let message = format!("dimensions is {dimensions}, expected {width}: embeddings are as wide as the model");
            return Err(Error::unsupported(message).into());
        }
        let tokens = |(i, text): (usize, Prompt)| text.tokens(engine).map_err(|e| e.context(format!("input[{i}]")));
        let texts = parsed.input.into_iter().enumerate().map(tokens).collect::<Result<Vec<_>, _>>()?;
        let tokens: usize = texts.iter().map(Vec::len).sum();
        let rows = engine.embed_unless(texts, abandoned)?;
        let shown = |row: Vec<f32>| match parsed.base64 {
            true => Row::Base64(STANDARD.encode(row.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())),
            false => Row::Numbers(row),
        };
        let rows = rows.into_iter().enumerate();
        let data = rows.map(|(index, row)| Embedding { object: "embedding", index, embedding: shown(row) }).collect();
        let usage = InputUsage { prompt_tokens: tokens, total_tokens: tokens };
        Ok(Json(Embeddings { object: "list", data, model: app.model.clone(), usage }))
    })
    .await
}

/// An answer as it was generated
#[utoipa::path(get, path = "/v1/generations/{id}", params(("id" = String, Path)),
    responses((status = 200, body = GenerationRecord), (status = 404, body = ErrorBody)))]
pub(super) async fn generation(
    State(app): Shared,
    Extension(by): By,
    path: PathText,
) -> ApiResult<Json<GenerationRecord>> {
    let id = GenerationId(text(path)?);
    let unknown = ApiError::not_found(format!("no generation {id}"));
    blocking(move || {
        by.check(&app, &id)?;
        app.engine.generation_record(&id)?.map(Json).ok_or(unknown)
    })
    .await
}

/// Rate or correct an answer; on disk when this returns
#[utoipa::path(post, path = "/v1/feedback", request_body = FeedbackRequest,
    responses((status = 200, body = FeedbackReceipt),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn feedback(
    State(app): Shared,
    Extension(by): By,
    Body(body): Body,
) -> ApiResult<Json<FeedbackReceipt>> {
    let mut feedback = request::parse_feedback(&body)?;
    feedback.user = by.user(feedback.user)?;
    blocking(move || {
        by.check(&app, &feedback.generation_id)?;
        Ok(Json(app.engine.feedback(feedback)?))
    })
    .await
}

/// Say that one answer is better than another
#[utoipa::path(post, path = "/v1/preferences", request_body = PreferenceRequest,
    responses((status = 200, body = PreferenceReceipt),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn preference(
    State(app): Shared,
    Extension(by): By,
    Body(body): Body,
) -> ApiResult<Json<PreferenceReceipt>> {
    let preference = request::parse_preference(&body)?;
    blocking(move || {
        let user = by.user(preference.user)?;
        by.check(&app, &preference.chosen)?;
        by.check(&app, &preference.rejected)?;
        let preference_id = app.engine.prefer(&preference.chosen, &preference.rejected, user.as_deref())?;
        Ok(Json(PreferenceReceipt { preference_id }))
    })
    .await
}

/// Delete a user's answers and feedback, and with `unlearn` replace the versions that learned from them
#[utoipa::path(post, path = "/v1/forget", request_body = ForgetRequest,
    responses((status = 200, body = ForgetAnswer), (status = 400, body = ErrorBody)))]
pub(super) async fn forget(State(app): Shared, Extension(by): By, Body(body): Body) -> ApiResult<Json<ForgetAnswer>> {
    let Forget { user, unlearn, dry_run } = request::parse_forget(&body)?;
    if unlearn && matches!(by, Caller::Client { .. }) {
        let message = "unlearn replaces what everyone is served, expected the key of an operator".to_owned();
        return Err(ApiError::new(StatusCode::FORBIDDEN, "operator_only", message));
    }
    let user = by.user(Some(user))?.unwrap_or_default();
    blocking(move || {
        Ok(Json(match (unlearn, dry_run) {
            (false, _) => ForgetAnswer::Forgotten(app.engine.forget(&user)?),
            (true, false) => ForgetAnswer::Unlearned(app.engine.unlearn(&user)?),
            (true, true) => ForgetAnswer::Cost(UnlearnCost { unlearning: app.engine.unlearn_plan(&user)? }),
        }))
    })
    .await
}

/// Users whose ratings wait for review
#[utoipa::path(get, path = "/v1/feedback/reviews", responses((status = 200, body = Reviews)))]
pub(super) async fn reviews(State(app): Shared) -> ApiResult<Json<Reviews>> {
    let (data, left_out) = blocking(move || Ok((app.engine.reviews()?, app.engine.left_out()?))).await?;
    Ok(Json(Reviews { object: "list", data, left_out }))
}

/// Decide whether a user's ratings count
#[utoipa::path(post, path = "/v1/feedback/reviews", request_body = ReviewRequest,
    responses((status = 200, body = Reviewed), (status = 400, body = ErrorBody)))]
pub(super) async fn review(State(app): Shared, Body(body): Body) -> ApiResult<Json<Reviewed>> {
    let (user, verdict) = request::parse_review(&body)?;
    blocking(move || {
        app.engine.review(&user, verdict)?;
        Ok(Json(Reviewed { user, verdict }))
    })
    .await
}

/// All policy versions, oldest first
#[utoipa::path(get, path = "/v1/policy/versions",
    responses((status = 200, body = Versions)))]
pub(super) async fn versions(State(app): Shared) -> ApiResult<Json<Versions>> {
    let versions = blocking(move || Ok(app.engine.versions()?)).await?;
    Ok(Json(Versions::of(versions)))
}

/// A version with its verdict and its lineage
#[utoipa::path(get, path = "/v1/policy/versions/{version}", params(("version" = u64, Path)),
    responses((status = 200, body = VersionRecord),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn version(State(app): Shared, path: PathText) -> ApiResult<Json<VersionRecord>> {
    let given = text(path)?;
    let number = given.parse().map_err(|_| Error::arg(format!("the version is {given:?}, expected a whole number")))?;
    blocking(move || Ok(Json(app.engine.version(PolicyVersion(number))?))).await
}

/// The newest verdicts on candidates, at most 100, the newest first
#[utoipa::path(get, path = "/v1/policy/verdicts",
    responses((status = 200, body = Verdicts)))]
pub(super) async fn verdicts(State(app): Shared) -> ApiResult<Json<Verdicts>> {
    let verdicts = blocking(move || Ok(app.engine.verdicts(100)?)).await?;
    Ok(Json(Verdicts::of(verdicts)))
}

/// Trained versions that are not on record
#[utoipa::path(get, path = "/v1/policy/aside", responses((status = 200, body = Aside)))]
pub(super) async fn aside(State(app): Shared) -> ApiResult<Json<Aside>> {
    let aside = blocking(move || Ok(app.engine.set_aside()?)).await?;
    Ok(Json(Aside::of(aside)))
}

/// Adopt versions that were set aside; none of them is activated
#[utoipa::path(post, path = "/v1/policy/adopt", request_body = AdoptRequest,
    responses((status = 200, body = AdoptedVersions),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn adopt(State(app): Shared, Body(body): Body) -> ApiResult<Json<AdoptedVersions>> {
    let name = request::parse_adopt(&body)?;
    let adopted = blocking(move || Ok(app.engine.adopt(name.as_deref())?)).await?;
    Ok(Json(AdoptedVersions::of(adopted)))
}

/// Serve a version from now on
#[utoipa::path(post, path = "/v1/policy/activate", request_body = ActivateRequest,
    responses((status = 200, body = Serving), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn activate(State(app): Shared, Body(body): Body) -> ApiResult<Json<Serving>> {
    let (version, whole) = request::parse_activate(&body)?;
    blocking(move || {
        if whole {
            app.engine.activate_whole(version)?
        } else {
            app.engine.activate(version)?
        }
        Ok(Json(Serving { policy_version: version }))
    })
    .await
}

/// Serve the active version's parent from now on
#[utoipa::path(post, path = "/v1/policy/rollback",
    responses((status = 200, body = Serving), (status = 400, body = ErrorBody)))]
pub(super) async fn rollback(State(app): Shared, Body(body): Body) -> ApiResult<Json<Serving>> {
    request::parse_nothing(&body)?;
    blocking(move || Ok(Json(Serving { policy_version: app.engine.rollback()? }))).await
}

/// State of the trainer
#[utoipa::path(get, path = "/v1/trainer",
    responses((status = 200, body = TrainerStatus)))]
pub(super) async fn trainer(State(app): Shared) -> Json<TrainerStatus> {
    Json(app.engine.status().trainer)
}

/// Train on the waiting ratings, and publish
#[utoipa::path(post, path = "/v1/trainer/step",
    responses((status = 200, body = PublishOutcome),
        (status = 400, body = ErrorBody), (status = 429, body = ErrorBody)))]
pub(super) async fn step(State(app): Shared, Body(body): Body) -> ApiResult<Json<PublishOutcome>> {
    request::parse_nothing(&body)?;
    let Ok(permit) = app.step.clone().try_acquire_owned() else {
        return Err(Error::busy("a step that was asked for is still running").into());
    };
    blocking(move || {
        // Held by the thread that trains rather than by the request, whose client may leave.
        let _permit = permit;
        Ok(Json(app.engine.train_step()?))
    })
    .await
}

/// Sample fresh answers, score them and train on them
#[utoipa::path(post, path = "/v1/trainer/rollout",
    responses((status = 200, body = PublishOutcome), (status = 429, body = ErrorBody)))]
pub(super) async fn roll_out(State(app): Shared, Body(body): Body) -> ApiResult<Json<PublishOutcome>> {
    request::parse_nothing(&body)?;
    let Ok(permit) = app.step.clone().try_acquire_owned() else {
        return Err(Error::busy("a step that was asked for is still running").into());
    };
    blocking(move || {
        let _permit = permit;
        Ok(Json(app.engine.roll_out()?))
    })
    .await
}

/// State of the engine
#[utoipa::path(get, path = "/v1/status",
    responses((status = 200, body = Status)))]
pub(super) async fn status(State(app): Shared) -> ApiResult<Json<Status>> {
    blocking(move || Ok(Json(Status { disk: Some(app.engine.disk_use()), ..app.engine.status() }))).await
}

/// Whether new requests are taken: 200 and `ready`, or 503 and `draining`, or `closed` after a bug; `alerts` say what
/// wants attention, `proposals` which versions wait for a person (`gate.mode`).
#[utoipa::path(get, path = "/health",
    responses((status = 200, body = Health), (status = 503, body = Health)))]
pub(super) async fn health(State(app): Shared) -> impl IntoResponse {
    let (status, word, state) = match app.engine.check_open() {
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "closed", "closed"),
        Ok(()) if app.draining() => (StatusCode::SERVICE_UNAVAILABLE, "draining", "draining"),
        Ok(()) => (StatusCode::OK, "ok", "ready"),
    };
    let Status { policy_version, alerts, trainer, .. } = app.engine.status();
    let (model, proposals) = (app.model.clone(), trainer.proposals);
    (status, Json(Health { status: word, state, model, policy_version, alerts, proposals }))
}

/// Numbers for Prometheus
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(app): Shared) -> impl IntoResponse {
    blocking(move || Ok(([(header::CONTENT_TYPE, Engine::METRICS_TYPE)], app.engine.metrics()))).await
}

pub(super) async fn no_route(method: Method, uri: Uri) -> ApiError {
    ApiError::not_found(format!("no route {method} {}", uri.path()))
}

pub(super) async fn no_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

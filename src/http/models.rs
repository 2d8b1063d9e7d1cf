//! What is served: the model by its names, and its properties. Never loads or changes one.

use std::iter;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::answers::*;
use super::body::Body;
use super::control::{PathText, text};
use super::error::{ApiError, ApiResult};
use super::schemas::*;
use super::{App, blocking};
use crate::error::Error;
use crate::request::{self, AskedVersion, Prompt, Unknown};
use crate::types::PolicyVersion;

/// List the model as it serves, by its name and by the one that it is served under (`serve.alias`), and each of its
/// versions: `name@3` in a request's `model` asks for that one
#[utoipa::path(get, path = "/v1/models",
    responses((status = 200, body = Models)))]
pub(super) async fn models(State(app): State<Arc<App>>) -> ApiResult<Json<Models>> {
    blocking(move || {
        let active = app.engine.status().policy_version;
        let alias = app.engine.config().serve.alias.clone().filter(|alias| *alias != app.model);
        let names = iter::once(app.model.clone()).chain(alias).map(|name| card(&app, name, active));
        let versions = app.engine.versions()?.into_iter().rev().map(|v| of_version(&app, v.version));
        Ok(Json(Models::of(names.chain(versions).collect())))
    })
    .await
}

/// The model, if it has this name: as it serves, `name@active`, or a version, `name@3`
#[utoipa::path(get, path = "/v1/models/{id}", params(("id" = String, Path)),
    responses((status = 200, body = ModelCard), (status = 404, body = ErrorBody)))]
pub(super) async fn model(State(app): State<Arc<App>>, path: PathText) -> ApiResult<Json<ModelCard>> {
    let id = text(path)?;
    let unknown = || ApiError::not_found(format!("no model {id}, this server has {}", app.model));
    let asked = request::asked_version(&id).filter(|_| !app.engine.is_named(&id));
    let name = if asked.is_some() { id.rsplit_once('@').map_or("", |(name, _)| name) } else { id.as_str() };
    if !app.engine.is_named(name) {
        return Err(unknown());
    }
    match asked {
        Some(AskedVersion::Number(version)) => {
            let engine = app.engine.clone();
            let known = blocking(move || Ok(engine.versions()?.iter().any(|v| v.version == version))).await?;
            known.then(|| Json(of_version(&app, version))).ok_or_else(unknown)
        }
        _ => Ok(Json(card(&app, id, app.engine.status().policy_version))),
    }
}

fn of_version(app: &App, version: PolicyVersion) -> ModelCard {
    card(app, format!("{}@{version}", app.model), version)
}

fn card(app: &App, id: String, policy_version: PolicyVersion) -> ModelCard {
    let context_length = app.engine.config().serve.context;
    ModelCard { id, object: "model", created: app.started, owned_by: "apad", policy_version, context_length }
}

/// What holds for every request: the context, what is sampled with by default, what feedback does
#[utoipa::path(get, path = "/props",
    responses((status = 200, body = Properties)))]
pub(super) async fn properties(State(app): State<Arc<App>>) -> Json<Properties> {
    let config = app.engine.config();
    let (serve, train, reward) = (&config.serve, &config.train, &config.reward);
    Json(Properties {
        model_alias: serve.alias.as_ref().unwrap_or(&app.model).clone(),
        model: app.model.clone(),
        chat_template: app.engine.template_text().map(str::to_owned),
        total_slots: serve.slots,
        default_generation_settings: DefaultSettings {
            n_ctx: serve.context,
            params: DefaultSampling { sampling: app.engine.default_sampling().clone(), n_predict: serve.max_tokens },
        },
        learning: Learning {
            enabled: train.enabled,
            batch: train.batch,
            kl_budget: train.kl_budget,
            correction: reward.correction,
            pairs: reward.learn,
            quarantine: reward.quarantine,
            judged_by_model: reward.model.is_some(),
            mode: config.gate.mode,
        },
        build_info: concat!("apad ", env!("CARGO_PKG_VERSION")),
    })
}

/// The text that the model's chat template makes of a conversation
#[utoipa::path(post, path = "/apply-template", request_body = ChatRequest,
    responses((status = 200, body = PromptText), (status = 400, body = ErrorBody)))]
pub(super) async fn apply_template(State(app): State<Arc<App>>, Body(body): Body) -> ApiResult<Json<PromptText>> {
    blocking(move || {
        let parsed = request::parse_chat(&body, Unknown::Ignore)?;
        let conversation = parsed.prompts.into_iter().find_map(|prompt| match prompt {
            Prompt::Chat(conversation) => Some(conversation),
            _ => None,
        });
        let conversation = conversation.ok_or_else(|| Error::arg("the request has no messages"))?;
        let conversation = request::written(conversation, &app.engine);
        Ok(Json(PromptText { prompt: app.engine.rendered(&conversation)? }))
    })
    .await
}

/// Ratings, lengths and cut-off shares by version, with 95% intervals
#[utoipa::path(get, path = "/v1/policy/figures",
    responses((status = 200, body = Figures)))]
pub(super) async fn figures(State(app): State<Arc<App>>) -> ApiResult<Json<Figures>> {
    let figures = blocking(move || Ok(app.engine.figures()?)).await?;
    Ok(Json(Figures::of(figures)))
}

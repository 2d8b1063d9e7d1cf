//! The API as an OpenAPI document, and a page to read it. Answers no other call.

use std::sync::OnceLock;

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{Html, IntoResponse};
use utoipa::OpenApi;

use super::{control, generate, limits, live, models};

/// GET /openapi.json
pub(super) async fn document() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], text())
}

/// The document, made once.
pub(super) fn text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let mut document = serde_json::to_value(Api::openapi()).unwrap_or_default();
        limits::write(&mut document);
        document.to_string()
    })
}

/// GET /docs: loads nothing from other hosts, and may not.
pub(super) async fn page() -> impl IntoResponse {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    (headers, Html(include_str!("docs.html")))
}

#[derive(OpenApi)]
#[openapi(
    info(title = "apad", description = "Serves a language model and keeps aligning it with the people who use it."),
    paths(
        generate::chat,
        generate::completion,
        control::embeddings,
        models::models,
        models::model,
        models::properties,
        models::apply_template,
        models::figures,
        live::events,
        control::tokenize,
        control::detokenize,
        control::generation,
        control::feedback,
        control::preference,
        control::reviews,
        control::review,
        control::forget,
        control::versions,
        control::version,
        control::verdicts,
        control::aside,
        control::adopt,
        control::activate,
        control::rollback,
        control::trainer,
        control::step,
        control::roll_out,
        control::status,
        control::health,
        control::metrics,
    )
)]
struct Api;

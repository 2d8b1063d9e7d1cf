//! Request bodies, bounded in size and time. Parses nothing.

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use futures_util::StreamExt;

use super::App;
use super::error::{ApiError, ApiResult};

/// The whole body, at most `http.body_limit` bytes, within `http.read_seconds`: one that takes longer holds a connection for
/// nothing.
pub(super) struct Body(pub(super) Vec<u8>);

impl FromRequest<Arc<App>> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> ApiResult<Self> {
        match tokio::time::timeout(app.patience, read(request, app.body_limit)).await {
            Ok(body) => body.map(Body),
            Err(_) => {
                let message = format!("the request body did not arrive within {} seconds", app.patience.as_secs());
                Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message))
            }
        }
    }
}

async fn read(request: Request, limit: usize) -> ApiResult<Vec<u8>> {
    let too_large = || {
        let message = format!("the request body is larger than {limit} bytes (http.body_limit)");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut body = Vec::with_capacity(declared.unwrap_or(0));
    let mut chunks = request.into_body().into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|e| {
            ApiError::new(StatusCode::BAD_REQUEST, "body_incomplete", format!("the request body broke off: {e}"))
        })?;
        if body.len() + chunk.len() > limit {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

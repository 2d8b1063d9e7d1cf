//! Reads request bodies, bounded in size and time. Parses nothing.

use std::sync::Arc;
use std::time::Duration;

use axum::body::BodyDataStream;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use futures_util::StreamExt;

use super::App;
use super::error::{ApiError, ApiResult};
use crate::error::Error;

/// Limits, in bytes and time, on reading the rest of a body that is too large.
const MOST_THROWN_AWAY: usize = 64 << 20;
const LONGEST_THROWN_AWAY: Duration = Duration::from_secs(5);

/// A whole body of at most `http.body_limit` bytes, received within `http.read_seconds`, so that slow senders don't
/// hold connections.
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
    if let Some(encoding) = request.headers().get(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
        let encoding: String = String::from_utf8_lossy(encoding.as_bytes()).chars().take(32).collect();
        let message = format!("the request body has the Content-Encoding {encoding:?}, expected none");
        return Err(Error::unsupported(message).into());
    }
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    let asks_first = request.headers().contains_key(header::EXPECT);
    let mut chunks = request.into_body().into_data_stream();
    if declared.is_some_and(|length| length > limit) {
        return Err(refuse(chunks, asks_first, limit).await);
    }
    let mut body = Vec::with_capacity(declared.unwrap_or(0));
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|e| {
            ApiError::new(StatusCode::BAD_REQUEST, "body_incomplete", format!("the request body broke off: {e}"))
        })?;
        if body.len() + chunk.len() > limit {
            return Err(refuse(chunks, false, limit).await);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Reads on for a while before refusing, since most clients don't read the response before they have sent everything,
/// and would only see a broken connection. A client that sent `Expect: 100-continue` is refused at once.
async fn refuse(mut rest: BodyDataStream, asks_first: bool, limit: usize) -> ApiError {
    let throw_away = async {
        let mut thrown = 0;
        while let Some(Ok(chunk)) = rest.next().await {
            thrown += chunk.len();
            if thrown > MOST_THROWN_AWAY {
                return;
            }
        }
    };
    if !asks_first {
        // A slower client gets no response.
        drop(tokio::time::timeout(LONGEST_THROWN_AWAY, throw_away).await);
    }
    let message = format!("the request body is larger than {limit} bytes (http.body_limit)");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
}

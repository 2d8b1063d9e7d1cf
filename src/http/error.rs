//! Errors as OpenAI-shaped JSON with the right status. Decides no policy: the engine's codes do.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::{Code, Error};
use crate::request::known;

/// A failed request: status, and the body `{"type": "error", "error": {message, type, param, code}}`.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

/// The result of every handler.
pub(super) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// The body, which a stream that failed midway sends as its last event.
    pub(super) fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            s if s.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        let param = self.status.is_client_error().then(|| param(&self.message)).flatten();
        // The type beside it is for Anthropic's clients.
        json!({"type": "error", "error": {"message": self.message, "type": kind, "param": param, "code": self.code}})
    }
}

/// The field of a request that a message begins with, as the parsers' messages do: `tools[0]` of "tools[0]: ...".
fn param(message: &str) -> Option<&str> {
    let end = message.find(|c: char| !c.is_ascii_alphanumeric() && !"_.[]".contains(c))?;
    let (path, behind) = message.split_at(end);
    let root = path.split(['.', '[']).next()?;
    let known = known::ALL.iter().any(|fields| fields.contains(&root));
    (known && behind.starts_with([' ', ':'])).then_some(path)
}

impl From<Error> for ApiError {
    fn from(e: Error) -> Self {
        if e.is_unknown_id() {
            return Self::not_found(e.message());
        }
        if e.is_context_length() {
            return Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", e.message());
        }
        if e.is_time_limit() {
            return Self::new(StatusCode::GATEWAY_TIMEOUT, "time_limit_exceeded", e.message());
        }
        let status = match e.code() {
            // An unsupported request is the client's error, not a failure of the server.
            Code::Arg | Code::Unsupported => StatusCode::BAD_REQUEST,
            Code::Busy => StatusCode::TOO_MANY_REQUESTS,
            Code::Closed => StatusCode::SERVICE_UNAVAILABLE,
            Code::NoMem => StatusCode::INSUFFICIENT_STORAGE,
            Code::Model | Code::Train | Code::Io | Code::Callback | Code::Panic => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, e.code().as_str(), e.message())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::GATEWAY_TIMEOUT {
            // OpenAI's clients retry most server errors, and would run into the same time limit again.
            response.headers_mut().insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_codes_that_clients_tell_them_apart_by() {
        let of = |error: Error| {
            let response = ApiError::from(error.clone()).into_response();
            let code = ApiError::from(error).body()["error"]["code"].as_str().unwrap_or_default().to_owned();
            (response.status().as_u16(), code, response.headers().contains_key(header::RETRY_AFTER))
        };
        assert_eq!(of(Error::context_length("long")), (400, "context_length_exceeded".into(), false));
        assert_eq!(of(Error::time_limit("late")), (504, "time_limit_exceeded".into(), false));
        assert_eq!(of(Error::busy("full")), (429, "busy".into(), true));
        assert_eq!(of(Error::context_length("long").context("prompt")).1, "context_length_exceeded");
    }

    #[test]
    fn an_error_names_the_field_that_its_message_begins_with() {
        for (message, expected) in [
            ("top_p is 5, expected a number from 0 to 1", Some("top_p")),
            (
                "tools[0].function.parameters: at /properties/a: not is not supported",
                Some("tools[0].function.parameters"),
            ),
            ("prompt[1] is empty", Some("prompt[1]")),
            ("text.format: type is \"x\", expected text", Some("text.format")),
            ("the prompt is empty", None),
            ("no field \"temprature\", did you mean temperature?", None),
            ("user's", None),
            ("serve.context is 32, expected more", None),
            ("messages", None),
        ] {
            assert_eq!(param(message), expected, "{message}");
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            assert!(ApiError::new(status, "io", message).body()["error"]["param"].is_null());
        }
    }
}

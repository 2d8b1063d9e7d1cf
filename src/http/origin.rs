//! Cross-origin requests (CORS): allows pages of this machine and of the configured origins. Checks no keys.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::error::{ApiError, ApiResult};
use crate::config::OriginPattern;

/// How long a browser may cache the permission, in seconds.
const REMEMBER: HeaderValue = HeaderValue::from_static("600");
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, OPTIONS");

/// Origins that the settings allow.
#[derive(Debug)]
pub(super) struct Origins {
    named: Vec<OriginPattern>,
}

impl Origins {
    /// Reads the setting `http.origins`.
    pub(super) fn new(setting: &str) -> Self {
        // Invalid origins were refused with the other settings.
        Self { named: setting.split(',').map(str::trim).filter_map(OriginPattern::parse).collect() }
    }

    fn allow(&self, origin: &str) -> bool {
        of_this_machine(origin) || self.named.iter().any(|named| named.matches(origin))
    }
}

/// Refuses requests that a browser sends for a page of another site: feedback changes the weights, and loopback needs
/// no key. Same-origin pages are checked by their host name too, since any name can be made to resolve to this machine.
pub(super) async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> ApiResult<Response> {
    let Some(origin) = request.headers().get(header::ORIGIN).cloned() else { return Ok(next.run(request).await) };
    if !origin.to_str().is_ok_and(|origin| app.origins.allow(origin)) {
        let message = "pages of this origin are not served (http.origins)";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "foreign_origin", message));
    }
    let asks_first =
        request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if asks_first { preflight(request.headers()) } else { next.run(request).await };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    Ok(response)
}

fn preflight(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, REMEMBER);
    // Clients send headers of their own, which are ignored.
    if let Some(wanted) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    response
}

fn of_this_machine(origin: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(host, _)| host),
        None => authority.split_once(':').map_or(authority, |(host, _)| host),
    };
    let local = host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    local && matches!(scheme, "http" | "https")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_this_machine_are_let_in_and_of_others_only_by_name() {
        let plain = Origins::new("");
        for origin in ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:8372", "http://LOCALHOST"] {
            assert!(plain.allow(origin), "{origin}");
        }
        for origin in
            ["null", "https://example.org", "http://localhost.example.org", "file://localhost", "http://[::2]"]
        {
            assert!(!plain.allow(origin), "{origin}");
        }
        let named = Origins::new("https://Chat.example.org , http://other:81");
        assert!(named.allow("https://chat.example.org") && named.allow("http://other:81"));
        assert!(!named.allow("http://chat.example.org") && !named.allow("http://other"));
        assert!(Origins::new("*").allow("https://example.org"));
        let others = Origins::new("app://obsidian.md,null,https://*.example.org");
        assert!(others.allow("app://obsidian.md") && others.allow("null") && others.allow("https://a.example.org"));
        assert!(!others.allow("app://other.md") && !others.allow("https://example.com"));
    }
}

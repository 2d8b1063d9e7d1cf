//! Cross-origin requests (CORS): allows pages of this machine and of the configured origins, and, where no key is
//! needed, no name that anyone may point at it. Checks no keys.

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

    /// Whether a request may name the service so. Names that somebody else may point at this machine are those of the
    /// domain name system: addresses, names without a dot and `*.localhost` are not, and allowed origins may be named.
    fn allow_host(&self, host: &str) -> bool {
        let name = name_of(host);
        let dotted = name.trim_end_matches('.').contains('.');
        let anyones = dotted && name.parse::<IpAddr>().is_err() && !name.to_ascii_lowercase().ends_with(".localhost");
        !anyones || ["http", "https"].into_iter().any(|scheme| self.allow(&format!("{scheme}://{host}")))
    }
}

/// Refuses requests that a browser sends for a page of another site: feedback changes the weights, and loopback needs
/// no key. Same-origin pages are checked by their host name too, since any name can be made to resolve to this machine.
pub(super) async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> ApiResult<Response> {
    // A page whose host's name was made to resolve to this machine sends no origin where it only reads, but that name.
    if app.keys.are_none() && !host(&request).is_none_or(|host| app.origins.allow_host(host)) {
        let message = "the service has no keys and is not served under this host's name (http.origins, http.keys)";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "foreign_host", message));
    }
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

/// The host that a request names; one that can't be read is nobody's, nor are two.
fn host(request: &Request) -> Option<&str> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let named = hosts.next().map(|host| host.to_str().ok().filter(|_| hosts.next().is_none()).unwrap_or("?.?"));
    request.uri().authority().map(|authority| authority.as_str()).or(named)
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
    let host = name_of(authority);
    let local = host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    local && matches!(scheme, "http" | "https")
}

/// The host of an authority, which may have a port.
fn name_of(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(host, _)| host),
        None => authority.split_once(':').map_or(authority, |(host, _)| host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_anyone_may_point_at_this_machine_is_an_allowed_origin_s_or_refused() {
        let plain = Origins::new("");
        for host in ["localhost:8372", "127.0.0.1", "[::1]:8372", "10.0.0.1:80", "apad:8372", "a.localhost:1", ""] {
            assert!(plain.allow_host(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:8372", "evil.example.", "127.0.0.1.evil.example:1"] {
            assert!(!plain.allow_host(host), "{host}");
        }
        assert!(Origins::new("https://chat.example.org").allow_host("chat.example.org"));
    }

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

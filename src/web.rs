//! Clients of HTTP services that the settings name: no redirections, no proxy for this machine, no reply beyond a
//! length. Never decides whether to ask again.

use reqwest::redirect::Policy;
use reqwest::{ClientBuilder, Response, Url};

/// A client that uses no proxy for addresses on this machine, so that what is sent stays on it. Nor does a redirection
/// take it to another address than the one that was set.
pub(crate) fn client_for(url: &str) -> ClientBuilder {
    let host = Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default();
    let host = host.trim_matches(['[', ']']).trim_end_matches('.');
    let own = host.eq_ignore_ascii_case("localhost")
        || host.to_ascii_lowercase().ends_with(".localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback() || ip.is_unspecified());
    let builder = reqwest::Client::builder().redirect(Policy::none());
    if own { builder.no_proxy() } else { builder }
}

/// A reply's body; `None` if it is longer than `most` bytes.
pub(crate) async fn body(reply: &mut Response, most: usize) -> reqwest::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = reply.chunk().await? {
        if chunk.len() > most - bytes.len() {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}

/// The beginning of a reply, on one line.
pub(crate) fn shown(bytes: &[u8]) -> String {
    /// Characters that an error shows.
    const SHOWN: usize = 120;
    String::from_utf8_lossy(bytes).chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

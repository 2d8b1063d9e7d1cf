//! Authentication: Bearer keys from a file, compared in constant time. Never logs or returns a key.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};

use super::error::{ApiError, ApiResult};
use super::{App, page};
use crate::config::HttpConfig;
use crate::error::{Error, Result};

/// Paths that reveal only whether requests are accepted and which exist: probes and browsers send no keys.
const OPEN: [&str; 4] = ["/health", "/openapi.json", "/docs", "/"];

/// Whether a path needs no key. The page's files are the same for everyone.
fn is_open(path: &str) -> bool {
    OPEN.contains(&path) || path.starts_with(page::FOLDER)
}

/// Digests of the accepted keys; `None` if everyone on this machine may ask.
#[derive(Debug)]
pub(super) struct Keys(Option<Vec<[u8; 32]>>);

impl Keys {
    /// Reads the key file, one key a line; empty lines and those that start with `#` are skipped.
    ///
    /// # Errors
    /// `Arg` without keys on an address that other machines reach, or for a file without a key; `Io` if it can't be
    /// read.
    pub(super) fn load(config: &HttpConfig, address: SocketAddr) -> Result<Self> {
        match &config.keys {
            Some(path) => Ok(Self(Some(read_keys(path)?))),
            None if address.ip().is_loopback() => Ok(Self(None)),
            None => Err(Error::arg(format!(
                "{address} can be reached from other machines, expected http.keys to name a file with one key a line"
            ))),
        }
    }

    fn accept(&self, presented: &str) -> bool {
        let Some(keys) = &self.0 else { return true };
        let presented: [u8; 32] = Sha256::digest(presented.as_bytes()).into();
        // Compares all keys and all bytes, so that the time reveals nothing about a key.
        keys.iter().fold(false, |found, key| found | same(key, &presented))
    }
}

fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0u8, |acc, (x, y)| acc | (x ^ y));
    std::hint::black_box(difference) == 0
}

fn read_keys(path: &Path) -> Result<Vec<[u8; 32]>> {
    let text =
        std::fs::read_to_string(path).map_err(|e| Error::from(e).context(format!("key file {}", path.display())))?;
    let keys: Vec<[u8; 32]> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|key| Sha256::digest(key.as_bytes()).into())
        .collect();
    if keys.is_empty() {
        return Err(Error::arg(format!("key file {} has no key, expected one a line", path.display())));
    }
    Ok(keys)
}

/// Refuses requests without a valid key, if keys are configured.
pub(super) async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> ApiResult<Response> {
    if !is_open(request.uri().path()) {
        let key = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(bearer);
        if !app.keys.accept(key.unwrap_or_default()) {
            let message = "no valid key, expected the header Authorization: Bearer KEY";
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message));
        }
    }
    Ok(next.run(request).await)
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn config(keys: Option<&Path>) -> HttpConfig {
        HttpConfig { keys: keys.map(Path::to_path_buf), ..HttpConfig::default() }
    }

    #[test]
    fn an_address_beyond_loopback_needs_keys() {
        let open: SocketAddr = "0.0.0.0:8372".parse().unwrap();
        let error = Keys::load(&config(None), open).unwrap_err();
        assert_eq!(error.code(), crate::Code::Arg);
        assert!(error.message().contains("http.keys"), "{error}");
        assert!(Keys::load(&config(None), "[::1]:8372".parse().unwrap()).is_ok());
    }

    #[test]
    fn only_listed_keys_are_accepted() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "# staff\n\n  alpha \nbeta").unwrap();
        let keys = Keys::load(&config(Some(file.path())), "0.0.0.0:1".parse().unwrap()).unwrap();
        for (key, expected) in [("alpha", true), ("beta", true), ("", false), ("# staff", false), ("alph", false)] {
            assert_eq!(keys.accept(key), expected, "{key:?}");
        }
    }

    #[test]
    fn a_key_file_without_keys_is_refused() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "# nobody").unwrap();
        assert!(Keys::load(&config(Some(file.path())), "127.0.0.1:1".parse().unwrap()).is_err());
    }
}

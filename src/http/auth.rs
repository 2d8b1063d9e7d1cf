//! Who asks: Bearer keys, compared in constant time, and what each of them may see. Never logs or returns a key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::SystemTime;

use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::MethodRouter;

use super::error::{ApiError, ApiResult};
use super::keys::{Key, LEAST_PLAIN, Scope, hash, read_keys};
use super::{App, page};
use crate::config::HttpConfig;
use crate::error::{Error, Result};
use crate::types::GenerationId;

/// Paths that reveal only whether requests are accepted and which exist: probes and browsers send no keys.
const OPEN: [&str; 4] = ["/health", "/openapi.json", "/docs", "/"];

/// Whether a path needs no key. The page's files are the same for everyone.
fn is_open(path: &str) -> bool {
    OPEN.contains(&path) || path.starts_with(page::FOLDER)
}

/// Where Anthropic's clients send their key.
const ANTHROPIC: HeaderName = HeaderName::from_static("x-api-key");

/// Separates a client key's name from the users that the client names. No key's name has it.
const OF: char = '/';

/// The accepted keys; read again when their file changes.
#[derive(Debug)]
pub(super) struct Keys(Option<Watched>);

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    read: RwLock<(Option<Stamp>, Vec<Key>)>,
}

/// What changes when a file does: when it was written, and its length.
type Stamp = (SystemTime, u64);

fn stamp(path: &Path) -> Option<Stamp> {
    let about = std::fs::metadata(path).ok()?;
    Some((about.modified().ok()?, about.len()))
}

impl Keys {
    /// Reads the key file.
    ///
    /// # Errors
    /// `Arg` without keys on an address that other machines reach, or for a file without a key; else as [`read_keys`].
    pub(super) fn load(config: &HttpConfig, address: SocketAddr) -> Result<Self> {
        let path = match &config.keys {
            Some(path) => path.clone(),
            None if address.ip().is_loopback() => return Ok(Self(None)),
            None => {
                return Err(Error::arg(format!(
                    "{address} can be reached from other machines, expected http.keys to name a file of keys; \
                     `apad keys add NAME --file FILE` makes one"
                )));
            }
        };
        let before = stamp(&path);
        let keys = usable_keys(&path)?;
        if keys.is_empty() {
            let path = path.display();
            return Err(Error::arg(format!(
                "key file {path} has no key, expected one at least; `apad keys add NAME --file {path}` adds one"
            )));
        }
        if keys.iter().any(|key| key.plain) {
            tracing::warn!(file = %path.display(),
                "it holds keys as plain text, which may do everything; `apad keys add` makes those that may not");
        }
        Ok(Self(Some(Watched { path, read: RwLock::new((before, keys)) })))
    }

    /// Whether everyone who reaches the address may do everything.
    pub(super) fn are_none(&self) -> bool {
        self.0.is_none()
    }

    /// Who presents that key; nobody if it is not in the file now.
    fn caller(&self, presented: &str) -> Option<Caller> {
        let Some(watched) = &self.0 else { return Some(Caller::Operator) };
        watched.refresh();
        let presented = hash(presented);
        let read = watched.read.read().unwrap_or_else(|e| e.into_inner());
        // Compares all keys and all bytes, so that the time reveals nothing about a key.
        let found = read.1.iter().fold(None, |found, key| if same(&key.hash, &presented) { Some(key) } else { found });
        found.map(|key| match key.scope {
            Scope::Operator => Caller::Operator,
            Scope::Client => Caller::Client { key: key.name.clone(), user: key.user.clone() },
        })
    }
}

/// The keys of a file, none of which could be guessed as far as that can be seen.
fn usable_keys(path: &Path) -> Result<Vec<Key>> {
    let keys = read_keys(path)?;
    match keys.iter().find(|key| key.short) {
        Some(key) => Err(Error::arg(format!(
            "key file {}: the key on {} has fewer than {LEAST_PLAIN} characters and could be guessed, expected one \
             that `apad keys add` makes",
            path.display(),
            key.name.replace('-', " ")
        ))),
        None => Ok(keys),
    }
}

impl Watched {
    /// Reads the file again if it has changed. One that can't be read leaves the keys as they were.
    fn refresh(&self) {
        let now = stamp(&self.path);
        if self.read.read().unwrap_or_else(|e| e.into_inner()).0 == now {
            return;
        }
        let keys = usable_keys(&self.path);
        let mut read = self.read.write().unwrap_or_else(|e| e.into_inner());
        match keys {
            Ok(keys) => {
                tracing::info!(file = %self.path.display(), keys = keys.len(), "keys read again");
                *read = (now, keys);
            }
            Err(error) => {
                tracing::error!(%error, "the changed key file can't be used; the keys stay as they were");
                read.0 = now;
            }
        }
    }
}

fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0u8, |acc, (x, y)| acc | (x ^ y));
    std::hint::black_box(difference) == 0
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// May do everything, for any user.
    Operator,
    /// Has answers of its own. Users whom it names are recorded as `KEY/USER`, so that they are nobody else's.
    Client {
        /// Name of the key.
        key: String,
        /// The user for whom it always speaks, recorded under that name.
        user: Option<String>,
    },
}

impl Caller {
    /// The user as whom a request is recorded that names `named`.
    ///
    /// # Errors
    /// `Arg` for another user than the key's own.
    pub(super) fn user(&self, named: Option<String>) -> Result<Option<String>> {
        match (self, named) {
            (Caller::Operator, named) => Ok(named),
            (Caller::Client { user: Some(own), .. }, Some(named)) if named != *own => {
                Err(Error::arg(format!("user is {named:?}, expected {own:?}, for whom this key speaks, or none")))
            }
            (Caller::Client { user: Some(own), .. }, _) => Ok(Some(own.clone())),
            (Caller::Client { key, .. }, Some(named)) => Ok(Some(format!("{key}{OF}{named}"))),
            (Caller::Client { key, .. }, None) => Ok(Some(key.clone())),
        }
    }

    /// The name by which the caller names a user on record: what [`Caller::user`] makes that user of.
    pub(super) fn name_of(&self, recorded: Option<String>) -> Option<String> {
        match self {
            Caller::Operator => recorded,
            Caller::Client { user: Some(_), .. } => None,
            Caller::Client { key, .. } => Some(recorded?.strip_prefix(key.as_str())?.strip_prefix(OF)?.to_owned()),
        }
    }

    /// That an answer is the caller's to see and to rate.
    ///
    /// # Errors
    /// An unknown id if it isn't, as if there were none; `Io` for the ledger.
    pub(super) fn check(&self, app: &App, id: &GenerationId) -> Result<()> {
        let Caller::Client { key, user } = self else { return Ok(()) };
        let of = app.engine.generation_record(id)?.and_then(|record| record.generation.user);
        let own = of.is_some_and(|of| match user {
            Some(user) => of == *user,
            None => of == *key || of.strip_prefix(key.as_str()).is_some_and(|rest| rest.starts_with(OF)),
        });
        if own { Ok(()) } else { Err(Error::unknown_id(format!("no generation {id}"))) }
    }
}

/// Refuses requests without a valid key, if keys are configured.
pub(super) async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> ApiResult<Response> {
    match app.keys.caller(presented(request.headers())) {
        Some(caller) => {
            request.extensions_mut().insert(caller);
        }
        None if is_open(request.uri().path()) => {}
        None => {
            let message = "no valid key, expected the header Authorization: Bearer KEY (or X-Api-Key: KEY)";
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message));
        }
    }
    Ok(next.run(request).await)
}

/// These routes, for operators only.
pub(super) fn operator(routes: MethodRouter<Arc<App>>) -> MethodRouter<Arc<App>> {
    routes.layer(middleware::from_fn(operators_only))
}

async fn operators_only(Extension(caller): Extension<Caller>, request: Request, next: Next) -> ApiResult<Response> {
    if caller != Caller::Operator {
        let message = "the key's scope is client, expected operator for this (`apad keys add NAME --scope operator`)";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "operator_only", message));
    }
    Ok(next.run(request).await)
}

/// The key that a request presents; empty without one.
fn presented(headers: &HeaderMap) -> &str {
    let told = |name| headers.get(name).and_then(|v| v.to_str().ok());
    told(header::AUTHORIZATION).and_then(bearer).or_else(|| told(ANTHROPIC)).unwrap_or_default()
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

#[cfg(test)]
mod tests {
    use super::super::keys::{add_key, revoke_key};
    use super::*;
    use std::io::Write;

    fn config(keys: Option<&Path>) -> HttpConfig {
        HttpConfig { keys: keys.map(Path::to_path_buf), ..HttpConfig::default() }
    }

    fn open_to_all() -> SocketAddr {
        "0.0.0.0:8372".parse().unwrap()
    }

    #[test]
    fn an_address_beyond_loopback_needs_keys() {
        let error = Keys::load(&config(None), open_to_all()).unwrap_err();
        assert_eq!(error.code(), crate::Code::Arg);
        assert!(error.message().contains("http.keys"), "{error}");
        assert!(Keys::load(&config(None), "[::1]:8372".parse().unwrap()).is_ok());
    }

    #[test]
    fn plain_keys_of_earlier_builds_are_operators() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "# staff\n\n  alpha-5ff1c01cab1e \nbeta-0ddba11decade").unwrap();
        let keys = Keys::load(&config(Some(file.path())), open_to_all()).unwrap();
        for (key, expected) in [
            ("alpha-5ff1c01cab1e", true),
            ("beta-0ddba11decade", true),
            ("", false),
            ("# staff", false),
            ("alpha-5ff1c01cab1", false),
        ] {
            assert_eq!(keys.caller(key), expected.then_some(Caller::Operator), "{key:?}");
        }
    }

    #[test]
    fn a_plain_key_that_could_be_guessed_opens_nothing_neither_at_the_start_nor_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let boss = add_key(&path, "boss", Scope::Operator, None).unwrap();
        let keys = Keys::load(&config(Some(&path)), open_to_all()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap() + "hunter2\n";
        std::fs::write(&path, text).unwrap();
        assert_eq!((keys.caller("hunter2"), keys.caller(&boss)), (None, Some(Caller::Operator)));
        let error = Keys::load(&config(Some(&path)), open_to_all()).unwrap_err();
        assert!(error.message().contains("the key on line 2 has fewer than 16 characters"), "{error}");
        assert!(!error.message().contains("hunter2"), "{error}");
        // The file can be mended with the command.
        revoke_key(&path, "line-2").unwrap();
        assert!(Keys::load(&config(Some(&path)), open_to_all()).is_ok());
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_damaged_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let boss = add_key(&path, "boss", Scope::Operator, None).unwrap();
        let keys = Keys::load(&config(Some(&path)), open_to_all()).unwrap();
        let app = add_key(&path, "app", Scope::Client, None).unwrap();
        assert_eq!(keys.caller(&app), Some(Caller::Client { key: "app".into(), user: None }));
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, "app client of something else").unwrap();
        assert!(keys.caller(&boss).is_some() && keys.caller(&app).is_some());
        std::fs::write(&path, whole).unwrap();
        revoke_key(&path, "app").unwrap();
        assert!(keys.caller(&boss).is_some() && keys.caller(&app).is_none());
        // Without any key nobody gets in, rather than everybody.
        revoke_key(&path, "boss").unwrap();
        assert_eq!(keys.caller(&boss), None);
    }

    #[test]
    fn the_users_of_a_client_are_its_own() {
        let named = |name: &str| Some(name.to_owned());
        assert_eq!(Caller::Operator.user(named("ann")).unwrap(), named("ann"));
        let app = Caller::Client { key: "app".into(), user: None };
        assert_eq!(app.user(named("ann")).unwrap(), named("app/ann"));
        assert_eq!(app.user(None).unwrap(), named("app"));
        let ann = Caller::Client { key: "k".into(), user: named("ann") };
        assert_eq!(ann.user(None).unwrap(), named("ann"));
        assert_eq!(ann.user(named("ann")).unwrap(), named("ann"));
        assert!(ann.user(named("bob")).unwrap_err().message().contains("expected \"ann\""));
    }

    #[test]
    fn a_key_file_without_keys_is_refused() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "# nobody").unwrap();
        assert!(Keys::load(&config(Some(file.path())), "127.0.0.1:1".parse().unwrap()).is_err());
    }
}

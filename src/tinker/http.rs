//! Requests of the Tinker API and what comes of them, over HTTP: waits, bounds, and when to ask again. Knows no
//! request's meaning.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::error::{Error, Result};
use crate::web::{self, shown};

const KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Attempts at a request that failed in passing; the wait doubles each time.
const TRIES: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// What a single request may take beyond what a result may.
const GRACE: Duration = Duration::from_secs(1);
const CONNECT: Duration = Duration::from_secs(10);
/// Between two looks at a result that is not there, beside what the server holds the connection.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes of a reply that carries no numbers.
pub(super) const SMALL: usize = 1 << 16;
/// Redirections on the way to an archive.
const HOPS: usize = 4;

/// A server's address, and how to ask it.
#[derive(Clone)]
pub(super) struct Http {
    client: Client,
    url: String,
    key: Option<HeaderValue>,
    patience: Duration,
}

/// Whether a request may be sent again although it may have been done.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Repeat {
    Freely,
    /// Only where it was certainly not done.
    Never,
}

/// Why an attempt failed.
enum Failure {
    /// Nobody listens, or the server is busy: nothing was done.
    NotDone(Error),
    /// It may have been done.
    Unsure(Error),
    /// So may this, and there was time enough.
    Late(Error),
    Lasting(Error),
}

impl Http {
    pub fn new(url: &str, key: Option<&str>, patience: Duration) -> Result<Self> {
        let header = |key: &str| -> Result<HeaderValue> {
            // Never with the key itself.
            let mut value = HeaderValue::from_str(key)
                .map_err(|_| Error::arg("TINKER_API_KEY holds what no header can, expected a key"))?;
            value.set_sensitive(true);
            Ok(value)
        };
        let key = key.map(header).transpose()?;
        let client = web::client_for(url).connect_timeout(CONNECT).timeout(patience + GRACE).build();
        let client = client.map_err(|e| Error::train(format!("the Tinker server can't be asked: {e}")))?;
        Ok(Self { client, url: url.trim_end_matches('/').to_owned(), key, patience })
    }

    /// Posts `body`, and gives the reply of at most `most` bytes.
    pub async fn post(&self, what: &str, body: &Value, most: usize, repeat: Repeat) -> Result<Value> {
        let mut wait = FIRST_WAIT;
        for tries in 1.. {
            let error = match self.attempt(what, body, most).await {
                Ok(reply) => return Ok(reply),
                Err(Failure::Unsure(error) | Failure::Late(error)) if repeat == Repeat::Never => {
                    return Err(error.context(format!("whether {what} was done is not known")));
                }
                Err(Failure::Lasting(error) | Failure::Late(error)) => return Err(error),
                Err(Failure::NotDone(error) | Failure::Unsure(error)) => error,
            };
            if tries == TRIES {
                return Err(error.context(format!("{what} failed {TRIES} times")));
            }
            tracing::warn!(%error, what, tries, "the Tinker server is asked again");
            sleep(wait).await;
            wait *= 2;
        }
        Err(Error::train("the Tinker server was never asked"))
    }

    /// Posts what takes a while, and waits for its result.
    pub async fn result(&self, what: &str, body: &Value, most: usize, repeat: Repeat) -> Result<Value> {
        let taken = self.post(what, body, SMALL, repeat).await?;
        let asked = json!({"request_id": super::wire::text(&taken, "request_id")?});
        let late = |_| {
            let seconds = self.patience.as_secs();
            Error::train(format!("{what} took the Tinker server over {seconds} s (train.tinker_seconds)"))
        };
        timeout(self.patience, self.retrieve(what, &asked, most)).await.map_err(late)?
    }

    async fn retrieve(&self, what: &str, asked: &Value, most: usize) -> Result<Value> {
        loop {
            let reply = self.post("retrieve_future", asked, most, Repeat::Freely).await;
            let reply = reply.map_err(|e| e.context(format!("what came of {what}")))?;
            if let Some(error) = reply.get("error").and_then(Value::as_str) {
                return Err(Error::train(format!("{what} failed on the Tinker server: {}", shown(error.as_bytes()))));
            }
            if reply.get("type").and_then(Value::as_str) != Some("try_again") {
                return Ok(reply);
            }
            sleep(LOOK).await;
        }
    }

    /// Gets what costs nothing to ask for.
    pub async fn get(&self, what: &str, most: usize) -> Result<Value> {
        let bytes = self.file(what, most).await?;
        serde_json::from_slice(&bytes).map_err(|_| not_json(what, &bytes))
    }

    /// Gets a file of at most `most` bytes, from wherever the server says that it lies.
    pub async fn file(&self, path: &str, most: usize) -> Result<Vec<u8>> {
        let mut wait = FIRST_WAIT;
        for tries in 1.. {
            match self.fetch(path, most).await {
                Ok(bytes) => return Ok(bytes),
                Err(Failure::NotDone(error) | Failure::Unsure(error)) if tries < TRIES => {
                    tracing::warn!(%error, tries, "the Tinker server is asked again");
                }
                Err(
                    Failure::NotDone(error) | Failure::Unsure(error) | Failure::Late(error) | Failure::Lasting(error),
                ) => return Err(error),
            }
            sleep(wait).await;
            wait *= 2;
        }
        Err(Error::train("the Tinker server was never asked"))
    }

    async fn attempt(&self, what: &str, body: &Value, most: usize) -> Result<Value, Failure> {
        let url = format!("{}/api/v1/{what}", self.url);
        let request = self.client.post(url).header(CONTENT_TYPE, "application/json").body(body.to_string());
        let (status, bytes) = read(self.with_key(request), most).await?;
        // The server's own word for "not yet", which Tinker's says as a result.
        if status == StatusCode::REQUEST_TIMEOUT && what == "retrieve_future" {
            return Ok(json!({"type": "try_again"}));
        }
        judge(status, &bytes)?;
        serde_json::from_slice(&bytes).map_err(|_| Failure::Lasting(not_json(what, &bytes)))
    }

    async fn fetch(&self, path: &str, most: usize) -> Result<Vec<u8>, Failure> {
        let lasting = |text: String| Failure::Lasting(Error::train(text));
        let start = format!("{}/api/v1/{path}", self.url);
        let start = Url::parse(&start).map_err(|e| lasting(format!("the Tinker server's address: {e}")))?;
        let mut at = start.clone();
        for _ in 0..HOPS {
            let request = self.client.get(at.clone());
            // A file may lie with others, who need no key.
            let request = if at.origin() == start.origin() { self.with_key(request) } else { request };
            let mut reply = send(request).await?;
            let status = reply.status();
            if !status.is_redirection() {
                let bytes = take(&mut reply, most).await?;
                judge(status, &bytes)?;
                return Ok(bytes);
            }
            let to = reply.headers().get(LOCATION).and_then(|to| to.to_str().ok()).and_then(|to| at.join(to).ok());
            at = to.ok_or_else(|| lasting(format!("the Tinker server said {status} to nowhere")))?;
        }
        Err(lasting(format!("the Tinker server redirects more than {HOPS} times")))
    }

    fn with_key(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.key {
            Some(key) => request.header(KEY, key.clone()),
            None => request,
        }
    }
}

fn not_json(what: &str, bytes: &[u8]) -> Error {
    Error::train(format!("the Tinker server answered {what} by {:?}, expected JSON", shown(bytes)))
}

async fn read(request: RequestBuilder, most: usize) -> Result<(StatusCode, Vec<u8>), Failure> {
    let mut reply = send(request).await?;
    let bytes = take(&mut reply, most).await?;
    Ok((reply.status(), bytes))
}

async fn send(request: RequestBuilder) -> Result<Response, Failure> {
    request.send().await.map_err(broken)
}

/// What a connection's error says of the request.
fn broken(error: reqwest::Error) -> Failure {
    let kind = if error.is_connect() {
        Failure::NotDone
    } else if error.is_timeout() {
        Failure::Late
    } else {
        Failure::Unsure
    };
    kind(Error::train(format!("the Tinker server: {}", cause(&error.without_url()))))
}

async fn take(reply: &mut Response, most: usize) -> Result<Vec<u8>, Failure> {
    match web::body(reply, most).await {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(Failure::Lasting(Error::train(format!("the Tinker server's reply is over {most} bytes")))),
        Err(error) => Err(broken(error)),
    }
}

/// What a status says of the request.
fn judge(status: StatusCode, bytes: &[u8]) -> Result<(), Failure> {
    if status.is_success() {
        return Ok(());
    }
    let error = Error::train(format!("the Tinker server said {status}: {}", shown(bytes)));
    Err(match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Failure::NotDone(error),
        _ if status.is_server_error() => Failure::Unsure(error),
        _ => Failure::Lasting(error),
    })
}

/// The innermost reason of an error, which says more than the outer ones.
fn cause(error: &reqwest::Error) -> String {
    let mut reason: &dyn std::error::Error = error;
    while let Some(inner) = reason.source() {
        reason = inner;
    }
    format!("{error}: {reason}")
}

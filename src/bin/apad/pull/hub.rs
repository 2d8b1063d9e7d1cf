//! Fetches a file from the Hugging Face hub, resuming an earlier try. Checks nothing.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use reqwest::header::RANGE;
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, StatusCode, Url};
use tokio::time::timeout;

use super::progress::Progress;
use crate::client::root_cause;

/// Address of the hub; `HF_ENDPOINT` overrides it.
const ENDPOINT: &str = "https://huggingface.co";
/// Short, so that without a network the next source is tried soon.
const CONNECT: Duration = Duration::from_secs(5);
/// Limits the whole request, retries and redirects included.
const ANSWER: Duration = Duration::from_secs(20);
/// Longest pause before a download counts as stalled.
const STALL: Duration = Duration::from_secs(30);

/// What the hub says of a file.
pub struct About {
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, in lower-case hexadecimal, where the hub tells it.
    pub sha256: Option<String>,
    /// The commit that has it, or the revision that was asked for.
    pub revision: String,
}

/// Asks the hub about `file` in `repo` at `revision`.
///
/// # Errors
/// If it can't be reached, has no such file, or doesn't tell the size.
pub async fn about(repo: &str, revision: &str, file: &str) -> Result<About> {
    // What it redirects to knows the bytes, and nothing of the file.
    let client = Client::builder().connect_timeout(CONNECT).redirect(Policy::none()).build()?;
    let request = authorized(client.head(url(repo, revision, file)?));
    let answer = timeout(ANSWER, request.send())
        .await
        .map_err(|_| anyhow!("no answer within {} seconds", ANSWER.as_secs()))?
        .map_err(|e| anyhow!("{repo}: {}", root_cause(&e)))?;
    let status = answer.status();
    if status == StatusCode::NOT_FOUND {
        bail!("{repo} has no file {file}, or is not public (HF_TOKEN)");
    }
    if !status.is_success() && !status.is_redirection() {
        bail!("{repo}: the hub answered {status}");
    }
    let header = |name: &str| Some(answer.headers().get(name)?.to_str().ok()?.trim_matches('"').to_owned());
    let size = header("x-linked-size").or_else(|| header("content-length"));
    let bytes = size.and_then(|size| size.parse().ok()).filter(|bytes| *bytes > 0);
    let digest = |text: &String| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    Ok(About {
        bytes: bytes.with_context(|| format!("{repo}: the hub does not tell the size of {file}"))?,
        sha256: header("x-linked-etag").filter(digest).map(|digest| digest.to_lowercase()),
        revision: header("x-repo-commit").unwrap_or_else(|| revision.to_owned()),
    })
}

/// Brings `part` to `bytes` bytes of `file` in `repo` at `revision`.
pub async fn fetch(
    repo: &str,
    revision: &str,
    file: &str,
    part: &Path,
    bytes: u64,
    mut progress: Progress,
) -> Result<()> {
    let mut target = OpenOptions::new().create(true).append(true).open(part)?;
    let mut have = target.metadata()?.len();
    if have > bytes {
        target.set_len(0)?;
        have = 0;
    }
    if have == bytes {
        return Ok(());
    }
    progress.at(have);
    let client = Client::builder().connect_timeout(CONNECT).read_timeout(STALL).build()?;
    let request = client.get(url(repo, revision, file)?).header(RANGE, format!("bytes={have}-{}", bytes - 1));
    let request = authorized(request);
    let answer = timeout(ANSWER, request.send())
        .await
        .map_err(|_| anyhow!("no answer within {} seconds", ANSWER.as_secs()))?
        .map_err(|e| anyhow!("{repo}: {}", root_cause(&e)))?;
    let mut answer = match answer.status() {
        StatusCode::PARTIAL_CONTENT => answer,
        // A server that does not support ranges sends the whole file.
        status if status.is_success() && have == 0 => answer,
        status if status.is_success() => bail!("{repo}: asked for the bytes from {have} on, the answer is {status}"),
        status => bail!("{repo}: the hub answered {status}"),
    };
    while have < bytes {
        let chunk = answer.chunk().await;
        let chunk = chunk.map_err(|e| anyhow!("broke off at {have} of {bytes} bytes: {}", root_cause(&e)))?;
        let Some(chunk) = chunk else { bail!("ended at {have} of {bytes} bytes") };
        have += chunk.len() as u64;
        if have > bytes {
            target.set_len(0)?;
            bail!("the hub sent more than the {bytes} bytes that were expected");
        }
        target.write_all(&chunk)?;
        progress.at(have);
    }
    Ok(())
}

/// With the user's token, if there is one.
fn authorized(request: RequestBuilder) -> RequestBuilder {
    match set("HF_TOKEN") {
        Some(token) => request.bearer_auth(token),
        None => request,
    }
}

fn url(repo: &str, revision: &str, file: &str) -> Result<Url> {
    let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
    let mut url = Url::parse(&endpoint).with_context(|| format!("HF_ENDPOINT={endpoint} is no address"))?;
    let parts = repo.split('/').chain(["resolve", revision]).chain(file.split('/'));
    url.path_segments_mut().map_err(|()| anyhow!("HF_ENDPOINT={endpoint} has no path"))?.pop_if_empty().extend(parts);
    Ok(url)
}

/// A variable, unless it is unset or empty.
fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

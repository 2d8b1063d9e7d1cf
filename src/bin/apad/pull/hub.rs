//! Fetches a file from the Hugging Face hub, going on where an earlier try stopped. Checks nothing.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use futures_util::StreamExt;
use hf_hub::HFClient;
use tokio::time::timeout;

use super::progress::Progress;
use crate::client::root_cause;

/// Without a network the next source should get its turn soon.
const CONNECT: Duration = Duration::from_secs(5);
/// Bounds the whole of asking for the file, retries and redirects included.
const ANSWER: Duration = Duration::from_secs(20);
/// A download that gives nothing for this long has stopped.
const STALL: Duration = Duration::from_secs(30);

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
    let http = reqwest::Client::builder().connect_timeout(CONNECT).read_timeout(STALL).build()?;
    let client = HFClient::builder().client(http).retry_max_attempts(1).build()?;
    let (owner, name) = repo.split_once('/').context("a repository is named owner/name")?;
    let repository = client.model(owner, name);
    let request = repository.download_file_stream().filename(file).revision(revision).range(have..bytes).send();
    let (_, mut stream) = timeout(ANSWER, request)
        .await
        .map_err(|_| anyhow!("no answer within {} seconds", ANSWER.as_secs()))?
        .map_err(|e| anyhow!("{repo}: {}", root_cause(&e)))?;
    while have < bytes {
        let chunk = timeout(STALL, stream.next())
            .await
            .map_err(|_| anyhow!("nothing came for {} seconds, {have} of {bytes} bytes are there", STALL.as_secs()))?;
        let Some(chunk) = chunk else { bail!("ended at {have} of {bytes} bytes") };
        let chunk = chunk.map_err(|e| anyhow!("broke off at {have} of {bytes} bytes: {}", root_cause(&e)))?;
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

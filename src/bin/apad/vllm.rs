//! A vLLM server that serves an exported adapter: has it load the folder, in place of one of the same name. Writes
//! nothing.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

/// Reading an adapter takes a while.
const PATIENCE: Duration = Duration::from_secs(300);
/// Characters of a reply that an error shows.
const SHOWN: usize = 300;

/// Has the server at `url` serve the adapter in `folder`, which it reads itself, under `name`.
pub async fn load(url: &str, name: &str, folder: &Path) -> Result<()> {
    let http = Client::builder().redirect(Policy::none()).timeout(PATIENCE).build()?;
    let folder = std::path::absolute(folder)?;
    let path = folder.to_str().context("the folder's name is no text")?;
    let new = json!({"lora_name": name, "lora_path": path});
    let (status, said) = post(&http, url, "load_lora_adapter", &new).await?;
    if status == StatusCode::BAD_REQUEST && said.contains("already") {
        // Requests by that name find nothing until the next one is in.
        let (status, said) = post(&http, url, "unload_lora_adapter", &json!({"lora_name": name})).await?;
        expect(url, status, &said)?;
        let (status, said) = post(&http, url, "load_lora_adapter", &new).await?;
        return expect(url, status, &said);
    }
    expect(url, status, &said)
}

async fn post(http: &Client, url: &str, what: &str, body: &Value) -> Result<(StatusCode, String)> {
    let request = http.post(format!("{}/v1/{what}", url.trim_end_matches('/'))).json(body);
    let key = std::env::var("VLLM_API_KEY").ok().filter(|key| !key.is_empty());
    let request = if let Some(key) = key { request.bearer_auth(key) } else { request };
    let mut reply = request.send().await.map_err(reqwest::Error::without_url).with_context(|| url.to_owned())?;
    let mut said = Vec::new();
    while let Some(part) = reply.chunk().await? {
        said.extend_from_slice(&part[..part.len().min(SHOWN - said.len().min(SHOWN))]);
    }
    Ok((reply.status(), String::from_utf8_lossy(&said).into_owned()))
}

fn expect(url: &str, status: StatusCode, said: &str) -> Result<()> {
    match status {
        _ if status.is_success() => Ok(()),
        StatusCode::NOT_FOUND => bail!(
            "{url} said {status}: {said:?}; it loads adapters where it was started by `vllm serve --enable-lora` with \
             VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
        ),
        _ => bail!("{url} said {status}: {said:?}"),
    }
}

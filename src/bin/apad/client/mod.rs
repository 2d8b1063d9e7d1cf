//! Talks to a running daemon over HTTP, for the commands and the demo. Prints nothing.

mod versions;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use apa::engine::{PublishOutcome, Status, TrainerStatus, UnlearnPlan, UnlearnReceipt};
use apa::ledger::{Forgotten, LeftOut, ReviewEntry};
use apa::types::{ChatMessage, FeedbackReceipt};
use clap::Args;
use reqwest::{Method, RequestBuilder, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::answer::{Answer, Completion, STOPPED, each_line};
use crate::flags::local_daemon;

/// Which daemon a command talks to.
#[derive(Args, Clone, Debug)]
pub struct Daemon {
    /// Address of the running daemon
    #[arg(long, global = true, env = "APAD_URL", default_value_t = local_daemon(), value_name = "URL")]
    url: String,
    /// Key, where the daemon asks for one
    #[arg(long, global = true, env = "APAD_KEY", hide_env_values = true, value_name = "KEY")]
    key: Option<String>,
}

impl Daemon {
    /// A client of it.
    pub fn client(&self) -> Result<Client> {
        Client::with_key(&self.url, self.key.clone())
    }
}

/// A connection pool to one daemon.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
}

/// Sampling parameters; the daemon's defaults hold for unset ones.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ChatParams {
    /// The model's name, which may ask for a version: `name@3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Most tokens of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Divides the logits; 0 is greedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Probability that the likeliest tokens together have, beyond which none is sampled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Number of the likeliest tokens, beyond which none is sampled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Probability relative to the likeliest token, below which none is sampled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Seeds the sampling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Whom it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Added to the logits of these tokens.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub logit_bias: BTreeMap<u32, f32>,
    /// What the answer is held to, in OpenAI's form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_format: Option<serde_json::Value>,
}

/// What holds for every request, as far as the commands ask.
#[derive(Debug, Deserialize)]
pub struct Props {
    /// The model's name.
    pub model: String,
    /// What feedback does.
    pub learning: LearningProps,
}

/// What feedback does.
#[derive(Debug, Deserialize)]
pub struct LearningProps {
    /// Whether the policy learns.
    pub enabled: bool,
    /// Ratings that start a step.
    pub batch: u32,
    /// Score of a correction as a training sample; 0 trains on none.
    pub correction: f64,
    /// New pairs from which the reward model learns; 0 never.
    pub pairs: u32,
}

/// What waits for review.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reviews {
    /// Users and the decisions about them.
    pub data: Vec<ReviewEntry>,
    /// Feedback that is left out, with the reasons.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
}

impl Client {
    /// A client for the daemon at `base_url`, like `http://127.0.0.1:8372`.
    pub fn new(base_url: &str) -> Result<Self> {
        // Proxies in the environment are for the internet; the daemon is local or named on purpose.
        let http = reqwest::Client::builder().no_proxy().connect_timeout(Duration::from_secs(5)).build()?;
        Ok(Self { http, base: base_url.trim_end_matches('/').to_owned(), key: None })
    }

    /// The same, for a daemon that asks for a key.
    pub fn with_key(base_url: &str, key: Option<String>) -> Result<Self> {
        Ok(Self { key, ..Self::new(base_url)? })
    }

    /// One that opens a connection for each request.
    pub fn unpooled(base_url: &str, key: Option<String>) -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build()?;
        Ok(Self { http, ..Self::with_key(base_url, key)? })
    }

    /// Answers a conversation, at once.
    pub async fn chat(&self, messages: &[ChatMessage], params: &ChatParams) -> Result<Answer> {
        let body: Completion =
            self.call(Method::POST, "/v1/chat/completions", Some(chat_body(messages, params)?)).await?;
        let choice = body.choices.into_iter().next().context("the answer has no choice")?;
        let said = choice.message.unwrap_or_default();
        Ok(Answer {
            id: body.id,
            text: said.content.unwrap_or_default(),
            thought: said.reasoning_content.unwrap_or_default(),
            policy_version: body.policy_version.unwrap_or_default(),
            finish_reason: choice.finish_reason.unwrap_or_default(),
            usage: body.usage.unwrap_or_default(),
        })
    }

    /// Answers a conversation; `on_text` gets each piece as it comes.
    pub async fn chat_stream(
        &self,
        messages: &[ChatMessage],
        params: &ChatParams,
        on_text: impl FnMut(&str),
    ) -> Result<Answer> {
        self.chat_stream_until(messages, params, std::future::pending(), on_text).await
    }

    /// The same, ended when `stop` resolves: the answer is what there was of it then, and ended as [`STOPPED`].
    pub async fn chat_stream_until(
        &self,
        messages: &[ChatMessage],
        params: &ChatParams,
        stop: impl Future<Output = ()>,
        mut on_text: impl FnMut(&str),
    ) -> Result<Answer> {
        let mut body = chat_body(messages, params)?;
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        let mut answer = Answer::default();
        let mut done = false;
        let work = async {
            let response = self.send(Method::POST, "/v1/chat/completions", Some(body)).await?;
            let read = each_line(response, |line| {
                let Some(data) = line.strip_prefix(b"data:") else { return Ok(true) };
                if data.trim_ascii() == b"[DONE]" {
                    done = true;
                    return Ok(false);
                }
                let chunk: Value =
                    serde_json::from_slice(data).context("the stream holds something that isn't JSON")?;
                if let Some(message) = chunk["error"]["message"].as_str() {
                    bail!("{message}");
                }
                answer.take(serde_json::from_value(chunk)?, &mut on_text);
                Ok(true)
            });
            read.await
        };
        tokio::select! {
            biased;
            ended = work => ended?,
            () = stop => {
                if answer.id.is_empty() {
                    bail!("stopped before the answer began");
                }
                answer.finish_reason = STOPPED.into();
                return Ok(answer);
            }
        }
        if done { Ok(answer) } else { bail!("the stream ended before its answer did") }
    }

    /// Follows the daemon's events until their stream ends; `hear` gets the name and the JSON of each.
    pub async fn events(&self, mut hear: impl FnMut(&str, Value)) -> Result<()> {
        let response = self.send(Method::GET, "/v1/events", None).await?;
        let mut kind = String::new();
        let read = each_line(response, |line| {
            if let Some(name) = line.strip_prefix(b"event:") {
                kind = String::from_utf8_lossy(name.trim_ascii()).into_owned();
            }
            if let Some(data) = line.strip_prefix(b"data:") {
                hear(&kind, serde_json::from_slice(data).context("an event isn't JSON")?);
            }
            Ok(true)
        });
        read.await
    }

    /// What holds for every request.
    pub async fn props(&self) -> Result<Props> {
        self.call(Method::GET, "/props", None).await
    }

    /// Waits, for at most two seconds, until an answer that was left in its middle is on record and can be rated.
    pub async fn until_recorded(&self, id: &str) {
        for _ in 0..20 {
            if self.call::<Value>(Method::GET, &format!("/v1/generations/{id}"), None).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Rates an answer, from -1 to 1.
    pub async fn feedback(&self, generation_id: &str, rating: f64) -> Result<FeedbackReceipt> {
        self.say(json!({"generation_id": generation_id, "rating": rating})).await
    }

    /// Sends any feedback on an answer: the body of `POST /v1/feedback`.
    pub async fn say(&self, body: Value) -> Result<FeedbackReceipt> {
        self.call(Method::POST, "/v1/feedback", Some(body)).await
    }

    /// Says that one answer is better than another.
    pub async fn prefer(&self, chosen: &str, rejected: &str, user: Option<&str>) -> Result<()> {
        let body = json!({"chosen_id": chosen, "rejected_id": rejected, "user": user});
        self.call::<Value>(Method::POST, "/v1/preferences", Some(body)).await.map(drop)
    }

    /// Deletes a user's requests, answers and feedback.
    pub async fn forget(&self, user: &str) -> Result<Forgotten> {
        self.call(Method::POST, "/v1/forget", Some(json!({"user": user}))).await
    }

    /// What it takes to replace the versions that learned from a user; changes nothing.
    pub async fn unlearn_plan(&self, user: &str) -> Result<Option<UnlearnPlan>> {
        #[derive(Deserialize)]
        struct Planned {
            unlearning: Option<UnlearnPlan>,
        }
        let body = json!({"user": user, "unlearn": true, "dry_run": true});
        Ok(self.call::<Planned>(Method::POST, "/v1/forget", Some(body)).await?.unlearning)
    }

    /// Deletes a user's requests, answers and feedback, and has the versions replaced that learned from them.
    pub async fn unlearn(&self, user: &str) -> Result<UnlearnReceipt> {
        self.call(Method::POST, "/v1/forget", Some(json!({"user": user, "unlearn": true}))).await
    }

    /// Users whose feedback waits for review, decisions already made, and feedback that can't be used.
    pub async fn reviews(&self) -> Result<Reviews> {
        self.call(Method::GET, "/v1/feedback/reviews", None).await
    }

    /// Decides about a user: `trust`, `hold` or `reject`.
    pub async fn review(&self, user: &str, verdict: &str) -> Result<()> {
        let body = json!({"user": user, "verdict": verdict});
        self.call::<Value>(Method::POST, "/v1/feedback/reviews", Some(body)).await.map(drop)
    }

    /// Trains on the ratings that wait.
    pub async fn train(&self) -> Result<PublishOutcome> {
        self.call(Method::POST, "/v1/trainer/step", None).await
    }

    /// The trainer's state.
    pub async fn trainer(&self) -> Result<TrainerStatus> {
        self.call(Method::GET, "/v1/trainer", None).await
    }

    /// Whether it takes requests: its own word for that. Fails if it doesn't.
    pub async fn health(&self) -> Result<String> {
        let health: Value = self.call(Method::GET, "/health", None).await?;
        Ok(health["status"].as_str().unwrap_or("ok").to_owned())
    }

    /// The engine's state.
    pub async fn status(&self) -> Result<Status> {
        self.call(Method::GET, "/v1/status", None).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<Value>) -> Result<T> {
        let response = self.send(method, path, body).await?;
        response.json().await.with_context(|| format!("{}{path} answered in an unknown shape", self.base))
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Result<Response> {
        let request = self.http.request(method, format!("{}{path}", self.base));
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        self.answered(request, path).await
    }

    /// What is answered to a request, with the key; an error in the daemon's words.
    async fn answered(&self, request: RequestBuilder, path: &str) -> Result<Response> {
        let request = match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let response = request.send().await.map_err(|e| {
            let hint = if e.is_connect() { " (is it running? start one with `apad serve`)" } else { "" };
            anyhow!("no answer from {}: {}{hint}", self.base, root_cause(&e))
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body: Value = response.json().await.unwrap_or_default();
        match body["error"]["message"].as_str() {
            Some(message) => bail!("{message}"),
            None => bail!("{}{path} answered {status}", self.base),
        }
    }
}

/// The innermost cause of an error: the layers above it only repeat addresses.
pub fn root_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), root_cause)
}

fn chat_body(messages: &[ChatMessage], params: &ChatParams) -> Result<Value> {
    let mut body = serde_json::to_value(params)?;
    body["messages"] = serde_json::to_value(messages)?;
    Ok(body)
}

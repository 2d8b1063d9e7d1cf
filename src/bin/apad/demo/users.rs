//! The simulated users: they ask over HTTP, all at once, and rate the answers. They know nothing of how the daemon
//! works.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use apa::engine::{TrainerState, TrainerStatus};
use apa::types::{ChatMessage, PolicyVersion};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::report::{Row, Shown};
use super::screen::Screen;
use super::taste;
use crate::answer::Answer;
use crate::client::{ChatParams, Client};

/// A training step that takes longer than this has failed.
const STEP_LIMIT: Duration = Duration::from_secs(600);

/// A trainer that idles for longer than this, with a batch of ratings in, has failed.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// One user's answer, rated.
pub struct Rated {
    /// As it came.
    pub answer: Answer,
    /// The rating of the answer.
    pub reward: f64,
}

impl Rated {
    /// The answer as the report shows it.
    pub fn shown(&self) -> Shown {
        let tokens = self.answer.usage.completion_tokens;
        Shown { text: self.answer.text.clone(), tokens, reward: self.reward }
    }
}

/// Users of one daemon.
pub struct Users<'a> {
    /// The daemon.
    pub client: &'a Client,
    /// Requests in flight at once.
    pub at_once: usize,
    /// Where progress goes.
    pub screen: &'a Screen,
}

impl Users<'_> {
    /// Asks every prompt with the seed beside it. The answers come in the order of the prompts.
    pub async fn ask(&self, what: &str, prompts: &[(&str, u64)]) -> Result<Vec<Rated>> {
        self.screen.begin(what, prompts.len());
        let answers = stream::iter(prompts).map(|(prompt, seed)| self.ask_one(prompt, *seed));
        answers.buffered(self.at_once).inspect_ok(|_| self.screen.step()).try_collect().await
    }

    /// Asks, rates over HTTP, and waits for the version that is trained from it.
    pub async fn teach(&self, prompts: &[(&str, u64)]) -> Result<Row> {
        let trainer = self.client.trainer().await?;
        let start = Instant::now();
        self.screen.begin("users ask and rate", prompts.len());
        let answers = stream::iter(prompts).map(async |(prompt, seed)| {
            let rated = self.ask_one(prompt, *seed).await?;
            self.client.feedback(&rated.answer.id, rated.reward).await?;
            anyhow::Ok(rated)
        });
        let rated: Vec<Rated> =
            answers.buffer_unordered(self.at_once).inspect_ok(|_| self.screen.step()).try_collect().await?;
        let answered = start.elapsed();
        let version = one_version(&rated)?;
        self.screen.wait("training");
        self.wait_for_step(&trainer).await?;
        let trained = start.elapsed() - answered;
        let versions = self.client.versions().await?;
        let child = versions.iter().rev().find(|v| v.parent == Some(version));
        Ok(Row {
            version: version.0,
            answers: rated.len(),
            mean_reward: mean(&rated, |r| r.reward),
            kl_per_response: child.map(|v| v.metrics.kl_per_response.0),
            mean_tokens: mean(&rated, |r| f64::from(r.answer.usage.completion_tokens)),
            cut_off: cut_off(&rated),
            answer_seconds: answered.as_secs_f64(),
            train_seconds: trained.as_secs_f64(),
        })
    }

    async fn ask_one(&self, prompt: &str, seed: u64) -> Result<Rated> {
        let messages = [ChatMessage { role: "user".into(), content: prompt.into() }];
        let params = ChatParams {
            max_tokens: Some(taste::MAX_TOKENS),
            temperature: Some(1.0),
            seed: Some(seed),
            user: Some("simulated".into()),
            ..ChatParams::default()
        };
        let answer = self.client.chat(&messages, &params).await.with_context(|| format!("asking \"{prompt}\""))?;
        let reward = taste::rate(answer.usage.completion_tokens, answer.finish_reason != "stop");
        Ok(Rated { answer, reward })
    }

    /// Waits until the trainer has published or skipped one more step than in `before`.
    async fn wait_for_step(&self, before: &TrainerStatus) -> Result<()> {
        let mut working = Instant::now();
        let start = Instant::now();
        loop {
            let now = self.client.trainer().await?;
            if now.steps > before.steps || now.skipped > before.skipped {
                return Ok(());
            }
            if matches!(now.state, TrainerState::Off | TrainerState::Unsupported) {
                bail!("the trainer is {}: {}", now.state, now.reason.unwrap_or_default());
            }
            if now.state != TrainerState::Idle {
                working = Instant::now();
            }
            if working.elapsed() > IDLE_LIMIT || start.elapsed() > STEP_LIMIT {
                let reason = now.reason.unwrap_or_else(|| "it gives no reason".into());
                bail!("no new version after {} s; the trainer is {}: {reason}", start.elapsed().as_secs(), now.state);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The version that all answers came from.
pub fn one_version(rated: &[Rated]) -> Result<PolicyVersion> {
    let first = rated.first().context("no answers")?.answer.policy_version;
    match rated.iter().find(|r| r.answer.policy_version != first) {
        Some(other) => bail!("answers of one batch came from versions {first} and {}", other.answer.policy_version),
        None => Ok(first),
    }
}

/// The mean of a figure over answers; zero for none.
pub fn mean(rated: &[Rated], of: impl Fn(&Rated) -> f64) -> f64 {
    rated.iter().map(of).sum::<f64>() / rated.len().max(1) as f64
}

/// Fraction of answers that were cut off.
pub fn cut_off(rated: &[Rated]) -> f64 {
    mean(rated, |r| if r.answer.finish_reason == "stop" { 0.0 } else { 1.0 })
}

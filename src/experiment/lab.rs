//! What all seeds of an experiment share: the model on both engines, the tokenized prompts, the reward. Changes
//! nothing.

use std::sync::Arc;
use std::time::Duration;

use super::dataset::{FixedAnswer, read_dataset};
use super::plan::Plan;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::forecast;
use crate::llama::{ContextOptions, Model, PromptTokens, quantize};
use crate::policy::{self, Decoder};
use crate::prompts::{Prompt, read_prompts};
use crate::reward::Grader;
use crate::scheduler;
use crate::system::cores_or;
use crate::types::{PromptText, Rollout, TokenId};

/// Most tokens of the contexts' caches; answers beyond that wait for their turn.
const MOST_CONTEXT: u64 = 1 << 16;
/// Most answers decoded together: llama.cpp's own limit.
const MOST_TOGETHER: u32 = 256;

/// A prompt as text and as tokens.
pub(super) struct Asked {
    pub text: PromptText,
    pub tokens: Vec<TokenId>,
}

/// A plan with everything it names loaded and checked.
pub struct Lab {
    pub(super) plan: Plan,
    pub(super) model: Arc<Model>,
    pub(super) decoder: Arc<Decoder>,
    pub(super) pool: rayon::ThreadPool,
    /// None if nothing is sampled.
    pub(super) prompts: Vec<Asked>,
    pub(super) reward: Option<Grader>,
    /// Fixed answers to train on instead of samples, if any.
    pub(super) dataset: Option<Vec<Rollout>>,
    pub(super) options: scheduler::Options,
    pub(super) threads: u32,
}

impl Lab {
    /// Loads and checks everything, so that whatever is missing fails before the first step.
    ///
    /// # Errors
    /// `Arg` for a setting out of range or a prompt that can't be used (its line is named), `Model` or `Unsupported`
    /// for the model, `Io` for files.
    pub fn open(plan: Plan) -> Result<Lab> {
        plan.validate()?;
        let mut prompts = Vec::new();
        if let Some(input) = &plan.prompts {
            let (read, sha256) = read_prompts(&input.path)?;
            input.is_still(&sha256)?;
            prompts = read;
        }
        let mut answers = None;
        if let Some(input) = &plan.dataset {
            let (read, sha256) = read_dataset(&input.path)?;
            input.is_still(&sha256)?;
            answers = Some(read);
        }
        let config = &plan.config;
        let threads = cores_or(config.serve.threads);
        let model = sampled_from(config, threads)?;
        if !model.is_decoder() {
            let kind = model.architecture();
            return Err(Error::unsupported(format!("{kind} models don't generate text token by token")));
        }
        let prompts = tokenize(&model, &plan, prompts)?;
        let dataset = answers.map(|answers| rollouts(&model, &plan, answers)).transpose()?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(cores_or(config.train.threads) as usize)
            .thread_name(|i| format!("apa-train-{i}"))
            .build()
            .map_err(|e| Error::nomem(format!("can't start the trainer's threads: {e}")))?;
        let device = policy::device(&config.train.device)?;
        let decoder =
            Arc::new(pool.install(|| forecast::load(&config.model, &config.train, Some(&config.serve), &device))?);
        let timeout = Duration::from_secs(plan.reward_timeout);
        let reward = plan.reward.as_ref().map(|source| source.open(timeout, &decoder, &model)).transpose()?;
        let options = shape(&plan, &prompts)?;
        Ok(Lab { model, decoder, pool, prompts, reward, dataset, options, threads, plan })
    }

    /// The plan it follows.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Number of prompts.
    pub fn prompts(&self) -> usize {
        self.prompts.len()
    }

    /// Number of fixed answers; none if samples are trained on.
    pub fn dataset(&self) -> Option<usize> {
        self.dataset.as_ref().map(Vec::len)
    }
}

/// The model to sample from, in the number format of the plan; the trainer always reads the file itself.
fn sampled_from(config: &Config, threads: u32) -> Result<Arc<Model>> {
    let (kind, layers) = (config.serve.r#type.to_ascii_lowercase(), config.serve.gpu_layers);
    match kind.as_str() {
        "keep" => Model::load(&config.model, layers),
        "auto" => Err(Error::arg(
            "serve.type is auto, expected keep or a format: what an experiment gives must not follow from a \
             measurement",
        )),
        kind => {
            let kind = kind.parse().map_err(|e: Error| e.context("serve.type"))?;
            let path = std::env::temp_dir().join(format!("apad-{}-{kind}.gguf", std::process::id()));
            let encoded = quantize(&config.model, &path, kind, threads).and_then(|()| Model::load(&path, layers));
            // A mapped file stays readable after its name is removed; where removal fails, it is left in the temporary
            // folder.
            let _ = std::fs::remove_file(&path);
            encoded
        }
    }
}

fn tokenize(model: &Model, plan: &Plan, prompts: Vec<Prompt>) -> Result<Vec<Asked>> {
    let read = PromptTokens::new(model);
    let most = plan.config.train.max_tokens.min(model.n_ctx_train().max(1)) as usize;
    let room = most.saturating_sub(plan.max_new as usize);
    let mut asked = Vec::with_capacity(prompts.len());
    let file = plan.prompts.as_ref().map(|input| input.path.display().to_string()).unwrap_or_default();
    for Prompt { line, text } in prompts {
        let at = || format!("{file}:{line}");
        let tokens = read.of(&text).map_err(|e| e.context(at()))?;
        if tokens.is_empty() || tokens.len() > room {
            return Err(Error::arg(format!(
                "{}: the prompt has {} tokens, expected 1 to {room}: {most} are trained on, {} of them may be new",
                at(),
                tokens.len(),
                plan.max_new
            )));
        }
        asked.push(Asked { text, tokens });
    }
    Ok(asked)
}

/// Fixed answers as rollouts. Answers given as text get the token with which the model would end them.
fn rollouts(model: &Model, plan: &Plan, answers: Vec<(usize, FixedAnswer)>) -> Result<Vec<Rollout>> {
    let read = PromptTokens::new(model);
    let file = plan.dataset.as_ref().map(|input| input.path.display().to_string()).unwrap_or_default();
    let words = |answer: &FixedAnswer| -> Result<(Vec<TokenId>, Vec<TokenId>)> {
        let prompt = read.of(&answer.prompt)?;
        let mut response = model.tokenize(&answer.response, false, false)?;
        response.extend(model.turn_end().filter(|_| answer.ended));
        Ok((prompt, response))
    };
    let rollout = |(line, answer): (usize, FixedAnswer)| {
        let at = |e: Error| e.context(format!("{file}:{line}"));
        let (prompt, response) = match answer.tokens.clone() {
            Some(tokens) => tokens,
            None => words(&answer).map_err(at)?,
        };
        if prompt.is_empty() || response.is_empty() {
            return Err(at(Error::arg("the prompt or the response is empty, expected at least one token each")));
        }
        if let Some(token) = prompt.iter().chain(&response).find(|t| **t as usize >= model.n_vocab()) {
            return Err(at(Error::arg(format!("token {token} is outside the vocabulary of {}", model.n_vocab()))));
        }
        let Plan { temperature, .. } = *plan;
        Ok(Rollout {
            prompt,
            response,
            temperature,
            score: answer.score,
            advantage_floor: None,
            served_logprobs: None,
            version: None,
            behavior_logprobs: None,
        })
    };
    answers.into_iter().map(rollout).collect()
}

/// A context in which a whole batch is decoded together, up to a limit.
fn shape(plan: &Plan, prompts: &[Asked]) -> Result<scheduler::Options> {
    let batch = plan.config.train.batch;
    let together = batch.min(MOST_TOGETHER);
    let longest = prompts.iter().map(|p| p.tokens.len()).max().unwrap_or(0) as u64 + u64::from(plan.max_new);
    let context = (longest * u64::from(together)).min(MOST_CONTEXT).max(longest).next_multiple_of(256);
    let context = u32::try_from(context).map_err(|_| Error::arg("the prompts are too long for any context"))?;
    let tokens = plan.config.serve.batch.max(together).min(context);
    Ok(scheduler::Options {
        context: ContextOptions { context, batch: tokens, sequences: together, exact: false },
        patience: None,
        queue: batch,
        max_tokens: plan.max_new,
        tune_threads: false,
        speculate: false,
    })
}

//! What every seed of an experiment shares: the model on both engines, the prompts as tokens, the reward. Changes nothing.

use std::sync::Arc;
use std::time::Duration;

use super::plan::Plan;
use super::prompts::{Prompt, PromptText, read_prompts};
use super::reward::Reward;
use crate::engine::cores_or;
use crate::error::{Error, Result};
use crate::llama::{ContextOptions, Model, chat_tokens, template_of};
use crate::policy::{self, Decoder};
use crate::scheduler;
use crate::types::TokenId;

/// Most tokens of the contexts' caches; more answers than fit wait for their turn.
const MOST_CONTEXT: u64 = 1 << 16;
/// Most answers decoded together: llama.cpp's own limit.
const MOST_TOGETHER: u32 = 256;

/// A prompt as it is read, and as the model reads it.
pub(super) struct Asked {
    pub text: PromptText,
    pub tokens: Vec<TokenId>,
}

/// A plan with all that it names loaded and checked.
pub struct Lab {
    pub(super) plan: Plan,
    pub(super) model: Arc<Model>,
    pub(super) decoder: Arc<Decoder>,
    pub(super) pool: rayon::ThreadPool,
    pub(super) prompts: Vec<Asked>,
    pub(super) reward: Reward,
    pub(super) options: scheduler::Options,
    pub(super) threads: u32,
}

impl Lab {
    /// Loads and checks everything, so that a run fails before its first step or not for want of it.
    ///
    /// # Errors
    /// `Arg` for a setting out of range or a prompt that can't be used (its line is named), `Model` or `Unsupported` for the
    /// model, `Io` for files.
    pub fn open(plan: Plan) -> Result<Lab> {
        plan.validate()?;
        let (prompts, sha256) = read_prompts(&plan.prompts)?;
        if sha256 != plan.prompts_sha256 {
            let path = plan.prompts.display();
            return Err(Error::arg(format!("{path} has changed since the run began, expected the same prompts")));
        }
        let config = &plan.config;
        let reward = Reward::new(&plan.reward, Duration::from_secs(plan.reward_timeout))?;
        let model = Model::load(&config.model, config.serve.gpu_layers)?;
        if !model.is_decoder() {
            let kind = model.architecture();
            return Err(Error::unsupported(format!("{kind} models don't generate text token by token")));
        }
        let prompts = tokenize(&model, &plan, prompts)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(cores_or(config.train.threads) as usize)
            .thread_name(|i| format!("apa-train-{i}"))
            .build()
            .map_err(|e| Error::nomem(format!("can't start the trainer's threads: {e}")))?;
        let device = policy::device(&config.train.device)?;
        let decoder = Arc::new(pool.install(|| Decoder::load(&config.model, &device, config.train.dtype))?);
        let options = shape(&plan, &prompts)?;
        let threads = cores_or(config.serve.threads);
        Ok(Lab { model, decoder, pool, prompts, reward, options, threads, plan })
    }

    /// The plan it follows.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Number of prompts.
    pub fn prompts(&self) -> usize {
        self.prompts.len()
    }
}

fn tokenize(model: &Model, plan: &Plan, prompts: Vec<Prompt>) -> Result<Vec<Asked>> {
    let chat = prompts.iter().any(|p| matches!(p.text, PromptText::Chat(_)));
    let template = chat.then(|| template_of(model)).transpose()?;
    let most = plan.config.train.max_tokens.min(model.n_ctx_train().max(1)) as usize;
    let room = most.saturating_sub(plan.max_new as usize);
    let mut asked = Vec::with_capacity(prompts.len());
    for Prompt { line, text } in prompts {
        let at = || format!("{}:{line}", plan.prompts.display());
        let tokens = match (&text, &template) {
            (PromptText::Chat(messages), Some(template)) => chat_tokens(model, template, messages),
            (PromptText::Text(text), _) => model.tokenize(text, true, false),
            (PromptText::Chat(_), None) => Err(Error::unsupported("the model carries no chat template")),
        };
        let tokens = tokens.map_err(|e| e.context(at()))?;
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

/// A context in which a whole batch is decoded together, if it isn't too large.
fn shape(plan: &Plan, prompts: &[Asked]) -> Result<scheduler::Options> {
    let batch = plan.config.train.batch;
    let together = batch.min(MOST_TOGETHER);
    let longest = prompts.iter().map(|p| p.tokens.len()).max().unwrap_or(0) as u64 + u64::from(plan.max_new);
    let context = (longest * u64::from(together)).min(MOST_CONTEXT).max(longest).next_multiple_of(256);
    let context = u32::try_from(context).map_err(|_| Error::arg("the prompts are too long for any context"))?;
    let tokens = plan.config.serve.batch.max(together).min(context);
    Ok(scheduler::Options {
        context: ContextOptions { context, batch: tokens, sequences: together, exact: false },
        queue: batch,
        tune_threads: false,
    })
}

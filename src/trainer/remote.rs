//! Policy steps on a Tinker server: the losses here, the arithmetic there. The policy here is a copy of the one there,
//! on which limits are measured and which is served. Never knows how the server is asked.

use std::time::Duration;

use candle_core::{Device, Var};

use super::batch::{Batch, Sample};
use super::checkpoint::fits;
use super::fixed::Fixed;
use super::loss::policy_loss;
use super::network::{Network, Saved};
use super::totals::Totals;
use super::{Trainer, check_cancelled};
use crate::align::scalar;
use crate::config::{TrainConfig, tinker_key};
use crate::error::{Error, Result};
use crate::optim::EPSILON;
use crate::policy::{Lora, PEFT_FILES};
use crate::tinker::{self, Cancel, Policy, Sequence, Step, Wanted};

/// Mean distance, in nats a token, of the initial model's log-probabilities there from those here, beyond which it is
/// another model. Quantization is below a fifth of it.
const MOST_GAP: f64 = 0.5;
/// Bytes that an archive may hold beside its values.
const ARCHIVE_BESIDE: u64 = 4 << 20;

/// The policy on a server.
pub(super) struct Remote {
    policy: Box<dyn Policy>,
    /// The checkpoint there that the trainer's state goes on from; none is the initial model.
    pub at: Option<String>,
    /// Steps since then.
    done: Vec<Step>,
}

impl Remote {
    /// Of the settings; `None` if the arithmetic is done here.
    pub fn of(config: &TrainConfig) -> Result<Option<Self>> {
        let Some(url) = config.tinker() else { return Ok(None) };
        let wanted = Wanted {
            base: config.tinker_base.clone(),
            rank: config.rank,
            seed: config.seed,
            longest: config.max_tokens,
            patience: Duration::from_secs(config.tinker_seconds.into()),
        };
        Ok(Some(Self { policy: tinker::policy(url, tinker_key().as_deref(), wanted)?, at: None, done: Vec::new() }))
    }

    /// Goes back to the state before the steps that were taken since: with the next batch, there is nothing to undo.
    pub fn take_back(&mut self, at: Option<String>) {
        self.policy.give_up();
        self.done.clear();
        self.at = at;
    }

    /// Makes what the steps led to the state that the trainer goes on from.
    fn keep(&mut self, cancel: Cancel) -> Result<()> {
        self.at = Some(self.policy.keep(cancel)?);
        self.done.clear();
        Ok(())
    }
}

impl Trainer {
    /// Has the server hold the policy, and takes the reference's log-probabilities from there, since the loss must not
    /// mix those of two programs.
    pub(super) fn begin_there(&mut self, batch: &Batch, fixed: &mut Fixed, cancel: Cancel) -> Result<()> {
        let Some(remote) = &mut self.remote else { return Ok(()) };
        if remote.policy.open(remote.at.as_deref(), cancel)? {
            self.copy_policy(cancel)?;
        }
        let Some(remote) = &mut self.remote else { return Ok(()) };
        let mut theirs = Vec::with_capacity(fixed.ref_logprobs.len());
        for group in batch.micro_batches(&batch.all(), self.config.micro_batch_tokens as usize) {
            theirs.extend(remote.policy.reference(&sequences(&group), cancel)?.concat());
        }
        let gaps = theirs.iter().zip(&fixed.ref_logprobs).map(|(a, b)| f64::from((a - b).abs()));
        let gap = gaps.sum::<f64>() / theirs.len().max(1) as f64;
        tracing::debug!(gap, "nats a token between the initial model on the Tinker server and here");
        if gap > MOST_GAP {
            return Err(Error::train(format!(
                "the base on the Tinker server is {gap:.2} nats a token from the one that is served, expected the \
                 model that it was converted from (train.tinker_base)"
            )));
        }
        fixed.ref_logprobs = theirs;
        Ok(())
    }

    /// One policy step there; returns the policy before it, if it was taken.
    pub(super) fn step_there(
        &mut self,
        samples: &[&Sample],
        fixed: &Fixed,
        totals: &mut Totals,
        cancel: Cancel,
    ) -> Result<Option<Saved>> {
        check_cancelled(cancel)?;
        let Some(remote) = &mut self.remote else { return Ok(None) };
        let sequences = sequences(samples);
        let logprobs = remote.policy.logprobs(&sequences, cancel)?;
        let own = Var::new(logprobs.concat(), &Device::Cpu)?;
        let loss = policy_loss(own.as_tensor(), fixed, samples, &self.config)?.loss;
        let value = scalar(&loss)?;
        let gradient = loss.backward()?.remove(&own).ok_or_else(|| Error::train("the loss has no gradient"))?;
        let gradient = gradient.to_vec1::<f32>()?;
        for (what, value) in [("loss", value), ("gradient", gradient.iter().map(|g| f64::from(*g)).sum())] {
            if !value.is_finite() {
                totals.drop("policy", what, value);
                return Ok(None);
            }
        }
        let mut rest = &gradient[..];
        let mut part = |count: usize| {
            let (own, left) = rest.split_at(count);
            rest = left;
            own.to_vec()
        };
        let step = Step {
            gradient: sequences.iter().map(|s| part(s.response.len())).collect(),
            sequences,
            logprobs,
            lr: self.config.lr * self.pace,
            betas: self.config.betas,
            epsilon: EPSILON,
            weight_decay: self.config.weight_decay,
        };
        let before = self.policy.save()?;
        let norm = remote.policy.step(&step, cancel)?;
        remote.done.push(step);
        totals.policy_steps += 1;
        totals.policy_loss += value;
        totals.grad_norm += norm.unwrap_or_default();
        self.copy_policy(cancel)?;
        Ok(Some(before))
    }

    /// Takes only that share of the last step, or nothing of it. Since AdamW's step is its rate times what doesn't
    /// depend on the rate, the steps are done again from the checkpoint, the last one at that share of its rate.
    pub(super) fn shorten_there(&mut self, share: f64, cancel: Cancel) -> Result<()> {
        let Some(remote) = &mut self.remote else { return Ok(()) };
        remote.policy.give_up();
        if share == 0.0 {
            remote.done.pop();
        } else if let Some(last) = remote.done.last_mut() {
            last.lr *= share;
        }
        remote.policy.open(remote.at.as_deref(), cancel)?;
        for step in &remote.done {
            remote.policy.step(step, cancel)?;
        }
        self.copy_policy(cancel)
    }

    /// Has the server keep what the batch led to.
    pub(super) fn end_there(&mut self, cancel: Cancel) -> Result<()> {
        self.remote.as_mut().map_or(Ok(()), |remote| remote.keep(cancel))
    }

    /// Makes the policy here the one there.
    fn copy_policy(&mut self, cancel: Cancel) -> Result<()> {
        let Some(remote) = &mut self.remote else { return Ok(()) };
        let values: usize = self.policy.vars().iter().map(|var| var.elem_count()).sum();
        let most = 4 * values as u64 + ARCHIVE_BESIDE;
        let [config, weights] = remote.policy.adapter(PEFT_FILES, most, cancel)?;
        let lora = Lora::of_peft(&config, &weights, &self.decoder).and_then(|lora| {
            fits(&lora, &self.config)?;
            Ok(lora)
        });
        let lora = lora.map_err(|e| e.context("the adapter of the Tinker server"))?;
        self.policy = Network::new(lora, None)?;
        Ok(())
    }
}

/// Samples as the server reads them.
fn sequences(samples: &[&Sample]) -> Vec<Sequence> {
    let sequence = |s: &&Sample| Sequence { prompt: s.prompt.to_vec(), response: s.response.to_vec() };
    samples.iter().map(sequence).collect()
}

//! A trainable network: an adapter on the frozen base (for the critic, with a scalar head) and its optimizer. Policy
//! and critic share only the frozen base. Knows no loss.

use candle_core::{Tensor, Var};

use super::batch::Sample;
use crate::align::{Clipped, scalar};
use crate::error::{Error, Result};
use crate::optim::{AdamW, AdamWConfig, Gradients, norm};
use crate::policy::ops::Distributions;
use crate::policy::{Decoder, Lora, Packed, ValueHead};

/// The policy is an adapter, read through the base's own language-model head; the critic is an adapter with a scalar
/// head.
pub(super) struct Network {
    pub lora: Lora,
    pub head: Option<ValueHead>,
    pub optimizer: AdamW,
    vars: Vec<Var>,
}

/// A copy of everything that an update changes.
pub(super) struct Saved {
    vars: Vec<Tensor>,
    optimizer: AdamW,
}

/// The result of one optimizer step.
pub(super) enum Update {
    /// The weights moved.
    Taken { loss: f64, grad_norm: f64, clip_fraction: f64 },
    /// The loss or a gradient was not finite: weights and moments are unchanged.
    Dropped { what: &'static str, value: f64 },
}

impl Network {
    pub fn new(lora: Lora, head: Option<ValueHead>) -> Result<Self> {
        let mut vars = lora.vars();
        vars.extend(head.iter().flat_map(ValueHead::vars));
        Ok(Self { optimizer: AdamW::new(&vars)?, lora, head, vars })
    }

    /// The trainable tensors, in a stable order.
    pub fn vars(&self) -> &[Var] {
        &self.vars
    }

    /// Their names, in the same order; those of the head begin with `value_head.`.
    pub fn names(&self) -> Vec<String> {
        let adapter = self.lora.named().into_iter().map(|(name, _)| name);
        let head = self.head.iter().flat_map(ValueHead::named).map(|(name, _)| name);
        adapter.chain(head).collect()
    }

    /// The scalar head.
    ///
    /// # Errors
    /// `Train` for the policy, which has none.
    pub fn head(&self) -> Result<&ValueHead> {
        self.head.as_ref().ok_or_else(|| Error::train("the policy has no value head"))
    }

    /// Whether every weight is a finite number.
    pub fn is_finite(&self) -> Result<bool> {
        Ok(norm(self.vars.iter().map(Var::as_tensor))?.is_finite())
    }

    /// Copies everything that an update changes.
    pub fn save(&self) -> Result<Saved> {
        let vars = self.vars.iter().map(|v| Ok(v.as_detached_tensor().copy()?)).collect::<Result<_>>()?;
        Ok(Saved { vars, optimizer: self.optimizer.clone() })
    }

    /// Restores `saved`.
    pub fn restore(&mut self, saved: Saved) -> Result<()> {
        self.optimizer = saved.optimizer;
        Ok(self.vars.iter().zip(&saved.vars).try_for_each(|(var, old)| var.set(old))?)
    }

    /// Moves to the point between `before` and `after` at `share` of the way. The optimizer's moments stay.
    pub fn between(&mut self, before: &Saved, after: &Saved, share: f64) -> Result<()> {
        for ((var, before), after) in self.vars.iter().zip(&before.vars).zip(&after.vars) {
            var.set(&(before + ((after - before)? * share)?)?)?;
        }
        Ok(())
    }

    /// One optimizer step on a minibatch given as micro-batches: the gradient of the mean over the minibatch, however
    /// it is split.
    ///
    /// `loss` returns a micro-batch's mean, and `weigh` the number of items in that mean: tokens or answers. Errors of
    /// `loss` (`Closed` if the trainer is to stop) leave the weights unchanged. `moving` sees the network right before
    /// it moves.
    pub fn update<'a, 'b>(
        &mut self,
        micro_batches: &[Vec<&'b Sample<'a>>],
        clip_norm: f64,
        config: AdamWConfig,
        weigh: impl Fn(&[&'b Sample<'a>]) -> usize,
        loss: impl Fn(&Self, &[&'b Sample<'a>]) -> Result<Clipped>,
        moving: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<Update> {
        let all = micro_batches.iter().map(|m| weigh(m)).sum::<usize>() as f64;
        let (mut total_loss, mut clip_fraction) = (0.0, 0.0);
        let mut grads = Gradients::default();
        for samples in micro_batches {
            let weight = weigh(samples) as f64 / all;
            let part = loss(self, samples)?;
            let value = scalar(&part.loss)?;
            if !value.is_finite() {
                return Ok(Update::Dropped { what: "loss", value });
            }
            total_loss += weight * value;
            clip_fraction += weight * part.clip_fraction;
            grads.add(&self.vars, &(part.loss * weight)?)?;
        }
        moving(self)?;
        let grad_norm = grads.apply(&mut self.optimizer, &self.vars, clip_norm, config)?;
        if !grad_norm.is_finite() {
            return Ok(Update::Dropped { what: "gradient norm", value: grad_norm });
        }
        Ok(Update::Taken { loss: total_loss, grad_norm, clip_fraction })
    }
}

/// Forward passes of one group of samples, packed without padding.
pub(super) struct Forward<'d> {
    decoder: &'d Decoder,
    packed: Packed,
    /// Rows of the hidden states that predict response tokens.
    predicting: Tensor,
    targets: Vec<u32>,
    temperatures: Vec<f32>,
}

impl<'d> Forward<'d> {
    pub fn new(decoder: &'d Decoder, samples: &[&Sample]) -> Result<Self> {
        let inputs: Vec<Vec<u32>> = samples.iter().map(|s| s.input()).collect();
        let inputs: Vec<&[u32]> = inputs.iter().map(Vec::as_slice).collect();
        let (mut rows, mut targets, mut temperatures, mut start) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for sample in samples {
            // The state at the prompt's last token predicts the first response token.
            let first = start + sample.prompt.len() - 1;
            rows.extend((first..first + sample.response.len()).map(|row| row as u32));
            targets.extend_from_slice(sample.response);
            temperatures.resize(targets.len(), sample.temperature);
            start += sample.input_tokens();
        }
        let predicting = Tensor::new(rows, decoder.device())?;
        Ok(Self { decoder, packed: Packed::new(&inputs)?, predicting, targets, temperatures })
    }

    /// Log-probabilities of the response tokens, `[rows]`, nats; without an adapter, under the initial model.
    pub fn logprobs(&self, lora: Option<&Lora>) -> Result<Tensor> {
        self.decoder.logprobs(&self.hidden(lora)?, &self.targets, &self.temperatures)
    }

    /// Log-probabilities of the response tokens under `hidden`, the distributions' entropies, and their distances to
    /// those of `others`. Not differentiable.
    pub fn distributions(&self, hidden: &Tensor, others: &[&Tensor]) -> Result<Distributions> {
        self.decoder.distributions(hidden, others, &self.targets, &self.temperatures)
    }

    /// The critic's value before each response token, `[rows]`.
    pub fn values(&self, lora: &Lora, head: &ValueHead) -> Result<Tensor> {
        head.forward(&self.hidden(Some(lora))?)
    }

    /// Hidden states that predict the response tokens, `[rows, width]`; without an adapter, of the initial model.
    pub fn hidden(&self, lora: Option<&Lora>) -> Result<Tensor> {
        Ok(self.decoder.hidden(&self.packed, lora)?.index_select(&self.predicting, 0)?)
    }
}

//! Limits how far a batch may move the policy: measures the effect of each optimizer step, and reverts what exceeds a
//! limit. Never computes a gradient.
//!
//! The measure is the KL over the whole vocabulary at each token of some of the batch's answers, which needs no
//! importance weights and has no noise from sampled tokens: docs/APA.md eq. 13. The states are those of the policy at
//! the start of the batch; the next batch measures on its own answers before anything moves.

use candle_core::Tensor;

use super::batch::{Batch, Sample};
use super::network::{Forward, Network, Saved};
use crate::config::TrainConfig;
use crate::error::Result;
use crate::policy::{Decoder, Lora};
use crate::types::Nats;

/// How often the last optimizer step is halved before it is reverted completely.
const HALVINGS: i32 = 5;

/// The lowest factor of the learning rate.
const LEAST_PACE: f64 = 1.0 / 1024.0;

/// Hidden states of one sample that predict its response tokens, `[tokens, width]`.
pub(super) struct States {
    /// The sample's index in the batch.
    pub sample: usize,
    /// Those of the initial model.
    pub reference: Tensor,
    /// Those of the policy at the start of the batch.
    pub before: Tensor,
}

/// KL in nats a response, mean over the watched responses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Distance {
    /// To the policy at the start of the batch.
    pub step: Nats,
    /// To the initial model.
    pub total: Nats,
}

/// The limit that a policy exceeds, in words, and whether smaller steps would help.
pub(super) struct Over {
    pub reason: String,
    pub too_fast: bool,
}

/// The result of an optimizer step.
pub(super) struct Held {
    /// The policy's distance afterwards.
    pub at: Distance,
    /// Why it was shortened or reverted; the policy then takes no more steps in this batch.
    pub over: Option<Over>,
    /// How often it was halved until nothing spoke against it.
    pub halvings: i32,
    /// Whether it was reverted completely.
    pub taken_back: bool,
}

/// Watches the policy steps of a batch.
pub(super) struct Guard<'d> {
    groups: Vec<Group<'d>>,
    samples: usize,
    kl_step: f64,
    kl_budget: f64,
    /// To the initial model, before the batch.
    start: Nats,
}

struct Group<'d> {
    forward: Forward<'d>,
    reference: Tensor,
    before: Tensor,
}

impl<'d> Guard<'d> {
    /// The samples to watch: those of the newest policy if known, spread over the batch.
    pub fn choose(batch: &Batch, wanted: usize) -> Vec<usize> {
        let newest = batch.samples.iter().map(|s| s.version).max().flatten();
        let (mut chosen, others): (Vec<usize>, Vec<usize>) =
            (0..batch.samples.len()).partition(|i| batch.samples.get(*i).is_some_and(|s| s.version == newest));
        if chosen.len() < wanted {
            chosen.extend(others);
            chosen.truncate(wanted);
            return chosen;
        }
        (0..wanted).filter_map(|i| chosen.get(i * chosen.len() / wanted).copied()).collect()
    }

    /// None if nothing is to be watched.
    pub fn new(
        decoder: &'d Decoder,
        batch: &Batch,
        states: &[States],
        start: Nats,
        config: &TrainConfig,
    ) -> Result<Option<Self>> {
        if states.is_empty() {
            return Ok(None);
        }
        let places: Vec<usize> = (0..states.len()).collect();
        let samples: Vec<&Sample> = states.iter().filter_map(|s| batch.samples.get(s.sample)).collect();
        let mut groups = Vec::new();
        let (mut taken, mut tokens) = (Vec::new(), 0);
        // Groups as large as the micro-batches; a longer sample is alone.
        for (place, sample) in places.iter().zip(&samples) {
            let length = sample.input_tokens();
            if !taken.is_empty() && tokens + length > config.micro_batch_tokens as usize {
                groups.push(std::mem::take(&mut taken));
                tokens = 0;
            }
            taken.push(*place);
            tokens += length;
        }
        groups.push(taken);
        let group = |places: Vec<usize>| -> Result<Group<'d>> {
            let own: Vec<&Sample> = places.iter().filter_map(|i| samples.get(*i).copied()).collect();
            let states: Vec<&States> = places.iter().filter_map(|i| states.get(*i)).collect();
            let joined = |of: fn(&States) -> &Tensor| Tensor::cat(&states.iter().map(|s| of(s)).collect::<Vec<_>>(), 0);
            Ok(Group {
                forward: Forward::new(decoder, &own)?,
                reference: joined(|s| &s.reference)?,
                before: joined(|s| &s.before)?,
            })
        };
        let groups = groups.into_iter().map(group).collect::<Result<Vec<_>>>()?;
        let (kl_step, kl_budget) = (config.kl_step, config.kl_budget);
        Ok(Some(Self { groups, samples: samples.len(), kl_step, kl_budget, start }))
    }

    /// The distance of a policy.
    pub fn measure(&self, policy: &Lora) -> Result<Distance> {
        let policy = policy.detached();
        let (mut step, mut total) = (0.0, 0.0);
        for group in &self.groups {
            let now = group.forward.hidden(Some(&policy))?;
            let compared = group.forward.distributions(&now, &[&group.before, &group.reference])?.others;
            for (to, other) in [&mut step, &mut total].into_iter().zip(&compared) {
                *to += sum(&other.kl)?;
            }
        }
        let samples = self.samples.max(1) as f64;
        Ok(Distance { step: Nats(step / samples), total: Nats(total / samples) })
    }

    /// The limit that a policy at that distance exceeds. One that was over the budget before may come nearer.
    pub fn over(&self, at: Distance) -> Option<Over> {
        // Not `kl > limit`, since NaN must count as over every limit.
        let within = |kl: Nats, limit: f64| if limit == 0.0 { kl.0.is_finite() } else { kl.0 <= limit };
        if !within(at.step, self.kl_step) {
            let (kl, limit) = (at.step.0, self.kl_step);
            let reason = format!("a step led {kl:.2} nats a response away in one batch, over {limit} (train.kl_step)");
            return Some(Over { reason, too_fast: true });
        }
        if !within(at.total, self.kl_budget) && at.total >= self.start {
            let (kl, limit) = (at.total.0, self.kl_budget);
            let reason =
                format!("a step led {kl:.2} nats a response from the initial model, over {limit} (train.kl_budget)");
            return Some(Over { reason, too_fast: false });
        }
        None
    }

    /// Checks the last optimizer step. If it exceeds a limit, the step is halved until it does not, or reverted.
    pub fn hold(&self, policy: &mut Network, before: Saved) -> Result<Held> {
        let mut at = self.measure(&policy.lora)?;
        let Some(over) = self.over(at) else { return Ok(Held { at, over: None, halvings: 0, taken_back: false }) };
        let after = policy.save()?;
        for halving in 1..=HALVINGS {
            policy.between(&before, &after, 0.5f64.powi(halving))?;
            at = self.measure(&policy.lora)?;
            if self.over(at).is_none() {
                return Ok(Held { at, over: Some(over), halvings: halving, taken_back: false });
            }
        }
        policy.restore(before)?;
        Ok(Held { at: self.measure(&policy.lora)?, over: Some(over), halvings: HALVINGS + 1, taken_back: true })
    }
}

/// The factor of the advantages once part of the budget is used: 1 up to half of it, then decreasing, so that the
/// target policy stays within the budget and learning continues at its edge. docs/APA.md eq. 14.
pub(super) fn room(kl: Nats, kl_budget: f64) -> f64 {
    if kl_budget == 0.0 { 1.0 } else { (2.0 * (1.0 - kl.0 / kl_budget)).clamp(0.0, 1.0) }
}

/// The factor of the policy's learning rate for the next batch: halved so often after one that went too fast, doubled,
/// up to 1, after one that used less than a quarter of its limit.
pub(super) fn next_pace(pace: f64, halvings: i32, kl_step: Nats, limit: f64) -> f64 {
    match halvings {
        1.. => (pace * 0.5f64.powi(halvings)).max(LEAST_PACE),
        _ if kl_step.0 < limit / 4.0 => (pace * 2.0).min(1.0),
        _ => pace,
    }
}

fn sum(x: &Tensor) -> Result<f64> {
    Ok(x.to_vec1::<f32>()?.into_iter().map(f64::from).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advantages_shrink_in_the_second_half_of_the_budget() {
        let left = [0.0, 5.0, 7.5, 10.0, 30.0].map(|kl| room(Nats(kl), 10.0));
        assert_eq!(left, [1.0, 1.0, 0.5, 0.0, 0.0]);
        assert_eq!(room(Nats(1e9), 0.0), 1.0);
    }

    #[test]
    fn the_pace_is_halved_after_a_batch_that_went_too_fast_and_comes_back() {
        assert_eq!(next_pace(1.0, 1, Nats(0.9), 1.0), 0.5);
        assert_eq!(next_pace(1.0, 4, Nats(0.9), 1.0), 0.0625);
        assert_eq!(next_pace(0.5, 0, Nats(0.9), 1.0), 0.5);
        assert_eq!(next_pace(0.5, 0, Nats(0.2), 1.0), 1.0);
        assert_eq!(next_pace(1.0, 0, Nats(0.0), 1.0), 1.0);
        assert_eq!(next_pace(LEAST_PACE, 1, Nats(f64::NAN), 1.0), LEAST_PACE);
    }
}

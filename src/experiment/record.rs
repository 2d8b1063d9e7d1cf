//! The measurements of a step, as a line of `metrics.jsonl`. Measures nothing itself except the process's memory.

use serde::{Deserialize, Serialize};

use crate::trainer::StepOutcome;
use crate::types::{FinishReason, Generation, StepMetrics};

/// One batch: sampled, scored, trained on. KL, entropy and the gap are those of the policy that sampled, in nats.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepRecord {
    /// Number of the step, from 1.
    pub step: u64,
    /// Answers trained on so far, this batch included.
    pub samples: u64,
    /// Mean reward of the batch's samples, before any scaling; none if nothing was sampled.
    pub reward_mean: Option<f64>,
    /// Their standard deviation.
    pub reward_std: Option<f64>,
    /// Mean reward of the fixed answers that were trained on, if there is a data set.
    pub data_reward_mean: Option<f64>,
    /// Estimator k1 a token.
    pub kl_k1_per_token: Option<f64>,
    /// Estimator k3 a token.
    pub kl_k3_per_token: Option<f64>,
    /// Estimator k1 summed over a response, mean over responses.
    pub kl_k1_per_response: Option<f64>,
    /// Estimator k3, the same way.
    pub kl_k3_per_response: Option<f64>,
    /// KL over the whole vocabulary at each token, summed over a response, mean over responses.
    pub kl_exact_per_response: Option<f64>,
    /// The same for the policy after the batch, over some of its responses.
    pub candidate_kl_per_response: Option<f64>,
    /// KL of that policy to the one that sampled, measured the same way.
    pub kl_step: Option<f64>,
    /// Learning rate of the policy's steps.
    pub lr: Option<f64>,
    /// Why the policy's steps ended before the batch did; none if they did not.
    pub stopped: Option<String>,
    /// Baseline of the rewards.
    pub baseline: Option<f64>,
    /// Weight given to the critic beyond that baseline, from 0 to 1.
    pub critic_trust: Option<f64>,
    /// Entropy a token, at the sampling temperature.
    pub entropy: Option<f64>,
    /// Mean distance of the server's log-probability of a token from the trainer's; known at temperature 1.
    pub serve_train_gap: Option<f64>,
    /// Mean tokens of a sampled response.
    pub length_mean: Option<f64>,
    /// Share of them that were cut off.
    pub cut_off: Option<f64>,
    /// Mean policy loss of the optimizer steps.
    pub policy_loss: Option<f64>,
    /// Mean value loss.
    pub value_loss: Option<f64>,
    /// Root of the mean squared distance of the values from the returns before the batch, in scaled rewards.
    pub value_error: Option<f64>,
    /// Share of the returns' variance that the critic had explained.
    pub explained_variance: Option<f64>,
    /// Share of tokens on the clipped side of PPO's loss.
    pub clip_fraction: Option<f64>,
    /// Share of tokens on the clipped side of PPO's value loss.
    pub value_clip_fraction: Option<f64>,
    /// Norm of the policy's gradient before clipping.
    pub grad_norm: Option<f64>,
    /// Samples too long to train on whole, of which only the last part was used.
    pub shortened: usize,
    /// Optimizer steps dropped because loss or gradient was not finite.
    pub dropped_steps: usize,
    /// Why nothing was learned from the batch; none if something was.
    pub skipped: Option<String>,
    /// Tokens sampled a second, while sampling.
    pub sampled_tokens_per_second: Option<f64>,
    /// Response tokens trained on a second, while training (all epochs together).
    pub trained_tokens_per_second: Option<f64>,
    /// Wall time of sampling.
    pub sample_seconds: f64,
    /// Wall time of scoring.
    pub reward_seconds: f64,
    /// Wall time of training.
    pub train_seconds: f64,
    /// Wall time of the whole step.
    pub seconds: f64,
    /// Peak memory of the process, in bytes, where the system tells.
    pub peak_memory_bytes: Option<u64>,
}

/// Wall times of a step's parts, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    pub sample: f64,
    pub reward: f64,
    pub measure: f64,
    pub train: f64,
}

/// A batch of samples with their scores.
pub(super) struct Sampled<'a> {
    pub answers: Vec<&'a Generation>,
    pub scores: &'a [f64],
}

impl StepRecord {
    /// A record of batch `step`; `samples` counts the answers of all batches so far.
    pub(super) fn new(step: u64, samples: u64, times: Times) -> Self {
        Self {
            step,
            samples,
            sample_seconds: times.sample,
            reward_seconds: times.reward,
            train_seconds: times.train,
            seconds: times.sample + times.reward + times.measure + times.train,
            peak_memory_bytes: peak_memory(),
            ..Self::default()
        }
    }

    /// Adds the measurements of the samples.
    pub(super) fn sampled(&mut self, sampled: &Sampled) {
        let count = sampled.answers.len().max(1) as f64;
        let tokens = sampled.answers.iter().map(|g| g.response.len()).sum::<usize>() as f64;
        let cut_off = sampled.answers.iter().filter(|g| g.finish != FinishReason::Stop).count() as f64;
        let (mean, std) = mean_and_std(sampled.scores);
        self.reward_mean = finite(mean);
        self.reward_std = finite(std);
        self.length_mean = finite(tokens / count);
        self.cut_off = finite(cut_off / count);
        self.sampled_tokens_per_second = finite(tokens / self.sample_seconds.max(1e-9));
    }

    /// Adds the measurements of training. `measured` comes from samples that were not trained on; `offline` says that
    /// the policy did not sample the answers that were.
    pub(super) fn trained(&mut self, outcome: &StepOutcome, measured: Option<&StepMetrics>, offline: bool) {
        match outcome {
            StepOutcome::Trained(metrics) => {
                self.learned(metrics);
                if !offline {
                    self.policy(metrics);
                }
            }
            StepOutcome::Skipped { reason, dropped_steps, .. } => {
                self.skipped = Some(reason.clone());
                self.dropped_steps = *dropped_steps;
            }
        }
        if let Some(metrics) = measured {
            self.policy(metrics);
        }
    }

    fn policy(&mut self, m: &StepMetrics) {
        // Converts a mean over all tokens to a mean over responses.
        let k3_per_response = m.kl_k3_per_token.0 * m.response_tokens as f64 / m.samples.max(1) as f64;
        self.kl_k1_per_token = finite(m.kl_k1_per_token.0);
        self.kl_k3_per_token = finite(m.kl_k3_per_token.0);
        self.kl_k1_per_response = finite(m.kl_per_response.0);
        self.kl_k3_per_response = finite(k3_per_response);
        self.kl_exact_per_response = finite(m.kl_exact_per_response.0);
        self.entropy = finite(m.entropy.0);
        self.serve_train_gap = m.serve_train_gap.and_then(|gap| finite(gap.0));
    }

    fn learned(&mut self, m: &StepMetrics) {
        self.policy_loss = finite(m.policy_loss);
        self.value_loss = finite(m.value_loss);
        self.value_error = finite(m.value_error);
        self.explained_variance = finite(m.explained_variance);
        self.clip_fraction = finite(m.clip_fraction);
        self.value_clip_fraction = finite(m.value_clip_fraction);
        self.grad_norm = finite(m.grad_norm);
        self.shortened = m.shortened;
        self.kl_step = m.kl_step.and_then(|kl| finite(kl.0));
        self.candidate_kl_per_response = m.candidate_kl_per_response.and_then(|kl| finite(kl.0));
        self.stopped = m.stopped.clone();
        self.lr = finite(m.lr);
        self.baseline = finite(m.baseline);
        self.critic_trust = finite(m.critic_trust);
        self.dropped_steps = m.dropped_steps;
        self.trained_tokens_per_second = finite(m.response_tokens as f64 / self.train_seconds.max(1e-9));
    }
}

fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

/// Mean and unbiased standard deviation.
fn mean_and_std(values: &[f64]) -> (f64, f64) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, variance.sqrt())
}

/// The process's peak memory, from Linux.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Nats;

    #[test]
    fn k3_a_response_is_the_sum_over_its_tokens() {
        let metrics =
            StepMetrics { samples: 4, response_tokens: 40, kl_k3_per_token: Nats(0.5), ..StepMetrics::default() };
        let mut record = StepRecord::default();
        record.policy(&metrics);
        assert_eq!(record.kl_k3_per_response, Some(5.0));
    }

    #[test]
    fn what_is_not_a_number_is_written_as_nothing_and_read_back() {
        let metrics = StepMetrics { explained_variance: f64::NAN, policy_loss: 0.25, ..StepMetrics::default() };
        let mut record = StepRecord::default();
        record.learned(&metrics);
        let json = serde_json::to_string(&record).unwrap();
        assert!(json.contains("\"explained_variance\":null") && json.contains("\"policy_loss\":0.25"), "{json}");
        assert_eq!(serde_json::from_str::<StepRecord>(&json).unwrap(), record);
    }

    #[test]
    fn the_kl_of_fixed_answers_is_not_told_as_the_policy_s() {
        let fixed = StepMetrics { kl_per_response: Nats(7.0), samples: 2, ..StepMetrics::default() };
        let own = StepMetrics { kl_per_response: Nats(2.0), ..fixed.clone() };
        let kl = |measured: Option<&StepMetrics>, offline| {
            let mut record = StepRecord::default();
            record.trained(&StepOutcome::Trained(fixed.clone()), measured, offline);
            record.kl_k1_per_response
        };
        assert_eq!((kl(None, false), kl(None, true), kl(Some(&own), true)), (Some(7.0), None, Some(2.0)));
    }

    #[test]
    fn mean_and_deviation_match_a_case_done_by_hand() {
        assert_eq!(mean_and_std(&[1.0, 2.0, 3.0]), (2.0, 1.0));
        assert_eq!(mean_and_std(&[7.0]), (7.0, 0.0));
    }
}

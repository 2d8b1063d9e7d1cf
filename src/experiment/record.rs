//! What a step measured, as a line of `metrics.jsonl`. Measures nothing itself, but for the memory of the process.

use serde::{Deserialize, Serialize};

use crate::trainer::StepOutcome;
use crate::types::{FinishReason, Generation, StepMetrics};

/// One batch: sampled, judged, trained on. KL is that of the policy that sampled, to the initial model, in nats.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// From 1.
    pub step: u64,
    /// Answers sampled so far, this batch included.
    pub samples: u64,
    /// Mean reward, before any scaling.
    pub reward_mean: f64,
    /// Its standard deviation over the batch.
    pub reward_std: f64,
    /// Estimator k1 a token.
    pub kl_k1_per_token: Option<f64>,
    /// Estimator k3 a token.
    pub kl_k3_per_token: Option<f64>,
    /// Estimator k1 summed over a response, mean over responses.
    pub kl_k1_per_response: Option<f64>,
    /// Estimator k3, the same way.
    pub kl_k3_per_response: Option<f64>,
    /// Mean tokens of a response.
    pub length_mean: f64,
    /// Share of responses that were cut off.
    pub cut_off: f64,
    /// Mean policy loss of the optimizer steps.
    pub policy_loss: Option<f64>,
    /// Mean value loss.
    pub value_loss: Option<f64>,
    /// Share of the returns' variance that the critic had explained.
    pub explained_variance: Option<f64>,
    /// Share of tokens on the clipped side of PPO's loss.
    pub clip_fraction: Option<f64>,
    /// Norm of the policy's gradient before clipping.
    pub grad_norm: Option<f64>,
    /// Samples too long to train on.
    pub left_out: usize,
    /// Optimizer steps dropped because loss or gradient was not finite.
    pub dropped_steps: usize,
    /// Why nothing was learned from the batch, if so.
    pub skipped: Option<String>,
    /// Tokens sampled a second, while sampling.
    pub sampled_tokens_per_second: f64,
    /// Response tokens trained on a second, while training (all epochs together).
    pub trained_tokens_per_second: Option<f64>,
    /// Wall time of sampling.
    pub sample_seconds: f64,
    /// Wall time of judging.
    pub reward_seconds: f64,
    /// Wall time of training.
    pub train_seconds: f64,
    /// Wall time of all of it.
    pub seconds: f64,
    /// Most memory that the process ever held, in bytes, where the system tells.
    pub peak_memory_bytes: Option<u64>,
}

/// Wall times of a step's parts, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    pub sample: f64,
    pub reward: f64,
    pub train: f64,
}

impl StepRecord {
    /// Of batch `step`, `samples` being the answers of all batches so far.
    pub(super) fn new(
        step: u64,
        samples: u64,
        answers: &[impl AsRef<Generation>],
        scores: &[f64],
        outcome: &StepOutcome,
        times: Times,
    ) -> Self {
        let answers: Vec<&Generation> = answers.iter().map(AsRef::as_ref).collect();
        let count = answers.len().max(1) as f64;
        let tokens: usize = answers.iter().map(|g| g.response.len()).sum();
        let cut_off = answers.iter().filter(|g| g.finish != FinishReason::Stop).count();
        let (reward_mean, reward_std) = mean_and_std(scores);
        let record = Self {
            step,
            samples,
            reward_mean,
            reward_std,
            length_mean: tokens as f64 / count,
            cut_off: cut_off as f64 / count,
            sampled_tokens_per_second: tokens as f64 / times.sample.max(1e-9),
            sample_seconds: times.sample,
            reward_seconds: times.reward,
            train_seconds: times.train,
            seconds: times.sample + times.reward + times.train,
            peak_memory_bytes: peak_memory(),
            ..Self::default()
        };
        match outcome {
            StepOutcome::Trained(metrics) => record.trained(metrics),
            StepOutcome::Skipped { reason, dropped_steps } => {
                Self { skipped: Some(reason.clone()), dropped_steps: *dropped_steps, ..record }
            }
        }
    }

    fn trained(self, m: &StepMetrics) -> Self {
        // A sum over every token, spread over the responses.
        let k3_per_response = m.kl_k3_per_token.0 * m.response_tokens as f64 / m.samples.max(1) as f64;
        Self {
            kl_k1_per_token: finite(m.kl_k1_per_token.0),
            kl_k3_per_token: finite(m.kl_k3_per_token.0),
            kl_k1_per_response: finite(m.kl_per_response.0),
            kl_k3_per_response: finite(k3_per_response),
            policy_loss: finite(m.policy_loss),
            value_loss: finite(m.value_loss),
            explained_variance: finite(m.explained_variance),
            clip_fraction: finite(m.clip_fraction),
            grad_norm: finite(m.grad_norm),
            left_out: m.left_out,
            dropped_steps: m.dropped_steps,
            trained_tokens_per_second: finite(m.response_tokens as f64 / self.train_seconds.max(1e-9)),
            ..self
        }
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

/// The process's high-water mark, from Linux's own account.
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
        assert_eq!(StepRecord::default().trained(&metrics).kl_k3_per_response, Some(5.0));
    }

    #[test]
    fn what_is_not_a_number_is_written_as_nothing_and_read_back() {
        let metrics = StepMetrics { explained_variance: f64::NAN, policy_loss: 0.25, ..StepMetrics::default() };
        let record = StepRecord::default().trained(&metrics);
        let json = serde_json::to_string(&record).unwrap();
        assert!(json.contains("\"explained_variance\":null") && json.contains("\"policy_loss\":0.25"), "{json}");
        assert_eq!(serde_json::from_str::<StepRecord>(&json).unwrap(), record);
    }

    #[test]
    fn mean_and_deviation_match_a_case_done_by_hand() {
        assert_eq!(mean_and_std(&[1.0, 2.0, 3.0]), (2.0, 1.0));
        assert_eq!(mean_and_std(&[7.0]), (7.0, 0.0));
    }
}

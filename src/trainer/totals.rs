//! Accumulates the results of a batch's optimizer steps. Takes no step.

use tracing::warn;

use crate::types::StepMetrics;

/// Sums over optimizer steps, for means.
#[derive(Default)]
pub(super) struct Totals {
    pub policy_steps: usize,
    pub critic_steps: usize,
    pub dropped: usize,
    pub policy_loss: f64,
    pub value_loss: f64,
    pub grad_norm: f64,
    pub clip_fraction: f64,
    pub value_clip_fraction: f64,
}

impl Totals {
    pub fn drop(&mut self, network: &'static str, what: &'static str, value: f64) {
        self.dropped += 1;
        warn!(network, what, value, "optimizer step dropped: not finite");
    }

    pub fn report(&self, metrics: &mut StepMetrics) {
        let (policy, critic) = (self.policy_steps.max(1) as f64, self.critic_steps.max(1) as f64);
        metrics.steps = self.policy_steps;
        metrics.dropped_steps = self.dropped;
        metrics.policy_loss = self.policy_loss / policy;
        metrics.grad_norm = self.grad_norm / policy;
        metrics.clip_fraction = self.clip_fraction / policy;
        metrics.value_loss = self.value_loss / critic;
        metrics.value_clip_fraction = self.value_clip_fraction / critic;
    }
}

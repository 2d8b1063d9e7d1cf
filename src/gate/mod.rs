//! Judges candidates: whether a trained adapter may serve. Never trains, writes or publishes one.

mod bounds;
mod examination;
mod trial;

pub use bounds::{Arm, Difference, Interval, MeanBounds};
pub use examination::{AnchorResult, Compared, Examination, Limits, Measured, Outcome, Papers, examine, repetition};
pub use trial::{Fate, Plan, Standing, Trial, TrialRecord, Watch};

use crate::config::GateConfig;
use crate::types::{Nats, StepMetrics, Verdict};

/// A candidate as the gate sees it.
pub struct Candidate<'a> {
    /// The measurements of its training batch, its own KL included.
    pub metrics: &'a StepMetrics,
    /// The same for the version it was trained from; none for the initial model.
    pub parent: Option<&'a StepMetrics>,
    /// Whether every weight is a finite number.
    pub finite: bool,
}

/// Judges a candidate. Only the first reason against it is reported.
pub fn judge(candidate: &Candidate, config: &GateConfig) -> Verdict {
    let Candidate { metrics, parent, finite } = candidate;
    if !finite {
        return refused("a weight is not a finite number");
    }
    for (name, value) in [("policy loss", metrics.policy_loss), ("gradient norm", metrics.grad_norm)] {
        if !value.is_finite() {
            return refused(format!("its {name} is {value}, expected a finite number"));
        }
    }
    if let Some(kl) = metrics.candidate_kl_per_response
        && let over @ Verdict::Refused { .. } = within(kl, Nats(config.kl_budget))
    {
        return over;
    }
    if let Some(parent) = parent {
        let drop = parent.mean_reward - metrics.mean_reward;
        if drop > config.reward_drop {
            return refused(format!(
                "the mean rating fell from {:.2} to {:.2}, by more than {} (train.gate.reward_drop): the version it \
                was trained from may have collapsed",
                parent.mean_reward, metrics.mean_reward, config.reward_drop
            ));
        }
    }
    Verdict::Accepted
}

fn within(kl: Nats, budget: Nats) -> Verdict {
    // Not `kl > budget`, since NaN must count as over every budget.
    if kl <= budget {
        return Verdict::Accepted;
    }
    refused(format!(
        "its KL to the initial model is {:.1} nats a response, the budget {} (train.gate.kl_budget)",
        kl.0, budget.0
    ))
}

fn refused(reason: impl Into<String>) -> Verdict {
    Verdict::Refused { reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(kl: f64, mean_reward: f64) -> StepMetrics {
        StepMetrics { candidate_kl_per_response: Some(Nats(kl)), mean_reward, ..StepMetrics::default() }
    }

    fn reason(metrics: &StepMetrics, parent: Option<&StepMetrics>, finite: bool) -> Option<String> {
        let config = GateConfig { kl_budget: 10.0, reward_drop: 1.5 };
        match judge(&Candidate { metrics, parent, finite }, &config) {
            Verdict::Accepted => None,
            Verdict::Refused { reason } => Some(reason),
        }
    }

    #[test]
    fn a_candidate_over_its_kl_budget_is_refused() {
        assert_eq!(reason(&metrics(10.0, 0.0), None, true), None);
        let why = reason(&metrics(10.5, 0.0), None, true).unwrap();
        assert_eq!(why, "its KL to the initial model is 10.5 nats a response, the budget 10 (train.gate.kl_budget)");
        assert!(reason(&metrics(f64::NAN, 0.0), None, true).unwrap().contains("NaN nats"));
        // A KL that was not measured is not held against it.
        assert_eq!(reason(&StepMetrics::default(), None, true), None);
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused() {
        assert!(reason(&metrics(0.0, 0.0), None, false).unwrap().contains("a weight"));
        let bad = StepMetrics { grad_norm: f64::INFINITY, ..metrics(0.0, 0.0) };
        assert!(reason(&bad, None, true).unwrap().contains("its gradient norm is inf"));
    }

    #[test]
    fn a_collapse_of_the_rewards_is_refused_and_a_dip_is_not() {
        let parent = metrics(0.0, 0.8);
        assert_eq!(reason(&metrics(0.0, -0.6), Some(&parent), true), None);
        assert!(reason(&metrics(0.0, -0.8), Some(&parent), true).unwrap().contains("fell from 0.80 to -0.80"));
        assert_eq!(reason(&metrics(0.0, 1.0), Some(&parent), true), None);
    }
}

//! Judges candidates: whether a trained adapter may serve. Never trains, writes or publishes one.

mod bounds;
mod examination;
mod trial;

pub use bounds::{Arm, Difference, Interval, MeanBounds};
pub use examination::{
    AnchorResult, Compared, Examination, Limits, Measured, Measurements, Outcome, examine, repetition, student,
};
pub use trial::{Fate, Plan, Standing, Trial, TrialRecord, Watch};

use crate::config::GateConfig;
use crate::types::{Nats, StepMetrics, Verdict};

/// A candidate as the gate sees it.
pub struct Candidate<'a> {
    /// The measurements of its training batch, its own KL included.
    pub metrics: &'a StepMetrics,
    /// Whether every weight is a finite number.
    pub finite: bool,
}

/// Judges a candidate. Only the first reason against it is reported.
pub fn judge(candidate: &Candidate, config: &GateConfig) -> Verdict {
    let Candidate { metrics, finite } = candidate;
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

    fn metrics(kl: f64) -> StepMetrics {
        StepMetrics { candidate_kl_per_response: Some(Nats(kl)), ..StepMetrics::default() }
    }

    fn reason(metrics: &StepMetrics, finite: bool) -> Option<String> {
        let config = GateConfig { kl_budget: 10.0 };
        match judge(&Candidate { metrics, finite }, &config) {
            Verdict::Accepted => None,
            Verdict::Refused { reason } => Some(reason),
        }
    }

    #[test]
    fn a_candidate_over_its_kl_budget_is_refused() {
        assert_eq!(reason(&metrics(10.0), true), None);
        let why = reason(&metrics(10.5), true).unwrap();
        assert_eq!(why, "its KL to the initial model is 10.5 nats a response, the budget 10 (train.gate.kl_budget)");
        assert!(reason(&metrics(f64::NAN), true).unwrap().contains("NaN nats"));
        // A KL that was not measured is not held against it.
        assert_eq!(reason(&StepMetrics::default(), true), None);
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused() {
        assert!(reason(&metrics(0.0), false).unwrap().contains("a weight"));
        let bad = StepMetrics { grad_norm: f64::INFINITY, ..metrics(0.0) };
        assert!(reason(&bad, true).unwrap().contains("its gradient norm is inf"));
    }
}

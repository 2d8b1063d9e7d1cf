//! The baseline of an answer's reward: the running mean of rewards, and how far the critic is trusted beyond it. Never
//! sees a tensor.

use serde::{Deserialize, Serialize};

/// Scores in the running mean: long enough to be steady, short enough to follow a policy that improves.
const WINDOW: u64 = 64;
/// Share of the old errors that remains after each batch.
const DECAY: f64 = 0.8;

/// Running mean of the scores: the exact mean while they are few, then an exponential one with weight 1/64 per score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Scores seen.
    pub count: u64,
    /// Their mean.
    #[serde(with = "super::exact")]
    pub mean: f64,
}

impl Baseline {
    /// Adds scores. Non-finite ones are left out.
    pub fn update(&mut self, scores: &[f64]) {
        for score in scores.iter().filter(|s| s.is_finite()) {
            self.count = self.count.saturating_add(1);
            self.mean += (score - self.mean) / self.count.min(WINDOW) as f64;
        }
    }
}

/// How much better than a constant the critic predicted the returns of batches before it was trained on them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CriticTrust {
    /// Mean squared error of its values, over the last batches.
    #[serde(with = "super::exact")]
    pub error: f64,
    /// The same for the running mean, the constant that the critic is compared with.
    #[serde(with = "super::exact")]
    pub baseline_error: f64,
}

impl CriticTrust {
    /// Adds a batch's mean squared errors. Non-finite ones are left out.
    pub fn update(&mut self, error: f64, baseline_error: f64) {
        if error.is_finite() && baseline_error.is_finite() {
            self.error = DECAY * self.error + error;
            self.baseline_error = DECAY * self.baseline_error + baseline_error;
        }
    }

    /// Share of the variance that the critic explained, in [0, 1]: 0 for an untrained critic and for one worse than
    /// none.
    pub fn share(&self) -> f64 {
        let explained = 1.0 - self.error / self.baseline_error;
        if explained.is_finite() { explained.clamp(0.0, 1.0) } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_baseline_is_the_mean_of_few_scores_and_follows_many() {
        let mut baseline = Baseline::default();
        baseline.update(&[1.0, 0.0, f64::NAN, -0.5, 0.7]);
        assert!((baseline.mean - 0.3).abs() < 1e-12 && baseline.count == 4, "{baseline:?}");
        baseline.update(&[1.0; 16]);
        // Sixteen more that agree don't hide what was known before.
        assert!(baseline.mean > 0.8 && baseline.mean < 0.9, "{baseline:?}");
        baseline.update(&[-1.0; 300]);
        assert!(baseline.mean < -0.95, "{baseline:?}");
    }

    #[test]
    fn a_critic_is_believed_as_far_as_it_foretold_and_not_before() {
        let mut trust = CriticTrust::default();
        assert_eq!(trust.share(), 0.0);
        trust.update(1.0, 1.0);
        assert_eq!(trust.share(), 0.0);
        trust.update(f64::NAN, 1.0);
        trust.update(0.25, 1.0);
        assert!((trust.share() - (1.0 - (0.8 + 0.25) / 1.8)).abs() < 1e-12);
        trust.update(9.0, 1.0);
        assert_eq!(trust.share(), 0.0);
    }
}

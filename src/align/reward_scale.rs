//! Running scale of the scores: divides by their standard deviation so far, and clips. Never centres, and never sees a
//! tensor.

use serde::{Deserialize, Serialize};

/// Welford's running variance of every score seen. Its state is part of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RewardScale {
    /// Scores seen.
    pub count: u64,
    /// Their mean.
    #[serde(with = "super::exact")]
    pub mean: f64,
    /// Sum of squared distances to the mean.
    #[serde(with = "super::exact")]
    pub m2: f64,
}

impl RewardScale {
    /// Adds scores. Non-finite ones are left out.
    pub fn update(&mut self, scores: &[f64]) {
        for score in scores.iter().filter(|s| s.is_finite()) {
            self.count += 1;
            let distance = score - self.mean;
            self.mean += distance / self.count as f64;
            self.m2 += distance * (score - self.mean);
        }
    }

    /// Unbiased standard deviation of the scores so far; 1 until they vary.
    pub fn std(&self) -> f64 {
        let std = if self.count > 1 { (self.m2 / (self.count - 1) as f64).sqrt() } else { 0.0 };
        if std.is_finite() && std > 1e-8 { std } else { 1.0 }
    }

    /// A score, or its distance from a baseline, in units of the standard deviation, clipped to ± `clip`. Its sign is
    /// kept: there is no centring here.
    pub fn scale(&self, score: f64, clip: f64) -> f64 {
        (score / self.std()).clamp(-clip.abs(), clip.abs())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn scores_are_divided_not_centred_and_clipped() {
        let mut scale = RewardScale::default();
        assert_eq!(scale.scale(3.0, 5.0), 3.0);
        scale.update(&[10.0, 12.0, 14.0]);
        assert_eq!(scale.std(), 2.0);
        assert_eq!(scale.scale(9.0, 5.0), 4.5);
        assert_eq!(scale.scale(-12.0, 5.0), -5.0);
    }

    proptest! {
        #[test]
        fn batches_in_any_split_give_the_variance_of_all_scores(
            scores in prop::collection::vec(-50.0..50.0f64, 2..60),
            cut in 0usize..60,
        ) {
            let cut = cut.min(scores.len());
            let mut scale = RewardScale::default();
            scale.update(&scores[..cut]);
            let json = serde_json::to_string(&scale).unwrap();
            let loaded: RewardScale = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(loaded, scale);
            scale = loaded;
            scale.update(&scores[cut..]);
            let mean = scores.iter().sum::<f64>() / scores.len() as f64;
            let var = scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (scores.len() - 1) as f64;
            prop_assert!((scale.std() - var.sqrt()).abs() < 1e-9 * (1.0 + var));
        }
    }
}

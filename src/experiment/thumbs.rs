//! Simulated raters: people say thumbs up or down where a reward is a number. Scores nothing itself.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Scores of the newest answers that a rater compares with.
pub(super) const AMONG: usize = 256;

/// How a rater makes a thumb, 1 or -1, of a score.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thumbs {
    /// Share of answers that the rater likes: all but the worst.
    pub up: f64,
    /// Share of thumbs that say the opposite of what the rater means.
    pub flipped: f64,
}

impl Thumbs {
    pub(super) fn validate(&self) -> Result<()> {
        if !(self.up > 0.0 && self.up < 1.0) {
            return Err(Error::arg(format!("thumbs-up is {}, expected a share above 0 and below 1", self.up)));
        }
        if !(0.0..0.5).contains(&self.flipped) {
            return Err(Error::arg(format!("flipped is {}, expected a share from 0 to below 0.5", self.flipped)));
        }
        Ok(())
    }

    /// The least score among `known` that is liked.
    pub(super) fn bar(&self, mut known: Vec<f64>) -> f64 {
        known.sort_by(f64::total_cmp);
        let disliked = ((1.0 - self.up) * known.len() as f64).round() as usize;
        known.get(disliked).copied().unwrap_or(f64::NEG_INFINITY)
    }

    /// The thumb of an answer. `dice` decides about flipping.
    pub(super) fn of(&self, score: f64, bar: f64, dice: u64) -> f64 {
        let meant = if score >= bar { 1.0 } else { -1.0 };
        let flips = (dice as f64) < self.flipped * 2f64.powi(64);
        if flips { -meant } else { meant }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_are_disliked_and_some_thumbs_are_flipped() {
        let thumbs = Thumbs { up: 0.9, flipped: 0.2 };
        let scores: Vec<f64> = (0..1000).map(|n| f64::from((n * 619) % 1000)).collect();
        let bar = thumbs.bar(scores.clone());
        assert_eq!(bar, 100.0);
        let mut dice = 0u64;
        let mut flipped = 0;
        for score in scores {
            dice = dice.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let meant = if score >= 100.0 { 1.0 } else { -1.0 };
            assert_eq!(Thumbs { flipped: 0.0, ..thumbs }.of(score, bar, dice), meant);
            flipped += usize::from(thumbs.of(score, bar, dice) != meant);
        }
        assert!((150..250).contains(&flipped), "{flipped} of 1000");
        assert_eq!(thumbs.bar(Vec::new()), f64::NEG_INFINITY);
    }
}

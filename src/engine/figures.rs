//! The figures of each version with their confidence intervals: what users rated, how long its answers are, how many
//! were cut off. Computes only, from what the ledger counted.

use serde::{Deserialize, Serialize};

use super::Engine;
use crate::error::Result;
use crate::gate::student;
use crate::ledger::{Observed, Sums};
use crate::types::{PolicyVersion, RATINGS};

/// Newest answers and ratings that figures are of, so that a long record doesn't hold up who asks.
const NEWEST: usize = 20_000;
/// The 97.5% point of the normal distribution.
const Z: f64 = 1.959_964;

/// A mean with its 95% confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct Figure {
    /// Number of observations.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Lower bound; none of a mean with fewer than two observations.
    pub lower: Option<f64>,
    /// Upper bound.
    pub upper: Option<f64>,
}

/// The figures of a version, over its newest answers and ratings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct VersionFigures {
    /// The version.
    pub version: PolicyVersion,
    /// Ratings from -1 to 1; none if nobody rated.
    pub rating: Option<Figure>,
    /// Length in tokens; none without answers.
    pub tokens: Option<Figure>,
    /// Share of the answers that reached their limit; none without answers.
    pub cut_off: Option<Figure>,
}

impl Engine {
    /// The figures of each version that has answered, oldest first: over the newest 20,000 answers and ratings.
    ///
    /// # Errors
    /// `Io` if the ledger can't be read.
    pub fn figures(&self) -> Result<Vec<VersionFigures>> {
        let of = |(version, observed): (PolicyVersion, Observed)| VersionFigures {
            version,
            rating: mean(observed.rating).map(within_ratings),
            tokens: mean(observed.tokens),
            cut_off: share(observed.cut_off, observed.tokens.count),
        };
        Ok(self.inner.ledger.observed(NEWEST)?.into_iter().map(of).collect())
    }
}

/// A mean with Student's interval.
fn mean(Sums { count, sum, squares }: Sums) -> Option<Figure> {
    let n = count as f64;
    let mean = (count > 0).then(|| sum / n)?;
    // Rounding may leave a difference just below zero.
    let variance = (squares - n * mean * mean).max(0.0) / (n - 1.0);
    let margin = (count > 1).then(|| student(n - 1.0) * (variance / n).sqrt());
    Some(Figure { count, mean, lower: margin.map(|m| mean - m), upper: margin.map(|m| mean + m) })
}

/// No mean rating lies beyond the ratings.
fn within_ratings(figure: Figure) -> Figure {
    let within = |bound: f64| bound.clamp(*RATINGS.start(), *RATINGS.end());
    Figure { lower: figure.lower.map(within), upper: figure.upper.map(within), ..figure }
}

/// A share with Wilson's interval.
fn share(part: u64, count: u64) -> Option<Figure> {
    let n = count as f64;
    let p = (count > 0).then(|| part as f64 / n)?;
    let middle = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let margin = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    Some(Figure { count, mean: p, lower: Some((middle - margin).max(0.0)), upper: Some((middle + margin).min(1.0)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_has_students_interval_and_one_observation_has_none() {
        // 1, 2, 3: 2 +- 4.303 · 1 / sqrt(3)
        let of = mean(Sums { count: 3, sum: 6.0, squares: 14.0 }).unwrap();
        assert!((of.lower.unwrap() - (2.0 - 2.4843)).abs() < 1e-3, "{of:?}");
        let one = mean(Sums { count: 1, sum: 1.0, squares: 1.0 }).unwrap();
        assert_eq!((one.mean, one.lower, one.upper), (1.0, None, None));
        assert_eq!(mean(Sums::default()), None);
    }

    #[test]
    fn a_share_has_wilsons_interval_which_stays_within_0_and_1() {
        let of = share(0, 10).unwrap();
        assert!(of.lower.unwrap() == 0.0 && (of.upper.unwrap() - 0.2775).abs() < 1e-3, "{of:?}");
        let all = share(10, 10).unwrap();
        assert!((all.lower.unwrap() - 0.7225).abs() < 1e-3, "{all:?}");
        assert!((1.0 - 1e-9..=1.0).contains(&all.upper.unwrap()), "{all:?}");
        assert_eq!(share(0, 0), None);
    }
}

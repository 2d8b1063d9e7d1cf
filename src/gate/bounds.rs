//! Confidence bounds on a mean that hold however often one looks, and on the difference of two arms. Never decides
//! anything.
//!
//! Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", arXiv 2010.09686. Each possible
//! value of the mean is bet against, on the strength of earlier observations. For the true mean, the wealth from these
//! bets is a martingale, and by Ville's inequality it ever reaches 1/alpha with probability alpha at most. So a value
//! against which that much wealth was won is ruled out. The only assumptions are the range of the observations, and
//! that each has the same mean given those before it.

use serde::{Deserialize, Serialize};

/// Number of values of the mean that are tested.
const GRID: usize = 201;
/// Values of the parent that a comparison waits for: as many as come per value of the candidate when a quarter of the
/// users get it.
const PARENTS: u64 = 3;
/// Largest share of the wealth that one bet can lose.
const STAKE: f64 = 0.5;

/// A mean with its confidence bounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct Interval {
    /// Number of observations.
    pub count: u64,
    /// Their mean; 0 if there are none.
    pub mean: f64,
    /// Lower bound.
    pub lower: f64,
    /// Upper bound.
    pub upper: f64,
}

/// Two one-sided bounds on a mean, each wrong at any time with probability `alpha` at most.
#[derive(Clone, Debug)]
pub struct MeanBounds {
    low: f64,
    high: f64,
    /// Logarithm of the wealth that rules a value out.
    enough: f64,
    count: u64,
    sum: f64,
    squares: f64,
    /// Logarithms of the wealth won by betting that the mean is above, and below, each value of the grid.
    above: Vec<f64>,
    below: Vec<f64>,
    /// Index of the lowest value of the grid that is not ruled out, and of the highest.
    lower: usize,
    upper: usize,
}

impl MeanBounds {
    /// Starts without observations. They lie in `[low, high]`; `alpha` is a probability.
    pub fn new(low: f64, high: f64, alpha: f64) -> MeanBounds {
        MeanBounds {
            low,
            high,
            enough: -alpha.ln(),
            count: 0,
            sum: 0.0,
            squares: 0.0,
            above: vec![0.0; GRID],
            below: vec![0.0; GRID],
            lower: 0,
            upper: GRID - 1,
        }
    }

    /// Adds an observation. Values outside the range are clamped, and NaN is ignored.
    pub fn observe(&mut self, value: f64) {
        if value.is_nan() {
            return;
        }
        let x = value.clamp(self.low, self.high);
        // Estimates from earlier observations, with one imagined at each end of the range so that the first bets are
        // small.
        let (middle, half) = ((self.low + self.high) / 2.0, (self.high - self.low) / 2.0);
        let n = self.count as f64 + 1.0;
        let mean = (self.sum + middle) / n;
        let variance = ((self.squares + half * half + middle * middle) / n - mean * mean).max(1e-6 * half * half);
        let values: Vec<f64> = (0..GRID).map(|i| self.value(i)).collect();
        for ((m, above), below) in values.into_iter().zip(&mut self.above).zip(&mut self.below) {
            let bet = (mean - m) / (variance + (mean - m).powi(2));
            let up = bet.clamp(0.0, STAKE / (m - self.low).max(1e-12));
            let down = (-bet).clamp(0.0, STAKE / (self.high - m).max(1e-12));
            *above += (up * (x - m)).ln_1p();
            *below += (-down * (x - m)).ln_1p();
        }
        // What was ruled out once stays ruled out.
        while self.lower + 1 < GRID && self.above.get(self.lower).is_some_and(|f| *f >= self.enough) {
            self.lower += 1;
        }
        while self.upper > 0 && self.below.get(self.upper).is_some_and(|f| *f >= self.enough) {
            self.upper -= 1;
        }
        self.count += 1;
        self.sum += x;
        self.squares += x * x;
    }

    fn value(&self, i: usize) -> f64 {
        self.low + (self.high - self.low) * i as f64 / (GRID - 1) as f64
    }

    /// The present bounds; the whole range if nothing is ruled out.
    pub fn interval(&self) -> Interval {
        let mean = if self.count == 0 { 0.0 } else { self.sum / self.count as f64 };
        let lower = self.value(self.lower.saturating_sub(1));
        let upper = self.value((self.upper + 1).min(GRID - 1));
        Interval { count: self.count, mean, lower, upper }
    }
}

/// The version that an observation belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    /// The active version.
    Parent,
    /// The one on trial.
    Candidate,
}

/// The candidate's mean less the parent's.
///
/// The observations of both between two points in time make one value, the difference of their means: so both come from
/// similar users and hours, whatever changes over the days, and however few users get the candidate.
#[derive(Clone, Debug)]
pub struct Difference {
    bounds: MeanBounds,
    parent: (f64, u64),
    candidate: (f64, u64),
}

impl Difference {
    /// Starts without observations, which lie in a range of length `span`.
    pub fn new(span: f64, alpha: f64) -> Difference {
        Difference { bounds: MeanBounds::new(-span, span, alpha), parent: (0.0, 0), candidate: (0.0, 0) }
    }

    /// Adds an observation.
    pub fn observe(&mut self, arm: Arm, value: f64) {
        if value.is_nan() {
            return;
        }
        let side = match arm {
            Arm::Parent => &mut self.parent,
            Arm::Candidate => &mut self.candidate,
        };
        *side = (side.0 + value, side.1 + 1);
        if self.parent.1 >= PARENTS && self.candidate.1 > 0 {
            let mean = |(sum, count): (f64, u64)| sum / count as f64;
            self.bounds.observe(mean(self.candidate) - mean(self.parent));
            (self.parent, self.candidate) = ((0.0, 0), (0.0, 0));
        }
    }

    /// The present bounds.
    pub fn interval(&self) -> Interval {
        self.bounds.interval()
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn thumbs(rng: &mut ChaCha8Rng, mean: f64) -> f64 {
        if rng.random_range(-1.0..1.0) < mean { 1.0 } else { -1.0 }
    }

    #[test]
    fn nothing_is_known_before_anything_was_seen() {
        let interval = MeanBounds::new(-1.0, 1.0, 0.05).interval();
        assert_eq!(interval, Interval { count: 0, mean: 0.0, lower: -1.0, upper: 1.0 });
    }

    #[test]
    fn bounds_close_in_on_the_mean() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut bounds = MeanBounds::new(-1.0, 1.0, 0.05);
        (0..4000).for_each(|_| bounds.observe(thumbs(&mut rng, 0.3)));
        let Interval { lower, upper, .. } = bounds.interval();
        assert!(lower > 0.2 && lower < 0.3 && upper < 0.4 && upper > 0.3, "{lower} {upper}");
    }

    #[test]
    fn looking_after_each_observation_is_wrong_no_more_often_than_promised() {
        let wrong = (0..400)
            .filter(|seed| {
                let mut rng = ChaCha8Rng::seed_from_u64(*seed);
                let mut bounds = MeanBounds::new(-1.0, 1.0, 0.05);
                (0..300).any(|_| {
                    bounds.observe(thumbs(&mut rng, 0.5));
                    bounds.interval().lower > 0.5
                })
            })
            .count();
        // 20 are expected at most; 35 are more than three deviations from that.
        assert!(wrong < 35, "{wrong} of 400 lower bounds passed the mean");
    }

    #[test]
    fn values_that_drift_together_make_no_difference() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut difference = Difference::new(2.0, 0.01);
        for i in 0..2000 {
            let arm = if rng.random_bool(0.25) { Arm::Candidate } else { Arm::Parent };
            difference.observe(arm, thumbs(&mut rng, -0.8 + 1.6 * f64::from(i) / 2000.0));
        }
        let Interval { lower, upper, .. } = difference.interval();
        assert!(lower < 0.0 && upper > 0.0, "{lower} {upper}");
    }

    #[test]
    fn odd_values_change_nothing_or_count_as_the_nearer_end() {
        let mut bounds = MeanBounds::new(0.0, 1.0, 0.05);
        bounds.observe(f64::NAN);
        assert_eq!(bounds.interval().count, 0);
        bounds.observe(f64::INFINITY);
        assert_eq!(bounds.interval().mean, 1.0);
    }
}

//! Measures how well scores rank the better answer above the worse. Never computes a score.

use serde::{Deserialize, Serialize};

/// Bins of the calibration error.
const BINS: usize = 10;

/// How well scores rank pairs. A margin is the chosen answer's score minus the rejected one's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Pairs that were measured.
    pub pairs: usize,
    /// Pairs left out because a score was not a finite number.
    pub not_finite: usize,
    /// Share of pairs whose chosen answer scores higher; a tie counts half.
    pub accuracy: f64,
    /// Standard error of the accuracy.
    pub accuracy_stderr: f64,
    /// Mean of `-ln sigmoid(margin)`, in nats: the training loss.
    pub loss: f64,
    /// Margins.
    pub margin: Spread,
    /// Scores of all answers.
    pub score: Spread,
    /// Expected calibration error: the distance between `sigmoid(|margin|)` and the share of pairs ranked correctly,
    /// averaged over ten bins weighted by their pairs.
    pub calibration_error: f64,
    /// The non-empty bins, by increasing confidence.
    pub calibration: Vec<Bin>,
}

/// Mean, standard deviation and quantiles.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub std: f64,
    /// The 5th, 25th, 50th, 75th and 95th percentile.
    pub percentiles: [f64; 5],
}

/// Pairs of similar confidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Mean confidence: `sigmoid(|margin|)`.
    pub confidence: f64,
    /// Share of pairs ranked correctly.
    pub accuracy: f64,
    /// Number of pairs.
    pub pairs: usize,
}

impl Report {
    /// Evaluates the scores of chosen and rejected answers, pair by pair.
    pub fn new(chosen: &[f32], rejected: &[f32]) -> Self {
        let pairs = || chosen.iter().zip(rejected).map(|(c, r)| (f64::from(*c), f64::from(*r)));
        let finite = |(c, r): &(f64, f64)| c.is_finite() && r.is_finite();
        let margins: Vec<f64> = pairs().filter(finite).map(|(c, r)| c - r).collect();
        let scores: Vec<f64> = pairs().filter(finite).flat_map(|(c, r)| [c, r]).collect();
        let count = margins.len();
        let mut report = Self { pairs: count, not_finite: chosen.len().min(rejected.len()) - count, ..Self::default() };
        if count == 0 {
            return report;
        }
        report.accuracy = margins.iter().map(|m| right(*m)).sum::<f64>() / count as f64;
        report.accuracy_stderr = (report.accuracy * (1.0 - report.accuracy) / count as f64).sqrt();
        report.loss = margins.iter().map(|m| softplus(-m)).sum::<f64>() / count as f64;
        report.calibrate(&margins);
        report.margin = Spread::of(margins);
        report.score = Spread::of(scores);
        report
    }

    fn calibrate(&mut self, margins: &[f64]) {
        let mut bins = [Bin::default(); BINS];
        for margin in margins {
            let confidence = 1.0 / (1.0 + (-margin.abs()).exp());
            // Confidence begins at one half.
            let index = ((confidence - 0.5) * 2.0 * BINS as f64) as usize;
            if let Some(bin) = bins.get_mut(index.min(BINS - 1)) {
                bin.confidence += confidence;
                bin.accuracy += right(*margin);
                bin.pairs += 1;
            }
        }
        for mut bin in bins.into_iter().filter(|bin| bin.pairs > 0) {
            bin.confidence /= bin.pairs as f64;
            bin.accuracy /= bin.pairs as f64;
            self.calibration_error += (bin.confidence - bin.accuracy).abs() * bin.pairs as f64 / margins.len() as f64;
            self.calibration.push(bin);
        }
    }
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        let count = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / count;
        let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count).sqrt();
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values.get((share * (values.len() - 1) as f64).round() as usize).copied().unwrap_or(0.0);
        let percentiles = if values.is_empty() { [0.0; 5] } else { [0.05, 0.25, 0.5, 0.75, 0.95].map(at) };
        Self { mean, std, percentiles }
    }
}

fn right(margin: f64) -> f64 {
    match margin {
        m if m > 0.0 => 1.0,
        m if m < 0.0 => 0.0,
        _ => 0.5,
    }
}

/// ln(1 + exp(x)), without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_margins_and_calibration_are_those_of_a_count_by_hand() {
        let report = Report::new(&[2.0, 0.0, 1.0, f32::NAN, 3.0], &[0.0, 1.0, 1.0, 0.0, f32::INFINITY]);
        assert_eq!((report.pairs, report.not_finite), (3, 2));
        assert_eq!(report.accuracy, 0.5);
        assert!((report.margin.mean - 1.0 / 3.0).abs() < 1e-12);
        let loss = ((1.0 + (-2f64).exp()).ln() + (1.0 + 1f64.exp()).ln() + 2f64.ln()) / 3.0;
        assert!((report.loss - loss).abs() < 1e-12);
        // Three bins of one pair each: correct with 0.881, wrong with 0.731, and a tie at one half.
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let expected = ((1.0 - sigmoid(2.0)) + sigmoid(1.0)) / 3.0;
        assert!((report.calibration_error - expected).abs() < 1e-12, "{report:?}");
        assert_eq!(report.calibration.iter().map(|b| b.pairs).collect::<Vec<_>>(), [1, 1, 1]);
    }

    #[test]
    fn no_pairs_give_no_numbers_that_are_not_finite() {
        assert_eq!(Report::new(&[], &[]), Report::default());
    }
}

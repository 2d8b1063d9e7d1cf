//! Computes one number for an answer: a weighted sum of terms, leaving out those that are unknown. Never asks anyone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::align::RewardScale;
use crate::config::RewardConfig;
use crate::error::Result;
use crate::types::{Score, Term};

/// The facts about an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// Its mean rating by people, in [-1, 1].
    pub rating: Option<f64>,
    /// A reward model's own score.
    pub model: Option<f64>,
    /// The score by the application's own function.
    pub external: Option<f64>,
    /// Its named signals.
    pub signals: Vec<String>,
    /// Tokens of the answer.
    pub tokens: usize,
}

/// Running scales of scores. Kept with each policy version, so that going back to one restores its scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scales {
    /// Of the reward model's own scores.
    pub model: RewardScale,
    /// Of the scores of the application's own function.
    pub external: RewardScale,
    /// Version of the reward model that the scores come from; another version starts new scales.
    pub reward_version: u64,
}

/// The weights of the terms.
#[derive(Clone, Debug)]
pub struct Terms {
    config: RewardConfig,
    signals: BTreeMap<String, f64>,
}

impl Terms {
    /// Reads the settings.
    ///
    /// # Errors
    /// `Arg` for signals that are not names with weights.
    pub fn new(config: &RewardConfig) -> Result<Self> {
        Ok(Self { signals: config.signal_weights()?, config: config.clone() })
    }

    /// Sums the terms. `None` if only the answer's length is known, which alone means nothing. Non-finite scores are
    /// left out.
    pub fn score(&self, known: &Known, scales: &Scales) -> Option<Score> {
        let c = &self.config;
        let mut terms = Vec::new();
        let mut add = |name: &str, value: f64, weight: f64, raw: Option<f64>| {
            if weight != 0.0 && value.is_finite() {
                terms.push(Term { name: name.to_owned(), value, weight, raw });
            }
        };
        if let Some(rating) = known.rating {
            add("rating", rating, c.rating_weight, None);
        }
        // Centred, since the zero of such a score means nothing, and would reward or punish every answer alike.
        let normal = |raw: f64, scale: &RewardScale| (raw - scale.mean) / scale.std();
        if let Some(raw) = known.model {
            add("model", normal(raw, &scales.model), c.model_weight, Some(raw));
        }
        if let Some(raw) = known.external {
            add("external", normal(raw, &scales.external), c.external_weight, Some(raw));
        }
        for name in &known.signals {
            add(&format!("signal:{name}"), 1.0, self.signals.get(name).copied().unwrap_or(0.0), None);
        }
        if terms.is_empty() {
            return None;
        }
        let over = known.tokens as f64 / f64::from(c.length_free) - 1.0;
        let weight = c.length_weight;
        if weight != 0.0 {
            terms.push(Term { name: "length".into(), value: -over.clamp(0.0, 1.0), weight, raw: None });
        }
        Some(self.sum(terms))
    }

    /// The score of a correction as a sample, if corrections are trained on.
    pub fn correction(&self) -> Option<Score> {
        let value = self.config.correction;
        let term = || Term { name: "correction".into(), value, weight: 1.0, raw: None };
        (value > 0.0).then(|| self.sum(vec![term()]))
    }

    fn sum(&self, terms: Vec<Term>) -> Score {
        let sum: f64 = terms.iter().map(|t| t.value * t.weight).sum();
        Score { score: sum.clamp(-self.config.clip, self.config.clip), terms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(change: impl FnOnce(&mut RewardConfig)) -> Terms {
        let mut config = RewardConfig::default();
        change(&mut config);
        Terms::new(&config).unwrap()
    }

    #[test]
    fn each_term_is_left_out_where_it_is_missing_and_says_what_it_added() {
        let mut scales = Scales::default();
        scales.model.update(&[1.0, 3.0]);
        let terms = terms(|c| (c.model_weight, c.length_weight, c.length_free) = (0.5, 0.2, 10));
        let of = |known: Known| terms.score(&known, &scales);
        assert_eq!(of(Known { tokens: 15, ..Known::default() }), None);
        let rated = of(Known { rating: Some(-0.5), tokens: 10, ..Known::default() }).unwrap();
        assert_eq!((rated.score, rated.terms.len()), (-0.5, 2));
        let all = Known {
            rating: Some(1.0),
            model: Some(2.0 + 2f64.sqrt()),
            external: None,
            signals: vec!["copied".into(), "unheard".into()],
            tokens: 15,
        };
        let all = of(all).unwrap();
        let names: Vec<&str> = all.terms.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["rating", "model", "signal:copied", "length"]);
        assert!((all.score - (1.0 + 0.5 * 1.0 + 0.3 - 0.2 * 0.5)).abs() < 1e-12, "{all:?}");
        assert_eq!(all.terms[1].raw, Some(2.0 + 2f64.sqrt()));
    }

    #[test]
    fn the_sum_is_clipped_and_scores_that_are_no_numbers_are_left_out() {
        let terms = terms(|c| (c.model_weight, c.clip) = (100.0, 2.0));
        let of = |model: f64| terms.score(&Known { model: Some(model), ..Known::default() }, &Scales::default());
        assert_eq!(of(7.0).map(|s| s.score), Some(2.0));
        assert_eq!(of(-7.0).map(|s| s.score), Some(-2.0));
        assert_eq!((of(f64::NAN), of(f64::INFINITY)), (None, None));
    }

    #[test]
    fn signals_are_names_with_weights() {
        let signals = |text: &str| RewardConfig { signals: text.into(), ..RewardConfig::default() }.signal_weights();
        assert_eq!(signals("a=1, b = -0.5,").unwrap(), BTreeMap::from([("a".into(), 1.0), ("b".into(), -0.5)]));
        for wrong in ["a", "=1", "a=x", "a=inf"] {
            assert!(signals(wrong).unwrap_err().message().contains("expected names and weights"), "{wrong}");
        }
    }
}

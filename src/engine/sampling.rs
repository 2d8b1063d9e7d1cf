//! How requests are sampled that say nothing of it: as the settings say, else as the model's file recommends, else the
//! plain policy. Samples nothing.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::Engine;
use crate::config::SamplingConfig;
use crate::gguf::{Gguf, Value};
use crate::types::Sampling;

impl Engine {
    /// How a request is sampled that says nothing of it. A request's own values win, one by one.
    pub fn default_sampling(&self) -> &Sampling {
        &self.inner.sampling
    }
}

/// The defaults for a model.
pub(super) fn defaults(config: &SamplingConfig, file: &Gguf) -> Sampling {
    let plain = Sampling::default();
    let said = Recommended { file, taken: config.recommended };
    let one = |set: Option<f64>, key: &str, range: &RangeInclusive<f32>, plain: f32| {
        set.map(|set| set as f32).or_else(|| said.number(key, range)).unwrap_or(plain)
    };
    Sampling {
        temperature: one(config.temperature, "temp", &Sampling::TEMPERATURE, plain.temperature),
        top_k: config.top_k.or_else(|| said.top_k()).unwrap_or(plain.top_k),
        top_p: one(config.top_p, "top_p", &Sampling::MASS, plain.top_p),
        min_p: one(config.min_p, "min_p", &Sampling::MASS, plain.min_p),
        repeat_penalty: one(config.repeat_penalty, "penalty_repeat", &Sampling::REPEAT_PENALTY, plain.repeat_penalty),
        frequency_penalty: config.frequency_penalty.map_or(plain.frequency_penalty, |set| set as f32),
        presence_penalty: config.presence_penalty.map_or(plain.presence_penalty, |set| set as f32),
        ..plain
    }
}

/// The keys `general.sampling` of a file, named as llama.cpp does. What makes no sense is left out with a warning:
/// nobody should be kept from serving by advice.
struct Recommended<'a> {
    file: &'a Gguf,
    taken: bool,
}

impl Recommended<'_> {
    fn value(&self, key: &str) -> Option<f64> {
        let value = self.file.get(&format!("general.sampling.{key}")).filter(|_| self.taken)?;
        match value {
            Value::F32(v) => Some(f64::from(*v)),
            Value::F64(v) => Some(*v),
            Value::U32(v) => Some(f64::from(*v)),
            Value::I32(v) => Some(f64::from(*v)),
            other => {
                ignored(key, other.kind());
                None
            }
        }
    }

    fn number(&self, key: &str, range: &RangeInclusive<f32>) -> Option<f32> {
        let value = self.value(key)? as f32;
        if range.contains(&value) {
            return Some(value);
        }
        ignored(key, value);
        None
    }

    /// Negative numbers and 0 leave out no token.
    fn top_k(&self) -> Option<u32> {
        let value = self.value("top_k")?;
        if value.is_finite() && value <= f64::from(Sampling::MAX_TOP_K) {
            return Some(value.max(0.0) as u32);
        }
        ignored("top_k", value);
        None
    }
}

fn ignored(key: &str, value: impl Display) {
    tracing::warn!(%value, "the model's file recommends a general.sampling.{key} that can't be used");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Writer;

    fn of(config: &SamplingConfig, keys: &[(&str, Value)]) -> Sampling {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.gguf");
        let mut file = Writer::new();
        for (key, value) in keys {
            file.set(&format!("general.sampling.{key}"), value.clone());
        }
        file.write(&path).unwrap();
        defaults(config, &Gguf::open(&path).unwrap())
    }

    fn file() -> Vec<(&'static str, Value)> {
        vec![
            ("temp", Value::F32(0.5)),
            ("top_k", Value::I32(20)),
            ("top_p", Value::F32(0.75)),
            ("penalty_repeat", Value::F32(1.25)),
        ]
    }

    #[test]
    fn settings_win_over_the_file_and_the_file_over_the_plain_policy() {
        let unset = SamplingConfig::default();
        assert_eq!(of(&unset, &[]), Sampling::default());
        let recommended =
            Sampling { temperature: 0.5, top_k: 20, top_p: 0.75, repeat_penalty: 1.25, ..Sampling::default() };
        assert_eq!(of(&unset, &file()), recommended);
        let set = SamplingConfig { temperature: Some(1.5), min_p: Some(0.25), ..unset };
        assert_eq!(of(&set, &file()), Sampling { temperature: 1.5, min_p: 0.25, ..recommended });
        let own = SamplingConfig { recommended: false, ..unset };
        assert_eq!(of(&own, &file()), Sampling::default());
    }

    #[test]
    fn advice_that_makes_no_sense_is_left_out() {
        let odd = [
            ("temp", Value::F32(f32::NAN)),
            ("top_p", Value::F32(7.0)),
            ("min_p", Value::String("much".into())),
            ("top_k", Value::I32(-1)),
        ];
        assert_eq!(of(&SamplingConfig::default(), &odd), Sampling::default());
    }
}

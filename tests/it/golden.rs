//! Runs the golden cases of tests/golden, or of the folder that `APA_GOLDEN_DIR` names, in f32 and f64.

use std::path::{Path, PathBuf};

use apa::align::*;
use candle_core::{DType, Tensor, Var};
use serde_json::Value;

use crate::support::device::device;

fn golden_dir() -> PathBuf {
    std::env::var_os("APA_GOLDEN_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), PathBuf::from)
}

fn cases() -> Vec<(String, Value)> {
    let dir = golden_dir();
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut paths: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "json"));
    paths.sort();
    assert!(!paths.is_empty(), "no case in {}", dir.display());
    let read = |p: &PathBuf| {
        let case =
            serde_json::from_slice(&std::fs::read(p).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", p.display()));
        (p.file_name().unwrap().to_string_lossy().into_owned(), case)
    };
    paths.iter().map(read).collect()
}

/// Numbers of a scalar, a row or rows, end to end.
fn flat(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(flat).collect(),
        other => vec![other.as_f64().unwrap_or_else(|| panic!("{other} is not a number"))],
    }
}

struct Case<'a> {
    name: &'a str,
    json: &'a Value,
    dtype: DType,
    tolerance: f64,
}

impl Case<'_> {
    fn setting(&self, key: &str) -> f64 {
        self.json["config"][key].as_f64().unwrap_or_else(|| panic!("{}: no setting {key}", self.name))
    }

    fn input(&self, key: &str) -> Tensor {
        let value = &self.json["inputs"][key];
        let rows = value.as_array().unwrap_or_else(|| panic!("{}: no input {key}", self.name));
        let numbers = flat(value);
        let tensor = Tensor::from_slice(&numbers, numbers.len(), &device()).unwrap().to_dtype(self.dtype).unwrap();
        if rows[0].is_array() { tensor.reshape((rows.len(), ())).unwrap() } else { tensor }
    }

    fn check(&self, key: &str, got: &Tensor) {
        let expected = flat(&self.json["expected"][key]);
        let got = got.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(got.len(), expected.len(), "{} {key}", self.name);
        // The inputs are rounded to the dtype: near zero, that alone is more than the relative tolerance.
        let rounding = self.epsilon() * expected.iter().fold(0.0, |m: f64, e| m.max(e.abs()));
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let error = (got - expected).abs();
            let near = error <= self.tolerance * expected.abs() + rounding;
            assert!(near, "{} {key}[{i}] in {:?}: {got}, expected {expected}: off by {error:e}", self.name, self.dtype);
        }
    }

    fn epsilon(&self) -> f64 {
        if self.dtype == DType::F32 { f32::EPSILON.into() } else { f64::EPSILON }
    }

    fn run(&self) {
        let algorithm = self.json["algorithm"].as_str().unwrap();
        let mask = self.input("mask");
        let (reference, behavior) = (self.input("ref_logprobs"), self.input("behavior_logprobs"));
        let old_values = self.input("old_values");
        let logprobs = Var::from_tensor(&self.input("logprobs")).unwrap();
        let values = Var::from_tensor(&self.input("values")).unwrap();

        let (policy_loss, returns) = if algorithm == "apa_response" {
            self.whole_answers(&logprobs, &reference, &old_values, &mask)
        } else {
            self.tokens(algorithm, &logprobs, &reference, &behavior, &old_values, &mask)
        };
        let value_loss = match algorithm {
            "ppo" => {
                let clip = self.setting("value_clip_range");
                clipped_value_loss(&values, &old_values, &returns, &mask, clip).unwrap().loss
            }
            _ => value_loss(&values, &returns, &mask).unwrap(),
        };
        let total = (&policy_loss + (&value_loss * self.setting("value_coef")).unwrap()).unwrap();
        self.check("policy_loss", &policy_loss);
        self.check("value_loss", &value_loss);
        self.check("total_loss", &total);

        let mut grads = total.backward().unwrap();
        self.check("d_logprobs", &grads.remove(&logprobs).unwrap());
        self.check("d_values", &grads.remove(&values).unwrap());

        self.check("kl_k1", &masked_mean(&kl_k1(&behavior, &reference).unwrap(), &mask).unwrap());
        self.check("kl_k3", &masked_mean(&kl_k3(&behavior, &reference).unwrap(), &mask).unwrap());
    }

    /// The cases whose action is a token: the policy loss and the returns.
    fn tokens(
        &self,
        algorithm: &str,
        logprobs: &Tensor,
        reference: &Tensor,
        behavior: &Tensor,
        old_values: &Tensor,
        mask: &Tensor,
    ) -> (Tensor, Tensor) {
        let mut rewards = terminal_rewards(&self.input("scores"), mask).unwrap();
        if algorithm == "ppo" {
            let penalty = kl_penalty(behavior, reference, mask, self.setting("kl_coef")).unwrap();
            rewards = (rewards + penalty).unwrap();
        }
        self.check("rewards", &rewards);

        let (advantages, returns) =
            gae(&rewards, old_values, mask, self.setting("gamma"), self.setting("gae_lambda")).unwrap();
        self.check("advantages", &advantages);
        self.check("returns", &returns);
        let whitened = self.json["config"]["whiten"].as_bool().unwrap();
        let used = if whitened { whiten(&advantages, mask).unwrap() } else { advantages };
        self.check("advantages_used", &used);

        let policy_loss = match algorithm {
            "apa" => apa_loss(logprobs, reference, &used, mask, self.setting("lambda")).unwrap(),
            "awr" => awr_loss(logprobs, &used, mask, self.setting("lambda")).unwrap(),
            "ppo" => ppo_loss(logprobs, behavior, &used, mask, self.setting("clip_range")).unwrap().loss,
            other => panic!("{}: unknown algorithm {other}", self.name),
        };
        (policy_loss, returns)
    }

    /// The cases whose action is the whole answer: undiscounted returns, and the value of the prompt to compare with.
    fn whole_answers(
        &self,
        logprobs: &Tensor,
        reference: &Tensor,
        old_values: &Tensor,
        mask: &Tensor,
    ) -> (Tensor, Tensor) {
        let rewards = terminal_rewards(&self.input("scores"), mask).unwrap();
        let (advantages, returns) = gae(&rewards, old_values, mask, 1.0, 1.0).unwrap();
        self.check("returns", &returns);
        let advantages = advantages.narrow(1, 0, 1).unwrap().squeeze(1).unwrap();
        self.check("answer_advantages", &advantages);
        let (nats, power) = (self.setting("nats_per_reward"), self.setting("length_power"));
        (apa_response_loss(logprobs, reference, &advantages, mask, nats, power).unwrap(), returns)
    }
}

fn run_all(dtype: DType, tolerance: f64) {
    for (name, json) in &cases() {
        Case { name, json, dtype, tolerance }.run();
    }
}

#[test]
fn golden_cases_hold_in_f32() {
    run_all(DType::F32, 1e-5);
}

#[test]
fn golden_cases_hold_in_f64() {
    run_all(DType::F64, 1e-10);
}

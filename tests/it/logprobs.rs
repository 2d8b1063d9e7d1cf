//! `apad logprobs`: what trains and what serves give the same tokens the same log-probabilities, under an adapter too.

use std::path::{Path, PathBuf};
use std::process::Command;

use apa::llama::Model;
use serde_json::{Value, json};

use crate::support::adapter::lively_adapter;
use crate::support::tiny::{TinySpec, tiny_model};

fn adapter(model: &Path, path: &Path) {
    lively_adapter(model, 8.0, path);
}

fn logprobs(model: &Path, adapter: Option<&Path>, engine: &str, input: &Path) -> Vec<f64> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
    command.arg("logprobs").arg("--model").arg(model).args(["--engine", engine]).arg("--input").arg(input);
    command.args(adapter.map(|path| [Path::new("--adapter"), path]).into_iter().flatten());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| -> Vec<f64> {
        let value: Value = serde_json::from_str(line).unwrap();
        value["logprobs"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    lines.lines().flat_map(line).collect()
}

fn mean_gap(a: &[f64], b: &[f64]) -> f64 {
    assert!(a.len() == b.len() && a.len() > 30, "{} and {}", a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f64>() / a.len() as f64
}

const TEXTS: [&str; 2] = [
    "A robin sat on the fence and sang until the sun went down. Then it flew home, because the night was cold.",
    "To boil an egg, put it in water that boils and wait seven minutes; cool it before you peel it.",
];

/// A line of tokens for each of the texts.
fn tokens(model: &Path, folder: &Path) -> PathBuf {
    let model = Model::load(model, 0).unwrap();
    let lines = TEXTS.map(|text| json!({"tokens": model.tokenize(text, true, false).unwrap()}).to_string());
    let path = folder.join("tokens.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

#[test]
fn both_engines_agree_on_a_tiny_model_with_an_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let (model, lora) = (folder.path().join("tiny.gguf"), folder.path().join("lora.gguf"));
    tiny_model(&model, &TinySpec::new("llama")).unwrap();
    adapter(&model, &lora);
    let input = tokens(&model, folder.path());
    let plain = logprobs(&model, None, "candle", &input);
    let candle = logprobs(&model, Some(&lora), "candle", &input);
    let llama = logprobs(&model, Some(&lora), "llama", &input);
    assert!(mean_gap(&candle, &llama) < 1e-4, "{}", mean_gap(&candle, &llama));
    assert!(mean_gap(&candle, &plain) > 1e-3, "the adapter does nothing");
}

#[test]
fn both_engines_agree_on_the_real_model_with_an_adapter() {
    let Some(model) = std::env::var_os("APA_TEST_MODEL").map(PathBuf::from) else {
        eprintln!("SKIPPED: APA_TEST_MODEL names no model");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let lora = folder.path().join("lora.gguf");
    adapter(&model, &lora);
    let input = tokens(&model, folder.path());
    let candle = logprobs(&model, Some(&lora), "candle", &input);
    let gap = mean_gap(&candle, &logprobs(&model, Some(&lora), "llama", &input));
    eprintln!("as quantized: {gap:.4} nats a token");
    assert!(gap <= 0.15, "as quantized: {gap} nats a token");
}

#[test]
fn lines_that_are_no_tokens_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("tokens.jsonl");
    std::fs::write(&input, "{\"tokens\": [1, 2]}\n{\"tokens\": [1]}\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
    command.args(["logprobs", "--model", "x.gguf", "--engine", "candle", "--input"]).arg(&input);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("tokens.jsonl:2: 1 tokens, expected at least 2"), "{said}");
}

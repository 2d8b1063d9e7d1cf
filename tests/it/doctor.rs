//! `apad doctor`: every kernel is tried, what is wrong is a sentence, and its forecast of memory is near what is used.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::tiny::{TinySpec, tiny_model};

fn apad(args: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_apad")).args(args).current_dir(folder).output().unwrap()
}

fn json(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"))
}

#[test]
fn a_machine_that_is_well_is_told_with_every_kernel_and_what_the_model_needs() {
    let dir = tempfile::tempdir().unwrap();
    tiny_model(&dir.path().join("tiny.gguf"), &TinySpec::new("llama")).unwrap();
    let output = apad(&["doctor", "--model", "tiny.gguf", "--data", "not/yet/there", "--json"], dir.path());
    let said = json(&output);
    assert!(output.status.success(), "{said}");
    assert_eq!(said["faults"], Value::Array(vec![]));
    let kernels = said["kernels"].as_array().unwrap();
    assert_eq!(kernels.len(), apa::doctor::kernels(&apa::policy::device("auto").unwrap()).count());
    assert!(kernels.iter().all(|k| k["gap"].is_number() && k.get("fault").is_none()), "{kernels:?}");
    let report = &said["report"];
    assert_eq!(report["processor"]["missing"], Value::Array(vec![]));
    assert!(report["model"]["Ok"]["serving"]["weights"].as_u64().unwrap() > 10_000, "{report}");
    assert!(report["free_disk"].as_u64().unwrap() > 0);
    assert!(!dir.path().join("not").exists(), "it only looks");

    let text = String::from_utf8(apad(&["doctor"], dir.path()).stdout).unwrap();
    assert!(text.contains("processor") && text.contains("serving: product, q4_1"), "{text}");
}

#[test]
fn what_is_wrong_is_one_sentence_and_ends_with_one() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("bad.gguf"), b"no model").unwrap();
    let output = apad(&["doctor", "--model", "bad.gguf"], dir.path());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.starts_with("apad: ") && said.contains("bad.gguf"), "{said}");

    let output = apad(&["doctor", "--kernel", "none such"], dir.path());
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_forecast_of_training_is_near_what_is_used() {
    let Ok(model) = std::env::var("APA_TEST_MODEL") else { return };
    let dir = tempfile::tempdir().unwrap();
    // As long as the samples that are measured, and held as they are.
    let settings = ["--set", "train.max_tokens=256", "--set", "train.weights=packed"];
    let report = json(&apad(&[&["doctor", "--model", &model, "--json"], &settings[..]].concat(), dir.path()));
    let training = &report["report"]["model"]["Ok"]["training"]["Ok"];
    let forecast: u64 = ["weights", "state", "buffers"].iter().map(|part| training[part].as_u64().unwrap()).sum();
    let args = ["bench", "train", "--model", &model, "--updates", "1", "--json"];
    let output = apad(&args, dir.path());
    assert!(String::from_utf8_lossy(&output.stderr).contains("update 1 of 1: "), "each update is told as it ends");
    let used = json(&output)["peak_rss_mb"].as_u64().unwrap() << 20;
    let ratio = forecast as f64 / used as f64;
    assert!((0.75..1.25).contains(&ratio), "{forecast} was foretold, {used} were used");
}

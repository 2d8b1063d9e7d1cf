//! Tests that the decoder's log-probabilities are llama.cpp's, with and without an adapter.

use std::path::{Path, PathBuf};

use super::*;
use crate::gguf::Value;

/// Maximum and mean absolute difference, in nats.
fn difference(ours: &[f32], theirs: &[f64]) -> (f64, f64) {
    assert_eq!(ours.len(), theirs.len());
    let all = ours.iter().zip(theirs).map(|(&a, &b)| (f64::from(a) - b).abs());
    assert!(all.clone().all(f64::is_finite), "a log-probability is not finite");
    (all.clone().fold(0.0, f64::max), all.sum::<f64>() / ours.len() as f64)
}

/// Compares both engines on a file, without an adapter and with one whose alpha is not its rank.
fn check(model: &Path, folder: &TempDir) {
    check_within(1e-3, model, folder);
}

fn check_within(nats: f64, model: &Path, folder: &TempDir) {
    let decoder = load(model);
    let tokens = tokens(96, decoder.vocabulary(), 11);
    let plain = logprobs(&decoder, &tokens, None);
    let (most, mean) = difference(&plain, &llama_reference::logprobs(model, None, &tokens));
    println!("{}: most {most:.2e}, mean {mean:.2e} nats", model.display());
    assert!(most < nats, "{}: differs by {most} nats", model.display());

    let lora = Lora::new(&decoder, 4, 12.0, None, 5).unwrap();
    fill_b(&lora, 0.3, 6);
    let path = folder.path().join("adapter.gguf");
    lora.write_gguf(&path, &[("apa.policy_version", Value::U64(3))]).unwrap();
    let ours = logprobs(&decoder, &tokens, Some(&lora));
    let (changed, _) = difference(&ours, &plain.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
    assert!(changed > 0.1, "the adapter must change something, it changed {changed} nats");
    let (most, mean) = difference(&ours, &llama_reference::logprobs(model, Some(&path), &tokens));
    println!("  with an adapter: most {most:.2e}, mean {mean:.2e} nats; it changes up to {changed:.2}");
    assert!(most < nats, "{} with an adapter: differs by {most} nats", model.display());

    let read = Lora::read_gguf(&path, &decoder).unwrap();
    assert_eq!(logprobs(&decoder, &tokens, Some(&read)), ours, "an adapter read back computes the same bits");
}

#[test]
fn llama_agrees_with_llama_cpp() {
    let folder = folder();
    check(&write_tiny(&folder, &TinySpec::new("llama")), &folder);
    let untied = TinySpec { tied: false, rope_factors: true, seed: 8, ..TinySpec::new("llama") };
    check(&write_tiny(&folder, &untied), &folder);
}

#[test]
fn linear_rope_scaling_agrees_with_llama_cpp() {
    let folder = folder();
    let plain = write_tiny(&folder, &TinySpec::new("llama"));
    let scaled = altered(&folder, &plain, |file| {
        file.set("llama.rope.scaling.type", "linear").set("llama.rope.scaling.factor", 4f32);
    });
    check(&scaled, &folder);
}

#[test]
fn qwen2_agrees_with_llama_cpp() {
    let folder = folder();
    check(&write_tiny(&folder, &TinySpec::new("qwen2")), &folder);
}

#[test]
fn qwen3_agrees_with_llama_cpp() {
    let folder = folder();
    check(&write_tiny(&folder, &TinySpec::new("qwen3")), &folder);
    check(&write_tiny(&folder, &TinySpec { tied: true, seed: 8, ..TinySpec::new("qwen3") }), &folder);
}

#[test]
fn qwen3moe_agrees_with_llama_cpp() {
    let folder = folder();
    check(&write_tiny(&folder, &TinySpec::new("qwen3moe")), &folder);
    check(&write_tiny(&folder, &TinySpec { tied: true, seed: 8, ..TinySpec::new("qwen3moe") }), &folder);
}

#[test]
fn granite_agrees_with_llama_cpp() {
    let folder = folder();
    check(&write_tiny(&folder, &TinySpec::new("granite")), &folder);
    check(&write_tiny(&folder, &TinySpec { tied: true, seed: 8, ..TinySpec::new("granite") }), &folder);
}

#[test]
fn gemma3_agrees_with_llama_cpp_within_a_window_and_beyond_it() {
    let folder = folder();
    let model = write_tiny(&folder, &TinySpec::new("gemma3"));
    // ggml looks GELU up in a table of 16-bit floats, and here what it gives is multiplied.
    check_within(3e-3, &model, &folder);
    let whole = altered(&folder, &model, |file| {
        file.set("gemma3.attention.sliding_window", 1024u32);
    });
    check_within(3e-3, &whole, &folder);
    let tokens = tokens(96, 280, 11);
    let [narrow, wide] = [&model, &whole].map(|path| logprobs(&load(path), &tokens, None));
    assert_eq!(narrow[..20], wide[..20], "within the window");
    assert!(narrow[40..].iter().zip(&wide[40..]).any(|(a, b)| (a - b).abs() > 1e-2), "the window must matter");
}

#[test]
fn phi3_agrees_with_llama_cpp() {
    let folder = folder();
    let model = write_tiny(&folder, &TinySpec::new("phi3"));
    check(&model, &folder);
    check(&write_tiny(&folder, &TinySpec { tied: true, rotary: 16, seed: 8, ..TinySpec::new("phi3") }), &folder);
    // llama.cpp applies no window to it.
    let windowed = altered(&folder, &model, |file| {
        file.set("phi3.attention.sliding_window", 8u32);
    });
    check(&windowed, &folder);
}

#[test]
fn phi2_agrees_with_llama_cpp() {
    let folder = folder();
    check(&write_tiny(&folder, &TinySpec::new("phi2")), &folder);
    check(&write_tiny(&folder, &TinySpec { rotary: 16, kv_heads: 4, seed: 8, ..TinySpec::new("phi2") }), &folder);
}

#[test]
fn gptneox_agrees_with_llama_cpp() {
    let folder = folder();
    check(&write_tiny(&folder, &TinySpec::new("gptneox")), &folder);
    let sequential = TinySpec { parallel_residual: false, seed: 8, ..TinySpec::new("gptneox") };
    check(&write_tiny(&folder, &sequential), &folder);
}

const CHAT: &str = "<|im_start|>user\nExplain in two sentences why the sky is blue.<|im_end|>\n<|im_start|>assistant\n\
    The sky looks blue because molecules in the air scatter short wavelengths of sunlight more than long ones. That \
    scattered blue light reaches our eyes from every direction, while the red passes straight through.<|im_end|>\n";

/// The real model, from `APA_TEST_MODEL`; without it the test says so and passes.
fn real_model() -> Option<PathBuf> {
    let path = std::env::var_os("APA_TEST_MODEL").map(PathBuf::from);
    if path.is_none() {
        eprintln!("SKIPPED: set APA_TEST_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf to compare on the real model");
    }
    path
}

/// Compares on the real model; each number format has its own limit on the mean absolute difference, in nats.
fn real_agreement(model: &Path, limits: &[(Dtype, f64)]) {
    let folder = folder();
    let tokens = llama_reference::tokenize(model, CHAT);
    let adapter = folder.path().join("adapter.gguf");
    let plain = llama_reference::logprobs(model, None, &tokens);
    let mut adapted = None;
    for &(dtype, limit) in limits {
        let decoder = Decoder::load(model, &Device::Cpu, dtype).unwrap();
        let lora = Lora::new(&decoder, 16, 32.0, None, 5).unwrap();
        fill_b(&lora, 0.004, 6);
        let adapted = adapted.get_or_insert_with(|| {
            lora.write_gguf(&adapter, &[]).unwrap();
            llama_reference::logprobs(model, Some(&adapter), &tokens)
        });
        let shift = plain.iter().zip(&*adapted).map(|(a, b)| (a - b).abs()).sum::<f64>() / plain.len() as f64;
        assert!(shift > 0.02, "the adapter must change something, it changed {shift} nats on average");
        for (what, lora, theirs) in [("plain", None, &plain), ("adapter", Some(&lora), &*adapted)] {
            let (most, mean) = difference(&logprobs(&decoder, &tokens, lora), theirs);
            println!("{what} {dtype:?}: mean {mean:.2e}, most {most:.2e} nats over {} tokens", theirs.len());
            assert!(mean <= limit, "{what}: mean absolute difference {mean} nats, expected at most {limit}");
        }
    }
}

#[test]
fn the_real_model_agrees_on_its_quantized_file() {
    let Some(model) = real_model() else { return };
    real_agreement(&model, &[(Dtype::F32, 0.15), (Dtype::Bf16, 0.15)]);
}

#[test]
fn the_real_model_agrees_in_f32() {
    let Some(model) = real_model() else { return };
    let folder = folder();
    let source = Gguf::open(&model).unwrap();
    let mut full = Writer::new();
    full.copy_metadata(&source).set("general.file_type", 0u32);
    for info in source.tensors() {
        full.tensor(info.name(), &source.dequantize(info.name(), &Device::Cpu).unwrap()).unwrap();
    }
    let path = folder.path().join("f32.gguf");
    full.write(&path).unwrap();
    drop(full);
    // bf16 keeps 8 bits of each operand: 0.019 nats measured.
    real_agreement(&path, &[(Dtype::F32, 0.01), (Dtype::Bf16, 0.03)]);
}

//! Tests of the decoder as a whole: against llama.cpp, against finite differences, and on files that must be refused.

mod agreement;
mod files;
mod gradients;
mod llama_reference;
mod peft;

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

use super::{Decoder, Lora, Packed};
use crate::config::Dtype;
use crate::gguf::{Gguf, Writer};
use crate::tiny::{TinySpec, tiny_model};

const ARCHITECTURES: [&str; 9] =
    ["llama", "qwen2", "qwen3", "qwen3moe", "granite", "gemma3", "phi3", "phi2", "gptneox"];

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn write_tiny(folder: &TempDir, spec: &TinySpec) -> PathBuf {
    let path = folder.path().join(format!("{}-{}.gguf", spec.arch, spec.seed));
    tiny_model(&path, spec).unwrap();
    path
}

fn load(path: &Path) -> Decoder {
    Decoder::load(path, &device(), Dtype::F32).unwrap()
}

/// The CPU, or what `APA_TEST_DEVICE` names.
fn device() -> Device {
    std::env::var("APA_TEST_DEVICE").map_or(Device::Cpu, |name| super::device(&name).unwrap())
}

fn tokens(count: usize, vocabulary: usize, seed: u64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(0..vocabulary as u32)).collect()
}

/// Gives B values, so that the adapter changes something.
fn fill_b(lora: &Lora, size: f32, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for (name, var) in lora.named() {
        if name.ends_with("lora_b") {
            let values: Vec<f32> = (0..var.elem_count()).map(|_| rng.random_range(-size..size)).collect();
            var.set(&Tensor::from_vec(values, var.dims(), var.device()).unwrap()).unwrap();
        }
    }
}

/// Log-probability of every token after the first, at temperature 1.
fn logprobs(decoder: &Decoder, tokens: &[u32], lora: Option<&Lora>) -> Vec<f32> {
    let packed = Packed::new(&[tokens]).unwrap();
    let targets = packed.targets(&[1]).unwrap();
    decoder.response_logprobs(&packed, &targets, &[1.0], lora).unwrap().to_vec1().unwrap()
}

/// A copy of a model with its metadata or tensors changed.
fn altered(folder: &TempDir, from: &Path, change: impl FnOnce(&mut Writer<'_>)) -> PathBuf {
    let source = Gguf::open(from).unwrap();
    let mut copy = Writer::new();
    copy.copy_metadata(&source);
    for info in source.tensors() {
        copy.copy_tensor(&source, info.name()).unwrap();
    }
    change(&mut copy);
    let path = folder.path().join("altered.gguf");
    copy.write(&path).unwrap();
    path
}

#[test]
fn a_decoder_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Decoder>();
    shared::<Lora>();
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    let folder = folder();
    for arch in ARCHITECTURES {
        let decoder = load(&write_tiny(&folder, &TinySpec::new(arch)));
        let (first, second) = (tokens(9, 280, 1), tokens(14, 280, 2));
        let together = decoder.hidden(&Packed::new(&[&first, &second]).unwrap(), None).unwrap();
        let alone = decoder.hidden(&Packed::new(&[&second]).unwrap(), None).unwrap();
        let difference = (together.narrow(0, 9, 14).unwrap() - alone).unwrap().abs().unwrap();
        let difference = difference.max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference < 1e-4, "{arch}: the second sequence differs by {difference} when packed");
    }
}

#[test]
fn targets_are_the_rows_before_each_response_token() {
    let packed = Packed::new(&[vec![5, 6, 7, 8], vec![9, 10, 11]]).unwrap();
    let targets = packed.targets(&[2, 1]).unwrap();
    assert_eq!(targets.rows(), [1, 2, 4, 5]);
    assert_eq!(targets.tokens(), [7, 8, 10, 11]);
    assert_eq!(targets.starts(), [0, 2, 4]);
    assert_eq!(targets.spread(&[0.5, 2.0]).unwrap(), [0.5, 0.5, 2.0, 2.0]);
    assert_eq!(packed.positions(), [0, 1, 2, 3, 0, 1, 2]);
    for prompts in [[4, 1], [0, 1]] {
        assert!(packed.targets(&prompts).unwrap_err().message().contains("expected 1 to 3"));
    }
    assert!(Packed::new::<Vec<u32>>(&[]).is_err());
    assert!(Packed::new(&[vec![1], vec![]]).unwrap_err().message().contains("sequence 1 has no tokens"));
}

#[test]
fn a_temperature_divides_the_logits() {
    let folder = folder();
    let decoder = load(&write_tiny(&folder, &TinySpec::new("llama")));
    let packed = Packed::new(&[tokens(6, 280, 3)]).unwrap();
    let targets = packed.targets(&[1]).unwrap();
    let at = |t: f32| decoder.response_logprobs(&packed, &targets, &[t], None).unwrap().to_vec1::<f32>().unwrap();
    let nearly_uniform = -(decoder.vocabulary() as f32).ln();
    for (plain, hot) in at(1.0).into_iter().zip(at(1e5)) {
        assert!((hot - nearly_uniform).abs() < 1e-3, "{hot} at a huge temperature, expected {nearly_uniform}");
        assert!((plain - nearly_uniform).abs() > 1e-3, "the model must not be uniform at temperature 1");
    }
}

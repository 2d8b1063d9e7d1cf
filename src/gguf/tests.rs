//! Damaged, odd and whole files through the reader and the writer.

use std::fs;
use std::path::PathBuf;

use candle_core::quantized::GgmlDType;
use candle_core::{Device, Tensor};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::error::Code;
use crate::tiny;

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.gguf");
    (folder, path)
}

fn ramp(shape: &[usize]) -> Tensor {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn sample() -> Writer<'static> {
    let mut file = Writer::new();
    file.set("general.architecture", "llama").set("llama.block_count", 2u32).set("eps", 1e-5f32).set("yes", true);
    file.set("words", vec!["ä".to_string(), "".to_string()]).set("types", vec![1i32, -3]).set("wide", u64::MAX);
    file.tensor("a.weight", &ramp(&[3, 5])).unwrap();
    file.tensor_as("q.weight", &ramp(&[4, 64]), GgmlDType::Q4_1).unwrap();
    file.tensor("b", &ramp(&[7])).unwrap();
    file
}

fn refusal(bytes: &[u8]) -> Error {
    let (_folder, path) = folder();
    fs::write(&path, bytes).unwrap();
    Gguf::open(&path).expect_err("a corrupt file must be refused")
}

#[test]
fn a_written_file_reads_back_the_same() {
    let (_folder, path) = folder();
    sample().write(&path).unwrap();
    let file = Gguf::open(&path).unwrap();
    assert_eq!(file.str("general.architecture").unwrap(), "llama");
    assert_eq!(file.u32("llama.block_count").unwrap(), 2);
    assert_eq!(file.f32("eps").unwrap(), 1e-5);
    assert!(file.bool("yes").unwrap());
    assert_eq!(file.opt_strings("words").unwrap().unwrap(), ["ä", ""]);
    assert_eq!(file.opt_i32s("types").unwrap().unwrap(), [1, -3]);
    assert_eq!(file.get("wide"), Some(&Value::U64(u64::MAX)));
    assert_eq!(file.tensor("a.weight").unwrap().shape(), [3, 5]);
    for (name, shape) in [("a.weight", vec![3, 5]), ("b", vec![7])] {
        let read = file.dequantize(name, &Device::Cpu).unwrap();
        assert_eq!(read.dims(), shape);
        let difference = (read - ramp(&shape)).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(difference, 0.0);
    }
}

#[test]
fn every_trainable_number_format_decodes_near_to_what_was_encoded() {
    use GgmlDType::*;
    let original = ramp(&[2, 512]);
    let exact = [(F32, 1e-9), (F16, 1e-3), (BF16, 5e-3), (Q8_0, 5e-3)];
    let coarse = [(Q4_0, 0.05), (Q4_1, 0.05), (Q5_0, 0.03), (Q5_1, 0.03)];
    let blocks = [(Q2K, 0.17), (Q3K, 0.1), (Q4K, 0.05), (Q5K, 0.03), (Q6K, 0.02)];
    for (format, limit) in [&exact[..], &coarse, &blocks].concat() {
        let (_folder, path) = folder();
        let mut file = Writer::new();
        file.tensor_as("w", &original, format).unwrap();
        file.write(&path).unwrap();
        let read = Gguf::open(&path).unwrap().dequantize("w", &Device::Cpu).unwrap();
        let difference = (&read - &original).unwrap().abs().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference < limit, "{format:?} is off by {difference} on average");
    }
}

#[test]
fn a_copied_tensor_keeps_its_bytes() {
    let (folder, path) = folder();
    sample().write(&path).unwrap();
    let file = Gguf::open(&path).unwrap();
    let copy_path = folder.path().join("copy.gguf");
    let mut copy = Writer::new();
    copy.copy_metadata(&file).copy_tensor(&file, "q.weight").unwrap();
    copy.write(&copy_path).unwrap();
    let copy = Gguf::open(&copy_path).unwrap();
    assert_eq!(copy.raw("q.weight").unwrap(), file.raw("q.weight").unwrap());
    assert_eq!(copy.metadata(), file.metadata());
}

#[test]
fn the_fingerprint_is_the_sha256_of_the_file() {
    let (_folder, path) = folder();
    sample().write(&path).unwrap();
    let file = Gguf::open(&path).unwrap();
    let whole = Sha256::digest(fs::read(&path).unwrap());
    let expected: String = whole.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(file.fingerprint().unwrap(), expected);
    file.dequantize("a.weight", &Device::Cpu).unwrap();
    assert_eq!(file.fingerprint().unwrap(), expected, "reading a tensor must not move where the digest begins");
}

#[test]
fn a_wrong_type_names_both_types_and_a_missing_key_is_named() {
    let (_folder, path) = folder();
    sample().write(&path).unwrap();
    let file = Gguf::open(&path).unwrap();
    let wrong = file.u32("eps").unwrap_err();
    assert_eq!(wrong.message(), "metadata key eps has type f32, expected u32");
    assert_eq!(file.f32("nothing").unwrap_err().message(), "metadata key nothing is missing");
    assert_eq!(file.opt_f32("nothing").unwrap(), None);
    assert_eq!(file.opt_strings("types").unwrap_err().code(), Code::Model);
}

#[test]
fn files_of_other_kinds_are_refused_with_the_reason() {
    let (folder, path) = folder();
    assert!(Gguf::open(&path).unwrap_err().message().contains("no such file"));
    assert!(Gguf::open(folder.path()).unwrap_err().message().contains("not a regular file"));
    assert!(refusal(b"").message().contains("not a GGUF file"));
    assert!(refusal(b"PK\x03\x04 a zip archive").message().contains("not a GGUF file"));
    assert!(refusal(b"GGUF\x01\0\0\0").message().contains("version 1"));
    assert!(refusal(b"GGUF\0\0\0\x03").message().contains("big-endian"));
    assert!(refusal(b"GGUF\x03\0\0\0").message().contains("truncated"));
}

#[test]
fn a_name_with_a_nul_is_refused() {
    let (_folder, path) = folder();
    let mut key = sample();
    key.set("yes\0no", true).write(&path).unwrap();
    assert!(Gguf::open(&path).unwrap_err().message().contains("\"yes\\0no\" has a NUL"));
    let mut tensor = sample();
    tensor.tensor("b\0c", &ramp(&[7])).unwrap().write(&path).unwrap();
    assert!(Gguf::open(&path).unwrap_err().message().contains("\"b\\0c\" has a NUL"));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let (_folder, path) = folder();
    sample().write(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    // The last tensor has 28 bytes and 4 of padding, which a file may lack.
    for length in (0..whole.len() - 4).step_by(3).chain([whole.len() - 5]) {
        let error = refusal(&whole[..length]);
        assert!(length < 4 || error.message().contains("truncated"), "cut at {length}: {error}");
    }
}

#[test]
fn absurd_counts_are_refused_before_anything_is_allocated() {
    let huge = u64::MAX.to_le_bytes();
    let head = |tensors: &[u8], values: &[u8]| [b"GGUF\x03\0\0\0", tensors, values].concat();
    let zero = 0u64.to_le_bytes();
    let one = 1u64.to_le_bytes();
    refusal(&head(&huge, &zero));
    refusal(&head(&zero, &huge));
    let key = [&head(&zero, &one)[..], &one, b"k"].concat();
    // A string, and an array of strings, of 2^64 - 1 items.
    refusal(&[&key[..], &8u32.to_le_bytes(), &huge].concat());
    refusal(&[&key[..], &9u32.to_le_bytes(), &8u32.to_le_bytes(), &huge].concat());
    // A tensor whose size overflows.
    let tensor = [&head(&one, &zero)[..], &one, b"t", &2u32.to_le_bytes(), &huge, &huge].concat();
    let error = refusal(&[&tensor[..], &0u32.to_le_bytes(), &zero].concat());
    assert!(error.message().contains("can't hold"), "{error}");
}

/// Written once: the property below needs its bytes hundreds of times.
fn whole_file() -> &'static Vec<u8> {
    static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    BYTES.get_or_init(|| {
        let (_folder, path) = folder();
        sample().write(&path).unwrap();
        fs::read(&path).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn a_corrupt_byte_is_refused_or_read_but_never_a_panic(at in 0usize..1200, value: u8) {
        let (_folder, path) = folder();
        let mut bytes = whole_file().clone();
        let at = at % bytes.len();
        bytes[at] = value;
        fs::write(&path, &bytes).unwrap();
        if let Ok(file) = Gguf::open(&path) {
            for info in file.tensors() {
                let decoded = file.dequantize(info.name(), &Device::Cpu);
                prop_assert!(decoded.is_ok() || info.kind().decoder().is_none());
            }
        }
    }
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let (folder, path) = folder();
    sample().write(&path).unwrap();
    let before = fs::read(&path).unwrap();
    let other = folder.path().join("gone.gguf");
    sample().write(&other).unwrap();
    let source = Gguf::open(&other).unwrap();
    fs::OpenOptions::new().write(true).open(&other).unwrap().set_len(64).unwrap();
    let mut file = Writer::new();
    file.copy_tensor(&source, "a.weight").unwrap();
    file.write(&path).expect_err("the source has shrunk");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing half-written stays behind");
}

#[test]
fn a_tiny_model_has_a_whole_byte_vocabulary_without_repeats() {
    let mut tokens = tiny::vocabulary();
    assert_eq!(tokens[b' ' as usize], "Ġ");
    assert_eq!(tokens[b'\n' as usize], "Ċ");
    let count = tokens.len();
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), count);
    for arch in ["llama", "qwen2", "qwen3", "granite", "gemma3", "gptneox"] {
        let (_folder, path) = folder();
        tiny::tiny_model(&path, &tiny::TinySpec::new(arch)).unwrap();
        assert_eq!(Gguf::open(&path).unwrap().str("general.architecture").unwrap(), arch);
    }
}

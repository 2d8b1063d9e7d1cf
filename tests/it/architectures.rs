//! What has to hold for every row of the trainer's table of architectures.

use apa::gguf::{Gguf, Writer};
use apa::llama::Model;

use crate::support::tiny::{TinySpec, tiny_model};

#[test]
fn the_shape_of_every_architecture_that_can_be_trained_is_checked_before_llama_cpp_sees_it() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good.gguf"), dir.path().join("bad.gguf"));
    for architecture in apa::policy::architectures() {
        tiny_model(&good, &TinySpec::new(architecture)).unwrap();
        Model::load(&good, 0).unwrap_or_else(|error| panic!("{architecture}: {error}"));
        let from = Gguf::open(&good).unwrap();
        let mut file = Writer::new();
        file.copy_metadata(&from).set(&format!("{architecture}.attention.head_count_kv"), 3u32);
        for tensor in from.tensors() {
            file.copy_tensor(&from, tensor.name()).unwrap();
        }
        file.write(&bad).unwrap();
        let refused = Model::load(&bad, 0).err().unwrap_or_else(|| panic!("{architecture} is not checked"));
        assert!(refused.message().contains("head_count_kv is 3, expected a divisor of head_count"), "{refused}");
    }
}

#[test]
fn every_architecture_that_can_be_trained_is_compared_with_transformers() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/check-transformers.py");
    let script = std::fs::read_to_string(script).unwrap();
    let cases: Vec<&str> =
        script.split(" Case(").skip(1).filter_map(|case| case.trim_start().split('"').nth(1)).collect();
    for architecture in apa::policy::architectures().chain(["gptj"]) {
        assert!(cases.contains(&architecture), "no case of {architecture} among {cases:?}");
    }
}

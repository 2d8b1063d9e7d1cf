//! Tests of files that must be refused, with the reason.

use super::*;
use crate::error::{Code, Error};
use crate::gguf::Value;

fn refusal(path: &Path) -> Error {
    Decoder::load(path, &Device::Cpu, Dtype::F32).err().expect("the file must be refused")
}

#[test]
fn an_unknown_architecture_names_itself_and_the_known_ones() {
    let folder = folder();
    let model = write_tiny(&folder, &TinySpec::new("llama"));
    let error = refusal(&altered(&folder, &model, |file| {
        file.set("general.architecture", "mamba");
    }));
    assert_eq!(error.code(), Code::Unsupported);
    assert!(
        error.message().contains("mamba")
            && error.message().contains("llama, qwen2, qwen3, qwen3moe, granite, gemma3, phi3, phi2, gptneox"),
        "{error}"
    );
}

#[test]
fn a_model_that_was_converted_from_something_unknown_is_refused() {
    let folder = folder();
    let model = write_tiny(&folder, &TinySpec::new("phi2"));
    let error = refusal(&altered(&folder, &model, |file| {
        file.set("apa.converted_from", "mamba");
    }));
    assert_eq!(error.code(), Code::Unsupported);
    assert!(error.message().contains("apa.converted_from is mamba, which doesn't become phi2"), "{error}");
}

#[test]
fn declared_features_that_are_not_computed_are_refused() {
    let folder = folder();
    let model = write_tiny(&folder, &TinySpec::new("llama"));
    let declared: [(&str, Value, &str); 4] = [
        ("llama.expert_count", 8u32.into(), "mixture of experts"),
        ("llama.attention.sliding_window", 4096u32.into(), "sliding-window"),
        ("llama.rope.scaling.type", "yarn".into(), "yarn"),
        ("llama.attention.causal", false.into(), "later tokens"),
    ];
    for (key, value, reason) in declared {
        let error = refusal(&altered(&folder, &model, |file| {
            file.set(key, value);
        }));
        assert_eq!(error.code(), Code::Unsupported, "{key}");
        assert!(error.message().contains(reason), "{key}: {error}");
    }
    let zero = altered(&folder, &model, |file| {
        file.set("llama.expert_count", 0u32);
    });
    load(&zero);
    let stray = altered(&folder, &model, |file| {
        file.tensor("blk.0.attn_sinks.weight", &Tensor::ones(4, candle_core::DType::F32, &Device::Cpu).unwrap())
            .unwrap();
    });
    assert!(refusal(&stray).message().contains("attn_sinks"));
}

#[test]
fn metadata_that_does_not_fit_the_tensors_is_refused() {
    let folder = folder();
    let model = write_tiny(&folder, &TinySpec::new("llama"));
    let cases: [(&str, Value, &str); 6] = [
        (
            "llama.feed_forward_length",
            96u32.into(),
            "tensor blk.0.ffn_gate.weight has shape [128, 64], expected [96, 64]",
        ),
        ("llama.block_count", 3u32.into(), "tensor blk.2.attn_norm.weight is missing"),
        ("llama.attention.head_count", 0u32.into(), "expected at least 1"),
        ("llama.attention.head_count_kv", 3u32.into(), "don't divide"),
        ("llama.embedding_length", "wide".into(), "has type string, expected u32"),
        ("llama.rope.dimension_count", 8u32.into(), "expected all"),
    ];
    for (key, value, reason) in cases {
        let error = refusal(&altered(&folder, &model, |file| {
            file.set(key, value);
        }));
        assert_eq!(error.code(), Code::Model, "{key}");
        assert!(error.message().contains(reason), "{key}: {error}");
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_refused() {
    let folder = folder();
    let decoder = load(&write_tiny(&folder, &TinySpec::new("llama")));
    let error = decoder.hidden(&Packed::new(&[[1, 4000]]).unwrap(), None).unwrap_err();
    assert!(error.message().contains("token 4000"), "{error}");
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let folder = folder();
    let decoder = load(&write_tiny(&folder, &TinySpec::new("llama")));
    let other = load(&write_tiny(&folder, &TinySpec { seed: 8, ..TinySpec::new("llama") }));
    let lora = Lora::new(&decoder, 4, 8.0, None, 1).unwrap();
    let path = folder.path().join("adapter.gguf");
    lora.write_gguf(&path, &[]).unwrap();
    let refused = |path: &Path, decoder: &Decoder| Lora::read_gguf(path, decoder).err().expect("must be refused");

    assert!(refused(&path, &other).message().contains("is for base"));
    let packed = Packed::new(&[[1, 2]]).unwrap();
    assert!(other.hidden(&packed, Some(&lora)).unwrap_err().message().contains("is for base"));

    // Without a named base only the shapes can tell.
    let source = Gguf::open(&path).unwrap();
    let rewritten = folder.path().join("rewritten.gguf");
    let rewrite = |skip: &str, change: &dyn Fn(&mut Writer<'_>)| {
        let mut copy = Writer::new();
        for (key, value) in source.metadata().iter().filter(|(key, _)| *key != "apa.base.sha256") {
            copy.set(key, value.clone());
        }
        for info in source.tensors().iter().filter(|info| info.name() != skip) {
            copy.copy_tensor(&source, info.name()).unwrap();
        }
        change(&mut copy);
        copy.write(&rewritten).unwrap();
    };
    rewrite("", &|_| ());
    Lora::read_gguf(&rewritten, &other).unwrap();
    let wide = load(&write_tiny(&folder, &TinySpec { seed: 10, ff: 96, ..TinySpec::new("llama") }));
    assert!(refused(&rewritten, &wide).message().contains("the update is [128, 64], the base's weight [96, 64]"));

    let b = "blk.0.attn_q.weight.lora_b";
    rewrite(b, &|_| ());
    assert!(refused(&rewritten, &decoder).message().contains("blk.0.attn_q.weight has no lora_b"));
    let ones = |rows: usize, width: usize| Tensor::ones((rows, width), candle_core::DType::F32, &Device::Cpu).unwrap();
    rewrite(b, &|file| {
        file.tensor(b, &ones(64, 8)).unwrap();
    });
    assert!(refused(&rewritten, &decoder).message().contains("its lora_a has rank 4, its lora_b 8"));
    rewrite("", &|file| {
        file.tensor("token_embd.weight.lora_a", &ones(4, 64)).unwrap();
    });
    assert!(refused(&rewritten, &decoder).message().contains("its tensor token_embd.weight.lora_a changes no"));
    rewrite("", &|file| {
        file.set("adapter.lora.alpha", 0f32);
    });
    assert!(refused(&rewritten, &decoder).message().contains("alpha is 0"));
    rewrite("", &|file| {
        file.set("general.type", "model");
    });
    assert!(refused(&rewritten, &decoder).message().contains("its general.type is model, expected adapter"));
    assert!(refused(&folder.path().join("none.gguf"), &decoder).message().contains("no such file"));
}

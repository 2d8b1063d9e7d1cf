//! Tests of PEFT's form: nothing is lost either way, and rows are ordered as in transformers.

use super::*;

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// convert_hf_to_gguf.py's own words: `weights.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2)` for llama,
/// `reshape(heads, 3, dim, width)` cut into all q, all k, all v for gptneox.
fn converted(update: &Tensor, arch: &str, heads: usize) -> Tensor {
    let (rows, width) = update.dims2().unwrap();
    let moved = match arch {
        "llama" => update.reshape((heads, 2, rows / heads / 2, width)).unwrap().transpose(1, 2).unwrap(),
        _ => update.reshape((heads, 3, rows / heads / 3, width)).unwrap().transpose(0, 1).unwrap(),
    };
    moved.contiguous().unwrap().reshape((rows, width)).unwrap()
}

#[test]
fn a_round_trip_through_peft_loses_no_bit() {
    let folder = folder();
    for arch in ARCHITECTURES {
        let decoder = load(&write_tiny(&folder, &TinySpec::new(arch)));
        let lora = Lora::new(&decoder, 4, 12.0, None, 3).unwrap();
        fill_b(&lora, 0.5, 4);
        let peft = folder.path().join(arch);
        lora.write_peft(&peft, &decoder, "someone/tiny").unwrap();
        let read = Lora::read_peft(&peft, &decoder).unwrap();
        assert_eq!((read.rank(), read.alpha()), (4, 12.0));
        for ((name, ours), (same, theirs)) in lora.named().iter().zip(read.named()) {
            assert_eq!(*name, same);
            assert_eq!(values(ours), values(&theirs), "{arch}: {name}");
        }
    }
}

#[test]
fn exported_rows_are_those_of_the_unconverted_model() {
    let folder = folder();
    for (arch, module, tensor, heads) in [
        ("llama", "model.layers.1.self_attn.q_proj", "blk.1.attn_q", 4),
        ("llama", "model.layers.1.self_attn.k_proj", "blk.1.attn_k", 2),
        ("gptneox", "gpt_neox.layers.0.attention.query_key_value", "blk.0.attn_qkv", 4),
    ] {
        let decoder = load(&write_tiny(&folder, &TinySpec::new(arch)));
        let lora = Lora::new(&decoder, 4, 8.0, None, 3).unwrap();
        fill_b(&lora, 0.5, 4);
        let peft = folder.path().join(module);
        lora.write_peft(&peft, &decoder, "someone/tiny").unwrap();
        let saved = candle_core::safetensors::load(peft.join("adapter_model.safetensors"), &Device::Cpu).unwrap();
        let exported = |factor: &str| saved[&format!("base_model.model.{module}.lora_{factor}.weight")].clone();
        let update = exported("B").matmul(&exported("A")).unwrap();
        let named: std::collections::HashMap<_, _> = lora.named().into_iter().collect();
        let own = |factor: &str| named[&format!("{tensor}.weight.lora_{factor}")].as_tensor().clone();
        let expected = own("b").matmul(&own("a")).unwrap();
        assert_ne!(values(&update), values(&expected), "{module}: the converter moves rows, so they must differ");
        assert_eq!(values(&converted(&update, arch, heads)), values(&expected), "{module}");
    }
}

#[test]
fn peft_adapters_that_do_not_fit_are_refused() {
    let folder = folder();
    let decoder = load(&write_tiny(&folder, &TinySpec::new("qwen2")));
    let lora = Lora::new(&decoder, 4, 8.0, Some(&["attn_q".into()]), 3).unwrap();
    let peft = folder.path().join("peft");
    lora.write_peft(&peft, &decoder, "someone/tiny").unwrap();
    let config_path = peft.join("adapter_config.json");
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(&config_path).unwrap()).unwrap();
    assert_eq!(config["target_modules"], serde_json::json!(["q_proj"]));
    let refused = |key: &str, value: serde_json::Value| {
        let mut changed = config.clone();
        changed[key] = value;
        std::fs::write(&config_path, changed.to_string()).unwrap();
        Lora::read_peft(&peft, &decoder).err().expect("must be refused").to_string()
    };
    assert!(refused("use_dora", true.into()).contains("with DoRA"));
    assert!(refused("peft_type", "LOHA".into()).contains("of type LOHA"));
    for (key, value) in [
        ("init_lora_weights", "pissa".into()),
        ("init_lora_weights", "pissa_niter_4".into()),
        ("init_lora_weights", "olora".into()),
        ("init_lora_weights", "corda".into()),
        ("init_lora_weights", "loftq".into()),
        ("init_lora_weights", "something new".into()),
        ("alora_invocation_tokens", serde_json::json!([1, 2])),
        ("use_qalora", true.into()),
        ("use_bdlora", serde_json::json!({"target_modules_bd_a": ["q_proj"]})),
        ("layer_replication", serde_json::json!([[0, 1], [0, 1]])),
        ("trainable_token_indices", serde_json::json!([3])),
        ("from_tomorrow", 1.into()),
    ] {
        let said = refused(key, value);
        assert!(said.contains(&format!("its {key} is")) && said.contains("expected plain LoRA"), "{said}");
    }
    assert!(refused("r", 8.into()).contains("has rank 4, the layers before have 8"));
    assert!(refused("r", "four".into()).contains("adapter_config.json"));
    assert!(refused("lora_alpha", 0.into()).contains("alpha is 0"));

    let mut scaled = config.clone();
    scaled["use_rslora"] = true.into();
    std::fs::write(&config_path, scaled.to_string()).unwrap();
    assert_eq!(Lora::read_peft(&peft, &decoder).unwrap().alpha(), 16.0, "alpha 8 by √4");

    // What PEFT 0.21 writes of a plain adapter.
    let mut written = config.clone();
    for key in ["rank_pattern", "alpha_pattern", "bias", "use_rslora", "fan_in_fan_out", "use_dora", "lora_dropout"] {
        written[key] = serde_json::Value::Null;
    }
    for (key, value) in [
        ("init_lora_weights", serde_json::json!("gaussian")),
        ("megatron_core", "megatron.core".into()),
        ("qalora_group_size", 16.into()),
        ("use_qalora", false.into()),
        ("loftq_config", serde_json::json!({})),
        ("alora_invocation_tokens", serde_json::Value::Null),
        ("peft_version", "0.21.2".into()),
        ("runtime_config", serde_json::json!({"ephemeral_gpu_offload": false})),
        ("ensure_weight_tying", false.into()),
        ("layers_to_transform", serde_json::json!([0])),
    ] {
        written[key] = value;
    }
    std::fs::write(&config_path, written.to_string()).unwrap();
    assert_eq!(Lora::read_peft(&peft, &decoder).unwrap().alpha(), 8.0);

    std::fs::write(peft.join("adapter_model.safetensors"), b"\xff\xff\xff\xff\xff\xff\xff\x7f{}").unwrap();
    assert!(Lora::read_peft(&peft, &decoder).err().unwrap().message().contains("adapter_model.safetensors"));
    let other = load(&write_tiny(&folder, &TinySpec::new("llama")));
    assert!(lora.write_peft(&peft, &other, "x").unwrap_err().message().contains("is for base"));
}

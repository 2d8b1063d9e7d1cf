//! `apad convert gptj`: what is written computes what GPT-J computes, served and trained; what is no GPT-J is refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use apa::config::Dtype;
use apa::convert::Floats;
use apa::gguf::Gguf;
use apa::llama::{Adapter, Context, ContextOptions, Model, token_logprobs};
use apa::policy::{Decoder, Lora, Packed};
use candle_core::Device;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::support::adapter::lively_adapter;
use crate::support::gptj::{Gptj, HEADS, LAYERS, ROTARY, WIDTH, config, merges, rows, tokenizer, write_json};
use crate::support::tiny::vocabulary;

const TEXT: &str = "A robin sat on the fence and sang until the sun went down, for the night was cold.";

fn apad(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_apad")).args(arguments).output().unwrap()
}

fn convert(folder: &Path, out: &Path, kind: &str) -> Output {
    let (folder, out) = (folder.to_str().unwrap(), out.to_str().unwrap());
    apad(&["convert", "gptj", folder, "--out", out, "--type", kind])
}

fn converted(folder: &Path, out: &Path, kind: &str) {
    let output = convert(folder, out, kind);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), out.to_str().unwrap());
}

/// What the trainer computes, in nats a token.
fn trained(model: &Path, adapter: Option<&Path>, tokens: &[u32]) -> Vec<f32> {
    let decoder = Decoder::load(model, &Device::Cpu, Dtype::F32).unwrap();
    let lora = adapter.map(|path| Lora::read_gguf(path, &decoder).unwrap());
    let packed = Packed::new(&[tokens]).unwrap();
    let targets = packed.targets(&[1]).unwrap();
    decoder.response_logprobs(&packed, &targets, &[1.0], lora.as_ref()).unwrap().to_vec1().unwrap()
}

/// What llama.cpp serves, in nats a token.
fn served(model: &Path, adapter: Option<&Path>, tokens: &[u32]) -> Vec<f32> {
    let model = Model::load(model, 0).unwrap();
    let shape = ContextOptions { context: 256, batch: 128, sequences: 1, exact: true };
    let mut context = Context::new(&model, 1, shape).unwrap();
    context.set_adapter(adapter.map(|path| Adapter::load(&model, path).unwrap())).unwrap();
    token_logprobs(&mut context, tokens).unwrap()
}

fn gap(ours: &[f32], right: &[f64]) -> f64 {
    assert_eq!(ours.len(), right.len());
    ours.iter().zip(right).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
}

fn tokens_of(model: &Path) -> Vec<u32> {
    Model::load(model, 0).unwrap().tokenize(TEXT, true, false).unwrap()
}

#[test]
fn a_converted_gptj_computes_what_gptj_does_served_and_trained() {
    let dir = tempfile::tempdir().unwrap();
    // llama.cpp would expect tokens of Phi-3 by such a name.
    let (folder, out) = (dir.path().join("better than Phi-3"), dir.path().join("out.gguf"));
    let model = Gptj::new(5);
    model.write(&folder);
    for (kind, within) in [("f32", 1e-4), ("f16", 2e-2), ("bf16", 2e-1)] {
        converted(&folder, &out, kind);
        let tokens = tokens_of(&out);
        let right = model.logprobs(&tokens);
        let by_trainer = gap(&trained(&out, None, &tokens), &right);
        // ggml looks GELU up in a table of 16-bit floats.
        let by_server = gap(&served(&out, None, &tokens), &right);
        println!("{kind}: the trainer differs by {by_trainer:.1e} nats at most, the server by {by_server:.1e}");
        assert!(by_trainer < within, "{kind}: {by_trainer} nats");
        assert!(by_server < f64::max(within, 2e-3), "{kind}: {by_server} nats");
    }
}

#[test]
fn rotary_rows_are_in_halves_missing_biases_are_zero_and_the_heads_bias_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, out) = (dir.path().join("tiny-gptj"), dir.path().join("out.gguf"));
    let model = Gptj::new(5);
    model.write(&folder);
    converted(&folder, &out, "f32");
    let file = Gguf::open(&out).unwrap();
    assert_eq!(file.str("general.architecture").unwrap(), "phi2");
    assert_eq!(file.str("general.name").unwrap(), "tiny-gptj");
    assert_eq!(file.u32("phi2.rope.dimension_count").unwrap() as usize, ROTARY);
    assert_eq!(file.values("output.bias").unwrap(), model.0["lm_head.bias"].1);
    // Of a head's 16 rows the first 8 rotate; written down, not computed as the converter computes it.
    let order = [0, 2, 4, 6, 1, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    for layer in 0..LAYERS {
        let row = |values: &[f32], row: usize| values[row * WIDTH..][..WIDTH].to_vec();
        for (part, name) in
            [("attn_q", "q_proj"), ("attn_k", "k_proj"), ("attn_v", "v_proj"), ("attn_output", "out_proj")]
        {
            let ours = file.values(&format!("blk.{layer}.{part}.weight")).unwrap();
            let theirs = &model.0[&format!("transformer.h.{layer}.attn.{name}.weight")].1;
            for head in 0..HEADS {
                for (i, from) in order.iter().enumerate() {
                    let from = if matches!(part, "attn_q" | "attn_k") { *from } else { i };
                    assert_eq!(
                        row(&ours, head * 16 + i),
                        row(theirs, head * 16 + from),
                        "{part}, head {head}, row {i}"
                    );
                }
            }
            assert_eq!(file.values(&format!("blk.{layer}.{part}.bias")).unwrap(), [0.0; WIDTH]);
        }
    }
    // The vocabulary, with what was added and what fills it up.
    let tokens = file.opt_strings("tokenizer.ggml.tokens").unwrap().unwrap();
    let kinds = file.opt_i32s("tokenizer.ggml.token_type").unwrap().unwrap();
    let count = vocabulary().len();
    assert_eq!(tokens[..count], vocabulary());
    assert_eq!((tokens.len(), kinds.len()), (rows(), rows()));
    assert_eq!([0, count - 1, count, count + 1].map(|id| kinds[id]), [1, 3, 4, 5]);
    assert_eq!([&tokens[count], &tokens[count + 1]], ["added text", &format!("[PAD{}]", count + 1)]);
    let served = Model::load(&out, 0).unwrap();
    let of = |text: &str| served.tokenize(text, false, false).unwrap();
    let id = |token: &str| vocabulary().iter().position(|known| known == token).unwrap() as u32;
    assert_eq!(of("the in"), [id("t"), id("he"), id("Ġ"), id("in")].to_vec());
    assert_eq!(of("added text"), [count as u32]);
}

#[test]
fn parts_and_the_older_files_of_a_tokenizer_give_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut model = Gptj::new(6);
    model.write(&at("a/tiny"));
    converted(&at("a/tiny"), &at("a.gguf"), "bf16");

    // Old checkpoints hold the causal mask.
    model.0.insert("transformer.h.0.attn.masked_bias".into(), (vec![1], vec![-1e9]));
    model.write(&at("b/tiny"));
    fs::remove_file(at("b/tiny/model.safetensors")).unwrap();
    let place = |name: &str| if name.contains(".h.0.") { "model-1.safetensors" } else { "model-2.safetensors" };
    for part in ["model-1.safetensors", "model-2.safetensors"] {
        model.save(&at("b/tiny").join(part), |name| place(name) == part);
    }
    let map: serde_json::Map<String, Value> = model.0.keys().map(|name| (name.clone(), json!(place(name)))).collect();
    write_json(&at("b/tiny/model.safetensors.index.json"), &json!({"weight_map": map}));
    let all = tokenizer();
    fs::remove_file(at("b/tiny/tokenizer.json")).unwrap();
    write_json(&at("b/tiny/vocab.json"), &all["model"]["vocab"]);
    fs::write(at("b/tiny/merges.txt"), format!("#version: 0.2\n{}\n", merges().join("\n"))).unwrap();
    let added = all["added_tokens"].as_array().unwrap().iter();
    let added: serde_json::Map<String, Value> =
        added.map(|one| (one["content"].as_str().unwrap().to_owned(), one["id"].clone())).collect();
    write_json(&at("b/tiny/added_tokens.json"), &added.into());
    converted(&at("b/tiny"), &at("b.gguf"), "bf16");
    assert!(fs::read(at("a.gguf")).unwrap() == fs::read(at("b.gguf")).unwrap(), "the files differ");
}

#[test]
fn an_adapter_of_a_converted_gptj_goes_to_peft_as_gptj_names_and_orders_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let text = |name: &str| at(name).to_str().unwrap().to_owned();
    let mut model = Gptj::new(7);
    model.write(&at("tiny"));
    converted(&at("tiny"), &at("base.gguf"), "f32");
    lively_adapter(&at("base.gguf"), 6.0, &at("lora.gguf"));
    let export = |adapter: &str, out: &str, form: &str| {
        let (base, adapter, out) = (text("base.gguf"), text(adapter), text(out));
        let output = apad(&["export", "--model", &base, "--adapter", &adapter, "--out", &out, form]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    export("lora.gguf", "peft", "--peft");
    export("peft", "back.gguf", "--gguf");
    assert_eq!(fs::read(at("lora.gguf")).unwrap(), fs::read(at("back.gguf")).unwrap());

    let tokens = tokens_of(&at("base.gguf"));
    let before = model.logprobs(&tokens);
    let factors = candle_core::safetensors::load(at("peft/adapter_model.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(factors.len(), 2 * 6 * LAYERS);
    for (name, (_, values)) in &mut model.0 {
        let Some(module) = name.strip_suffix(".weight") else { continue };
        let factor = |which: &str| factors.get(&format!("base_model.model.{module}.lora_{which}.weight"));
        if let (Some(a), Some(b)) = (factor("A"), factor("B")) {
            // alpha / rank
            let update = (b.matmul(a).unwrap() * (6.0 / 4.0)).unwrap().flatten_all().unwrap();
            values.iter_mut().zip(update.to_vec1::<f32>().unwrap()).for_each(|(w, update)| *w += update);
        }
    }
    let right = model.logprobs(&tokens);
    let moved = before.iter().zip(&right).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(moved > 0.1, "the adapter moves {moved} nats");
    let by_trainer = gap(&trained(&at("base.gguf"), Some(&at("lora.gguf")), &tokens), &right);
    let by_server = gap(&served(&at("base.gguf"), Some(&at("lora.gguf")), &tokens), &right);
    println!("of {moved:.2} nats the trainer differs by {by_trainer:.1e}, the server by {by_server:.1e}");
    assert!(by_trainer < 1e-4, "{by_trainer} nats");
    assert!(by_server < 2e-3, "{by_server} nats");
}

/// A change of a folder that is right.
type Change = Box<dyn Fn(&Path, &mut Gptj)>;

/// What is changed, and words of the one sentence that refuses it.
struct Case {
    change: Change,
    says: Vec<&'static str>,
}

fn case(says: &[&'static str], change: impl Fn(&Path, &mut Gptj) + 'static) -> Case {
    Case { change: Box::new(change), says: says.to_vec() }
}

fn config_with(key: &'static str, value: Value) -> impl Fn(&Path, &mut Gptj) {
    move |folder, _| {
        let mut config = config();
        config[key] = value.clone();
        write_json(&folder.join("config.json"), &config);
    }
}

fn tokenizer_with(pointer: &'static str, value: Value) -> impl Fn(&Path, &mut Gptj) {
    move |folder, _| {
        let mut tokenizer = tokenizer();
        *tokenizer.pointer_mut(pointer).unwrap() = value.clone();
        write_json(&folder.join("tokenizer.json"), &tokenizer);
    }
}

fn tensors_with(change: impl Fn(&mut Gptj) + 'static) -> impl Fn(&Path, &mut Gptj) {
    move |folder, model| {
        change(model);
        model.save(&folder.join("model.safetensors"), |_| true);
    }
}

fn cases() -> Vec<Case> {
    let written = |name: &'static str, bytes: &'static [u8]| {
        move |folder: &Path, _: &mut Gptj| fs::write(folder.join(name), bytes).unwrap()
    };
    let value = |name: &'static str, value: f32| tensors_with(move |model| model.0.get_mut(name).unwrap().1[3] = value);
    let query = "transformer.h.1.attn.q_proj.weight";
    vec![
        case(&["config.json", "JSON"], written("config.json", b"{\"model_type\": ")),
        case(&["config.json", "JSON"], written("config.json", b"[]")),
        case(&["config.json", "No such file"], |folder, _| fs::remove_file(folder.join("config.json")).unwrap()),
        case(&["config.json", "model_type is \"llama\"", "gptj"], config_with("model_type", json!("llama"))),
        case(&["config.json", "n_head is null", "1 to"], config_with("n_head", Value::Null)),
        case(&["config.json", "n_head is 3"], config_with("n_head", json!(3))),
        case(&["config.json", "rotary_dim is 5", "even part of 16"], config_with("rotary_dim", json!(5))),
        case(&["config.json", "rotary_dim is null"], config_with("rotary_dim", Value::Null)),
        case(&["config.json", "n_layer is 513", "at most 512"], config_with("n_layer", json!(513))),
        case(&["activation_function is \"relu\"", "gelu_new"], config_with("activation_function", json!("relu"))),
        case(&["config.json", "eos_token_id is 99999"], config_with("eos_token_id", json!(99999))),
        case(
            &["model.safetensors", "transformer.h.2.ln_1.weight is missing", "[32]"],
            config_with("n_layer", json!(3)),
        ),
        case(&["model.safetensors", "transformer.h.1.", "is none of"], config_with("n_layer", json!(1))),
        case(&["wte.weight has shape [", "expected [300, 32]"], config_with("vocab_size", json!(300))),
        case(&["model.safetensors", "lm_head.bias is missing"], tensors_with(|m| drop(m.0.remove("lm_head.bias")))),
        case(
            &["model.safetensors", query, "[16, 64], expected [32, 32]"],
            tensors_with(move |model| model.0.get_mut(query).unwrap().0 = vec![16, 64]),
        ),
        case(&["model.safetensors", query, "NaN"], value(query, f32::NAN)),
        case(&["lm_head.weight holds 70000", "no number of f16"], value("lm_head.weight", 70_000.0)),
        case(
            &["model.safetensors", "no file of safetensors"],
            written("model.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\x7f"),
        ),
        case(&["model.safetensors", "no file of safetensors"], written("model.safetensors", b"PK")),
        case(&["model.safetensors", "is said to lie at"], |folder, _| {
            let path = folder.join("model.safetensors");
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        }),
        case(&["pytorch_model.bin", "expected model.safetensors"], |folder, _| {
            fs::rename(folder.join("model.safetensors"), folder.join("pytorch_model.bin")).unwrap();
        }),
        case(&["neither model.safetensors nor"], |folder, _| {
            fs::remove_file(folder.join("model.safetensors")).unwrap();
        }),
        case(&["index.json", "lm_head.bias is in \"../x\", expected a file's name"], |folder, _| {
            fs::remove_file(folder.join("model.safetensors")).unwrap();
            let index = json!({"weight_map": {"lm_head.bias": "../x"}});
            write_json(&folder.join("model.safetensors.index.json"), &index);
        }),
        case(&["tokenizer.json", "model.type is \"Unigram\""], tokenizer_with("/model/type", json!("Unigram"))),
        case(
            &["tokenizer.json", "add_prefix_space is true"],
            tokenizer_with("/pre_tokenizer/add_prefix_space", json!(true)),
        ),
        case(&["tokenizer.json", "normalizer"], tokenizer_with("/normalizer", json!({"type": "NFC"}))),
        case(
            &["tokenizer.json", "id of token", "not below vocab_size"],
            tokenizer_with("/added_tokens/3/id", json!(9999)),
        ),
        case(&["tokenizer.json", "both have id 0"], tokenizer_with("/added_tokens/3/id", json!(0))),
        case(
            &["tokenizer.json", "merge t zz is about zz, which is no token"],
            tokenizer_with("/model/merges/0", json!("t zz")),
        ),
        case(&["vocab.json", "merges.txt"], |folder, _| {
            fs::rename(folder.join("tokenizer.json"), folder.join("vocab.json")).unwrap();
        }),
    ]
}

#[test]
fn what_is_no_whole_gptj_is_refused_in_a_sentence_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for (index, Case { change, says }) in cases().into_iter().enumerate() {
        let (folder, place) = (dir.path().join(format!("{index}")), dir.path().join(format!("{index}-out")));
        fs::create_dir(&place).unwrap();
        let mut model = Gptj::new(8);
        model.write(&folder);
        change(&folder, &mut model);
        let output = convert(&folder, &place.join("out.gguf"), "f16");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{says:?}: {said}");
        assert!(says.iter().all(|part| said.contains(part)) && said.trim().lines().count() == 1, "{says:?}: {said}");
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0, "{said}");
    }
}

#[test]
fn a_damaged_file_is_an_error_or_another_model_and_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, place) = (dir.path().join("tiny"), dir.path().join("out"));
    let out = place.join("out.gguf");
    fs::create_dir(&place).unwrap();
    Gptj::new(10).write(&folder);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (name, most) in [("config.json", usize::MAX), ("tokenizer.json", usize::MAX), ("model.safetensors", 3000)] {
        let whole = fs::read(folder.join(name)).unwrap();
        let mut refused = 0;
        for _ in 0..150 {
            let mut bytes = whole.clone();
            let at = rng.random_range(0..bytes.len().min(most));
            match rng.random_range(0..3) {
                0 => bytes[at] = rng.random(),
                1 => bytes.truncate(at),
                // A digit more or less changes a size.
                _ => drop(bytes.splice(at..=at, *b"99")),
            }
            fs::write(folder.join(name), bytes).unwrap();
            if let Err(error) = apa::convert::gptj(&folder, &out, Floats::F32) {
                refused += 1;
                assert!(error.message().contains(folder.to_str().unwrap()), "{error}");
                assert_eq!(fs::read_dir(&place).unwrap().count(), 0, "{error}");
            } else {
                fs::remove_file(&out).unwrap();
            }
        }
        assert!(refused > 75, "{name}: {refused} refused");
        fs::write(folder.join(name), whole).unwrap();
    }
    apa::convert::gptj(&folder, &out, Floats::F32).unwrap();
}

#[test]
fn a_conversion_writes_over_no_input_and_into_no_data_folder() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = Gptj::new(9);
    model.write(&at("tiny"));
    fs::create_dir(at("data")).unwrap();
    fs::write(at("data/ledger.sqlite3"), "").unwrap();
    fs::hard_link(at("tiny/model.safetensors"), at("link.gguf")).unwrap();
    fs::write(at("other.gguf"), "notes").unwrap();
    let weights = fs::read(at("tiny/model.safetensors")).unwrap();
    let targets: [(PathBuf, &str); 5] = [
        (at("tiny/model.safetensors"), "would be written over"),
        (at("link.gguf"), "would be written over"),
        (at("tiny"), "it is a folder"),
        (at("data/model.gguf"), "lies in the data folder"),
        (at("other.gguf"), "is not a GGUF file"),
    ];
    for (out, says) in targets {
        let output = convert(&at("tiny"), &out, "f32");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(says), "{}: {said}", out.display());
    }
    assert!(fs::read(at("tiny/model.safetensors")).unwrap() == weights);
    assert_eq!(fs::read(at("other.gguf")).unwrap(), b"notes");
    assert_eq!(fs::read_dir(at("data")).unwrap().count(), 1);
    let output = convert(&at("tiny"), &at("out.gguf"), "q4_k_m");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("expected f32, f16 or bf16"), "{said}");
    let output = convert(&at("nowhere"), &at("out.gguf"), "f32");
    assert!(String::from_utf8_lossy(&output.stderr).contains("is no folder"));
    assert!(!at("out.gguf").exists());
}

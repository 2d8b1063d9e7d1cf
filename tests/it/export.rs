//! `apad export` and the writing of model files: what is written says what base and adapter say.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use apa::gguf::Gguf;
use apa::llama::{Adapter, Context, ContextOptions, FileType, Model, quantize, token_logprobs};
use apa::policy::{Decoder, Lora, Packed};
use candle_core::{Device, Tensor};

use crate::support::adapter::lively_adapter;
use crate::support::tiny::{TinySpec, tiny_model};

const TEXT: &str =
    "A robin sat on the fence and sang until the sun went down. Then it flew home, for the night was cold.";

/// What llama.cpp serves, in nats a token.
fn logprobs(model: &Path, adapter: Option<&Path>) -> Vec<f32> {
    let model = Model::load(model, 0).unwrap();
    let tokens = model.tokenize(TEXT, true, false).unwrap();
    let shape = ContextOptions { context: 512, batch: 128, sequences: 1, exact: true };
    let mut context = Context::new(&model, 1, shape).unwrap();
    context.set_adapter(adapter.map(|path| Adapter::load(&model, path).unwrap())).unwrap();
    token_logprobs(&mut context, &tokens).unwrap()
}

fn mean_gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f32>() / a.len() as f32
}

fn adapter(model: &Path, path: &Path) {
    lively_adapter(model, 6.0, path);
}

fn export(model: &Path, adapter: &Path, out: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
    command.arg("export").arg("--model").arg(model).arg("--adapter").arg(adapter).arg("--out").arg(out);
    command.args(arguments).output().unwrap()
}

fn exported(model: &Path, adapter: &Path, out: &Path, arguments: &[&str]) -> PathBuf {
    let output = export(model, adapter, out, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out.to_owned()
}

fn files(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn a_model_is_written_in_other_formats_and_stays_itself() {
    let folder = tempfile::tempdir().unwrap();
    // 256 wide: k-quants need rows of whole blocks.
    let base = folder.path().join("base.gguf");
    tiny_model(&base, &TinySpec { width: 256, heads: 16, ..TinySpec::new("llama") }).unwrap();
    let as_it_is = logprobs(&base, None);
    for (name, within) in [("f32", 1e-6), ("f16", 0.01), ("bf16", 0.05), ("q8_0", 0.05), ("q4_k_m", 1.0)] {
        let out = folder.path().join(name);
        quantize(&base, &out, name.parse().unwrap(), 1).unwrap();
        let gap = mean_gap(&as_it_is, &logprobs(&out, None));
        assert!(gap <= within, "{name}: {gap} nats a token");
        let kind = Gguf::open(&out).unwrap().tensor("blk.0.ffn_up.weight").unwrap().kind().name().to_lowercase();
        assert!(name.starts_with(&kind), "{name}: a matrix is {kind}");
    }
    // Rounded again, and rows that the format can't hold get another.
    quantize(&folder.path().join("q8_0"), &folder.path().join("again"), "q4_0".parse().unwrap(), 2).unwrap();
    assert!(mean_gap(&as_it_is, &logprobs(&folder.path().join("again"), None)) < 2.0);
}

#[test]
fn what_is_no_model_or_cannot_be_written_is_an_error_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (base, lora) = (folder.path().join("base.gguf"), folder.path().join("lora.gguf"));
    tiny_model(&base, &TinySpec::new("qwen2")).unwrap();
    adapter(&base, &lora);
    let kind: FileType = "q8_0".parse().unwrap();
    let message = |from: &Path, to: &Path| quantize(from, to, kind, 1).unwrap_err().message().to_owned();
    let out = folder.path().join("out.gguf");
    assert!(message(&lora, &out).contains("it holds a adapter, expected a model"));
    assert!(message(&folder.path().join("none"), &out).contains("there is no such file"));
    assert!(message(&base, &base).contains("it is the file that is read"));
    assert!(message(&base, Path::new("/no/such/folder/out.gguf")).contains("No such file"));
    // Weights that are no numbers can't be rounded to blocks.
    let bad = folder.path().join("bad.gguf");
    let file = Gguf::open(&base).unwrap();
    let mut writer = apa::gguf::Writer::new();
    writer.copy_metadata(&file);
    for info in file.tensors() {
        if info.name() == "blk.0.ffn_up.weight" {
            let nan = Tensor::full(f32::NAN, info.shape(), &Device::Cpu).unwrap();
            writer.tensor(info.name(), &nan).unwrap();
        } else {
            writer.copy_tensor(&file, info.name()).unwrap();
        }
    }
    writer.write(&bad).unwrap();
    assert!(message(&bad, &out).contains("llama.cpp refused"), "{}", message(&bad, &out));
    assert_eq!(files(folder.path()), ["bad.gguf", "base.gguf", "lora.gguf"]);
}

#[test]
fn a_merged_model_says_what_base_and_adapter_say() {
    let folder = tempfile::tempdir().unwrap();
    let (base, lora) = (folder.path().join("base.gguf"), folder.path().join("lora.gguf"));
    for arch in ["llama", "qwen3", "gptneox"] {
        tiny_model(&base, &TinySpec::new(arch)).unwrap();
        adapter(&base, &lora);
        let together = logprobs(&base, Some(&lora));
        let moved = mean_gap(&together, &logprobs(&base, None));
        assert!(moved > 1e-3, "{arch}: the adapter does nothing");
        for (kind, within) in [("f32", 1e-4), ("f16", 0.01), ("q8_0", 0.05)] {
            let out = exported(&base, &lora, &folder.path().join("merged.gguf"), &["--merge", "--type", kind]);
            let gap = mean_gap(&together, &logprobs(&out, None));
            assert!(gap <= within, "{arch} as {kind}: {gap} nats a token");
        }
    }
    assert_eq!(files(folder.path()), ["base.gguf", "lora.gguf", "merged.gguf"]);
}

#[test]
fn the_real_model_merged_says_what_base_and_adapter_say() {
    let Some(base) = std::env::var_os("APA_TEST_MODEL").map(PathBuf::from) else {
        eprintln!("SKIPPED: APA_TEST_MODEL names no model");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let lora = folder.path().join("lora.gguf");
    adapter(&base, &lora);
    // The trainer's engine: llama.cpp rounds what it multiplies by the weights' format, which hides the rest.
    let tokens = Model::load(&base, 0).unwrap().tokenize(TEXT, true, false).unwrap();
    let exact = |model: &Path, adapter: Option<&Path>| -> Vec<f32> {
        let decoder = Decoder::load(model, &Device::Cpu, apa::config::Dtype::F32).unwrap();
        let lora = adapter.map(|path| Lora::read_gguf(path, &decoder).unwrap());
        let packed = Packed::new(&[&tokens]).unwrap();
        let targets = packed.targets(&[1]).unwrap();
        decoder.response_logprobs(&packed, &targets, &[1.0], lora.as_ref()).unwrap().to_vec1().unwrap()
    };
    let together = exact(&base, Some(&lora));
    let moved = mean_gap(&together, &exact(&base, None));
    assert!(moved > 0.03, "the adapter moves {moved} nats a token: merging without it would pass");
    for (kind, within) in [("f16", 0.005), ("q8_0", 0.1)] {
        let out = exported(&base, &lora, &folder.path().join("merged.gguf"), &["--merge", "--type", kind]);
        let gap = mean_gap(&together, &exact(&out, None));
        eprintln!("as {kind}: {gap:.5} nats a token; the adapter moves {moved:.4}");
        assert!(gap <= within, "as {kind}: {gap} nats a token");
    }
    let out = exported(&base, &lora, &folder.path().join("merged.gguf"), &["--merge", "--type", "q4_k_m"]);
    let gap = mean_gap(&logprobs(&base, Some(&lora)), &logprobs(&out, None));
    assert!(gap <= 0.5, "as q4_k_m: {gap} nats a token");
}

#[test]
fn an_adapter_goes_to_peft_and_back_without_loss() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    tiny_model(&at("base.gguf"), &TinySpec::new("llama")).unwrap();
    adapter(&at("base.gguf"), &at("lora.gguf"));
    exported(&at("base.gguf"), &at("lora.gguf"), &at("peft"), &["--peft", "--base-name", "org/tiny"]);
    // Weights that learned from users are for their owner alone.
    #[cfg(unix)]
    for written in files(&at("peft")).iter().map(|name| at("peft").join(name)).chain([at("peft")]) {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&written).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", written.display());
    }
    assert_eq!(files(&at("peft")), ["adapter_config.json", "adapter_model.safetensors"]);
    let config = std::fs::read_to_string(at("peft").join("adapter_config.json")).unwrap();
    assert!(config.contains("org/tiny") && config.contains("q_proj"), "{config}");
    exported(&at("base.gguf"), &at("peft"), &at("back.gguf"), &["--gguf"]);
    assert_eq!(std::fs::read(at("lora.gguf")).unwrap(), std::fs::read(at("back.gguf")).unwrap());
}

#[test]
fn wrong_use_is_told_apart_from_failure() {
    let folder = tempfile::tempdir().unwrap();
    let (base, other, lora) =
        (folder.path().join("a.gguf"), folder.path().join("b.gguf"), folder.path().join("l.gguf"));
    tiny_model(&base, &TinySpec::new("llama")).unwrap();
    tiny_model(&other, &TinySpec { seed: 8, ..TinySpec::new("llama") }).unwrap();
    adapter(&other, &lora);
    let out = folder.path().join("out.gguf");
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let output = export(&base, &lora, &out, &["--merge", "--type", "q4_k"]);
    assert_eq!((output.status.code(), said(&output).contains("q4_k_m")), (Some(2), true), "{}", said(&output));
    assert_eq!(export(&base, &lora, &out, &[]).status.code(), Some(2));
    let output = export(&base, &lora, &out, &["--merge"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("the adapter is for base"), "{}", said(&output));
    assert!(!out.exists());
}

#[cfg(unix)]
#[test]
fn an_export_never_writes_over_the_base_or_the_adapter_through_links_either() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (base, lora) = (path("base.gguf"), path("adapter.gguf"));
    tiny_model(&base, &TinySpec::new("llama")).unwrap();
    adapter(&base, &lora);
    std::os::unix::fs::symlink(&base, path("link.gguf")).unwrap();
    std::fs::hard_link(&base, path("hard.gguf")).unwrap();
    let whole = [std::fs::read(&base).unwrap(), std::fs::read(&lora).unwrap()];
    let before = files(folder.path());
    for (out, form) in [("base.gguf", "--merge"), ("link.gguf", "--merge"), ("hard.gguf", "--merge")]
        .into_iter()
        .chain([("base.gguf", "--gguf"), ("adapter.gguf", "--gguf"), ("adapter.gguf", "--merge")])
    {
        let output = export(&base, &lora, &path(out), &[form]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{out} {form}: {said}");
        assert!(said.contains("would be written over") && said.contains(out), "{said}");
    }
    // A folder of PEFT's onto itself.
    exported(&base, &lora, &path("peft"), &["--peft"]);
    let output = export(&base, &path("peft"), &path("peft"), &["--peft"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("would be written over"));
    std::fs::remove_dir_all(path("peft")).unwrap();
    assert_eq!([std::fs::read(&base).unwrap(), std::fs::read(&lora).unwrap()], whole);
    assert_eq!(files(folder.path()), before);
}

/// A server that speaks what vLLM's documentation of LoRA adapters says, whose only name that is taken is `taken`.
/// Returns its address, and what it was asked.
fn vllm() -> (String, std::sync::mpsc::Receiver<(String, serde_json::Value)>) {
    use std::io::{BufRead, BufReader, Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut taken = vec!["taken".to_owned()];
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut line, mut length, mut key) = (String::new(), 0, String::new());
            reader.read_line(&mut line).unwrap();
            let path = line.split(' ').nth(1).unwrap().to_owned();
            loop {
                line.clear();
                reader.read_line(&mut line).unwrap();
                match line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.trim())) {
                    Some((name, value)) if name == "content-length" => length = value.parse().unwrap(),
                    Some((name, value)) if name == "authorization" => key = value.to_owned(),
                    Some(_) => {}
                    None => break,
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let name = body["lora_name"].as_str().unwrap().to_owned();
            let known = taken.contains(&name);
            let (status, said) = match path.as_str() {
                _ if key != "Bearer secret" => (401, "{\"error\": \"Unauthorized\"}".to_owned()),
                "/v1/load_lora_adapter" if known => {
                    (400, format!("{{\"error\": \"The lora adapter '{name}' has already been loaded.\"}}"))
                }
                "/v1/load_lora_adapter" => {
                    taken.push(name.clone());
                    (200, format!("Success: LoRA adapter '{name}' added successfully."))
                }
                "/v1/unload_lora_adapter" if known => {
                    taken.retain(|own| *own != name);
                    (200, format!("Success: LoRA adapter '{name}' removed successfully."))
                }
                _ => (404, "{\"detail\": \"Not Found\"}".to_owned()),
            };
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", said.len());
            stream.write_all((head + &said).as_bytes()).unwrap();
            tell.send((path, body)).unwrap();
        }
    });
    (url, told)
}

#[test]
fn a_vllm_server_loads_what_was_exported_in_place_of_what_had_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let (base, lora) = (folder.path().join("base.gguf"), folder.path().join("lora.gguf"));
    tiny_model(&base, &TinySpec::new("qwen2")).unwrap();
    adapter(&base, &lora);
    let (url, told) = vllm();
    let sent = |out: &Path, arguments: &[&str], key: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
        command.arg("export").arg("--model").arg(&base).arg("--adapter").arg(&lora).arg("--out").arg(out);
        command.args(["--peft", "--vllm", &url]).args(arguments).env("VLLM_API_KEY", key).output().unwrap()
    };
    let out = folder.path().join("mine");
    let output = sent(&out, &[], "secret");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let load = "/v1/load_lora_adapter".to_owned();
    let body = |name: &str| serde_json::json!({"lora_name": name, "lora_path": out.to_str().unwrap()});
    assert_eq!(told.recv().unwrap(), (load.clone(), body("mine")));
    assert_eq!(files(&out), ["adapter_config.json", "adapter_model.safetensors"]);

    let output = sent(&out, &["--name", "taken"], "secret");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let unload = ("/v1/unload_lora_adapter".to_owned(), serde_json::json!({"lora_name": "taken"}));
    let asked: Vec<_> = (0..3).map(|_| told.recv().unwrap()).collect();
    assert_eq!(asked, [(load.clone(), body("taken")), unload, (load, body("taken"))]);

    let output = sent(&out, &[], "wrong");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("401") && !said.contains("wrong"), "{said}");
}

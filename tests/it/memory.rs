//! What the trainer's memory is held to: recomputing takes less of it, weights may stay in the file, and what can't fit
//! is refused while the engine serves.

use apa::config::Weights;
use apa::engine::TrainerState;
use candle_core::quantized::GgmlDType;

use crate::support::engine::{answer, open_with, published, rate, rate_some};
use crate::support::tiny::{TinySpec, tiny_model};

#[test]
fn training_that_cannot_fit_is_refused_with_the_numbers_and_the_engine_serves() {
    let dir = tempfile::tempdir().unwrap();
    // Sixteen million tokens at once.
    let engine = open_with(dir.path(), |c| c.train.micro_batch_tokens = 1 << 24).unwrap();
    for seed in 0..2 {
        rate(&engine, &answer(&engine, "the", seed).id, seed as f64).unwrap();
    }
    let refused = engine.train_step().unwrap_err();
    for part in ["training needs about", "are free", "activations", "a second context"] {
        assert!(refused.message().contains(part), "{refused}");
    }
    let trainer = engine.status().trainer;
    assert_eq!((trainer.state, trainer.pending_ratings), (TrainerState::Off, 2));
    assert!(trainer.reason.unwrap().contains("GiB"));
    answer(&engine, "and", 7);
}

#[test]
fn weights_in_the_file_and_recomputed_blocks_train_to_the_bits_of_packed_ones() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("q8.gguf");
    tiny_model(&model, &TinySpec { format: GgmlDType::Q8_0, ..TinySpec::new("llama") }).unwrap();
    let trained = |name: &str, weights, activation_mb, repack| {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let engine = open_with(&folder, |c| {
            c.model = model.clone();
            (c.train.weights, c.train.activation_mb) = (weights, activation_mb);
            // Products in f32 sum a decoded matrix part by part.
            c.train.dtype = apa::config::Dtype::Bf16;
            // Other kernels give other tokens.
            c.serve.repack = repack;
            c.gate.examine = false;
        })
        .unwrap();
        rate_some(&engine, 4);
        let (_, metrics) = published(engine.train_step().unwrap());
        (metrics.policy_loss, metrics.value_loss, metrics.grad_norm)
    };
    let packed = trained("packed", Weights::Packed, 0, true);
    let stored = trained("quantized", Weights::Quantized, 1, true);
    if apa::policy::ops::precision().starts_with("bf16") {
        assert_eq!(packed, stored);
    }
    assert!((packed.1 - stored.1).abs() < 1e-3 * packed.1.abs(), "{packed:?}, {stored:?}");
    assert!(trained("mapped", Weights::Quantized, 1, false).0.is_finite());
}

#[cfg(feature = "daemon")]
#[test]
fn recomputing_blocks_takes_less_memory() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("deep.gguf");
    tiny_model(&model, &TinySpec { layers: 16, width: 128, ff: 1024, ..TinySpec::new("llama") }).unwrap();
    let peak = |more: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_apad"))
            .args([
                "bench",
                "train",
                "--batch",
                "2",
                "--seq",
                "512",
                "--prompt",
                "500",
                "--updates",
                "1",
                "--json",
                "--model",
            ])
            .arg(&model)
            .args(more)
            .output()
            .unwrap();
        let said: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
        said["peak_rss_mb"].as_u64().unwrap()
    };
    let (whole, recomputed) = (peak(&[]), peak(&["--activation-mb", "1"]));
    // 16 blocks keep 97 MB of 1,024 tokens; their inputs are 8.
    assert!(recomputed + 40 < whole, "{whole} MB with all activations, {recomputed} MB without");
}

#[cfg(all(feature = "daemon", target_os = "linux"))]
#[tokio::test]
async fn a_cache_takes_the_memory_that_was_written_to() {
    let dir = tempfile::tempdir().unwrap();
    // 256 bytes a token.
    let settings = ["serve.context=1048576", "serve.batch=16", "train.enabled=false"];
    let daemon = crate::support::daemon::Daemon::on(dir.path(), &settings);
    let body = r#"{"prompt": "the", "max_tokens": 8}"#;
    let asked = reqwest::Client::new().post(format!("{}/v1/completions", daemon.url)).body(body);
    let answer = asked.header("content-type", "application/json").send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    let taken = daemon.anonymous_mb();
    assert!(taken < 200, "{taken} MB, of a cache of 256 of which some tokens are in use");
}

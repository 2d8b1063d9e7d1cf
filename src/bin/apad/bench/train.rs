//! `apad bench train`: APA updates by the real trainer on random tokens; `benches/peft_step.py` does the same in
//! PyTorch.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use apa::config::{Dtype, TrainConfig, Weights};
use apa::policy::{self, Decoder, Form};
use apa::trainer::{StepOutcome, Trainer};
use apa::types::{Rollout, TokenId};
use candle_core::DType;
use clap::Args;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::flags::{dtype, weights};
use crate::{WrongUse, pull};

/// Measure APA updates: tokens per second and peak memory
#[derive(Args)]
#[command(after_help = "\
Example:
  apad bench train --model smollm2-135m-instruct --batch 4 --seq 256 --prompt 64 --json

An update is what the trainer does with a batch of ratings: log-probabilities of the initial model and of the
policy, old values, advantages, then two epochs of one policy and one critic step each, LoRA on every linear layer,
AdamW. Tokens are random: speed does not depend on them. Tokens per second are batch x seq x epochs / time, the
median of the updates after the first; memory is the process's peak, loading included.")]
pub struct Options {
    /// GGUF file, or the name of a known model (fetched if missing)
    #[arg(long, value_name = "PATH|NAME")]
    model: PathBuf,
    /// Samples an update
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=1024))]
    batch: u32,
    /// Tokens a sample, prompt and response
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=65536))]
    seq: u32,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65535))]
    prompt: u32,
    /// Updates; the first is not counted where there are more
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    updates: u32,
    /// Where it computes: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Threads that compute
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,
    /// Number format of the frozen products
    #[arg(long, value_name = "FORMAT", value_parser = dtype(), default_value = "auto")]
    dtype: Dtype,
    /// How frozen weights are held: packed or quantized
    #[arg(long, value_name = "FORM", value_parser = weights(), default_value = "packed")]
    weights: Weights,
    /// Memory for activations, beyond which blocks are recomputed; all are kept if it is not said
    #[arg(long, value_name = "MIB")]
    activation_mb: Option<u32>,
    /// Print one JSON line
    #[arg(long)]
    json: bool,
}

pub async fn run(options: Options) -> Result<()> {
    if options.prompt >= options.seq {
        let Options { prompt, seq, .. } = options;
        return Err(WrongUse(format!("--prompt is {prompt}, expected less than --seq, {seq}")).into());
    }
    let model = pull::resolve(&options.model).await?;
    tokio::task::spawn_blocking(move || {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads as usize).build()?;
        pool.install(|| measure(&options, &model))
    })
    .await?
}

fn measure(options: &Options, model: &Path) -> Result<()> {
    let config = TrainConfig {
        dtype: options.dtype,
        batch: options.batch,
        // One policy step and one critic step an epoch.
        minibatch: options.batch,
        max_tokens: options.seq,
        // Measuring the KL is not part of the update.
        kl_samples: 0,
        threads: options.threads,
        ..TrainConfig::default()
    };
    let device = policy::device(&options.device)?;
    let activations = options.activation_mb.map(|mb| u64::from(mb) << 20);
    let form = Form { dtype: config.dtype, weights: options.weights, activations };
    let decoder = Arc::new(Decoder::load_as(model, &device, form)?);
    let dtype = if decoder.dtype() == DType::BF16 { "bf16" } else { "f32" };
    let vocabulary = u32::try_from(decoder.vocabulary())?;
    let mut trainer = Trainer::new(decoder, &config)?;
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let mut walls = Vec::new();
    for update in 1..=options.updates {
        let rollouts = rollouts(options, vocabulary, &mut rng);
        let started = Instant::now();
        match trainer.step(&rollouts, &|| false)? {
            StepOutcome::Trained(metrics) => ensure!(metrics.dropped_steps == 0, "optimizer steps were dropped"),
            StepOutcome::Skipped { reason, .. } => bail!("the trainer skipped an update: {reason}"),
        }
        let seconds = started.elapsed().as_secs_f64();
        eprintln!("update {update} of {}: {seconds:.2} s", options.updates);
        walls.push(seconds);
    }
    let wall = median(walls.get(1..).filter(|rest| !rest.is_empty()).unwrap_or(&walls));
    let (batch, seq, epochs, threads) = (options.batch, options.seq, config.epochs, options.threads);
    let speed = f64::from(batch) * f64::from(seq) * f64::from(epochs) / wall;
    let memory = peak_memory_mb();
    if options.json {
        let line = json!({
            "peer": "apad", "device": policy::describe(&device), "dtype": dtype,
            "weights": options.weights, "batch": batch, "seq": seq,
            "epochs": epochs, "threads": threads,
            "tokens_per_second": rounded(speed, 10.0), "update_seconds": rounded(wall, 100.0),
            "peak_rss_mb": memory.as_ref().ok(),
        });
        println!("{line}");
        return Ok(());
    }
    let memory = memory.map_or_else(|why| format!("memory unknown ({why})"), |mb| format!("{mb} MB at the peak"));
    println!("{speed:.1} tokens/s, {wall:.2} s an update, {memory}");
    println!("({dtype}, {batch} x {seq} tokens, {epochs} epochs, {threads} threads)");
    Ok(())
}

fn rollouts(options: &Options, vocabulary: u32, rng: &mut ChaCha8Rng) -> Vec<Rollout> {
    let mut tokens = |n: u32| -> Vec<TokenId> { (0..n).map(|_| rng.random_range(0..vocabulary)).collect() };
    (0..options.batch)
        .map(|i| Rollout {
            prompt: tokens(options.prompt),
            response: tokens(options.seq - options.prompt),
            temperature: 1.0,
            // Scores must differ, or there would be nothing to learn.
            score: f64::from(i),
            advantage_floor: None,
            served_logprobs: None,
            version: None,
            behavior_logprobs: None,
        })
        .collect()
}

fn median(walls: &[f64]) -> f64 {
    let mut sorted = walls.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0
}

fn rounded(x: f64, parts: f64) -> f64 {
    (x * parts).round() / parts
}

/// Peak resident memory of this process, in MiB.
fn peak_memory_mb() -> Result<u64> {
    let path = "/proc/self/status";
    let status = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or_else(|| anyhow!("no VmHWM in {path}"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("VmHWM in {path}"))?;
    Ok(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), 3.0);
    }
}

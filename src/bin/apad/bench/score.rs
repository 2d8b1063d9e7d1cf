//! `apad bench score`: how fast a reward model scores answers; `benches/peft_reward.py --speed` does the same in
//! PyTorch.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use apa::config::Dtype;
use apa::llama::Model;
use apa::policy::{self, Decoder};
use apa::reward::{Learner, Manifest, Pair, RewardAdapter, Settings, Tokenizer, read_judgements};
use apa::types::TokenId;
use candle_core::DType;
use clap::Args;
use serde_json::json;

use crate::pull;

/// Measure scoring answers with a reward model
#[derive(Args)]
#[command(after_help = "\
Example:
  apad bench score --model smollm2-135m-instruct --pairs pairs.jsonl.gz --answers 64 --json

Scores both answers of the first pairs with an adapter that was never trained: speed does not depend on its weights.
Seconds are the median of the rounds after the first.")]
pub struct Options {
    /// GGUF file, or the name of a known model (fetched if missing)
    #[arg(long, value_name = "PATH|NAME")]
    model: PathBuf,
    /// Preference pairs
    #[arg(long, value_name = "FILE")]
    pairs: PathBuf,
    /// Answers that are scored
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=65536))]
    answers: u32,
    /// Rounds that count; one more goes before them
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Rank of the adapter
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    rank: u32,
    /// Threads that compute
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,
    /// Print one JSON line
    #[arg(long)]
    json: bool,
}

pub async fn run(options: Options) -> Result<()> {
    let model = pull::resolve(&options.model).await?;
    tokio::task::spawn_blocking(move || {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads as usize).build()?;
        pool.install(|| measure(&options, &model))
    })
    .await?
}

fn measure(options: &Options, path: &Path) -> Result<()> {
    let settings = Settings { rank: options.rank as usize, validation: 0.0, ..Settings::default() };
    let (mut pairs, end_token) = {
        let model = Model::load(path, 0)?;
        (Tokenizer::new(&model, settings.max_tokens).pairs(read_judgements(&options.pairs)?).0, model.turn_end())
    };
    let wanted = options.answers as usize / 2;
    if pairs.len() < wanted {
        bail!("{} holds {} pairs that can be used, expected {wanted}", options.pairs.display(), pairs.len());
    }
    pairs.truncate(wanted);
    let decoder = Arc::new(Decoder::load(path, &policy::device("auto")?, Dtype::Auto)?);
    let dtype = if decoder.dtype() == DType::BF16 { "bf16" } else { "f32" };
    let manifest = Manifest { end_token, ..Manifest::new(settings.clone(), decoder.fingerprint()) };
    let fresh = Learner::new(decoder, &settings, pairs.clone(), Vec::new(), "")?.finish()?;
    let adapter = RewardAdapter::new(fresh, manifest);
    let both = |pair: &Pair| [&pair.chosen, &pair.rejected].map(|answer| (pair.prompt.clone(), answer.clone()));
    let answers: Vec<(Vec<TokenId>, Vec<TokenId>)> = pairs.iter().flat_map(both).collect();
    let tokens: usize = pairs.iter().map(Pair::tokens).sum();
    let mut seconds = Vec::new();
    for _ in 0..=options.rounds {
        let started = Instant::now();
        adapter.score(&answers)?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    let mut counted = seconds.split_off(1);
    counted.sort_by(f64::total_cmp);
    let median = counted.get(counted.len() / 2).copied().unwrap_or(f64::NAN);
    let (answers, speed) = (answers.len(), tokens as f64 / median);
    if options.json {
        let line = json!({
            "peer": "apad", "dtype": dtype, "answers": answers, "tokens": tokens, "seconds": median,
            "tokens_per_second": speed,
        });
        println!("{line}");
    } else {
        println!("{answers} answers of {tokens} tokens in {median:.3} s, {speed:.0} tokens/s ({dtype})");
    }
    Ok(())
}

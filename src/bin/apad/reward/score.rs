//! `apad reward score`: measures how well a reward model separates pairs. Trains nothing.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use apa::llama::Model;
use apa::reward::{Pair, RewardModel, Settings};
use clap::Args;
use serde_json::json;

use super::{Compute, prepare};
use crate::pull;

/// Measure a reward model on preference pairs: accuracy, margins, calibration
#[derive(Args)]
#[command(after_help = "\
Example:
  apad reward score --model base.gguf --reward reward.gguf --pairs pairs.jsonl.gz --held-back --json

Prints JSON: accuracy (a tie counts half), the loss, margins and scores with percentiles, the calibration error and
its bins, and the lines that were left out. A margin is the chosen answer's score minus the rejected one's.")]
pub struct Options {
    /// GGUF file, or the name of a known model (fetched if missing)
    #[arg(long, value_name = "PATH|NAME")]
    model: PathBuf,
    /// What `apad reward train` wrote, or the folder of a DeBERTa-v2 or ModernBERT classifier
    #[arg(long, value_name = "FILE|FOLDER")]
    reward: PathBuf,
    /// Preference pairs
    #[arg(long, value_name = "FILE")]
    pairs: PathBuf,
    /// Only the lines that training held back, of the file it was trained on
    #[arg(long)]
    held_back: bool,
    /// At most this many pairs, the first
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print JSON (it is printed anyway)
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: Compute,
}

pub async fn run(options: Options) -> Result<()> {
    let model = pull::resolve(&options.model).await?;
    tokio::task::spawn_blocking(move || score(&options, &model)).await?
}

fn score(options: &Options, model: &Path) -> Result<()> {
    let pool = options.compute.pool()?;
    let served = Model::load(model, 0)?;
    let decoder = pool.install(|| options.compute.decoder(model))?;
    let reward_model = RewardModel::open(&decoder, &served, &options.reward)?;
    let manifest = match &reward_model {
        RewardModel::Adapter(adapter) => Some(adapter.manifest()),
        RewardModel::Classifier { .. } => None,
    };
    let most = manifest.map_or(Settings::default().max_tokens, |manifest| manifest.settings.max_tokens);
    let mut prepared = prepare(&served, &options.pairs, most)?;
    if options.held_back {
        let Some(manifest) = manifest else { bail!("a classifier doesn't say which pairs were held back from it") };
        if prepared.sha256 != manifest.pairs_sha256 {
            bail!("{} is not the file that the reward model was trained on", options.pairs.display());
        }
        let held: HashSet<usize> = manifest.held_back.iter().copied().collect();
        prepared.pairs.retain(|pair| held.contains(&pair.line));
    }
    prepared.pairs.truncate(options.limit.unwrap_or(usize::MAX));
    let tokens: usize = prepared.pairs.iter().map(Pair::tokens).sum();
    let started = Instant::now();
    let report = pool.install(|| reward_model.report(&prepared.pairs))?;
    let seconds = started.elapsed().as_secs_f64();
    let mut summary = serde_json::to_value(&report)?;
    summary["refused_lines"] = json!(prepared.refused.iter().map(|r| r.line).collect::<Vec<_>>());
    summary["seconds"] = seconds.into();
    summary["tokens_per_second"] = (tokens as f64 / seconds).into();
    println!("{}", crate::json_text(&summary)?);
    Ok(())
}

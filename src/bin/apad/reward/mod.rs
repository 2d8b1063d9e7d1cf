//! `apad reward`: trains reward models on preference pairs, and measures them.

mod score;
mod train;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use apa::config::{Dtype, TrainConfig};
use apa::llama::Model;
use apa::policy::{self, Decoder};
use apa::reward::{Pair, Refused, Tokenizer, read_judgements};
use apa::shown::shown;
use clap::{Args, Subcommand};

use crate::flags::dtype;

/// Most bad lines that are reported one by one.
const NAMED: usize = 20;

/// Train a reward model on preference pairs, or measure one
#[derive(Args)]
#[command(after_help = "\
Examples:
  apad reward train --model smollm2-135m-instruct --pairs pairs.jsonl.gz --out polite.gguf
  apad reward score --model smollm2-135m-instruct --reward polite.gguf --pairs others.jsonl --json")]
pub struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Train(Box<train::Options>),
    Score(score::Options),
}

pub async fn run(options: Options) -> Result<()> {
    match options.action {
        Action::Train(options) => train::run(*options).await,
        Action::Score(options) => score::run(options).await,
    }
}

/// Where and how the frozen base is computed.
#[derive(Args, Clone, Debug)]
struct Compute {
    /// auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value_t = TrainConfig::default().device)]
    device: String,
    /// Number format of the frozen products
    #[arg(long, value_name = "FORMAT", value_parser = dtype(), default_value = "auto")]
    dtype: Dtype,
    /// Threads; 0 takes the number of cores
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

impl Compute {
    fn pool(&self) -> Result<rayon::ThreadPool> {
        rayon::ThreadPoolBuilder::new().num_threads(self.threads).build().context("starting threads")
    }

    fn decoder(&self, model: &Path) -> Result<Arc<Decoder>> {
        Ok(Arc::new(Decoder::load(model, &policy::device(&self.device)?, self.dtype)?))
    }
}

/// The pairs of a file as tokens.
struct Prepared {
    pairs: Vec<Pair>,
    refused: Vec<Refused>,
    sha256: String,
}

fn prepare(model: &Model, path: &Path, max_tokens: usize) -> Result<Prepared> {
    let file = read_judgements(path)?;
    let sha256 = file.sha256.clone();
    let (pairs, refused) = Tokenizer::new(model, max_tokens).pairs(file);
    for line in refused.iter().take(NAMED) {
        eprintln!("{}", shown(&format!("{}:{}: left out: {}", path.display(), line.line, line.reason)));
    }
    if refused.len() > NAMED {
        eprintln!("{}: {} more lines left out", path.display(), refused.len() - NAMED);
    }
    if pairs.is_empty() {
        bail!("{} holds no pair that can be used ({} lines left out)", path.display(), refused.len());
    }
    Ok(Prepared { pairs, refused, sha256 })
}

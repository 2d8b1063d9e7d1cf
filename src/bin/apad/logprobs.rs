//! `apad logprobs`: the log-probability of given tokens, by the trainer's engine or the server's. The two should agree.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use apa::config::{Dtype, TrainConfig};
use apa::llama::{self, ContextOptions};
use apa::policy::{self, Decoder, Lora, Packed};
use apa::types::TokenId;
use candle_core::DType;
use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde_json::json;

use crate::flags::dtype;
use crate::pull;

/// Most tokens of one llama.cpp batch.
const BATCH: u32 = 512;

/// Print the log-probability of each token after the first, in nats
#[derive(Args)]
#[command(after_help = "\
Example:
  echo '{\"tokens\": [1, 4093, 198]}' > tokens.jsonl
  apad logprobs --model base.gguf --adapter adapter.gguf --engine candle --input tokens.jsonl

Prints a line {\"logprobs\": [..]} for each line of the input.")]
pub struct Options {
    /// GGUF file, or the name of a known model (fetched if missing)
    #[arg(long, value_name = "PATH|NAME")]
    model: PathBuf,
    /// LoRA adapter, as GGUF
    #[arg(long, value_name = "FILE")]
    adapter: Option<PathBuf>,
    /// Who computes: candle is what trains, llama what serves
    #[arg(long, value_enum)]
    engine: Engine,
    /// A line {"tokens": [..]} each
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Number format of candle's frozen products
    #[arg(long, value_name = "FORMAT", value_parser = dtype(), default_value = "f32")]
    dtype: Dtype,
    /// Where candle computes: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value_t = TrainConfig::default().device)]
    device: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Engine {
    Candle,
    Llama,
}

pub async fn run(options: Options) -> Result<()> {
    let model = pull::resolve(&options.model).await?;
    tokio::task::spawn_blocking(move || print(&options, &model)).await?
}

fn print(options: &Options, model: &Path) -> Result<()> {
    let sequences = read(&options.input)?;
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let mut score = match options.engine {
        Engine::Candle => candle(options, model)?,
        Engine::Llama => llama(options, model, longest)?,
    };
    let mut out = crate::Output::held();
    for (index, tokens) in sequences.iter().enumerate() {
        let logprobs = score(tokens).with_context(|| format!("{}:{}", options.input.display(), index + 1))?;
        writeln!(out, "{}", json!({"logprobs": logprobs}))?;
    }
    Ok(())
}

/// Gives the log-probability of each token after the first.
type Score = Box<dyn FnMut(&[TokenId]) -> apa::Result<Vec<f32>>>;

fn candle(options: &Options, model: &Path) -> Result<Score> {
    let decoder = Decoder::load(model, &policy::device(&options.device)?, options.dtype)?;
    let lora = options.adapter.as_deref().map(|path| Lora::read_gguf(path, &decoder)).transpose()?;
    Ok(Box::new(move |tokens| {
        let packed = Packed::new(&[tokens])?;
        let logprobs = decoder.response_logprobs(&packed, &packed.targets(&[1])?, &[1.0], lora.as_ref())?;
        Ok(logprobs.to_dtype(DType::F32)?.to_vec1()?)
    }))
}

fn llama(options: &Options, model: &Path, longest: usize) -> Result<Score> {
    let model = llama::Model::load(model, -1)?;
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(512) as u32);
    let context = u32::try_from(longest.max(2)).context("a line has too many tokens")?;
    // As in serving, but without the rounding of a 16-bit cache: the weights are what is compared.
    let shape = ContextOptions { context, batch: BATCH, sequences: 1, exact: true };
    let mut context = llama::Context::new(&model, threads, shape)?;
    if let Some(path) = &options.adapter {
        context.set_adapter(Some(llama::Adapter::load(&model, path)?))?;
    }
    Ok(Box::new(move |tokens| llama::token_logprobs(&mut context, tokens)))
}

fn read(path: &Path) -> Result<Vec<Vec<TokenId>>> {
    #[derive(Deserialize)]
    struct Line {
        tokens: Vec<TokenId>,
    }
    let file = File::open(path).with_context(|| format!("can't open {}", path.display()))?;
    let mut sequences = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| format!("reading {}", path.display()))?;
        let at = || format!("{}:{}", path.display(), index + 1);
        let Line { tokens } =
            serde_json::from_str(&line).with_context(|| format!("{}: expected {{\"tokens\": [..]}}", at()))?;
        if tokens.len() < 2 {
            bail!("{}: {} tokens, expected at least 2", at(), tokens.len());
        }
        sequences.push(tokens);
    }
    Ok(sequences)
}

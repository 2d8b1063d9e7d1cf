//! `apad reward train`: trains a reward model on pairs and writes it to one file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use apa::llama::Model;
use apa::overwrite::{Form, check_target};
use apa::reward::{self, Learner, Manifest, Progress, Report, RewardAdapter, Settings};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{Compute, prepare};
use crate::{WrongUse, bars, pull};

/// Time between lines of progress where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(20);

/// Train a reward model: an adapter and a scalar head on the frozen base, by Bradley-Terry
#[derive(Args)]
#[command(after_help = "\
Example:
  apad reward train --model base.gguf --pairs pairs.jsonl.gz --out reward.gguf --epochs 3 --seed 1

Pairs are JSON lines, gzipped or not: {\"prompt\": [messages] or text, \"chosen\": .., \"rejected\": ..} (TRL), or
chosen and rejected as whole conversations or HH transcripts. A line that can't be used is named and left out. A
share of the pairs is held back, by prompt and seed; the weights that do best on them are kept. Ctrl-C writes
FILE.checkpoint; --resume goes on.")]
pub struct Options {
    /// GGUF file, or the name of a known model (fetched if missing)
    #[arg(long, value_name = "PATH|NAME")]
    model: PathBuf,
    /// Preference pairs
    #[arg(long, value_name = "FILE")]
    pairs: PathBuf,
    /// The reward model's file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Rank of the adapter
    #[arg(long, value_name = "N", default_value_t = Settings::default().rank)]
    rank: usize,
    /// Scale numerator of the adapter (default: twice the rank)
    #[arg(long, value_name = "X")]
    alpha: Option<f64>,
    /// Most passes over the pairs
    #[arg(long, value_name = "N", default_value_t = Settings::default().epochs)]
    epochs: u32,
    /// Highest learning rate: it rises for a twentieth of the steps, then falls to nothing
    #[arg(long, value_name = "X", default_value_t = Settings::default().lr, allow_negative_numbers = true)]
    lr: f64,
    /// Pairs an optimizer step
    #[arg(long, value_name = "N", default_value_t = Settings::default().batch)]
    batch: usize,
    /// Decoupled weight decay
    #[arg(long, value_name = "X", default_value_t = Settings::default().weight_decay)]
    weight_decay: f64,
    /// Share of the pairs held back; 0 trains on all, to the end
    #[arg(long, value_name = "SHARE", default_value_t = Settings::default().validation)]
    validation: f64,
    /// Looks at the held-back pairs an epoch
    #[arg(long, value_name = "N", default_value_t = Settings::default().evaluations)]
    evaluations: u32,
    /// Looks without a better loss after which training stops
    #[arg(long, value_name = "N", default_value_t = Settings::default().patience)]
    patience: u32,
    /// Longest prompt with answer, in tokens; longer answers are cut
    #[arg(long, value_name = "N", default_value_t = Settings::default().max_tokens)]
    max_tokens: usize,
    /// Tokens computed at once: bounds the memory
    #[arg(long, value_name = "N", default_value_t = Settings::default().micro_batch_tokens)]
    micro_batch_tokens: usize,
    /// Seeds the adapter, the order of pairs, and which are held back
    #[arg(long, value_name = "S", default_value_t = Settings::default().seed)]
    seed: u64,
    /// Go on from FILE.checkpoint, if it is there
    #[arg(long)]
    resume: bool,
    /// Print a summary as JSON on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: Compute,
}

impl Options {
    fn settings(&self) -> Settings {
        Settings {
            rank: self.rank,
            alpha: self.alpha.unwrap_or(2.0 * self.rank as f64),
            epochs: self.epochs,
            lr: self.lr,
            batch: self.batch,
            weight_decay: self.weight_decay,
            validation: self.validation,
            evaluations: self.evaluations,
            patience: self.patience,
            max_tokens: self.max_tokens,
            micro_batch_tokens: self.micro_batch_tokens,
            seed: self.seed,
            ..Settings::default()
        }
    }
}

pub async fn run(options: Options) -> Result<()> {
    options.settings().validate().map_err(|e| WrongUse(e.to_string()))?;
    let model = pull::resolve(&options.model).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    let mut work = tokio::task::spawn_blocking(move || train(&options, &model, &asked));
    tokio::select! {
        done = &mut work => return done?,
        signal = tokio::signal::ctrl_c() => signal.context("waiting for Ctrl-C")?,
    }
    stop.store(true, Ordering::Relaxed);
    work.await?
}

fn train(options: &Options, model: &Path, stop: &AtomicBool) -> Result<()> {
    let checkpoint = checkpoint_of(&options.out);
    for written in [&options.out, &checkpoint] {
        check_target(written, Form::Gguf, &[model, &options.pairs])?;
    }
    if checkpoint.exists() && !options.resume {
        let found = checkpoint.display();
        bail!("{found} is there: --resume goes on with it, or remove it to begin anew");
    }
    let settings = options.settings();
    let pool = options.compute.pool()?;
    let served = Model::load(model, 0)?;
    let prepared = prepare(&served, &options.pairs, settings.max_tokens)?;
    let (train, held) = reward::split(prepared.pairs, settings.validation, settings.seed);
    let end_token = served.turn_end();
    drop(served);

    let decoder = pool.install(|| options.compute.decoder(model))?;
    let mut manifest = Manifest::new(settings.clone(), decoder.fingerprint());
    manifest.pairs_sha256 = prepared.sha256.clone();
    manifest.trained_pairs = train.len();
    manifest.held_back = held.iter().map(|p| p.line).collect();
    manifest.refused = prepared.refused.len();
    manifest.end_token = end_token;
    let learner = Learner::new(decoder, &settings, train, held, &prepared.sha256)?;
    let mut learner = learner.checkpoint(&checkpoint, options.resume)?;

    let mut screen = Screen::new(&manifest, &learner);
    let ended = pool.install(|| learner.run(&|| stop.load(Ordering::Relaxed), &mut |said| screen.show(said)))?;
    screen.bar.finish_and_clear();
    if ended.stopped {
        let (done, planned) = (ended.steps, learner.planned_steps());
        bail!("stopped after step {done} of {planned}; the same command with --resume goes on");
    }
    manifest.epochs_done = ended.epochs_done;
    manifest.validation = ended.validation.clone();
    let adapter = RewardAdapter::new(learner.finish()?, manifest);
    adapter.save(&options.out)?;
    Learner::remove_checkpoint(&checkpoint)?;

    let manifest = adapter.manifest();
    if options.json {
        let summary = json!({
            "out": options.out, "steps": ended.steps, "dropped_steps": ended.dropped_steps, "early": ended.early,
            "refused_lines": prepared.refused.iter().map(|r| r.line).collect::<Vec<_>>(), "manifest": manifest,
        });
        println!("{}", crate::json_text(&summary)?);
    } else {
        let how = if ended.early { "stopped early" } else { "trained to the end" };
        println!("{how}, kept the weights after {:.2} epochs: {}", manifest.epochs_done, line(&manifest.validation));
        println!("{}", options.out.display());
    }
    Ok(())
}

fn checkpoint_of(out: &Path) -> PathBuf {
    let mut name: OsString = out.as_os_str().to_owned();
    name.push(".checkpoint");
    name.into()
}

fn line(report: &Report) -> String {
    if report.pairs == 0 {
        return "no pairs were held back".into();
    }
    format!(
        "{} held-back pairs, accuracy {:.3} ± {:.3}, loss {:.4}, margin {:.3}, calibration error {:.3}",
        report.pairs,
        report.accuracy,
        report.accuracy_stderr,
        report.loss,
        report.margin.mean,
        report.calibration_error
    )
}

struct Screen {
    bar: ProgressBar,
    said: Instant,
}

impl Screen {
    fn new(manifest: &Manifest, learner: &Learner) -> Self {
        let bar = bars::bar(None);
        if let Ok(style) =
            ProgressStyle::with_template("steps {wide_bar:.cyan/dim} {pos}/{len} {elapsed_precise}, {eta} left {msg}")
        {
            bar.set_style(style);
        }
        bar.set_length(learner.planned_steps());
        bar.set_position(learner.steps());
        bar.reset_eta();
        let (pairs, held) = (manifest.trained_pairs, manifest.held_back.len());
        let Settings { rank, lr, batch, epochs, seed, .. } = manifest.settings;
        let screen = Self { bar, said: Instant::now() };
        screen.line(&format!(
            "{pairs} pairs to learn from, {held} held back, {} left out; rank {rank}, lr {lr:e}, {batch} pairs a step, \
             at most {epochs} epochs, seed {seed}",
            manifest.refused
        ));
        screen
    }

    fn line(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    fn show(&mut self, said: &Progress) {
        match said {
            Progress::Step { step, loss, tokens_per_second } => {
                self.bar.set_position(*step);
                self.bar.set_message(format!("loss {loss:.3}, {tokens_per_second:.0} tokens/s"));
                if self.bar.is_hidden() && self.said.elapsed() >= LINE_EVERY {
                    self.said = Instant::now();
                    let planned = self.bar.length().unwrap_or_default();
                    eprintln!("step {step} of {planned}: loss {loss:.3}, {tokens_per_second:.0} tokens/s");
                }
            }
            Progress::Evaluated { step, train_loss, report, best } => {
                let mark = if *best { ", the best so far" } else { "" };
                self.line(&format!("step {step}: training loss {train_loss:.4}; {}{mark}", line(report)));
            }
        }
    }
}

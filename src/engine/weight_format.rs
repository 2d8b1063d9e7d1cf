//! Chooses the weight format in which the base model is served, by measuring the gain and the cost of each on this
//! machine. The trainer always reads the original file, and versions don't depend on the format.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::files;
use crate::gguf::{Gguf, Writer};
use crate::llama::{self, Batch, Context, ContextOptions, FileType, Model, Placement, quantize, row_kl};
use crate::types::{Nats, TokenId};
use crate::{forecast, policy};

/// Formats that `auto` tries.
const CANDIDATES: [&str; 4] = ["q4_0", "iq4_nl", "q8_0", "bf16"];
/// Serves the weights in the file's own format.
const KEEP: &str = "keep";
const AUTO: &str = "auto";
/// A format must be faster by this factor to be worth its cost.
const WORTH: f64 = 1.05;
/// Layers on which formats compete: enough to show a difference, and encoded quickly.
const SAMPLE_LAYERS: u32 = 4;
/// Measurements of each side, in turns; the fastest counts, as the least disturbed. A format far behind in the first
/// one is not measured again.
const ROUNDS: usize = 3;
const FAR_BEHIND: f64 = 0.8;
/// Decodes of a measurement, one token a slot each, and tokens of the prompt before them.
const TURNS: u32 = 6;
const PROMPT: u32 = 24;
/// Time after which `auto` tries no further format.
const PATIENCE: Duration = Duration::from_secs(15);
/// Tokens of the text on which the cost is measured.
const KL_TOKENS: usize = 256;
/// Tokens whose distributions are computed together.
const KL_CHUNK: usize = 32;
/// The built-in text for the measurement.
const TEXT: &str = include_str!("weight_format.txt");

/// The weight format in which the base model is served, with its measurements.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct WeightFormat {
    /// The format: `keep` is the file's own.
    pub kind: String,
    /// Measurements; empty if there was no choice.
    pub measured: Vec<FormatMeasurement>,
}

/// A weight format compared with the file's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct FormatMeasurement {
    /// The name of the format.
    pub kind: String,
    /// Speedup over the file's own format with all slots busy, prompts and answers together.
    pub speedup: f64,
    /// KL from the file's own distribution to this one, per token, mean over a text.
    pub kl_per_token: Nats,
}

/// The stored result of an earlier start, and the question that it answers.
#[derive(Serialize, Deserialize, PartialEq)]
struct Found {
    fingerprint: String,
    wanted: String,
    slots: u32,
    threads: u32,
    /// The name in existing files.
    #[serde(rename = "form")]
    format: WeightFormat,
}

/// Loads the model in the format that the settings ask for. The encoded file and the measurements are kept in the data
/// folder, so that this takes time only once.
///
/// # Errors
/// As [`Model::load`] and [`quantize`]; `Io` for the disk. Under `auto`, formats that fail are skipped.
pub(super) fn load(config: &Config, fingerprint: &str, threads: u32) -> Result<(Arc<Model>, WeightFormat)> {
    let wanted = config.serve.r#type.to_ascii_lowercase();
    if wanted != KEEP && wanted != AUTO {
        wanted.parse::<FileType>().map_err(|e| e.context("serve.type (which may also be keep or auto)"))?;
    }
    let original = Model::load_as(&config.model, placement(config))?;
    if wanted == KEEP || !original.is_decoder() {
        return Ok((original, WeightFormat { kind: KEEP.into(), measured: Vec::new() }));
    }
    let folder = config.data.join("serving");
    let formats = Formats { config, original, folder, fingerprint, threads };
    let notes = formats.folder.join("measured.json");
    let asked = |format| {
        let budget = config.serve.kl_budget;
        let wanted = format!("{wanted} at most {budget}");
        Found { fingerprint: fingerprint.into(), wanted, slots: config.serve.slots, threads, format }
    };
    let known = files::read(&notes, files::MOST).ok().and_then(|bytes| serde_json::from_slice::<Found>(&bytes).ok());
    let chosen = || -> Result<(Arc<Model>, WeightFormat)> {
        std::fs::create_dir_all(&formats.folder)?;
        if let Some(found) = known.filter(|f| *f == asked(f.format.clone())) {
            return Ok((formats.model(&found.format.kind)?, found.format));
        }
        let format = match wanted.as_str() {
            AUTO => formats.choose(),
            kind => WeightFormat { kind: kind.into(), measured: vec![formats.measure(kind)?] },
        };
        tracing::info!(kind = format.kind, measured = ?format.measured, "weight format of the served weights");
        write(&notes, &serde_json::to_vec_pretty(&asked(format.clone())).unwrap_or_default())?;
        formats.tidy(&format.kind);
        Ok((formats.model(&format.kind)?, format))
    };
    match chosen() {
        // A full disk is no reason not to serve.
        Err(error) if error.code() == Code::Io => {
            tracing::warn!(%error, "the weights are served as the file has them, since no other format can be written");
            Ok((formats.original.clone(), WeightFormat { kind: KEEP.into(), measured: Vec::new() }))
        }
        chosen => chosen,
    }
}

/// Where the served model lies: on the card, if this build serves on one, as much as fits beside the trainer.
fn placement(config: &Config) -> Placement {
    let mut gpu_layers = config.serve.gpu_layers;
    if let (-1, Some(card)) = (gpu_layers, llama::card_memory()) {
        let trains_there =
            config.train.enabled && policy::device(&config.train.device).is_ok_and(|device| !device.is_cpu());
        // A file that can't be read is told by what loads it.
        gpu_layers = forecast::served_layers(config, card, trains_there).unwrap_or(-1);
        tracing::info!(gpu_layers, free_mb = card >> 20, "layers that are served on the card; -1 is all");
    }
    Placement { gpu_layers, repack: config.serve.repack }
}

struct Formats<'a> {
    config: &'a Config,
    original: Arc<Model>,
    folder: PathBuf,
    fingerprint: &'a str,
    threads: u32,
}

impl Formats<'_> {
    fn path(&self, kind: &str) -> PathBuf {
        let short: String = self.fingerprint.chars().take(16).collect();
        self.folder.join(format!("{short}-{kind}.gguf"))
    }

    /// The model in that format, encoded if it isn't yet.
    fn model(&self, kind: &str) -> Result<Arc<Model>> {
        if kind == KEEP {
            return Ok(self.original.clone());
        }
        let path = self.path(kind);
        if !path.exists() {
            quantize(&self.config.model, &path, kind.parse()?, 0)?;
        }
        Model::load_as(&path, placement(self.config))
    }

    /// The fastest format within the budget: formats compete on a few layers, then the whole model is encoded in the
    /// order of their speed until one is within the budget.
    fn choose(&self) -> WeightFormat {
        let (started, budget) = (Instant::now(), Nats(self.config.serve.kl_budget));
        let mut measured = Vec::new();
        for (kind, speedup) in self.race_samples(started) {
            if speedup < WORTH || started.elapsed() > PATIENCE {
                break;
            }
            match self.measure(kind) {
                Ok(measurement) => {
                    let chosen = measurement.kl_per_token <= budget && measurement.speedup >= WORTH;
                    measured.push(measurement);
                    if chosen {
                        return WeightFormat { kind: kind.into(), measured };
                    }
                }
                Err(error) => tracing::warn!(kind, %error, "a weight format can't be had"),
            }
        }
        WeightFormat { kind: KEEP.into(), measured }
    }

    /// The speedup of each candidate on a few layers, the fastest first.
    fn race_samples(&self, started: Instant) -> Vec<(&'static str, f64)> {
        let path = self.path("sample");
        // A file whose layers can't be extracted competes as a whole.
        let sample = self.write_sample(&path).and_then(|()| Model::load_as(&path, placement(self.config)));
        let original = sample.unwrap_or_else(|error| {
            tracing::debug!(%error, "formats race on the whole model");
            self.original.clone()
        });
        let mut raced = Vec::new();
        for kind in CANDIDATES {
            if started.elapsed() > PATIENCE {
                break;
            }
            let encoded = self.path(&format!("sample-{kind}"));
            let speedup = kind.parse().and_then(|kind| quantize(original.path(), &encoded, kind, 0)).and_then(|()| {
                let model = Model::load_as(&encoded, placement(self.config))?;
                self.race(&original, &model)
            });
            match speedup {
                Ok(speedup) => raced.push((kind, speedup)),
                Err(error) => tracing::warn!(kind, %error, "a weight format can't be had"),
            }
        }
        tracing::info!(?raced, seconds = started.elapsed().as_secs_f64(), "weight formats on a few layers");
        raced.sort_by(|a, b| b.1.total_cmp(&a.1));
        raced
    }

    /// Writes a model of the first layers only.
    fn write_sample(&self, to: &Path) -> Result<()> {
        let file = Gguf::open(self.original.path())?;
        let key = format!("{}.block_count", self.original.architecture());
        let all = file.opt_u32(&key)?.unwrap_or(0);
        if all <= SAMPLE_LAYERS {
            return Err(Error::unsupported(format!("it has {all} layers")));
        }
        let mut sample = Writer::new();
        sample.copy_metadata(&file).set(&key, SAMPLE_LAYERS);
        for name in file.tensors().iter().map(|tensor| tensor.name()) {
            let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
            if layer.is_none_or(|layer| layer < SAMPLE_LAYERS) {
                sample.copy_tensor(&file, name)?;
            }
        }
        sample.write(to)
    }

    /// Compares a format of the whole model with the original.
    fn measure(&self, kind: &str) -> Result<FormatMeasurement> {
        let model = self.model(kind)?;
        let (speedup, kl_per_token) = (self.race(&self.original, &model)?, self.kl(&model)?);
        Ok(FormatMeasurement { kind: kind.into(), speedup, kl_per_token })
    }

    /// The speedup of `other`.
    fn race(&self, original: &Arc<Model>, other: &Arc<Model>) -> Result<f64> {
        let mut sides = [Runner::new(self, original)?, Runner::new(self, other)?];
        let mut best = [f64::INFINITY; 2];
        for _ in 0..ROUNDS {
            for (best, side) in best.iter_mut().zip(&mut sides) {
                *best = best.min(side.run()?.as_secs_f64());
            }
            if best[0] < best[1] * FAR_BEHIND {
                break;
            }
        }
        Ok(best[0] / best[1])
    }

    /// KL from the original's next-token distributions to the model's, per token, over the built-in text.
    fn kl(&self, model: &Arc<Model>) -> Result<Nats> {
        let mut text = self.original.tokenize(TEXT, true, false)?;
        text.truncate(KL_TOKENS.min(self.config.serve.context as usize));
        let room = text.len() as u32;
        let options = ContextOptions { context: room, batch: KL_CHUNK as u32, sequences: 1, exact: false };
        let mut contexts =
            [Context::new(&self.original, self.threads, options)?, Context::new(model, self.threads, options)?];
        let mut sum = 0.0;
        for (i, chunk) in text.chunks(KL_CHUNK).enumerate() {
            for context in &mut contexts {
                let mut tokens = Batch::default();
                for (j, &token) in chunk.iter().enumerate() {
                    tokens.add(token, (i * KL_CHUNK + j) as u32, 0, true);
                }
                decode(context, &mut tokens)?;
            }
            let [original, other] = &mut contexts;
            for row in 0..chunk.len() {
                sum += row_kl(original.logits(row)?, other.logits(row)?).0;
            }
        }
        Ok(Nats(sum / text.len().max(1) as f64))
    }

    /// Removes encoded files that are not served.
    fn tidy(&self, kept: &str) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return };
        for path in entries.flatten().map(|e| e.path()) {
            let encoded = path.extension().is_some_and(|e| e == "gguf" || e == "partial");
            if encoded && path != self.path(kept) {
                // A leftover file costs nothing but disk.
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// Runs prompts and answers of meaningless tokens in every slot.
struct Runner {
    context: Context,
    tokens: Batch,
}

impl Runner {
    fn new(formats: &Formats<'_>, model: &Arc<Model>) -> Result<Runner> {
        let sequences = formats.config.serve.slots;
        let batch = formats.config.serve.batch.max(sequences);
        let options = ContextOptions { context: sequences * (PROMPT + TURNS), batch, sequences, exact: false };
        let mut runner = Runner { context: Context::new(model, formats.threads, options)?, tokens: Batch::default() };
        // The first decode allocates, so it isn't counted.
        runner.add(0, 0, 0, true);
        decode(&mut runner.context, &mut runner.tokens)?;
        Ok(runner)
    }

    fn add(&mut self, number: u32, position: u32, seq: u32, output: bool) {
        let token = TokenId::try_from(number as usize * 7919 % self.context.model().n_vocab()).unwrap_or(0);
        self.tokens.add(token, position, seq as i32, output);
    }

    fn run(&mut self) -> Result<Duration> {
        let options = self.context.options();
        for seq in 0..options.sequences {
            self.context.forget(seq as i32, 0);
        }
        let started = Instant::now();
        for seq in 0..options.sequences {
            for position in 0..PROMPT {
                self.add(seq + position, position, seq, position + 1 == PROMPT);
                if self.tokens.len() == options.batch as usize {
                    decode(&mut self.context, &mut self.tokens)?;
                }
            }
        }
        if !self.tokens.is_empty() {
            decode(&mut self.context, &mut self.tokens)?;
        }
        for turn in 0..TURNS {
            for seq in 0..options.sequences {
                self.add(seq + turn, PROMPT + turn, seq, true);
            }
            decode(&mut self.context, &mut self.tokens)?;
        }
        Ok(started.elapsed())
    }
}

fn decode(context: &mut Context, tokens: &mut Batch) -> Result<()> {
    let decoded = context.decode(tokens)?;
    tokens.clear();
    if decoded { Ok(()) } else { Err(Error::nomem("measuring weight formats: the context is full")) }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("json-partial");
    std::fs::write(&partial, bytes)?;
    Ok(std::fs::rename(&partial, path)?)
}

//! Trains a reward model on preference pairs: Bradley-Terry, with held-back pairs, early stopping, and checkpoints that
//! resume bit for bit. Never reads a text and never decides where the result goes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{Tensor, Var};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha12Rng;
use serde::{Deserialize, Serialize};

use super::adapter::RewardAdapter;
use super::network::{Manifest, RewardNetwork, groups};
use super::pairs::Pair;
use super::report::Report;
use super::settings::Settings;
use crate::align::scalar;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::optim::{AdamW, AdamWConfig, Gradients};
use crate::policy::{Decoder, Lora, ValueHead};

const STATE_KEY: &str = "apa.reward.state";
const BEST: &str = "best.";
const FIRST: &str = "first_moment.";
const SECOND: &str = "second_moment.";
/// Share of the steps during which the learning rate rises; afterwards it falls linearly to zero.
const WARMUP: f64 = 0.05;
/// Least time between two checkpoints, apart from those after evaluations.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);

/// Progress of a training.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// An optimizer step was taken, or dropped because something was not finite (then `loss` is NaN).
    Step {
        /// Its number, from 1.
        step: u64,
        /// Mean loss of its pairs, in nats.
        loss: f64,
        /// Tokens of pairs per second.
        tokens_per_second: f64,
    },
    /// The held-back pairs were evaluated.
    Evaluated {
        /// Steps taken.
        step: u64,
        /// Mean loss of the steps since the last evaluation, in nats.
        train_loss: f64,
        /// The result.
        report: Report,
        /// Whether these weights are the best so far.
        best: bool,
    },
}

/// The result of a training.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// Steps taken, including dropped ones.
    pub steps: u64,
    /// Steps dropped because a loss or gradient was not finite.
    pub dropped_steps: u64,
    /// Whether it was stopped; the checkpoint resumes from there.
    pub stopped: bool,
    /// Whether it ended before its epochs because the held-back loss stopped improving.
    pub early: bool,
    /// Epochs after which the kept weights were reached.
    pub epochs_done: f64,
    /// The kept weights on the held-back pairs.
    pub validation: Report,
}

/// The part of a checkpoint that is not tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    step: u64,
    updates: u64,
    dropped: u64,
    stale: u32,
    best: Option<(u64, Report)>,
    /// Sum and number of losses since the last evaluation.
    losses: (f64, u64),
}

/// A training in progress.
pub struct Learner {
    model: RewardNetwork,
    vars: Vec<Var>,
    names: Vec<String>,
    optimizer: AdamW,
    settings: Settings,
    train: Vec<Pair>,
    held: Vec<Pair>,
    state: State,
    /// The best weights so far; empty if there are none.
    best: Vec<Tensor>,
    checkpoint: Option<PathBuf>,
    sha256: String,
}

impl Learner {
    /// Starts from a reward model that scores everything 0. `sha256` identifies the pairs in checkpoints.
    ///
    /// # Errors
    /// `Arg` for settings out of range, or if there are no pairs to train on or to hold back.
    pub fn new(
        decoder: Arc<Decoder>,
        settings: &Settings,
        train: Vec<Pair>,
        held: Vec<Pair>,
        sha256: &str,
    ) -> Result<Self> {
        settings.validate()?;
        if train.is_empty() {
            return Err(Error::arg("there are no pairs to learn from"));
        }
        if held.is_empty() && settings.validation > 0.0 {
            let share = settings.validation;
            return Err(Error::arg(format!("{} pairs are too few to hold {share} of them back", train.len())));
        }
        let lora = Lora::new(&decoder, settings.rank, settings.alpha, None, settings.seed)?;
        let head = ValueHead::new(&decoder)?;
        let model = RewardNetwork { decoder, lora, head };
        let (mut learner, sha256) = (Self::of(model, settings)?, sha256.to_owned());
        (learner.train, learner.held, learner.sha256) = (train, held, sha256);
        Ok(learner)
    }

    /// Starts from a trained reward model instead. Its weights change, so they must not be shared.
    ///
    /// # Errors
    /// `Train` if tensors can't be made.
    pub fn start_from(self, adapter: RewardAdapter) -> Result<Self> {
        let Self { train, held, sha256, settings, .. } = self;
        Ok(Self { train, held, sha256, ..Self::of(adapter.into_network(), &settings)? })
    }

    fn of(model: RewardNetwork, settings: &Settings) -> Result<Self> {
        let named = || model.lora.named().into_iter().chain(model.head.named());
        let (names, vars): (Vec<_>, Vec<_>) = named().unzip();
        Ok(Self {
            optimizer: AdamW::new(&vars)?,
            settings: settings.clone(),
            train: Vec::new(),
            held: Vec::new(),
            state: State::default(),
            best: Vec::new(),
            checkpoint: None,
            sha256: String::new(),
            model,
            vars,
            names,
        })
    }

    /// Writes checkpoints to `path`. With `resume`, continues from an existing one.
    ///
    /// # Errors
    /// `Arg` if it is of other pairs or settings, `Io` or `Model` if it is damaged.
    pub fn checkpoint(mut self, path: &Path, resume: bool) -> Result<Self> {
        if resume && path.exists() {
            self.resume(path).map_err(|e| e.context(format!("checkpoint {}", path.display())))?;
        }
        self.checkpoint = Some(path.to_owned());
        Ok(self)
    }

    fn resume(&mut self, path: &Path) -> Result<()> {
        let file = Gguf::open(path)?;
        let beside = [BEST, FIRST, SECOND];
        let (model, manifest) = RewardNetwork::read(&file, self.model.decoder.clone(), &beside)?;
        if manifest.settings != self.settings || manifest.pairs_sha256 != self.sha256 {
            return Err(Error::arg("it was begun with other pairs or settings, expected the same"));
        }
        let state = file.str(STATE_KEY)?;
        let state: State = serde_json::from_str(state).map_err(|e| Error::io(format!("its state is damaged: {e}")))?;
        let (train, held) = (std::mem::take(&mut self.train), std::mem::take(&mut self.held));
        let sha256 = std::mem::take(&mut self.sha256);
        *self = Self { train, held, sha256, ..Self::of(model, &self.settings)? };
        let read = |prefix: &str, name: &str, like: &Var| -> Result<Tensor> {
            let tensor = file.dequantize(&format!("{prefix}{name}"), like.device())?;
            match tensor.dims() == like.dims() {
                true => Ok(tensor),
                false => {
                    Err(Error::io(format!("its {prefix}{name} is {:?}, expected {:?}", tensor.dims(), like.dims())))
                }
            }
        };
        let vars = self.names.iter().zip(&self.vars);
        for (moments, (name, var)) in self.optimizer.moments.iter_mut().zip(vars.clone()) {
            (moments.first, moments.second) = (read(FIRST, name, var)?, read(SECOND, name, var)?);
        }
        if state.best.is_some() {
            self.best = vars.map(|(name, var)| read(BEST, name, var)).collect::<Result<_>>()?;
        }
        self.optimizer.updates = state.updates;
        self.state = state;
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        let Some(path) = &self.checkpoint else { return Ok(()) };
        self.state.updates = self.optimizer.updates;
        let mut more = Vec::new();
        for (name, moments) in self.names.iter().zip(&self.optimizer.moments) {
            more.push((format!("{FIRST}{name}"), moments.first.clone()));
            more.push((format!("{SECOND}{name}"), moments.second.clone()));
        }
        for (name, best) in self.names.iter().zip(&self.best) {
            more.push((format!("{BEST}{name}"), best.clone()));
        }
        let state = serde_json::to_string(&self.state).map_err(|e| Error::io(e.to_string()))?;
        let mut manifest = Manifest::new(self.settings.clone(), self.model.decoder.fingerprint());
        manifest.pairs_sha256 = self.sha256.clone();
        self.model.write(path, &manifest, &more, &[(STATE_KEY, state)])
    }

    /// Optimizer steps per epoch.
    fn steps_an_epoch(&self) -> u64 {
        self.train.len().div_ceil(self.settings.batch) as u64
    }

    /// Optimizer steps of all epochs.
    pub fn planned_steps(&self) -> u64 {
        self.steps_an_epoch() * u64::from(self.settings.epochs)
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.state.step
    }

    /// Trains to the end, or until `stop` returns true, writing a checkpoint then.
    ///
    /// # Errors
    /// `Train` if nothing can be computed, `Io` for the checkpoint.
    pub fn run(&mut self, stop: &dyn Fn() -> bool, progress: &mut dyn FnMut(&Progress)) -> Result<Ended> {
        let (epoch, planned) = (self.steps_an_epoch(), self.planned_steps());
        let every = epoch.div_ceil(u64::from(self.settings.evaluations)).max(1);
        let (mut saved, mut stopped, mut early) = (Instant::now(), false, self.stale());
        let mut order = (u64::MAX, Vec::new());
        while self.state.step < planned && !early {
            if stop() {
                stopped = true;
                self.save()?;
                break;
            }
            let (round, place) = (self.state.step / epoch, self.state.step % epoch);
            if order.0 != round {
                order = (round, self.order(round));
            }
            let first = place as usize * self.settings.batch;
            let last = (first + self.settings.batch).min(order.1.len());
            let batch: Vec<usize> = order.1.get(first..last).unwrap_or_default().to_vec();
            let said = self.step(&batch, planned)?;
            progress(&said);
            let looks = self.state.step % epoch;
            if !self.held.is_empty() && (looks == 0 || looks.is_multiple_of(every) && epoch - looks >= every / 2) {
                progress(&self.look()?);
                early = self.stale();
                self.save()?;
                saved = Instant::now();
            } else if saved.elapsed() > CHECKPOINT_EVERY {
                self.save()?;
                saved = Instant::now();
            }
        }
        let kept = self.state.best.as_ref().map_or(self.state.step, |(step, _)| *step);
        Ok(Ended {
            steps: self.state.step,
            dropped_steps: self.state.dropped,
            stopped,
            early: early && self.state.step < planned,
            epochs_done: kept as f64 / epoch as f64,
            validation: self.state.best.clone().map(|(_, report)| report).unwrap_or_default(),
        })
    }

    fn stale(&self) -> bool {
        self.state.stale >= self.settings.patience
    }

    fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.train.len()).collect();
        let mut rng = ChaCha12Rng::seed_from_u64(self.settings.seed);
        rng.set_stream(epoch);
        order.shuffle(&mut rng);
        order
    }

    /// The learning rate: a function of the step alone, so that a resumed run needs no state for it.
    fn lr(&self, planned: u64) -> f64 {
        let at = (self.state.step as f64 + 1.0) / planned as f64;
        let factor = if at < WARMUP { at / WARMUP } else { (1.0 - at) / (1.0 - WARMUP) };
        self.settings.lr * factor.max(0.01)
    }

    fn step(&mut self, batch: &[usize], planned: u64) -> Result<Progress> {
        let started = Instant::now();
        let config =
            AdamWConfig { lr: self.lr(planned), betas: [0.9, 0.999], weight_decay: self.settings.weight_decay };
        let pairs: Vec<&Pair> = batch.iter().filter_map(|i| self.train.get(*i)).collect();
        let (mut grads, mut loss) = (Gradients::default(), 0.0);
        let tokens: usize = pairs.iter().map(|p| p.tokens()).sum();
        for range in groups(pairs.iter().map(|p| p.tokens()), self.settings.micro_batch_tokens) {
            let group = pairs.get(range).unwrap_or_default();
            let part = (bradley_terry(&self.model, group)? * (group.len() as f64 / pairs.len() as f64))?;
            loss += scalar(&part)?;
            if !loss.is_finite() {
                break;
            }
            grads.add(&self.vars, &part)?;
        }
        let norm = match loss.is_finite() {
            true => grads.apply(&mut self.optimizer, &self.vars, self.settings.clip_norm, config)?,
            false => loss,
        };
        self.state.step += 1;
        if norm.is_finite() {
            self.state.losses.0 += loss;
            self.state.losses.1 += 1;
        } else {
            tracing::warn!(step = self.state.step, "optimizer step dropped: not finite");
            self.state.dropped += 1;
            loss = f64::NAN;
        }
        let tokens_per_second = tokens as f64 / started.elapsed().as_secs_f64();
        Ok(Progress::Step { step: self.state.step, loss, tokens_per_second })
    }

    fn look(&mut self) -> Result<Progress> {
        let report = self.model.report(&self.held, self.settings.micro_batch_tokens)?;
        let best = report.pairs > 0 && self.state.best.as_ref().is_none_or(|(_, b)| report.loss < b.loss);
        if best {
            self.state.best = Some((self.state.step, report.clone()));
            self.state.stale = 0;
            self.best = self.vars.iter().map(|v| Ok(v.as_detached_tensor().copy()?)).collect::<Result<_>>()?;
        } else {
            self.state.stale += 1;
        }
        let (sum, count) = std::mem::take(&mut self.state.losses);
        Ok(Progress::Evaluated { step: self.state.step, train_loss: sum / count.max(1) as f64, report, best })
    }

    /// The final weights: the best on the held-back pairs, or the last if none are held back.
    ///
    /// # Errors
    /// `Train` if they can't be copied.
    pub fn finish(self) -> Result<RewardNetwork> {
        for (var, best) in self.vars.iter().zip(&self.best) {
            var.set(best)?;
        }
        Ok(self.model)
    }

    /// Removes the checkpoint, once the result is safe.
    ///
    /// # Errors
    /// `Io` if it can't be removed.
    pub fn remove_checkpoint(path: &Path) -> Result<()> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::from(e).context(format!("removing {}", path.display())))
            }
            _ => Ok(()),
        }
    }
}

/// Mean of `-ln sigmoid(chosen - rejected)` over pairs, a scalar, in nats. (Bradley and Terry, 1952; Christiano et al.,
/// 2017)
fn bradley_terry(model: &RewardNetwork, pairs: &[&Pair]) -> Result<Tensor> {
    let chosen = pairs.iter().map(|p| p.whole(&p.chosen));
    let rejected = pairs.iter().map(|p| p.whole(&p.rejected));
    let sequences: Vec<Vec<u32>> = chosen.chain(rejected).collect();
    let scores = model.forward(&sequences)?; // [2 · pairs]
    let margin = (scores.narrow(0, 0, pairs.len())? - scores.narrow(0, pairs.len(), pairs.len())?)?;
    // softplus(-margin), without overflow.
    let tail = (margin.abs()?.neg()?.exp()? + 1.0)?.log()?;
    Ok((margin.neg()?.relu()? + tail)?.mean_all()?)
}

//! The plan of an experiment, written before it starts so that it can be resumed. Runs nothing.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::thumbs::Thumbs;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::reward::Source;

/// The plan's name in the folder of an experiment.
pub const PLAN_FILE: &str = "run.json";

/// Temperatures below this are practically greedy: nothing varies, so nothing is learned.
const LEAST_TEMPERATURE: f32 = 0.01;

/// Everything that determines the results of an experiment on the same machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Settings of model, trainer and llama.cpp. Each run uses its own seed as `train.seed`.
    pub config: Config,
    /// JSON lines of prompts; none if nothing is sampled.
    pub prompts: Option<Input>,
    /// The reward of sampled answers.
    pub reward: Option<Source>,
    /// Makes thumbs of the rewards that are trained on; those that are reported stay.
    #[serde(default)]
    pub thumbs: Option<Thumbs>,
    /// JSON lines of answers with rewards, which are trained on instead of samples.
    pub dataset: Option<Input>,
    /// With a data set: steps between batches of samples, which are only measured.
    pub evaluate_every: u64,
    /// Longest time that a reward command may take for a batch, in seconds.
    pub reward_timeout: u64,
    /// Batches to train on.
    pub steps: u64,
    /// One run each.
    pub seeds: Vec<u64>,
    /// Answers to each prompt of a batch.
    #[serde(default = "one")]
    pub answers: u32,
    /// Most tokens of an answer. (paper: 128)
    pub max_new: u32,
    /// Divides the logits, in sampling and in training.
    pub temperature: f32,
    /// Steps between two checkpoints.
    pub checkpoint_every: u64,
}

/// A file that affects the results of an experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Path of the file.
    pub path: PathBuf,
    /// SHA-256 of the file: another file would make another experiment.
    pub sha256: String,
}

impl Input {
    /// Errors with `Arg` if the file has another hash now.
    pub(super) fn is_still(&self, sha256: &str) -> Result<()> {
        if sha256 == self.sha256 {
            return Ok(());
        }
        Err(Error::arg(format!("{} has changed since the run began, expected the same file", self.path.display())))
    }
}

impl Plan {
    /// Checks that every value is in its range.
    ///
    /// # Errors
    /// `Arg`: `steps is 0, expected at least 1`.
    pub fn validate(&self) -> Result<()> {
        self.config.validate()?;
        let least = |name: &str, value: u64, least: u64| {
            if value >= least {
                Ok(())
            } else {
                Err(Error::arg(format!("{name} is {value}, expected at least {least}")))
            }
        };
        least("steps", self.steps, 1)?;
        least("answers", self.answers.into(), 1)?;
        let (answers, batch) = (self.answers, self.config.train.batch);
        if !batch.is_multiple_of(answers) {
            return Err(Error::arg(format!("answers is {answers}, expected a divisor of train.batch, {batch}")));
        }
        least("max-new", self.max_new.into(), 1)?;
        least("checkpoint-every", self.checkpoint_every, 1)?;
        least("reward-timeout", self.reward_timeout, 1)?;
        least("evaluate-every", self.evaluate_every, 1)?;
        match (&self.prompts, &self.reward, &self.dataset) {
            (Some(_), Some(_), _) | (None, None, Some(_)) => {}
            (None, None, None) => return Err(Error::arg("there are neither prompts nor a dataset, expected one")),
            (Some(_), None, _) => return Err(Error::arg("there are prompts but no reward, expected both")),
            (None, Some(_), _) => return Err(Error::arg("there is a reward but no prompts, expected both")),
        }
        if let Some(thumbs) = &self.thumbs {
            thumbs.validate()?;
        }
        // An answer alone has nothing to be compared with.
        least("train.batch", self.config.train.batch.into(), 2)?;
        if !(LEAST_TEMPERATURE..=10.0).contains(&self.temperature) {
            let got = self.temperature;
            return Err(Error::arg(format!("temperature is {got}, expected {LEAST_TEMPERATURE} to 10")));
        }
        if self.seeds.is_empty() {
            return Err(Error::arg("there is no seed, expected at least one"));
        }
        let mut seeds = self.seeds.clone();
        seeds.sort_unstable();
        match seeds.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Error::arg(format!("seed {} is given twice", pair[0]))),
            None => Ok(()),
        }
    }

    /// The plan as it will be read back. A run uses this one from its first step, so that a resumed run has the same
    /// numbers to the last bit.
    ///
    /// # Errors
    /// `Arg` if a path is not UTF-8.
    pub fn as_written(&self) -> Result<Plan> {
        parse(&self.json()?).map_err(|e| Error::arg(e.to_string()))
    }

    /// Writes it into `dir`, whole or not at all.
    ///
    /// # Errors
    /// `Io` for the disk.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let (path, beside) = (dir.join(PLAN_FILE), dir.join(format!("{PLAN_FILE}.partial")));
        let json = self.json()?;
        let write = || {
            let mut file = fs::File::create(&beside)?;
            file.write_all(&json)?;
            file.sync_all()?;
            fs::rename(&beside, &path)
        };
        write().map_err(|e| Error::from(e).context(format!("writing {}", path.display())))
    }

    /// Reads the plan of an experiment's folder.
    ///
    /// # Errors
    /// `Io` if there is none, or a damaged one.
    pub fn read(dir: &Path) -> Result<Plan> {
        let path = dir.join(PLAN_FILE);
        let json = fs::read(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::io(format!("{} holds no run: it has no {PLAN_FILE}", dir.display())),
            _ => Error::from(e).context(format!("reading {}", path.display())),
        })?;
        parse(&json).map_err(|e| Error::io(format!("{} is damaged: {e}", path.display())))
    }

    fn json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).map_err(|e| Error::arg(format!("the plan can't be written down: {e}")))
    }
}

fn one() -> u32 {
    1
}

fn parse(json: &[u8]) -> serde_json::Result<Plan> {
    serde_json::from_slice(json)
}

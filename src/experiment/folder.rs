//! A run's folder: records that grow step by step, and one durable checkpoint. Never decides when to write.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::record::StepRecord;
use crate::error::{Error, Result};
use crate::trainer::Trainer;
use crate::types::{PolicyVersion, Rollout, TokenId};

pub use crate::trainer::ADAPTER_FILE;

/// A line per step: [`StepRecord`].
pub const METRICS_FILE: &str = "metrics.jsonl";
/// A line per answer: step, prompt, response, score and tokens.
pub const SAMPLES_FILE: &str = "samples.jsonl";

const CHECKPOINT: &str = "checkpoint-";
const STAGED: &str = "staged-checkpoint";

/// What of a line of [`SAMPLES_FILE`] can be trained on.
#[derive(Deserialize)]
pub(super) struct SampleLine {
    step: u64,
    score: f64,
    thumb: Option<f64>,
    prompt_tokens: Vec<TokenId>,
    response_tokens: Vec<TokenId>,
}

impl SampleLine {
    /// What the reward gave it.
    pub fn score(&self) -> f64 {
        self.score
    }

    /// The answer as it was trained on, sampled at that temperature.
    pub fn rollout(self, temperature: f32) -> Rollout {
        Rollout {
            prompt: self.prompt_tokens,
            response: self.response_tokens,
            temperature,
            score: self.thumb.unwrap_or(self.score),
            version: Some(PolicyVersion(self.step)),
            ..Rollout::default()
        }
    }
}

/// The folder of one seed's run.
pub fn seed_folder(dir: &Path, seed: u64) -> PathBuf {
    dir.join(format!("seed-{seed}"))
}

/// The folder of a run, made if missing.
pub(super) struct Folder {
    dir: PathBuf,
}

impl Folder {
    pub fn open(dir: &Path) -> Result<Self> {
        at(dir, fs::create_dir_all(dir))?;
        Ok(Self { dir: dir.to_owned() })
    }

    pub fn adapter(&self) -> PathBuf {
        self.dir.join(ADAPTER_FILE)
    }

    /// The last checkpoint and the number of its step.
    pub fn checkpoint(&self) -> Result<Option<(u64, PathBuf)>> {
        Ok(self.checkpoints()?.into_iter().max())
    }

    fn checkpoints(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut found = Vec::new();
        for entry in at(&self.dir, fs::read_dir(&self.dir))? {
            let path = at(&self.dir, entry)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Some(step) = name.strip_prefix(CHECKPOINT).and_then(|n| n.parse().ok()) {
                found.push((step, path));
            }
        }
        Ok(found)
    }

    /// Saves the trainer as the checkpoint after `step` steps, and removes earlier ones.
    pub fn keep(&self, step: u64, trainer: &Trainer) -> Result<()> {
        let (staged, target) = (self.dir.join(STAGED), self.dir.join(format!("{CHECKPOINT}{step:06}")));
        if staged.exists() {
            at(&staged, fs::remove_dir_all(&staged))?;
        }
        at(&staged, fs::create_dir(&staged))?;
        trainer.save(&staged)?;
        for entry in at(&staged, fs::read_dir(&staged))? {
            let path = at(&staged, entry)?.path();
            at(&path, sync(&path))?;
        }
        at(&staged, sync(&staged))?;
        at(&target, fs::rename(&staged, &target))?;
        at(&self.dir, sync(&self.dir))?;
        for (_, old) in self.checkpoints()?.into_iter().filter(|(s, _)| *s != step) {
            at(&old, fs::remove_dir_all(&old))?;
        }
        Ok(())
    }

    /// Truncates the records to the first `steps` steps, and returns those.
    pub fn rewind(&self, steps: u64) -> Result<Vec<StepRecord>> {
        let lines = self.cut(METRICS_FILE, steps)?;
        self.cut(SAMPLES_FILE, steps)?;
        let path = self.dir.join(METRICS_FILE);
        let damaged = |what: String| Error::io(format!("{} is damaged: {what}", path.display()));
        let records = lines.iter().map(|l| serde_json::from_str(l)).collect::<serde_json::Result<Vec<StepRecord>>>();
        let records = records.map_err(|e| damaged(e.to_string()))?;
        if records.len() as u64 != steps {
            return Err(damaged(format!("it has {} steps, the checkpoint {steps}", records.len())));
        }
        Ok(records)
    }

    /// Keeps the lines of the first `steps` steps. A line truncated by a crash, and all after it, are later ones.
    fn cut(&self, name: &str, steps: u64) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Line {
            step: u64,
        }
        let path = self.dir.join(name);
        let file = match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            file => at(&path, file)?,
        };
        let beside = self.dir.join(format!("{name}.partial"));
        let mut kept = Vec::new();
        let write = || -> std::io::Result<()> {
            let mut out = BufWriter::new(File::create(&beside)?);
            for line in BufReader::new(file).lines() {
                let line = line?;
                match serde_json::from_str(&line) {
                    Ok(Line { step }) if step <= steps => writeln!(out, "{line}")?,
                    _ => break,
                }
                if name == METRICS_FILE {
                    kept.push(line);
                }
            }
            out.flush()?;
            out.get_ref().sync_all()?;
            fs::rename(&beside, &path)
        };
        at(&path, write())?;
        Ok(kept)
    }

    /// The last `most` answers of the samples' file, oldest first.
    pub fn samples(&self, most: usize) -> Result<VecDeque<SampleLine>> {
        let path = self.dir.join(SAMPLES_FILE);
        let file = match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(VecDeque::new()),
            file => at(&path, file)?,
        };
        let mut last = VecDeque::new();
        for line in BufReader::new(file).lines() {
            let line = serde_json::from_str(&at(&path, line)?);
            last.push_back(line.map_err(|e| Error::io(format!("{} is damaged: {e}", path.display())))?);
            if last.len() > most {
                last.pop_front();
            }
        }
        Ok(last)
    }

    /// Adds whole lines; they are on disk when this returns.
    pub fn append(&self, name: &str, lines: &str) -> Result<()> {
        let path = self.dir.join(name);
        let write = || {
            let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
            file.write_all(lines.as_bytes())?;
            file.sync_data()
        };
        at(&path, write())
    }
}

fn at<T>(path: &Path, result: std::io::Result<T>) -> Result<T> {
    result.map_err(|e| Error::from(e).context(path.display()))
}

fn sync(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewinding_drops_later_steps_and_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        assert_eq!(folder.rewind(0).unwrap(), []);
        for step in 1..=3 {
            let record = StepRecord { step, ..StepRecord::default() };
            folder.append(METRICS_FILE, &format!("{}\n", serde_json::to_string(&record).unwrap())).unwrap();
            folder.append(SAMPLES_FILE, &format!("{{\"step\":{step}}}\n{{\"step\":{step}}}\n")).unwrap();
        }
        folder.append(METRICS_FILE, "{\"step\": 4, \"sam").unwrap();
        assert_eq!(folder.rewind(2).unwrap().len(), 2);
        let samples = fs::read_to_string(dir.path().join(SAMPLES_FILE)).unwrap();
        assert_eq!(samples, "{\"step\":1}\n{\"step\":1}\n{\"step\":2}\n{\"step\":2}\n");
        let message = folder.rewind(3).unwrap_err().message().to_owned();
        assert!(message.contains("it has 2 steps, the checkpoint 3"), "{message}");
    }
}

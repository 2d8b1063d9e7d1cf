//! A trainer on a tiny model, and batches for it. Tests nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use apa::config::{Dtype, TrainConfig};
use apa::policy::{Decoder, Packed};
use apa::trainer::{StepOutcome, Trainer};
use apa::types::{Rollout, StepMetrics};
use candle_core::Device;
use tempfile::TempDir;

use super::device::device;
use super::tiny::{TinySpec, tiny_model};

pub struct Tiny {
    pub dir: TempDir,
    pub decoder: Arc<Decoder>,
}

impl Tiny {
    pub fn new() -> Self {
        Self::with(&TinySpec::new("llama"))
    }

    pub fn with(spec: &TinySpec) -> Self {
        Self::on(&device(), spec, Dtype::F32)
    }

    pub fn on(device: &Device, spec: &TinySpec, dtype: Dtype) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.gguf");
        tiny_model(&path, spec).unwrap();
        let decoder = Arc::new(Decoder::load(&path, device, dtype).unwrap());
        Self { dir, decoder }
    }

    pub fn trainer(&self, config: &TrainConfig) -> Trainer {
        Trainer::new(self.decoder.clone(), config).unwrap()
    }

    /// Every file of a saved trainer.
    pub fn files(&self, trainer: &Trainer) -> BTreeMap<String, Vec<u8>> {
        let dir = self.save(trainer, "files");
        let files = std::fs::read_dir(&dir).unwrap().map(|e| {
            let path = e.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap())
        });
        let files = files.collect();
        std::fs::remove_dir_all(dir).unwrap();
        files
    }

    pub fn save(&self, trainer: &Trainer, name: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        trainer.save(&dir).unwrap();
        dir
    }

    pub fn load(&self, config: &TrainConfig, dir: &Path) -> apa::Result<Trainer> {
        Trainer::load(self.decoder.clone(), config, dir)
    }

    /// Sum over samples of score times the response's log-probability under the trained policy.
    pub fn rewarded_logprobs(&self, trainer: &Trainer, batch: &[Rollout]) -> f64 {
        let logprob = |r: &Rollout| {
            let tokens: Vec<u32> = r.prompt.iter().chain(&r.response).copied().collect();
            let packed = Packed::new(&[&tokens]).unwrap();
            let hidden = self.decoder.hidden(&packed, Some(trainer.adapter())).unwrap();
            let rows = hidden.narrow(0, r.prompt.len() - 1, r.response.len()).unwrap();
            let logprobs = self.decoder.logprobs(&rows, &r.response, &vec![1.0; r.response.len()]).unwrap();
            f64::from(logprobs.detach().sum_all().unwrap().to_scalar::<f32>().unwrap())
        };
        batch.iter().map(|r| r.score * logprob(r)).sum()
    }
}

pub fn config() -> TrainConfig {
    TrainConfig {
        lr: 1e-3,
        critic_lr: 1e-3,
        rank: 4,
        alpha: 6.0,
        batch: 6,
        minibatch: 3,
        max_tokens: 64,
        micro_batch_tokens: 40,
        dtype: Dtype::F32,
        ..TrainConfig::default()
    }
}

/// Six answers of different lengths: those that repeat an even token are liked.
pub fn batch() -> Vec<Rollout> {
    let answer = |i: u32, length: usize| Rollout {
        prompt: (0..3 + i % 3).map(|p| 60 + p * 7 + i).collect(),
        response: vec![100 + i; length],
        temperature: 1.0,
        score: if i.is_multiple_of(2) { 1.0 } else { -1.0 },
        advantage_floor: None,
        served_logprobs: None,
        version: None,
        behavior_logprobs: None,
    };
    [5, 9, 1, 14, 7, 3].iter().zip(0..).map(|(length, i)| answer(i, *length)).collect()
}

pub const GO_ON: &dyn Fn() -> bool = &|| false;

pub fn step(trainer: &mut Trainer, batch: &[Rollout]) -> StepMetrics {
    match trainer.step(batch, GO_ON).unwrap() {
        StepOutcome::Trained(metrics) => metrics,
        other => panic!("{other:?}"),
    }
}

pub fn skipped(trainer: &mut Trainer, batch: &[Rollout]) -> String {
    match trainer.step(batch, GO_ON).unwrap() {
        StepOutcome::Skipped { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

/// The batch as if everybody had rated it alike.
pub fn all_rated(score: f64) -> Vec<Rollout> {
    batch().into_iter().map(|r| Rollout { score, ..r }).collect()
}

//! A reward model for the tiny model, learned from pairs. Tests nothing.

use std::path::Path;
use std::sync::Arc;

use apa::config::Dtype;
use apa::policy::Decoder;
use apa::reward::{Learner, Manifest, Pair, RewardAdapter, Settings};
use candle_core::Device;

use super::tiny::{TinySpec, tiny_model};

/// A reward model that likes token 40, in the folder.
pub fn reward_model(dir: &Path) -> std::path::PathBuf {
    let model = dir.join("tiny.gguf");
    tiny_model(&model, &TinySpec::new("llama")).unwrap();
    let decoder = Arc::new(Decoder::load(&model, &Device::Cpu, Dtype::F32).unwrap());
    let pair = |i: u32| Pair { line: 0, prompt: vec![i], chosen: vec![i, 40], rejected: vec![i, 41] };
    let pairs: Vec<Pair> = (0..16).map(pair).collect();
    let settings = Settings { rank: 4, lr: 5e-3, batch: 4, epochs: 2, ..Settings::default() };
    let manifest = Manifest::new(settings.clone(), decoder.fingerprint());
    let mut learner = Learner::new(decoder, &settings, pairs.clone(), pairs, "pairs").unwrap();
    learner.run(&|| false, &mut |_| ()).unwrap();
    let file = dir.join("reward.gguf");
    RewardAdapter::new(learner.finish().unwrap(), manifest).save(&file).unwrap();
    file
}

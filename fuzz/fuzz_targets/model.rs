//! A model file that says odd things of itself: an error, or a model that can be used; in llama.cpp and in the trainer.
#![no_main]

mod change;
#[path = "../../tests/support/tiny.rs"]
mod tiny;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use apa::config::Dtype;
use apa::llama::{Batch, Context, ContextOptions, Model, template_of};
use apa::policy::{Decoder, Packed};
use candle_core::Device;
use tiny::{TinySpec, tiny_model};

const ARCHITECTURES: [&str; 4] = ["llama", "qwen2", "qwen3", "gptneox"];

fn good() -> &'static PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = change::folder();
        std::fs::create_dir_all(&dir).expect("a folder");
        for arch in ARCHITECTURES {
            let spec = TinySpec { layers: 1, ..TinySpec::new(arch) };
            tiny_model(&dir.join(arch), &spec).expect("a model");
        }
        dir
    })
}

/// Serves a little of it.
fn serve(path: &Path) {
    let Ok(model) = Model::load(path, 0) else { return };
    let tokens = model.tokenize("the <|im_end|> \u{1f30d}", true, true).unwrap_or_default();
    let _ = model.text(&tokens, true);
    let _ = (model.bos(), model.eos(), model.turn_end(), model.name(), model.n_ctx_train(), template_of(&model));
    if !model.is_decoder() {
        return;
    }
    let options = ContextOptions { context: 256, batch: 32, sequences: 2, exact: false };
    let Ok(mut context) = Context::new(&model, 1, options) else { return };
    let mut batch = Batch::default();
    let last = model.n_vocab().saturating_sub(1) as u32;
    for (at, token) in [0, last, 1.min(last)].into_iter().enumerate() {
        batch.add(token, at as u32, 0, at == 2);
    }
    if context.decode(&batch).is_ok_and(|room| room) {
        assert_eq!(context.logits(2).map(<[f32]>::len).ok(), Some(model.n_vocab()));
    }
}

/// Runs a little of it as the trainer does.
fn train(path: &Path) {
    let Ok(decoder) = Decoder::load(path, &Device::Cpu, Dtype::F32) else { return };
    let last = decoder.vocabulary().saturating_sub(1) as u32;
    let Ok(packed) = Packed::new(&[[0, last, 1.min(last)]]) else { return };
    let _ = decoder.hidden(&packed, None);
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((arch, changes)) = input.split_first() else { return };
    let (dir, arch) = (good(), ARCHITECTURES[usize::from(*arch) % ARCHITECTURES.len()]);
    let path = dir.join("changed.gguf");
    if change::change(&dir.join(arch), &path, changes).is_some() {
        serve(&path);
        train(&path);
    }
});

//! An engine on a tiny model, and what most tests ask of one. Tests nothing.

use std::path::Path;
use std::time::Duration;

use apa::Engine;
use apa::config::Config;
use apa::engine::{Event, GenerateRequest, GenerationStream, Next, PublishOutcome};
use apa::types::*;

use super::tiny::{TinySpec, tiny_model};

/// An engine on a tiny model in `dir`, which keeps both between opens.
pub fn open_with(dir: &Path, change: impl FnOnce(&mut Config)) -> apa::Result<Engine> {
    let model = dir.join("tiny.gguf");
    if !model.exists() {
        tiny_model(&model, &TinySpec::new("llama")).unwrap();
    }
    let mut config = Config { model, data: dir.join("data"), ..Config::default() };
    config.serve.context = 1024;
    // One thread: on a loaded machine ggml's spinning barriers cost a time slice each.
    config.serve.threads = 1;
    // Tests compare answers bit for bit; guesses change how sums are rounded, and come as time allows.
    config.serve.speculate = false;
    config.serve.max_tokens = 12;
    config.train.rank = 4;
    config.train.alpha = 8.0;
    config.train.lr = 1e-2;
    config.train.auto = false;
    change(&mut config);
    Engine::open(config)
}

pub fn request(engine: &Engine, text: &str, seed: u64) -> GenerateRequest {
    let prompt = engine.tokenize(text).unwrap();
    GenerateRequest { prompt, sampling: Sampling { seed: Some(seed), ..Sampling::default() }, ..Default::default() }
}

pub fn finish(stream: &GenerationStream) -> apa::Result<(String, std::sync::Arc<Generation>)> {
    let mut text = String::new();
    loop {
        match stream.next(Some(Duration::from_secs(60)))? {
            Next::Event(Event::Text(more)) => text += &more,
            Next::Event(Event::Done(generation)) => return Ok((text, generation)),
            Next::Timeout => panic!("no event in a minute"),
            Next::Finished => panic!("finished twice"),
        }
    }
}

pub fn answer(engine: &Engine, text: &str, seed: u64) -> std::sync::Arc<Generation> {
    finish(&engine.generate(request(engine, text, seed)).unwrap()).unwrap().1
}

pub fn rate(engine: &Engine, id: &GenerationId, rating: f64) -> apa::Result<FeedbackReceipt> {
    let generation_id = id.clone();
    engine.feedback(NewFeedback { generation_id, signal: Signal::Rating(rating), user: None, comment: None })
}

/// Answers and ratings that differ, so that there is something to learn.
pub fn rate_some(engine: &Engine, n: u64) {
    for i in 0..n {
        let g = answer(engine, "the", i);
        rate(engine, &g.id, if i.is_multiple_of(2) { 1.0 } else { -1.0 }).unwrap();
    }
}

pub fn published(outcome: PublishOutcome) -> (PolicyVersion, StepMetrics) {
    match outcome {
        PublishOutcome::Published { version, metrics } => (version, metrics),
        PublishOutcome::Pending { reason, .. } => panic!("pending: {reason}"),
        PublishOutcome::Skipped { reason, .. } => panic!("skipped: {reason}"),
    }
}

/// What `apad versions` says of the engine's data folder in `dir`.
pub fn versions_listed(dir: &Path) -> String {
    let mut apad = std::process::Command::new(env!("CARGO_BIN_EXE_apad"));
    let output = apad.args(["versions", "--data"]).arg(dir.join("data")).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

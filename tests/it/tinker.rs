//! Training on a Tinker server: that a step there is a step here, and what becomes of a batch when something fails. The
//! server is a fake one in this process, or SkyRL's where `make check-tinker` starts it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apa::Engine;
use apa::config::{Credit, Dtype, TrainConfig};
use apa::error::Code;
use apa::policy::Decoder;
use apa::tinker::{self, Wanted};
use apa::trainer::{OPTIMIZER_FILES, Trainer};
use apa::types::PolicyVersion;
use candle_core::Device;

use crate::support::engine::{open_with, published, rate_some};
use crate::support::tinker::{ALPHA, Fake, Fault};
use crate::support::tiny::TinySpec;
use crate::support::trainer::{GO_ON, Tiny, batch, config, step};

fn here() -> TrainConfig {
    TrainConfig {
        credit: Credit::Response,
        alpha: ALPHA,
        // A server clips no gradient.
        clip_norm: 1e9,
        kl_step: 0.0,
        ..config()
    }
}

fn there(fake: &Fake) -> TrainConfig {
    TrainConfig { engine: format!("tinker:{}", fake.url), tinker_seconds: 20, ..here() }
}

fn qwen3() -> Tiny {
    Tiny::with(&TinySpec::new("qwen3"))
}

/// Log-probabilities of the batch's answers under the trained policy, end to end.
fn logprobs(trainer: &Trainer) -> Vec<f32> {
    trainer.logprobs(&batch(), Some(trainer.adapter()), GO_ON).unwrap().concat()
}

fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn failed(trainer: &mut Trainer) -> apa::Error {
    trainer.step(&batch(), GO_ON).unwrap_err()
}

#[test]
fn batches_there_lead_where_batches_here_do() {
    let tiny = qwen3();
    let fake = Fake::start(tiny.decoder.clone());
    let (mut ours, mut theirs) = (tiny.trainer(&here()), tiny.trainer(&there(&fake)));
    let start = logprobs(&ours);
    for _ in 0..2 {
        let (here, there) = (step(&mut ours, &batch()), step(&mut theirs, &batch()));
        assert!((here.policy_loss - there.policy_loss).abs() < 1e-3 * here.policy_loss, "{here:?}\n{there:?}");
        assert!((here.grad_norm - there.grad_norm).abs() < 1e-2 * here.grad_norm, "{here:?}\n{there:?}");
        assert_eq!(here.steps, there.steps);
    }
    assert!(gap(&start, &logprobs(&ours)) > 0.1, "nothing moved, so comparing says nothing");
    assert!(gap(&logprobs(&ours), &logprobs(&theirs)) < 1e-3);
    // Four steps a batch, each asked for once; what was kept is what the next state names.
    assert_eq!((fake.asked("optim_step"), fake.asked("save_weights")), (8, 2));
    drop(theirs);
    assert_eq!(fake.models(), 0, "models that nobody needs are let go");
}

#[test]
fn a_step_that_goes_too_far_is_shortened_there_as_it_is_here() {
    let tiny = qwen3();
    let fake = Fake::start(tiny.decoder.clone());
    let near = |config: TrainConfig| TrainConfig { kl_step: 0.3, lr: 2e-3, ..config };
    let (mut ours, mut theirs) = (tiny.trainer(&near(here())), tiny.trainer(&near(there(&fake))));
    for stopped in [true, false] {
        let (here, there) = (step(&mut ours, &batch()), step(&mut theirs, &batch()));
        assert_eq!((here.stopped.is_some(), here.stopped), (stopped, there.stopped));
        assert_eq!((here.steps, ours.pace()), (there.steps, theirs.pace()));
    }
    assert!(gap(&logprobs(&ours), &logprobs(&theirs)) < 1e-3);
}

#[test]
fn a_server_that_dies_in_mid_step_is_not_asked_twice_and_the_batch_teaches_once() {
    let tiny = qwen3();
    let fake = Fake::start(tiny.decoder.clone());
    let mut straight = tiny.trainer(&there(&fake));
    let mut trainer = tiny.trainer(&there(&fake));
    step(&mut straight, &batch());
    step(&mut trainer, &batch());
    let (kept, before) = (trainer.batches(), logprobs(&trainer));
    for (what, fault) in [
        ("optim_step", Fault::Dies),
        ("forward_backward", Fault::Dies),
        ("forward_backward", Fault::Status(500)),
        ("optim_step", Fault::Forgets),
        ("save_weights_for_sampler", Fault::Dies),
        ("save_weights", Fault::Dies),
    ] {
        let asked = fake.asked(what);
        fake.fault(what, fault.clone());
        let error = failed(&mut trainer);
        assert_eq!(error.code(), Code::Train, "{what} {fault:?}: {error}");
        assert_eq!(fake.asked(what) - asked, 1, "{what} {fault:?} was asked again");
        assert_eq!((trainer.batches(), gap(&logprobs(&trainer), &before)), (kept, 0.0), "{what} {fault:?}");
    }
    step(&mut straight, &batch());
    step(&mut trainer, &batch());
    assert!(gap(&logprobs(&straight), &logprobs(&trainer)) < 1e-5);
}

#[test]
fn what_passes_is_asked_again() {
    let tiny = qwen3();
    let fake = Fake::start(tiny.decoder.clone());
    let mut trainer = tiny.trainer(&there(&fake));
    for (what, fault) in [
        ("create_session", Fault::Status(503)),
        ("forward_backward", Fault::Status(429)),
        ("optim_step", Fault::Status(503)),
        ("forward", Fault::Dies),
        ("retrieve_future", Fault::Status(502)),
        ("retrieve_future", Fault::Status(408)),
        ("retrieve_future", Fault::Says(r#"{"type": "try_again", "request_id": "1", "queue_state": "active"}"#)),
        ("download", Fault::Dies),
    ] {
        fake.fault(what, fault);
    }
    let metrics = step(&mut trainer, &batch());
    assert_eq!((metrics.steps, fake.asked("optim_step"), fake.asked("forward_backward")), (4, 5, 5));
}

#[test]
fn a_session_that_expired_between_batches_goes_on_from_its_checkpoint() {
    let tiny = qwen3();
    let fake = Fake::start(tiny.decoder.clone());
    let (mut straight, mut trainer) = (tiny.trainer(&there(&fake)), tiny.trainer(&there(&fake)));
    step(&mut straight, &batch());
    step(&mut trainer, &batch());
    step(&mut straight, &batch());
    fake.forget_models();
    step(&mut trainer, &batch());
    assert_eq!(fake.asked("load_weights"), 1);
    assert!(gap(&logprobs(&straight), &logprobs(&trainer)) < 1e-5);
    // Without its checkpoint it can't, and says so.
    fake.forget_models();
    fake.forget_checkpoints();
    let error = failed(&mut trainer).to_string();
    assert!(error.contains("the checkpoint tinker://model_") && error.contains("not found"), "{error}");
}

#[test]
fn replies_that_are_garbage_too_long_or_late_are_errors() {
    let tiny = qwen3();
    let fake = Fake::start(tiny.decoder.clone());
    let mut trainer = tiny.trainer(&TrainConfig { tinker_seconds: 5, ..there(&fake) });
    let start = logprobs(&trainer);
    for (what, fault, expected) in [
        ("create_session", Fault::Says("<html>"), "by \"<html>\", expected JSON"),
        ("create_session", Fault::Says("{}"), "expected session_id"),
        ("forward", Fault::Says(r#"{"request_id": 7}"#), "expected request_id"),
        ("retrieve_future", Fault::Says(r#"{"model_id": "../../x"}"#), "calls a model"),
        ("retrieve_future", Fault::Says(r#"{"error": "no room", "category": "server"}"#), "no room"),
        ("optim_step", Fault::Long(1 << 20), "over 65536 bytes"),
        ("download", Fault::Long(64 << 20), "bytes"),
        ("download", Fault::Says("x"), "the archive of the adapter is damaged"),
        ("forward_backward", Fault::Status(401), "401"),
        ("retrieve_future", Fault::Hangs(Duration::from_secs(8)), "create_model took the Tinker server over 5 s"),
        ("optim_step", Fault::Hangs(Duration::from_secs(8)), "whether optim_step was done is not known"),
    ] {
        fake.fault(what, fault);
        let error = failed(&mut trainer);
        assert!(error.message().contains(expected), "{what}: {error}");
        assert_eq!(gap(&logprobs(&trainer), &start), 0.0, "{what}");
    }
    step(&mut trainer, &batch());
}

#[test]
fn a_server_that_hangs_holds_nobody_who_wants_to_stop() {
    let tiny = qwen3();
    let fake = Fake::start(tiny.decoder.clone());
    let mut trainer = tiny.trainer(&there(&fake));
    fake.fault("optim_step", Fault::Hangs(Duration::from_secs(15)));
    let began = Instant::now();
    let stop = || fake.asked("optim_step") > 0;
    let error = trainer.step(&batch(), &stop).unwrap_err();
    assert_eq!(error.code(), Code::Closed, "{error}");
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
}

#[test]
fn another_base_there_and_another_alpha_here_are_refused() {
    let tiny = qwen3();
    let other = Tiny::with(&TinySpec { seed: 8, ..TinySpec::new("qwen3") });
    let fake = Fake::start(other.decoder.clone());
    let error = failed(&mut tiny.trainer(&there(&fake))).to_string();
    assert!(error.contains("nats a token from the one that is served"), "{error}");
    let fake = Fake::start(tiny.decoder.clone());
    let error = failed(&mut tiny.trainer(&TrainConfig { alpha: 6.0, ..there(&fake) })).to_string();
    assert!(error.contains("the adapter has alpha 32, the settings ask for 6"), "{error}");
}

#[test]
fn a_saved_trainer_goes_on_there_and_one_of_here_does_not() {
    let tiny = qwen3();
    let fake = Fake::start(tiny.decoder.clone());
    let mut trainer = tiny.trainer(&there(&fake));
    step(&mut trainer, &batch());
    let saved = tiny.save(&trainer, "there");
    step(&mut trainer, &batch());
    let mut loaded = tiny.load(&there(&fake), &saved).unwrap();
    step(&mut loaded, &batch());
    assert!(gap(&logprobs(&trainer), &logprobs(&loaded)) < 1e-5);
    // Here it goes on as well, with fresh moments.
    step(&mut tiny.load(&here(), &saved).unwrap(), &batch());
    let mut ours = tiny.trainer(&here());
    step(&mut ours, &batch());
    let saved = tiny.save(&ours, "here");
    let error = tiny.load(&there(&fake), &saved).err().unwrap().to_string();
    assert!(error.contains("it was not trained on a Tinker server"), "{error}");
}

#[test]
fn the_key_goes_to_the_server_and_into_no_error() {
    let tiny = qwen3();
    let fake = Fake::start(tiny.decoder.clone());
    let wanted =
        || Wanted { base: Some("tiny".into()), rank: 4, seed: 0, longest: 64, patience: Duration::from_secs(5) };
    let mut policy = tinker::policy(&fake.url, Some("tml-secret"), wanted()).unwrap();
    fake.fault("create_session", Fault::Status(401));
    let error = policy.open(None, GO_ON).unwrap_err().to_string();
    assert!(error.contains("401") && !error.contains("secret"), "{error}");
    assert!(policy.open(None, GO_ON).unwrap());
    policy.adapter(apa::policy::PEFT_FILES, 1 << 20, GO_ON).unwrap();
    assert!(fake.keys().iter().all(|key| key.as_deref() == Some("tml-secret")), "{:?}", fake.keys());
    assert_eq!(fake.body("create_model")["base_model"], "tiny");
    let error = tinker::policy(&fake.url, Some("a\nsecret"), wanted()).err().unwrap().to_string();
    assert!(!error.contains("secret"), "{error}");
}

#[test]
fn a_server_that_is_not_there_keeps_the_ratings_and_teaches_them_once_it_is() {
    let dir = tempfile::tempdir().unwrap();
    drop(open_with(dir.path(), |_| ()).unwrap());
    let decoder = Decoder::load(&dir.path().join("tiny.gguf"), &Device::Cpu, Dtype::F32).unwrap();
    let fake = Fake::start(decoder.into());
    let open = || -> Engine {
        let change = |config: &mut apa::config::Config| {
            config.train =
                TrainConfig { engine: format!("tinker:{}", fake.url), auto: false, tinker_seconds: 20, ..here() };
            config.gate.examine = false;
        };
        open_with(dir.path(), change).unwrap()
    };
    let engine = open();
    rate_some(&engine, 4);
    fake.fault("optim_step", Fault::Dies);
    let error = engine.train_step().unwrap_err();
    assert!(error.message().contains("whether optim_step was done is not known"), "{error}");
    assert_eq!(engine.status().trainer.pending_ratings, 4);
    let (version, _) = published(engine.train_step().unwrap());
    assert_eq!((version, engine.status().trainer.pending_ratings), (PolicyVersion(1), 0));
    engine.shutdown();
    drop(engine);
    // After a restart it goes on from the checkpoint that the version names.
    let engine = open();
    rate_some(&engine, 4);
    let loads = fake.asked("load_weights");
    assert_eq!(published(engine.train_step().unwrap()).0, PolicyVersion(2));
    assert_eq!(fake.asked("load_weights"), loads + 1);
}

fn told(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is set by make check-tinker"))
}

/// The base that SkyRL's server has, and settings to train it there, in one step a batch.
fn real() -> (Arc<Decoder>, TrainConfig) {
    let decoder = Decoder::load(told("APA_TINKER_GGUF").as_ref(), &Device::Cpu, Dtype::F32).unwrap();
    let engine = format!("tinker:{}", told("APA_TINKER_URL"));
    (decoder.into(), TrainConfig { engine, tinker_seconds: 300, ..one_step(here()) })
}

fn one_step(config: TrainConfig) -> TrainConfig {
    TrainConfig { epochs: 1, minibatch: 6, kl_samples: 0, ..config }
}

/// A step on SkyRL's server and one here, from the adapter that the server begins with.
#[test]
#[ignore = "wants the server that make check-tinker starts"]
fn training_on_a_real_server_is_training_here() {
    let (decoder, server) = real();
    let mut theirs = Trainer::new(decoder.clone(), &server).unwrap();
    let there = step(&mut theirs, &batch());
    // A rate that moves nothing leaves the adapter as the server made it: ours begins with it.
    let mut still = Trainer::new(decoder.clone(), &TrainConfig { lr: 1e-30, ..server }).unwrap();
    step(&mut still, &batch());
    let (begin, fresh) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    still.save(begin.path()).unwrap();
    Trainer::new(decoder.clone(), &one_step(here())).unwrap().save(fresh.path()).unwrap();
    std::fs::copy(fresh.path().join("trainer.json"), begin.path().join("trainer.json")).unwrap();
    for file in OPTIMIZER_FILES {
        std::fs::remove_file(begin.path().join(file)).unwrap();
    }
    let mut ours = Trainer::load(decoder, &one_step(here()), begin.path()).unwrap();
    let start = logprobs(&ours);
    let here = step(&mut ours, &batch());
    let (moved, apart) = (gap(&start, &logprobs(&ours)), gap(&logprobs(&ours), &logprobs(&theirs)));
    println!("moved by up to {moved} nats, {apart} apart; losses {} and {}", there.policy_loss, here.policy_loss);
    assert!(moved > 0.05, "nothing moved, so comparing says nothing: {moved}");
    assert!(apart < 1e-3, "{apart} nats apart");
}

/// SkyRL's server is killed once it computed a gradient, in the first batch and in one that begins from a checkpoint.
#[test]
#[ignore = "wants the server that make check-tinker starts"]
fn a_real_server_that_is_killed_in_mid_step_teaches_the_batch_once_it_is_back() {
    let (decoder, server) = real();
    let mut straight = Trainer::new(decoder.clone(), &server).unwrap();
    let expected = [(); 2].map(|()| {
        step(&mut straight, &batch());
        logprobs(&straight)
    });
    drop(straight);
    let mut trainer = Trainer::new(decoder, &server).unwrap();
    for (batches, expected) in (1..).zip(&expected) {
        let before = logprobs(&trainer);
        let control = told("APA_TINKER_CONTROL");
        let killed = std::thread::spawn(move || {
            let mut stream = TcpStream::connect(control).unwrap();
            stream.write_all(b"GET /process_batch_requests(forward_backward HTTP/1.0\r\n\r\n").unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).unwrap();
            said
        });
        // Until the log is watched.
        std::thread::sleep(Duration::from_secs(1));
        let error = failed(&mut trainer);
        println!("batch {batches}: {error}");
        assert_eq!((error.code(), gap(&logprobs(&trainer), &before)), (Code::Train, 0.0), "{error}");
        assert!(killed.join().unwrap().contains("200"));
        step(&mut trainer, &batch());
        let apart = gap(expected, &logprobs(&trainer));
        println!("batch {batches}: {apart} nats apart");
        assert!(apart < 1e-3, "{apart} nats apart");
    }
}

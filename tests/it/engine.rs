//! The loop from a rating to served weights, through the engine, on a tiny model.

use std::path::Path;
use std::time::{Duration, Instant};

use apa::engine::{GenerateRequest, GenerationStream, Next, PublishOutcome, TrainerState};
use apa::gguf::{Gguf, Writer};
use apa::types::*;
use apa::{Code, Engine};
use candle_core::{DType, Device, Tensor};

use crate::support::engine::{answer, finish, open_with, published, rate, rate_some, request};
use crate::support::tiny::{TinySpec, tiny_model};

fn open(dir: &Path) -> Engine {
    open_with(dir, |_| ()).unwrap()
}

#[test]
fn a_candidate_over_its_kl_budget_is_recorded_and_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let strict = |budget: f64| {
        open_with(dir.path(), |c| {
            c.train.gate.kl_budget = budget;
            c.train.kl_samples = 16;
        })
        .unwrap()
    };
    let engine = strict(200.0);
    rate_some(&engine, 16);
    let (version, metrics) = published(engine.train_step().unwrap());
    let kl = metrics.candidate_kl_per_response.unwrap();
    assert!(kl.0 > 1e-3 && kl.0 < 200.0, "{kl}");
    engine.shutdown();
    drop(engine);

    // A budget that the next candidate can't keep.
    let engine = strict(kl.0 / 100.0);
    rate_some(&engine, 16);
    let PublishOutcome::Skipped { reason, consumed } = engine.train_step().unwrap() else { panic!("it was published") };
    assert!(reason.contains("the candidate was refused: its KL to the initial model is"), "{reason}");
    let status = engine.status();
    assert_eq!((consumed, status.policy_version, status.trainer.refused), (16, version, 1));
    assert_eq!(status.trainer.pending_ratings, 0);
    assert_eq!(engine.versions().unwrap().len(), 2);
    engine.shutdown();
    drop(engine);

    // The trainer went back to the version that is served: the same batch gives what it gives from there.
    let engine = strict(200.0);
    rate_some(&engine, 16);
    let (next, metrics) = published(engine.train_step().unwrap());
    assert_eq!((next, engine.versions().unwrap().last().unwrap().parent), (PolicyVersion(2), Some(version)));
    assert!(metrics.candidate_kl_per_response.unwrap().0 > 1e-3, "{metrics:?}");
}

#[test]
fn a_version_that_people_come_to_dislike_is_learned_away_from_and_so_after_a_rollback() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| (c.train.batch, c.gate.watch) = (4, false)).unwrap();
    let rate_all = |ratings: [f64; 4]| {
        for (i, rating) in ratings.into_iter().enumerate() {
            rate(&engine, &answer(&engine, "the", i as u64).id, rating).unwrap();
        }
        published(engine.train_step().unwrap()).0
    };
    let (liked, disliked) = ([1.0, 1.0, 1.0, 0.9], [-1.0, -1.0, -0.9, -0.8]);
    rate_all(liked);
    let before = rate_all(liked);
    // No bar that its own good ratings have set stands in the way.
    let after = rate_all(disliked);
    assert!(after > before && engine.status().policy_version == after);
    engine.rollback().unwrap();
    assert!(rate_all(disliked) > after);
    assert_eq!((engine.status().trainer.refused, engine.status().trainer.pending_ratings), (0, 0));
}

#[test]
fn answers_are_streamed_recorded_and_made_together() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let streams: Vec<_> = (0..8).map(|i| engine.generate(request(&engine, "the rain in", i)).unwrap()).collect();
    for stream in &streams {
        let (text, generation) = finish(stream).unwrap();
        assert_eq!(text, generation.text);
        assert_eq!(generation.policy_version, PolicyVersion::INITIAL);
        assert_eq!(engine.generation(stream.id()).unwrap().as_ref(), Some(&*generation));
        assert_eq!(stream.next(None).unwrap(), Next::Finished);
    }
    assert_eq!(engine.status().load.completed, 8);
}

#[test]
fn the_same_seed_gives_the_same_answer() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let (first, again, other) = (answer(&engine, "it is", 3), answer(&engine, "it is", 3), answer(&engine, "it is", 4));
    assert_eq!(first.response, again.response);
    assert_ne!(first.response, other.response);
}

#[test]
fn sync_serves_the_newest_version_wherever_a_rollback_or_an_activation_went() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    assert_eq!(engine.sync().unwrap(), PolicyVersion::INITIAL, "there is nothing newer");
    rate_some(&engine, 8);
    let (first, _) = published(engine.train_step().unwrap());
    rate_some(&engine, 8);
    let (second, _) = published(engine.train_step().unwrap());
    let swaps = engine.status().load.swaps;
    assert_eq!(engine.sync().unwrap(), second);
    assert_eq!(engine.status().load.swaps, swaps, "it was served already");
    for back in [PolicyVersion::INITIAL, first] {
        engine.activate(back).unwrap();
        assert_eq!(answer(&engine, "the", 0).policy_version, back);
        assert_eq!(engine.sync().unwrap(), second);
        assert_eq!(answer(&engine, "the", 0).policy_version, second);
    }
    assert!(engine.versions().unwrap().iter().all(|v| v.active == (v.version == second)));
    engine.rollback().unwrap();
    std::fs::remove_file(dir.path().join("data/versions/000002/adapter.gguf")).unwrap();
    assert!(engine.sync().unwrap_err().message().contains("adapter.gguf"));
    assert_eq!(answer(&engine, "the", 0).policy_version, first, "what was served goes on");
    engine.shutdown();
    assert_eq!(engine.sync().unwrap_err().code(), Code::Closed);
}

#[test]
fn a_rated_batch_becomes_a_version_that_is_served_and_that_a_rollback_takes_back() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let greedy = |engine: &Engine| {
        let mut r = request(engine, "the rain", 0);
        r.sampling.temperature = 0.0;
        finish(&engine.generate(r).unwrap()).unwrap().1
    };
    let before = greedy(&engine);
    rate_some(&engine, 16);
    let (version, metrics) = published(engine.train_step().unwrap());
    assert_eq!((version, metrics.samples), (PolicyVersion(1), 16));
    assert_eq!(engine.status().policy_version, version);
    let after = greedy(&engine);
    assert_eq!(after.policy_version, version);
    assert_eq!(engine.status().trainer.pending_ratings, 0);
    assert!(matches!(engine.train_step().unwrap(), PublishOutcome::Skipped { consumed: 0, .. }));

    assert_eq!(engine.rollback().unwrap(), PolicyVersion::INITIAL);
    let back = greedy(&engine);
    assert_eq!((back.policy_version, &back.response), (PolicyVersion::INITIAL, &before.response));
    engine.activate(version).unwrap();
    assert_eq!(greedy(&engine).response, after.response);
    assert_eq!(engine.rollback().unwrap(), PolicyVersion::INITIAL);
    assert_eq!(engine.rollback().unwrap_err().code(), Code::Arg);
    assert_eq!(engine.activate(PolicyVersion(9)).unwrap_err().code(), Code::Arg);
}

#[test]
fn running_answers_keep_their_version_through_a_swap() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| c.serve.context = 8192).unwrap();
    rate_some(&engine, 8);
    // Long answers that are under way while the weights change; the end-of-turn token may end some early.
    let streams: Vec<_> = (0..8)
        .map(|i| {
            let mut r = request(&engine, "the", 100 + i);
            r.max_tokens = Some(800);
            engine.generate(r).unwrap()
        })
        .collect();
    let (version, _) = published(engine.train_step().unwrap());
    let later = answer(&engine, "the", 1);
    assert_eq!(later.policy_version, version);
    for stream in &streams {
        assert_eq!(finish(stream).unwrap().1.policy_version, PolicyVersion::INITIAL);
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while engine.status().load.versions != [version] {
        assert!(Instant::now() < deadline, "{:?}", engine.status().load.versions);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_restart_brings_back_version_trainer_and_unused_ratings() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    rate_some(&engine, 8);
    published(engine.train_step().unwrap());
    rate_some(&engine, 5);
    engine.shutdown();
    drop(engine);

    let engine = open(dir.path());
    assert_eq!(engine.status().policy_version, PolicyVersion(1));
    assert_eq!(engine.status().trainer.pending_ratings, 5);
    let (version, metrics) = published(engine.train_step().unwrap());
    assert_eq!((version, metrics.samples), (PolicyVersion(2), 5));
    let versions = engine.versions().unwrap();
    assert_eq!(versions[2].parent, Some(PolicyVersion(1)));
}

#[test]
fn training_interrupted_by_a_restart_goes_on_as_if_it_had_not_been() {
    let run = |restart: bool| {
        let dir = tempfile::tempdir().unwrap();
        let mut engine = open(dir.path());
        rate_some(&engine, 8);
        published(engine.train_step().unwrap());
        if restart {
            engine.shutdown();
            engine = open(dir.path());
        }
        rate_some(&engine, 8);
        let (_, mut metrics) = published(engine.train_step().unwrap());
        metrics.seconds = 0.0;
        (metrics, std::fs::read(dir.path().join("data/versions/000002/adapter.gguf")).unwrap())
    };
    let ((whole, whole_adapter), (resumed, resumed_adapter)) = (run(false), run(true));
    assert_eq!(whole, resumed);
    assert!(whole_adapter == resumed_adapter, "the adapters differ");
}

#[test]
fn enough_ratings_start_a_step_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| {
        c.train.auto = true;
        c.train.batch = 8;
        c.train.minibatch = 4;
    })
    .unwrap();
    rate_some(&engine, 8);
    let deadline = Instant::now() + Duration::from_secs(60);
    while engine.status().policy_version != PolicyVersion(1) {
        assert!(Instant::now() < deadline, "{:?}", engine.status());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_last_of_two_ratings_stands_and_both_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let g = answer(&engine, "the", 0);
    assert!(!rate(&engine, &g.id, -1.0).unwrap().replaces_earlier);
    assert!(rate(&engine, &g.id, 1.0).unwrap().replaces_earlier);
    let other = answer(&engine, "the", 1);
    rate(&engine, &other.id, -0.5).unwrap();
    let (_, metrics) = published(engine.train_step().unwrap());
    assert_eq!((metrics.samples, metrics.mean_reward), (2, 0.25));
}

#[test]
fn wrong_feedback_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let g = answer(&engine, "the", 0);
    for rating in [1.5, -1.01, f64::NAN, f64::INFINITY] {
        let e = rate(&engine, &g.id, rating).unwrap_err();
        assert_eq!(e.code(), Code::Arg, "{e}");
    }
    let e = rate(&engine, &GenerationId("gen-unknown".into()), 1.0).unwrap_err();
    assert!(e.message().contains("gen-unknown"), "{e}");
    assert_eq!(engine.status().trainer.pending_ratings, 0);
}

#[test]
fn wrong_requests_are_refused_with_the_reason_and_the_next_one_works() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| c.serve.context = 64).unwrap();
    let refuse = |change: &dyn Fn(&mut GenerateRequest), says: &str| {
        let mut r = request(&engine, "the", 0);
        change(&mut r);
        let e = engine.generate(r).err().expect(says);
        assert_eq!(e.code(), Code::Arg);
        assert!(e.message().contains(says), "{e}");
    };
    refuse(&|r| r.prompt.clear(), "prompt is empty");
    refuse(&|r| r.prompt = vec![1; 64], "64 tokens");
    refuse(&|r| r.prompt = vec![100_000], "outside the vocabulary");
    refuse(&|r| r.sampling.temperature = -1.0, "temperature is -1");
    refuse(&|r| r.sampling.temperature = f32::NAN, "temperature is NaN");
    refuse(&|r| r.sampling.top_p = 1.5, "top_p is 1.5");
    refuse(&|r| r.max_tokens = Some(0), "max_tokens is 0");
    let mut long = request(&engine, "the", 0);
    long.max_tokens = Some(u32::MAX);
    let g = finish(&engine.generate(long).unwrap()).unwrap().1;
    assert!(g.prompt.len() + g.response.len() <= 64);
}

#[test]
fn a_cancelled_answer_ends_with_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut r = request(&engine, "the", 0);
    r.max_tokens = Some(1000);
    let stream = engine.generate(r).unwrap();
    stream.cancel();
    let (_, generation) = finish(&stream).unwrap();
    assert!(generation.response.len() < 1000);
    assert!(engine.generation(stream.id()).unwrap().is_some());
}

#[test]
fn a_full_queue_is_busy_and_empties_again() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| (c.serve.slots, c.serve.queue) = (1, 2)).unwrap();
    let mut streams = Vec::new();
    let busy = loop {
        let mut r = request(&engine, "the", streams.len() as u64);
        r.max_tokens = Some(500);
        match engine.generate(r) {
            Ok(stream) => streams.push(stream),
            Err(e) => break e,
        }
        assert!(streams.len() < 50, "the queue never filled");
    };
    assert_eq!(busy.code(), Code::Busy);
    streams.iter().for_each(GenerationStream::cancel);
    streams.iter().for_each(|s| drop(finish(s).unwrap()));
    answer(&engine, "the", 0);
}

#[test]
fn shutdown_wakes_a_waiter_and_refuses_what_comes_after() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| c.serve.context = 8192).unwrap();
    let streams: Vec<_> = (0..12)
        .map(|i| {
            let mut r = request(&engine, "the", i);
            r.max_tokens = Some(4000);
            engine.generate(r).unwrap()
        })
        .collect();
    let closer = engine.clone();
    let shutting = std::thread::spawn(move || closer.shutdown());
    let ends: Vec<_> = streams.iter().map(finish).collect();
    shutting.join().unwrap();
    // An answer may have ended by itself before; whoever did not was told.
    assert!(ends.iter().all(|e| e.as_ref().err().is_none_or(|e| e.code() == Code::Closed)), "{ends:?}");
    assert!(ends.iter().any(Result::is_err));
    assert_eq!(engine.generate(request(&engine, "the", 0)).err().unwrap().code(), Code::Closed);
    assert_eq!(engine.train_step().unwrap_err().code(), Code::Closed);
    engine.shutdown();
}

#[test]
fn a_second_engine_on_the_folder_is_told_who_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let e = open_with(dir.path(), |_| ()).err().unwrap();
    assert_eq!(e.code(), Code::Busy);
    assert!(e.message().contains(&std::process::id().to_string()), "{e}");
    engine.shutdown();
    open(dir.path());
}

#[test]
fn another_base_on_the_same_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).shutdown();
    let other = dir.path().join("other.gguf");
    tiny_model(&other, &TinySpec { seed: 8, ..TinySpec::new("llama") }).unwrap();
    let e = open_with(dir.path(), |c| c.model = other.clone()).err().unwrap();
    assert_eq!(e.code(), Code::Model);
}

#[test]
fn a_damaged_model_file_is_an_error_not_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("tiny.gguf");
    tiny_model(&good, &TinySpec::new("llama")).unwrap();
    let bytes = std::fs::read(&good).unwrap();
    let damaged: [(&str, Vec<u8>); 5] = [
        ("empty", Vec::new()),
        ("a text", b"once upon a time there was a model".to_vec()),
        ("cut", bytes[..bytes.len() / 2].to_vec()),
        ("cut in the header", bytes[..100].to_vec()),
        ("a huge count", [&bytes[..8], &[0xff; 16], &bytes[24..]].concat()),
    ];
    for (what, bytes) in damaged {
        let bad = dir.path().join("bad.gguf");
        std::fs::write(&bad, bytes).unwrap();
        let e = open_with(dir.path(), |c| c.model = bad.clone()).err().expect(what);
        assert_eq!(e.code(), Code::Model, "{what}: {e}");
        assert!(e.message().contains("bad.gguf"), "{what}: {e}");
    }
    let e = open_with(dir.path(), |c| c.model = dir.path().join("missing.gguf")).err().unwrap();
    assert!(e.message().contains("missing.gguf"), "{e}");
    open(dir.path());
}

#[test]
fn without_training_the_engine_serves_and_keeps_ratings() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| c.train.enabled = false).unwrap();
    rate(&engine, &answer(&engine, "the", 0).id, 1.0).unwrap();
    assert!(engine.train_step().is_err());
    assert_eq!(engine.status().trainer.state, TrainerState::Off);
    assert_eq!(engine.status().trainer.pending_ratings, 1);
}

#[test]
fn a_damaged_version_is_not_activated_and_the_served_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    rate_some(&engine, 8);
    let (version, _) = published(engine.train_step().unwrap());
    engine.rollback().unwrap();
    let adapter = dir.path().join("data/versions/000001/adapter.gguf");
    let mut bytes = std::fs::read(&adapter).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&adapter, bytes).unwrap();
    let e = engine.activate(version).unwrap_err();
    assert!(e.message().contains("adapter.gguf"), "{e}");
    assert_eq!(answer(&engine, "the", 0).policy_version, PolicyVersion::INITIAL);
}

/// A model that llama.cpp decodes and the trainer doesn't know: a GPT-2 made of the tensors of a tiny GPT-NeoX.
fn tiny_gpt2(dir: &Path) -> std::path::PathBuf {
    let spec = TinySpec::new("gptneox");
    let (neox, gpt2) = (dir.join("neox.gguf"), dir.join("gpt2.gguf"));
    tiny_model(&neox, &spec).unwrap();
    let from = Gguf::open(&neox).unwrap();
    let mut file = Writer::new();
    for (key, value) in from.metadata() {
        file.set(&key.replace("gptneox.", "gpt2."), value.clone());
    }
    file.set("general.architecture", "gpt2");
    for tensor in from.tensors() {
        file.copy_tensor(&from, tensor.name()).unwrap();
    }
    let positions = Tensor::zeros((spec.context as usize, spec.width), DType::F32, &Device::Cpu).unwrap();
    file.tensor("position_embd.weight", &positions).unwrap();
    file.write(&gpt2).unwrap();
    gpt2
}

#[test]
fn a_model_that_cannot_be_trained_is_served_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_gpt2(dir.path());
    let engine = open_with(dir.path(), |c| c.model = model).unwrap();
    for seed in 0..2 {
        rate(&engine, &answer(&engine, "the", seed).id, seed as f64).unwrap();
    }
    let e = engine.train_step().unwrap_err();
    assert_eq!(e.code(), Code::Unsupported);
    assert!(e.message().contains("gpt2") && e.message().contains("gptneox"), "{e}");
    let trainer = engine.status().trainer;
    assert_eq!((trainer.state, trainer.pending_ratings), (TrainerState::Unsupported, 2));
    assert_eq!(answer(&engine, "the", 3).policy_version, PolicyVersion::INITIAL);
}

#[test]
fn one_rating_alone_waits_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    rate(&engine, &answer(&engine, "the", 0).id, 1.0).unwrap();
    assert!(matches!(engine.train_step().unwrap(), PublishOutcome::Skipped { consumed: 0, .. }));
    rate(&engine, &answer(&engine, "the", 1).id, -1.0).unwrap();
    published(engine.train_step().unwrap());
}

/// Answers to their full length: what ends them is banned.
fn long(engine: &Engine, text: &str, max_tokens: u32) -> GenerateRequest {
    let n = engine.vocabulary() as u32;
    let logit_bias = (n - 3..n).map(|token| (token, -100.0)).collect();
    let sampling = Sampling { seed: Some(1), logit_bias, ..Sampling::default() };
    GenerateRequest {
        prompt: engine.tokenize(text).unwrap(),
        sampling,
        max_tokens: Some(max_tokens),
        ..Default::default()
    }
}

#[test]
fn a_full_cache_forgets_what_is_idle_and_then_ends_the_largest_answer_alone() {
    let dir = tempfile::tempdir().unwrap();
    let change = |c: &mut apa::config::Config| (c.serve.context, c.serve.slots) = (256, 4);
    let engine = open_with(dir.path(), change).unwrap();
    // Leaves its tokens in the cache.
    finish(&engine.generate(long(&engine, "an idle beginning", 100)).unwrap()).unwrap();
    let held = engine.status().load.cached_tokens;
    assert!(held > 100, "{held}");
    // Each fits alone; together they come to want three times the cache.
    let streams: Vec<_> =
        ["the rain", "in spain", "falls on"].map(|text| engine.generate(long(&engine, text, 200)).unwrap()).into();
    let lengths: Vec<usize> = streams.iter().map(|s| finish(s).unwrap().1.response.len()).collect();
    let whole = lengths.iter().filter(|n| **n == 200).count();
    assert!((1..3).contains(&whole) && lengths.iter().all(|n| *n > 50), "{lengths:?}");
    assert!(!answer(&engine, "it works on", 1).response.is_empty());
}

#[test]
fn a_beginning_that_another_sequence_holds_is_not_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| c.serve.slots = 4).unwrap();
    let beginning = "the rain in spain stays mainly on the plain, and so on and on. ".repeat(4);
    let ask = |end: &str| engine.generate(long(&engine, &format!("{beginning}{end}"), 8)).unwrap();
    let alone = finish(&ask("who?")).unwrap().1;
    let read = || engine.status().load.prompt_tokens;
    let (before, tokens) = (read(), engine.tokenize(&beginning).unwrap().len() as u64);
    assert!(before >= tokens);
    // All at once, in other slots than the one that holds the beginning.
    let streams = ["who?", "what?", "when?"].map(ask);
    let answers = streams.map(|stream| finish(&stream).unwrap().1.response.clone());
    assert!(read() - before < tokens, "{} prompt tokens were read for a beginning of {tokens}", read() - before);
    assert_eq!(answers[0], alone.response);
}

#[test]
fn a_version_is_served_by_its_whole_weights_where_they_are_and_fit() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |_| ()).unwrap();
    rate_some(&engine, 8);
    let (version, _) = published(engine.train_step().unwrap());
    let refused = |part: &str| {
        let error = engine.activate_whole(version).unwrap_err();
        assert!(error.message().contains(part), "{error}");
    };
    refused("there is no file");
    let whole = dir.path().join("data/whole");
    std::fs::create_dir(&whole).unwrap();
    let file = whole.join(format!("{version}.gguf"));
    // More than any memory: its size is looked at before its contents.
    std::fs::File::create(&file).unwrap().set_len(1 << 42).unwrap();
    refused("MB of memory are free");
    tiny_model(&file, &TinySpec::new("qwen2")).unwrap();
    refused("another architecture");

    // Weights that can be told from the adapter's: those of another seed.
    tiny_model(&file, &TinySpec { seed: 8, ..TinySpec::new("llama") }).unwrap();
    let greedy = || {
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        let prompt = engine.tokenize("the sea").unwrap();
        finish(&engine.generate(GenerateRequest { prompt, sampling, ..Default::default() }).unwrap()).unwrap().1
    };
    let by_adapter = greedy();
    engine.activate_whole(version).unwrap();
    let by_file = greedy();
    assert_eq!((by_file.policy_version, by_adapter.policy_version), (version, version));
    assert_ne!(by_file.response, by_adapter.response);
    engine.activate(version).unwrap();
    assert_eq!(greedy().response, by_adapter.response);
    engine.activate_whole(version).unwrap();
    assert_eq!(greedy().response, by_file.response);
}

#[test]
fn auto_takes_seconds_keeps_to_its_budget_and_remembers() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("tiny.gguf");
    tiny_model(&model, &TinySpec { layers: 8, ..TinySpec::new("llama") }).unwrap();
    let open = |budget: f64| {
        let started = std::time::Instant::now();
        let engine = open_with(dir.path(), |c| (c.serve.r#type, c.serve.kl_budget) = ("auto".into(), budget)).unwrap();
        assert!(!answer(&engine, "the", 1).response.is_empty());
        (engine.status().format, started.elapsed())
    };
    // What costs nothing is only the file's own.
    let (form, _) = open(0.0);
    assert_eq!(form.kind, "keep");
    let (form, took) = open(5.0);
    assert!(took < Duration::from_secs(20), "{took:?}");
    if form.kind != "keep" {
        let chosen = form.measured.iter().find(|m| m.kind == form.kind).unwrap();
        assert!(chosen.speedup > 1.0 && (0.0..=5.0).contains(&chosen.kl_per_token.0), "{chosen:?}");
    }
    let notes = dir.path().join("data/serving/measured.json");
    let written = std::fs::metadata(&notes).unwrap().modified().unwrap();
    assert_eq!(open(5.0).0, form);
    assert_eq!(std::fs::metadata(&notes).unwrap().modified().unwrap(), written, "measured again");
    let left: Vec<_> =
        std::fs::read_dir(dir.path().join("data/serving")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.len() <= 2, "{left:?}");
}

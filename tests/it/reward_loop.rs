//! From feedback of every kind to samples, on a tiny model: what counts, what is on record, and what an attacker can
//! do.

use std::path::Path;
use std::sync::Arc;

use apa::config::{Config, Dtype, RewardConfig};
use apa::engine::{GenerateRequest, PublishOutcome, TrainerState};
use apa::ledger::ReviewVerdict;
use apa::policy::{Decoder, Lora, Packed};
use apa::types::*;
use apa::{Code, Engine};
use candle_core::Device;

use crate::support::engine::{finish, open_with, published};
use crate::support::on_disk;
use crate::support::reward::reward_model;

fn open(dir: &Path, change: impl FnOnce(&mut RewardConfig)) -> apa::Result<Engine> {
    open_with(dir, |config: &mut Config| {
        config.train.threads = 1;
        config.train.device = "cpu".into();
        config.train.dtype = Dtype::F32;
        change(&mut config.reward);
    })
}

fn answer(engine: &Engine, seed: u64) -> Arc<Generation> {
    let sampling = Sampling { seed: Some(seed), ..Sampling::default() };
    let prompt = engine.tokenize("the rain in").unwrap();
    let stream = engine.generate(GenerateRequest { prompt, sampling, ..GenerateRequest::default() }).unwrap();
    finish(&stream).unwrap().1
}

fn say(engine: &Engine, g: &Generation, user: &str, signal: Signal) -> FeedbackReceipt {
    let generation_id = g.id.clone();
    engine.feedback(NewFeedback { generation_id, signal, user: Some(user.into()), comment: None }).unwrap()
}

fn publish(engine: &Engine) -> PolicyVersion {
    match engine.train_step().unwrap() {
        PublishOutcome::Published { version, .. } => version,
        PublishOutcome::Pending { reason, .. } => panic!("pending: {reason}"),
        PublishOutcome::Skipped { reason, .. } => panic!("skipped: {reason}"),
    }
}

#[test]
fn every_sample_says_which_terms_made_it_and_scales_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let file = reward_model(dir.path());
    let settings = |c: &mut RewardConfig| {
        c.model = Some(file.clone());
        (c.model_weight, c.length_weight, c.length_free, c.unrated, c.correction) = (0.5, 0.1, 8, 2, 1.0);
        // Answers are judged by the number of their line: what they say is not the point.
        c.command = Some("awk '{print \"{\\\"score\\\": \" NR \"}\"}'".into());
        c.user_share = 1.0;
    };
    let engine = open(dir.path(), settings).unwrap();
    let answers: Vec<_> = (0..5).map(|seed| answer(&engine, seed)).collect();
    say(&engine, &answers[0], "ann", Signal::Rating(1.0));
    say(&engine, &answers[0], "bob", Signal::Rating(0.0));
    say(&engine, &answers[0], "ann", Signal::Named("copied".into()));
    say(&engine, &answers[1], "ann", Signal::Correction("it falls".into()));
    let comment = Some("hm".to_owned());
    let generation_id = answers[2].id.clone();
    engine.feedback(NewFeedback { generation_id, signal: Signal::Comment, user: None, comment }).unwrap();
    let version = publish(&engine);

    let record = |n: usize| engine.generation_record(&answers[n].id).unwrap().unwrap();
    let first = record(0);
    assert_eq!((&first.generation, first.feedback.len()), (&*answers[0], 3));
    let sample = &first.samples[0];
    assert_eq!((first.samples.len(), sample.version, sample.kind), (1, Some(version), SampleKind::Answer));
    let names: Vec<&str> = sample.score.terms.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["rating", "model", "external", "signal:copied", "length"]);
    let sum: f64 = sample.score.terms.iter().map(|t| t.value * t.weight).sum();
    assert!((sum - sample.score.score).abs() < 1e-12 && sample.score.terms[0].value == 0.5, "{sample:?}");
    assert!(sample.score.terms[1].raw.is_some());

    let corrected = record(1).samples;
    let kinds: Vec<SampleKind> = corrected.iter().map(|s| s.kind).collect();
    assert_eq!(kinds, [SampleKind::Answer, SampleKind::Correction]);
    assert_eq!(corrected[1].score.score, 1.0);
    // A remark judges nothing; two answers that nobody said anything of are judged by the model.
    assert!(record(2).samples.is_empty());
    for n in [3, 4] {
        let samples = record(n).samples;
        assert_eq!(samples.len(), 1, "answer {n}");
        assert_eq!(samples[0].score.terms[0].name, "model");
    }
    let json = serde_json::to_value(record(0)).unwrap();
    assert!(json["id"].is_string() && json["samples"][0]["terms"][1]["raw"].is_f64(), "{json}");

    // The next version's scale goes on from the one before, a restart between them or not.
    engine.shutdown();
    let scale = |version: PolicyVersion| {
        let path = dir.path().join(format!("data/versions/{:06}", version.0)).join("reward.json");
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        json["model"]["count"].as_u64().unwrap()
    };
    assert_eq!(scale(version), 4);
    let engine = open(dir.path(), settings).unwrap();
    for seed in 10..12 {
        say(&engine, &answer(&engine, seed), "ann", Signal::Rating(if seed == 10 { 1.0 } else { -1.0 }));
    }
    assert_eq!(scale(publish(&engine)), 6);
}

#[test]
fn answers_of_versions_too_old_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), |c| c.staleness = 1).unwrap();
    let old: Vec<_> = (0..2).map(|seed| answer(&engine, seed)).collect();
    let rate = |engine: &Engine, g: &Generation, n: usize| {
        say(engine, g, "ann", Signal::Rating(if n.is_multiple_of(2) { 1.0 } else { -1.0 }))
    };
    for round in 0..2 {
        for seed in 0..3 {
            rate(&engine, &answer(&engine, 100 * round + seed), seed as usize);
        }
        publish(&engine);
    }
    for (n, g) in old.iter().enumerate() {
        rate(&engine, g, n);
    }
    for seed in 0..3 {
        rate(&engine, &answer(&engine, 900 + seed), seed as usize);
    }
    publish(&engine);
    let record = engine.generation_record(&old[0].id).unwrap().unwrap();
    assert!(record.samples.is_empty() && record.feedback[0].used_by.is_some(), "{record:?}");
}

#[test]
fn a_reward_model_that_does_not_fit_keeps_the_trainer_off_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = dir.path().join("tiny.gguf");
    let engine = open(dir.path(), |c| c.model = Some(wrong)).unwrap();
    answer(&engine, 1);
    let error = engine.train_step().unwrap_err();
    assert_eq!(error.code(), Code::Unsupported);
    assert!(error.message().contains("its general.type is model, expected reward_model"), "{error}");
}

#[test]
fn forgetting_and_reviews_reach_through_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), |c| c.flag_after = 2).unwrap();
    let answers: Vec<_> = (0..2).map(|seed| answer(&engine, seed)).collect();
    for g in &answers {
        say(&engine, g, "ann", Signal::Rating(1.0));
        say(&engine, g, "mallory", Signal::Rating(-1.0));
    }
    let flagged: Vec<String> = engine.reviews().unwrap().into_iter().map(|e| e.user).collect();
    assert_eq!(flagged, ["ann", "mallory"], "two who disagree: a person must decide");
    match engine.train_step().unwrap() {
        PublishOutcome::Skipped { consumed: 0, .. } => {}
        other => panic!("trained on held feedback: {other:?}"),
    }
    engine.review("ann", ReviewVerdict::Trust).unwrap();
    let gone = engine.forget("mallory").unwrap();
    assert_eq!((gone.generations, gone.feedback), (0, 2));
    assert_eq!(engine.status().trainer.pending_ratings, 2);
}

#[test]
fn forgetting_leaves_no_byte_of_a_users_prompt_rollouts_and_answers_under_way_included() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |config| {
        config.serve.context = 4096;
        config.reward.rollouts = Some("users".into());
        config.reward.rollout_idle = 0;
        config.reward.command = Some("awk '{print \"{\\\"score\\\": \" NR \"}\"}'".into());
    })
    .unwrap();
    let ask = |text: &str, max_tokens: u32| {
        let prompt = engine.tokenize(text).unwrap();
        let logit_bias = (285..288).map(|token| (token, -100.0)).collect();
        let sampling = Sampling { seed: Some(1), logit_bias, ..Sampling::default() };
        let user = Some("ann".to_owned());
        let request = GenerateRequest { prompt, sampling, user, max_tokens: Some(max_tokens), ..Default::default() };
        engine.generate(request).unwrap()
    };
    for i in 0..3 {
        finish(&ask(&format!("my secret is zanzibar {i}"), 8)).unwrap();
    }
    engine.roll_out().unwrap();
    let tokens: Vec<u8> = engine.tokenize("zanzibar").unwrap().iter().flat_map(|t| t.to_le_bytes()).collect();
    assert!(on_disk(&dir.path().join("data"), &tokens));
    let running = ask("my secret is zanzibar still", 3000);
    let gone = engine.forget("ann").unwrap();
    assert!(gone.generations >= 5 && gone.overwritten, "{gone:?}");
    running.cancel();
    let (_, g) = finish(&running).unwrap();
    assert!(g.unrecorded);
    assert!(engine.generation(&g.id).unwrap().is_none());
    engine.shutdown();
    drop(engine);
    assert!(!on_disk(&dir.path().join("data"), &tokens), "tokens of her prompt are still on disk");
}

/// What honest users like.
fn taste(g: &Generation) -> f64 {
    let liked = g.response.iter().filter(|t| t.is_multiple_of(2)).count() * 2;
    if liked > g.response.len() { 1.0 } else { -1.0 }
}

/// How much more probable than at the start the policy finds answers that honest users like than those they don't, in
/// nats.
fn learned(dir: &Path, version: PolicyVersion, answers: &[Arc<Generation>]) -> f64 {
    let decoder = Decoder::load(&dir.join("tiny.gguf"), &Device::Cpu, Dtype::F32).unwrap();
    let adapter = dir.join(format!("data/versions/{:06}", version.0)).join("adapter.gguf");
    let lora = Lora::read_gguf(&adapter, &decoder).unwrap();
    let logprob = |g: &Generation, lora: Option<&Lora>| {
        let whole: Vec<TokenId> = g.prompt.iter().chain(&g.response).copied().collect();
        let packed = Packed::new(&[whole]).unwrap();
        let targets = packed.targets(&[g.prompt.len()]).unwrap();
        let each = decoder.response_logprobs(&packed, &targets, &[1.0], lora).unwrap();
        each.sum_all().unwrap().to_scalar::<f32>().unwrap()
    };
    let mean = |like: f64| {
        let of: Vec<f32> =
            answers.iter().filter(|g| taste(g) == like).map(|g| logprob(g, Some(&lora)) - logprob(g, None)).collect();
        f64::from(of.iter().sum::<f32>()) / of.len() as f64
    };
    mean(1.0) - mean(-1.0)
}

/// What came of ratings of which an attacker gave three of ten.
struct Attacked {
    /// Nats the policy learned of what honest users like, [`learned`] on their answers.
    learned: f64,
    /// The attacker's part of the samples.
    share: f64,
}

/// Seven honest users with sixteen ratings each, and one attacker with three of ten of all ratings, of the opposite
/// taste, or none.
fn attacked(attack: bool, limits: bool, seed: u64) -> Attacked {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |config: &mut Config| {
        (config.train.threads, config.train.device, config.train.dtype) = (1, "cpu".into(), Dtype::F32);
        // Answers of one token: what is learned of one is learned of all that are alike.
        config.serve.max_tokens = 1;
        // An examination asks for longer ones than were ever trained on.
        config.gate.examine = false;
        (config.train.batch, config.train.epochs, config.train.lambda, config.train.seed) = (256, 4, 0.5, seed);
        let c = &mut config.reward;
        match limits {
            // Above what each of seven honest users has.
            true => (c.user_share, c.user_hourly) = (0.15, 40),
            false => (c.user_share, c.user_hourly, c.flag_after) = (1.0, 0, 0),
        }
    })
    .unwrap();
    let rate = |user: &str, honest: f64, n: u64| {
        let g = answer(&engine, 100_000 * seed + n);
        say(&engine, &g, user, Signal::Rating(honest * taste(&g)));
        g
    };
    let (mut honest, mut hostile) = (Vec::new(), Vec::new());
    for round in 0..16 {
        honest.extend((0..7).map(|user| rate(&format!("honest {user}"), 1.0, 10 * round + user)));
        let lies = if attack { 0..3 } else { 0..0 };
        hostile.extend(lies.map(|n| rate("mallory", -1.0, 10_000 + 10 * round + n)));
    }
    let version = publish(&engine);
    let used = |answers: &[Arc<Generation>]| {
        let record = |g: &Arc<Generation>| engine.generation_record(&g.id).unwrap().unwrap();
        answers.iter().filter(|g| record(g).samples.iter().any(|s| s.version == Some(version))).count() as f64
    };
    let (honestly, hostilely) = (used(&honest), used(&hostile));
    Attacked { learned: learned(dir.path(), version, &honest), share: hostilely / (honestly + hostilely) }
}

#[test]
fn an_attacker_with_three_ratings_of_ten_moves_the_policy_less_where_limits_hold() {
    let seeds = 1..=6;
    let mean = |attack, limits| {
        let runs: Vec<Attacked> = seeds.clone().map(|seed| attacked(attack, limits, seed)).collect();
        let of = |part: fn(&Attacked) -> f64| runs.iter().map(part).sum::<f64>() / runs.len() as f64;
        println!("attack {attack}, limits {limits}: {:?} nats", runs.iter().map(|r| r.learned).collect::<Vec<_>>());
        Attacked { learned: of(|r| r.learned), share: of(|r| r.share) }
    };
    let (alone, without, with) = (mean(false, false), mean(true, false), mean(true, true));
    println!(
        "nats learned: {:.3} alone, {:.3} attacked, {:.3} with limits",
        alone.learned, without.learned, with.learned
    );
    println!("share of the attacker: {:.3}, {:.3} with limits", without.share, with.share);
    // What is said twice of one answer counts once, so it is less than three of ten.
    assert!(without.share > 0.25 && with.share <= 0.15, "{} {}", without.share, with.share);
    assert!(alone.learned > 0.0 && without.learned < alone.learned, "{} {}", alone.learned, without.learned);
    // At least half of the harm is undone.
    let (harm, left) = (alone.learned - without.learned, alone.learned - with.learned);
    assert!(left < 0.5 * harm, "{left} of {harm}");
}

#[test]
fn the_reward_model_learns_from_preferences_and_corrections_and_is_replaced_only_by_one_as_good() {
    let dir = tempfile::tempdir().unwrap();
    let settings = |c: &mut Config| {
        (c.train.threads, c.train.device, c.train.dtype, c.train.auto) = (1, "cpu".into(), Dtype::F32, true);
        c.reward.learn = 60;
    };
    let engine = open_with(dir.path(), settings).unwrap();
    let make = |text: &str, seed: u64| {
        let sampling = Sampling { seed: Some(seed), ..Sampling::default() };
        let prompt = engine.tokenize(text).unwrap();
        let request = GenerateRequest { prompt, sampling, max_tokens: Some(4), ..GenerateRequest::default() };
        finish(&engine.generate(request).unwrap()).unwrap().1
    };
    let wait = |what: &str, done: &dyn Fn(&apa::engine::RewardStatus) -> bool| {
        let began = std::time::Instant::now();
        loop {
            let status = engine.status().trainer.reward;
            if done(&status) {
                return status;
            }
            assert!(began.elapsed().as_secs() < 60, "{what}: {status:?}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    // Users always want the same answer: a thing that can be learned.
    for n in 0..60 {
        let g = make(&format!("question {n}"), n);
        say(&engine, &g, "ann", Signal::Correction("please".into()));
    }
    let first = wait("the first version", &|s| s.version == 1);
    assert!(first.accuracy.unwrap() >= 0.9 && first.last.unwrap().starts_with("adopted"));
    assert!(dir.path().join("data/reward/000001.gguf").exists());

    // Then a lot of noise: surely above a coin and above the one in use on unseen pairs, or it is not adopted.
    let mut pairs = 60;
    for n in 100..160 {
        let (a, b) = (make(&format!("other {n}"), n), make(&format!("other {n}"), n + 500));
        if a.response != b.response {
            engine.prefer(&a.id, &b.id, Some("bob")).unwrap();
            pairs += 1;
        }
        pairs += 1;
        say(&engine, &a, "bob", Signal::Correction(if n % 2 == 0 { "please" } else { "no" }.into()));
    }
    // Enough for one more attempt or two, as they come in.
    let second = wait("the last attempt", &|s| s.pairs + 60 > pairs);
    let said = second.last.as_ref().unwrap();
    let right = |after: &str| -> f64 {
        let word = said.split_once(after).unwrap().1.split([' ', ';']).next().unwrap();
        word.parse().unwrap_or_else(|e| panic!("{said}: {e}"))
    };
    let (after, sure, before) = (right("adopted: "), right("surely above "), right("; "));
    assert!(sure < after, "{second:?}");
    assert!(!said.starts_with("adopted") || (sure > 0.5 && after > before), "{second:?}");
    assert!(second.version > 1 || !said.starts_with("adopted"), "{second:?}");
    engine.shutdown();
    let again = open_with(dir.path(), settings).unwrap();
    let began = std::time::Instant::now();
    while again.status().trainer.reward != second {
        assert!(began.elapsed().as_secs() < 30, "{:?} is not {second:?}", again.status().trainer.reward);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn a_reward_model_that_can_not_be_kept_is_not_learned_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    // No folder for versions of it can be made.
    std::fs::create_dir(dir.path().join("data")).unwrap();
    std::fs::write(dir.path().join("data/reward"), "in the way").unwrap();
    let engine = open_with(dir.path(), |c: &mut Config| {
        (c.train.threads, c.train.device, c.train.dtype, c.train.auto) = (1, "cpu".into(), Dtype::F32, true);
        c.reward.learn = 60;
    })
    .unwrap();
    for n in 0..60 {
        let prompt = engine.tokenize(&format!("question {n}")).unwrap();
        let request = GenerateRequest { prompt, max_tokens: Some(4), ..GenerateRequest::default() };
        let g = finish(&engine.generate(request).unwrap()).unwrap().1;
        say(&engine, &g, "ann", Signal::Correction("please".into()));
    }
    let began = std::time::Instant::now();
    let failed = loop {
        let status = engine.status().trainer;
        if status.reward.last.is_some() && status.state == TrainerState::Idle {
            break status;
        }
        assert!(began.elapsed().as_secs() < 60, "{status:?}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    let said = failed.reward.last.as_ref().unwrap();
    assert!(said.starts_with("failed: ") && failed.reward.version == 0 && failed.seconds > 0.0, "{failed:?}");
    // The trainer looks every five seconds.
    std::thread::sleep(std::time::Duration::from_millis(5500));
    assert_eq!(engine.status().trainer, failed);
}

#[test]
fn rollouts_are_sampled_judged_by_the_reward_model_and_trained_on_beside_live_feedback() {
    let dir = tempfile::tempdir().unwrap();
    let file = reward_model(dir.path());
    let prompts = dir.path().join("prompts.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"the rain\"}\n{\"prompt\": \"it is\"}\n").unwrap();
    let settings = |c: &mut Config| {
        (c.train.threads, c.train.device, c.train.dtype, c.train.batch) = (1, "cpu".into(), Dtype::F32, 8);
        (c.reward.model, c.reward.rollouts) = (Some(file.clone()), Some(prompts.to_string_lossy().into_owned()));
        c.reward.rollout_share = 0.75;
        // What fresh answers teach is chance; a candidate that came out worse would be refused.
        c.gate.examine = false;
    };
    let engine = open_with(dir.path(), settings).unwrap();
    let rated: Vec<_> = (0..3).map(|seed| answer(&engine, seed)).collect();
    for g in &rated {
        say(&engine, g, "ann", Signal::Rating(taste(g)));
    }
    let (version, metrics) = published(engine.roll_out().unwrap());
    assert_eq!(metrics.samples, 8, "six rollouts and two of three ratings");
    assert_eq!(engine.status().trainer.pending_ratings, 1);
    let taught: Vec<usize> =
        rated.iter().map(|g| engine.generation_record(&g.id).unwrap().unwrap().samples.len()).collect();
    assert_eq!((taught, version), (vec![1, 1, 0], PolicyVersion(1)));

    // By itself, while nobody asks.
    engine.shutdown();
    let idle = |c: &mut Config| {
        settings(c);
        (c.train.auto, c.reward.rollout_idle, c.reward.rollouts) = (true, 1, Some("users".into()));
    };
    let engine = open_with(dir.path(), idle).unwrap();
    let began = std::time::Instant::now();
    while engine.status().policy_version < PolicyVersion(2) {
        assert!(began.elapsed().as_secs() < 60, "{:?}", engine.status().trainer);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    engine.shutdown();

    let engine = open_with(dir.path(), |c| c.reward.rollouts = Some("users".into())).unwrap();
    let message = engine.roll_out().unwrap_err().message().to_owned();
    assert!(message.contains("nothing judges rollouts"), "{message}");
}

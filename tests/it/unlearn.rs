//! Forgetting a user with all that was learned from the user's words: what is made in place of it, and what is left of
//! it. On a tiny model.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use apa::config::{Algorithm, Config};
use apa::engine::{GenerateRequest, News, PublishOutcome, Topic, TrainerState, VerdictRecord};
use apa::types::*;
use apa::{Code, Engine};

use crate::support::engine::{answer, finish, open_with, published, request};
use crate::support::reward::reward_model;

/// The user who is forgotten.
const ANN: &str = "ann-of-zanzibar";

fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(120), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn open(dir: &Path, change: impl FnOnce(&mut Config)) -> Engine {
    open_with(dir, |c| {
        (c.gate.count, c.gate.max_tokens) = (2, 12);
        (c.reward.user_share, c.reward.user_hourly, c.reward.flag_after) = (1.0, 0, 0);
        (c.reward.correction, c.train.replay) = (0.5, 4);
        change(c);
    })
    .unwrap()
}

/// Answers of the initial model for three users, five each, by name and number.
fn answers(engine: &Engine) -> BTreeMap<(&'static str, usize), GenerationId> {
    let ask = |user: &'static str, i: usize| {
        let text = if user == ANN { "the zanzibar" } else { "the" };
        let seed = 100 * user.len() as u64 + i as u64;
        let asked = GenerateRequest { user: Some(user.into()), ..request(engine, text, seed) };
        ((user, i), finish(&engine.generate(asked).unwrap()).unwrap().1.id.clone())
    };
    [ANN, "bob", "cynthia"]
        .into_iter()
        .flat_map(|user| (0..5).map(move |i| (user, i)))
        .map(|(u, i)| ask(u, i))
        .collect()
}

/// What everybody says in a round: who, of whose answer, what.
fn said(round: usize) -> Vec<(&'static str, (&'static str, usize), Signal)> {
    let rating = Signal::Rating;
    let others = vec![("bob", ("bob", round), rating(1.0)), ("cynthia", ("cynthia", round), rating(-0.5))];
    let mut all = match round {
        // Ann's word changes what bob's answer is worth, and is all that was said of hers.
        1 => vec![
            (ANN, ("bob", 1), rating(-1.0)),
            (ANN, (ANN, 1), rating(1.0)),
            (ANN, ("cynthia", 4), rating(0.25)),
            (ANN, ("bob", 1), Signal::Correction("the zanzibar and the".into())),
            ("bob", ("cynthia", 1), Signal::Named("copied".into())),
        ],
        // Without hers there is nothing in this one, and too little in the next.
        2 => return vec![(ANN, (ANN, 2), rating(1.0)), (ANN, (ANN, 0), rating(-1.0))],
        3 => return vec![(ANN, (ANN, 3), rating(-0.75)), ("bob", ("bob", 3), rating(0.5))],
        _ => Vec::new(),
    };
    all.extend(others);
    all
}

/// Five rounds of feedback, each followed by a step; with or without what Ann says. Returns the versions made.
fn learn(engine: &Engine, ids: &BTreeMap<(&'static str, usize), GenerationId>, with_ann: bool) -> usize {
    let mut made = 0;
    for round in 0..5 {
        for (user, of, signal) in said(round).into_iter().filter(|(user, ..)| with_ann || *user != ANN) {
            let (generation_id, user) = (ids[&of].clone(), Some(user.to_owned()));
            engine.feedback(NewFeedback { generation_id, signal, user, comment: None }).unwrap();
        }
        match engine.train_step().unwrap() {
            PublishOutcome::Published { .. } => made += 1,
            PublishOutcome::Skipped { consumed: 0, .. } if !with_ann => {}
            other => panic!("round {round}: {other:?}"),
        }
    }
    made
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The files of a version that say what was learned.
fn learned(dir: &Path, version: u64) -> BTreeMap<&'static str, Vec<u8>> {
    let folder = dir.join(format!("data/versions/{version:06}"));
    ["adapter.gguf", "critic.gguf", "trainer.safetensors", "trainer.json", "reward.json"]
        .map(|name| (name, std::fs::read(folder.join(name)).unwrap()))
        .into()
}

/// Checks that two versions are the same to the last bit.
fn same(ours: (&Path, u64), theirs: (&Path, u64)) {
    let (ours, theirs) = (learned(ours.0, ours.1), learned(theirs.0, theirs.1));
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap_or_default();
    for (name, bytes) in &ours {
        let other = &theirs[name];
        assert!(other == bytes, "{name} differs: {} {}", text(bytes), text(other));
    }
}

fn record(engine: &Engine, version: u64) -> (Ruling, VerdictRecord) {
    let verdict = engine.version(PolicyVersion(version)).unwrap().verdict.unwrap();
    (verdict.ruling, serde_json::from_value(verdict.record).unwrap())
}

fn bytes_under(dir: &Path, found: &mut Vec<(std::path::PathBuf, Vec<u8>)>) {
    for path in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        if path.is_dir() {
            bytes_under(&path, found);
        } else {
            found.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
}

/// A folder whose engine has learned from three users for five rounds, and one that never heard what Ann said.
fn histories(change: impl Fn(&mut Config)) -> (tempfile::TempDir, tempfile::TempDir) {
    let (with, without) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let engine = open(with.path(), &change);
    let ids = answers(&engine);
    engine.shutdown();
    drop(engine);
    copy(with.path(), without.path());
    let engine = open(with.path(), &change);
    assert_eq!(learn(&engine, &ids, true), 5);
    engine.shutdown();
    drop(engine);
    let engine = open(without.path(), &change);
    assert_eq!(learn(&engine, &ids, false), 3);
    engine.shutdown();
    let first = |dir: &Path| std::fs::read(dir.join("data/versions/000001/adapter.gguf")).unwrap();
    assert!(first(with.path()) == first(without.path()), "training itself is not deterministic");
    (with, without)
}

#[test]
fn what_replaces_the_versions_that_saw_a_user_equals_bit_for_bit_what_never_saw_the_user() {
    let (with, without) = histories(|_| ());
    let engine = open(with.path(), |_| ());
    until("the trainer is ready", || engine.status().trainer.state == TrainerState::Idle);
    let news = engine.subscribe(Topic::Learning).unwrap();
    // What it costs is told before anything happens.
    let plan = engine.unlearn_plan(ANN).unwrap().unwrap();
    assert_eq!((plan.first, plan.back, plan.versions), (PolicyVersion(2), PolicyVersion(1), 4));
    // The state of version 1 is gone by then, so the replay begins with the initial model.
    assert_eq!((plan.start, plan.batches, plan.answers, plan.wordless), (PolicyVersion(0), 5, 12, 0));
    assert!(plan.seconds > 0.0);
    assert_eq!(engine.unlearn_plan("nobody").unwrap(), None);
    assert_eq!(engine.status().trainer.unlearning, None);

    let receipt = engine.unlearn(ANN).unwrap();
    assert_eq!((receipt.forgotten.generations, receipt.unlearning.as_ref()), (5, Some(&plan)));
    assert_eq!(engine.unlearn("bob").unwrap_err().code(), Code::Busy);
    assert_eq!(engine.unlearn_plan("bob").unwrap_err().message(), engine.unlearn("bob").unwrap_err().message());
    // It answers meanwhile, and nothing is learned from what is on its way out.
    answer(&engine, "the", 7);
    until("it is done", || engine.status().trainer.unlearning.is_none());
    let told: Vec<News> = std::iter::from_fn(|| news.next(Some(Duration::ZERO)).unwrap()).collect();
    let replayed = told.iter().filter(|n| matches!(n, News::Unlearning { batches: 5, .. })).count();
    assert_eq!(replayed, 5);
    match told.last().unwrap() {
        News::Unlearned { version: Some(PolicyVersion(6)), parent: PolicyVersion(1), .. } => {}
        other => panic!("{other:?}"),
    }

    assert_eq!(engine.status().policy_version, PolicyVersion(6));
    assert_eq!(engine.version(PolicyVersion(6)).unwrap().lineage, [PolicyVersion(1), PolicyVersion(0)]);
    assert_eq!(record(&engine, 6).1.examination.unwrap().prompts, 2, "it is judged like any other");
    for gone in 2..=5 {
        assert_eq!(record(&engine, gone).0, Ruling::Unlearned);
        let error = engine.activate(PolicyVersion(gone)).unwrap_err();
        assert!(error.message().contains("has no files on disk"), "{error}");
    }
    // It goes on from there as the other does.
    same((with.path(), 6), (without.path(), 3));
    engine.shutdown();
    drop(engine);
    let mut files = Vec::new();
    bytes_under(&with.path().join("data"), &mut files);
    for (path, bytes) in files {
        for word in [ANN, "zanzibar"] {
            let word = word.as_bytes();
            assert!(!bytes.windows(word.len()).any(|w| w == word), "{} holds a word of hers", path.display());
        }
    }
    assert!(!with.path().join("data/unlearning").exists());
}

#[test]
fn where_no_prompt_of_users_is_left_a_candidate_is_judged_on_the_built_in_ones_and_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), |c| c.gate.prompts = Some("users".into()));
    let lines: String = [1, -1, 1, -1]
        .iter()
        .enumerate()
        .map(|(i, rating)| {
            format!("{{\"prompt\": \"the\", \"completion\": \"a {i}\", \"rating\": {rating}, \"user\": \"bob\"}}\n")
        })
        .collect();
    let file = dir.path().join("lines.jsonl");
    std::fs::write(&file, lines).unwrap();
    assert_eq!(engine.import(&apa::reward::read_judgements(&file).unwrap().entries, None).unwrap().ratings, 4);
    for i in 0..4 {
        let asked = GenerateRequest { user: Some(ANN.into()), ..request(&engine, "the zanzibar", i) };
        let id = finish(&engine.generate(asked).unwrap()).unwrap().1.id.clone();
        crate::support::engine::rate(&engine, &id, if i % 2 == 0 { 1.0 } else { -1.0 }).unwrap();
    }
    published(engine.train_step().unwrap());
    let said = |version: u64| record(&engine, version).1.examination.unwrap().reason;
    assert!(!said(1).contains("built-in"), "{}", said(1));
    engine.unlearn(ANN).unwrap();
    until("it is done", || engine.status().trainer.unlearning.is_none());
    assert_eq!(engine.status().policy_version, PolicyVersion(2));
    assert!(said(2).ends_with("(on built-in prompts, as there was none of users to ask)"), "{}", said(2));
}

/// Checks that what replaces the versions that saw a user equals what never saw the user, with these settings.
fn replaced_exactly(change: impl Fn(&mut Config)) {
    let (with, without) = histories(&change);
    let engine = open(with.path(), &change);
    until("the trainer is ready", || engine.status().trainer.state == TrainerState::Idle);
    engine.unlearn(ANN).unwrap();
    until("it is done", || engine.status().trainer.unlearning.is_none());
    assert_eq!(engine.status().policy_version, PolicyVersion(6), "{:?}", engine.status().trainer);
    same((with.path(), 6), (without.path(), 3));
}

#[test]
fn a_replay_is_exact_with_ppo() {
    replaced_exactly(|c| c.train.algorithm = Algorithm::Ppo);
}

#[test]
fn a_replay_is_exact_with_rloo() {
    replaced_exactly(|c| c.train.algorithm = Algorithm::Rloo);
}

#[test]
fn a_replay_is_exact_with_a_reward_model_that_learned_from_preferences() {
    let dir = tempfile::tempdir().unwrap();
    let file = reward_model(dir.path());
    replaced_exactly(|c| (c.reward.model, c.reward.model_weight) = (Some(file.clone()), 0.5));
}

#[test]
fn a_replay_that_is_cut_short_goes_on_after_a_restart_and_comes_to_the_same() {
    let (with, without) = histories(|_| ());
    let engine = open(with.path(), |_| ());
    until("the trainer is ready", || engine.status().trainer.state == TrainerState::Idle);
    engine.unlearn(ANN).unwrap();
    for done in 1..=4 {
        let engine = if done == 1 { engine.clone() } else { open(with.path(), |_| ()) };
        until("a batch", || engine.status().trainer.unlearning.is_none_or(|u| u.replayed >= done));
        engine.shutdown();
        // Dropped here: the folder is free for the next one.
    }
    drop(engine);
    // A crash while a state was written leaves half of one.
    let half = with.path().join("data/unlearning/versions/.staging-000009");
    if half.parent().unwrap().exists() {
        std::fs::create_dir_all(&half).unwrap();
    }
    let engine = open(with.path(), |_| ());
    until("it is done", || {
        engine.status().trainer.state == TrainerState::Idle && engine.status().trainer.unlearning.is_none()
    });
    assert_eq!(engine.status().policy_version, PolicyVersion(6));
    same((with.path(), 6), (without.path(), 3));
    assert_eq!(engine.version(PolicyVersion(3)).unwrap().verdict.unwrap().ruling, Ruling::Unlearned);
}

#[test]
fn a_refused_replay_leaves_the_last_version_that_saw_nothing_and_says_so() {
    // Steps so large that no policy survives them, and nothing that minds; a replay takes them again.
    let wild = |c: &mut Config| {
        (c.gate.examine, c.train.lr) = (false, 3.0);
        (c.train.gate.kl_budget, c.train.kl_samples) = (1e9, 0);
    };
    let (with, _) = histories(wild);
    let engine = open(with.path(), |c| c.gate.kl_budget = 0.01);
    until("the trainer is ready", || engine.status().trainer.state == TrainerState::Idle);
    let news = engine.subscribe(Topic::Learning).unwrap();
    engine.unlearn(ANN).unwrap();
    until("it is done", || engine.status().trainer.unlearning.is_none());
    assert_eq!(engine.status().policy_version, PolicyVersion(1));
    let told: Vec<News> = std::iter::from_fn(|| news.next(Some(Duration::ZERO)).unwrap()).collect();
    let Some(News::Unlearned { version: None, parent: PolicyVersion(1), reason }) = told.last() else {
        panic!("{told:?}")
    };
    assert!(reason.starts_with("what was learned without the user was refused: its "), "{reason}");
    assert_eq!(engine.versions().unwrap().len(), 6, "no version was made");
    assert_eq!(engine.verdicts(1).unwrap()[0].ruling, Ruling::Refused);
    assert_eq!(record(&engine, 4).0, Ruling::Unlearned);
    assert!(engine.activate(PolicyVersion(4)).is_err());
    engine.shutdown();
    drop(engine);
    // It learns on from version 1.
    let engine = open(with.path(), wild);
    assert!(engine.status().alerts.is_empty(), "{:?}", engine.status().alerts);
    for (i, rating) in [(1, 1.0), (2, -1.0), (3, 0.5)] {
        let id = answer(&engine, "the", i).id.clone();
        crate::support::engine::rate(&engine, &id, rating).unwrap();
    }
    let (version, _) = published(engine.train_step().unwrap());
    assert_eq!(engine.version(version).unwrap().info.parent, Some(PolicyVersion(1)));
}

#[test]
fn nobody_can_serve_what_is_on_its_way_out_and_a_person_who_goes_back_further_ends_the_replay() {
    let (with, _) = histories(|c| c.gate.examine = false);
    let engine = open(with.path(), |c| c.train.epochs = 50);
    until("the trainer is ready", || engine.status().trainer.state == TrainerState::Idle);
    engine.unlearn(ANN).unwrap();
    let error = engine.activate(PolicyVersion(4)).unwrap_err();
    assert_eq!(error.code(), Code::Busy, "{error}");
    assert!(error.message().contains("learned from a user who is being forgotten"), "{error}");
    assert_eq!(engine.restore(&with.path().join("none")).unwrap_err().code(), Code::Busy);
    match engine.train_step().unwrap() {
        PublishOutcome::Skipped { consumed: 0, reason } => assert!(reason.contains("is being unlearned"), "{reason}"),
        other => panic!("{other:?}"),
    }
    engine.activate(PolicyVersion(1)).unwrap();
    until("it is done", || engine.status().trainer.unlearning.is_none());
    assert_eq!(engine.status().policy_version, PolicyVersion(1));
    assert!(!with.path().join("data/versions/000003").exists());
    assert_eq!(record(&engine, 3).0, Ruling::Unlearned);
}

#[test]
fn what_cant_be_replayed_is_said_before_anything_is_deleted() {
    let (with, _) = histories(|_| ());
    let engine = open(with.path(), |_| ());
    until("the trainer is ready", || engine.status().trainer.state == TrainerState::Idle);
    let file = with.path().join("five.tar");
    engine.snapshot(PolicyVersion(5), &file).unwrap();
    engine.restore(&file).unwrap();
    for error in [engine.unlearn_plan(ANN).unwrap_err(), engine.unlearn(ANN).unwrap_err()] {
        assert_eq!(error.code(), Code::Unsupported);
        let says = "version 6 was restored or adopted, so what it was trained on is not on record and can't be \
                    replayed; `apad versions activate 1` goes back to before it learned from the user";
        assert_eq!(error.message(), says);
    }
    assert_eq!(engine.forget(ANN).unwrap().generations, 5, "nothing was deleted before");
}

#[test]
fn where_nothing_can_be_trained_nothing_is_deleted_and_the_plan_says_so_too() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), |_| ());
    let ids = answers(&engine);
    let versions = learn(&engine, &ids, true);
    engine.shutdown();
    drop(engine);
    let newest = dir.path().join(format!("data/versions/{versions:06}/trainer.json"));
    std::fs::write(newest, "{").unwrap();
    let engine = open(dir.path(), |_| ());
    until("the trainer is off", || engine.status().trainer.state == TrainerState::Off);
    for error in [engine.unlearn_plan(ANN).unwrap_err(), engine.unlearn(ANN).unwrap_err()] {
        assert!(
            error.message().starts_with("nothing is deleted") && error.message().contains("trainer.json"),
            "{error}"
        );
    }
    assert!(engine.generation(&ids[&(ANN, 1)]).unwrap().is_some());
    // Nobody learned from this one.
    assert_eq!(engine.unlearn_plan("dora").unwrap(), None);
    engine.unlearn("dora").unwrap();
}

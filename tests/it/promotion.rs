//! What becomes of a candidate: examined, tried by a share of the users, watched, taken back. On a tiny model.

use std::time::{Duration, Instant};

use apa::Engine;
use apa::config::Promotion;
use apa::engine::{Archive, News, PublishOutcome, Topic, TrainerState, VerdictRecord};
use apa::gate::Outcome;
use apa::types::*;
use serde_json::json;

use crate::support::engine::{answer, finish, open_with, published, rate_some, request, versions_listed};

pub fn record(engine: &Engine, version: PolicyVersion) -> (Ruling, VerdictRecord) {
    let verdict = engine.version(version).unwrap().verdict.unwrap();
    (verdict.ruling, serde_json::from_value(verdict.record).unwrap())
}

/// An answer for a user, with the version that gave it; rated by how well that version is liked.
pub fn rated(engine: &Engine, user: &str, seed: u64, liking: impl Fn(PolicyVersion) -> f64) -> PolicyVersion {
    let asked = apa::engine::GenerateRequest { user: Some(user.into()), ..request(engine, "the", seed) };
    let g = finish(&engine.generate(asked).unwrap()).unwrap().1;
    let signal = Signal::Rating(liking(g.policy_version));
    let said = NewFeedback { generation_id: g.id.clone(), signal, user: Some(user.into()), comment: None };
    engine.feedback(said).unwrap();
    g.policy_version
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what} did not happen within a minute");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_candidate_is_examined_beside_its_parent_and_the_verdict_stays_on_record() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| c.gate.count = 4).unwrap();
    rate_some(&engine, 8);
    let before = engine.status().load.completed;
    let (version, _) = published(engine.train_step().unwrap());
    assert_eq!(engine.status().load.completed - before, 8, "four prompts, answered by both");
    let (ruling, said) = record(&engine, version);
    assert_eq!(ruling, Ruling::Promoted);
    let examination = said.examination.unwrap();
    assert_eq!((examination.prompts, examination.outcome), (4, Outcome::Undecided), "nothing scores answers here");
    let of = |name: &str| examination.compared.iter().find(|c| c.name == name).unwrap().clone();
    assert!(of("kl_initial").candidate.is_finite() && of("kl_initial").parent == 0.0);
    assert!(of("entropy").parent > 0.5, "{:?}", of("entropy"));
    assert!(of("held_back_logprob").candidate < 0.0);
    assert_eq!(engine.version(version).unwrap().lineage, [PolicyVersion(0)]);
    // Neither recorded nor trained on.
    engine.shutdown();
    let engine = open_with(dir.path(), |_| {}).unwrap();
    assert_eq!(record(&engine, version).0, Ruling::Promoted);
    assert!(engine.version(PolicyVersion(9)).is_err());
}

#[test]
fn an_examination_waits_where_the_queue_holds_one_request_and_says_why_no_prompt_could_be_asked() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| (c.gate.count, c.serve.queue) = (4, 1)).unwrap();
    rate_some(&engine, 8);
    let (version, _) = published(engine.train_step().unwrap());
    assert_eq!(record(&engine, version).1.examination.unwrap().prompts, 4);
    engine.shutdown();
    let engine = open_with(dir.path(), |c| c.serve.context = 16).unwrap();
    rate_some(&engine, 8);
    let error = engine.train_step().unwrap_err();
    assert!(
        error
            .message()
            .contains("no prompt of the examination fits serve.context or could be answered: the prompt has "),
        "{error}"
    );
    assert!(error.message().ends_with(", the context of 16 leaves no room for an answer"), "{error}");
}

#[test]
fn a_collapsed_candidate_is_seen_by_nobody_and_the_reason_says_which_limit_it_crossed() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| {
        (c.gate.count, c.train.lr) = (4, 3.0);
        // So that nothing but the examination is in the way.
        (c.train.gate.kl_budget, c.train.kl_samples) = (1e9, 0);
    })
    .unwrap();
    rate_some(&engine, 8);
    let PublishOutcome::Skipped { reason, consumed } = engine.train_step().unwrap() else { panic!("it was published") };
    assert_eq!(consumed, 8);
    assert!(reason.starts_with("the candidate was refused: its "), "{reason}");
    assert!(reason.contains("that crosses the limit of"), "{reason}");
    assert_eq!(engine.status().policy_version, PolicyVersion(0));
    assert_eq!(answer(&engine, "the", 1).policy_version, PolicyVersion(0));
    let verdicts = engine.verdicts(10).unwrap();
    assert_eq!((verdicts.len(), verdicts[0].version, verdicts[0].ruling), (1, None, Ruling::Refused));
    // Its parent learns on.
    engine.shutdown();
    let engine = open_with(dir.path(), |c| c.gate.count = 4).unwrap();
    rate_some(&engine, 8);
    published(engine.train_step().unwrap());
}

#[test]
fn an_anchor_that_the_candidate_no_longer_holds_is_a_veto() {
    let dir = tempfile::tempdir().unwrap();
    // What the initial model says to the prompt is what must stay: an answer that begins like its own.
    let probe = open_with(dir.path(), |_| {}).unwrap();
    let mut greedy = request(&probe, "the", 0);
    greedy.sampling.temperature = 0.0;
    greedy.max_tokens = Some(12);
    let text = finish(&probe.generate(greedy).unwrap()).unwrap().0;
    probe.shutdown();
    let anchors = dir.path().join("anchors.jsonl");
    let regex = format!("^{}", text.chars().map(|c| format!("\\x{{{:x}}}", c as u32)).collect::<String>());
    let line = serde_json::json!({"prompt": "the", "name": "as before", "regex": regex});
    std::fs::write(&anchors, format!("{line}\n")).unwrap();
    let engine = open_with(dir.path(), |c| {
        (c.gate.count, c.gate.max_tokens) = (4, 12);
        c.gate.anchors = Some(anchors.clone());
        c.train.lr = 0.1;
        (c.gate.kl_budget, c.gate.kl_step, c.gate.entropy, c.gate.text_loss) = (1e9, 1e9, 0.0, 1e9);
        (c.gate.cut_off, c.gate.repetition, c.gate.length) = (1.0, 1.0, 1e9);
        (c.train.gate.kl_budget, c.train.kl_samples) = (1e9, 0);
    })
    .unwrap();
    rate_some(&engine, 8);
    let PublishOutcome::Skipped { reason, .. } = engine.train_step().unwrap() else { panic!("it was published") };
    assert_eq!(reason, "the candidate was refused: its answer to the anchor as before no longer holds");
    engine.shutdown();
    std::fs::write(&anchors, "{\"prompt\": \"the\"}\n").unwrap();
    let engine = open_with(dir.path(), |c| c.gate.anchors = Some(anchors)).unwrap();
    wait_until("the file being read", || engine.status().trainer.reason.is_some());
    let why = engine.status().trainer.reason.unwrap();
    assert!(
        why.contains("anchors.jsonl:1: an anchor has one of \"regex\", \"command\", \"schema\" and \"grammar\""),
        "{why}"
    );
}

#[test]
fn a_proposal_waits_for_a_person_and_learning_goes_on_from_what_serves() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| (c.gate.count, c.gate.mode) = (2, Promotion::Propose)).unwrap();
    let news = engine.subscribe(Topic::Learning).unwrap();
    rate_some(&engine, 8);
    let PublishOutcome::Pending { version, ruling, reason, .. } = engine.train_step().unwrap() else { panic!() };
    assert_eq!((version, ruling), (PolicyVersion(1), Ruling::Proposed));
    assert!(reason.contains("a person decides"), "{reason}");
    assert_eq!(engine.status().policy_version, PolicyVersion(0));
    assert_eq!(engine.sync().unwrap(), PolicyVersion(0), "what waits for a person is not brought in");
    rate_some(&engine, 8);
    let PublishOutcome::Pending { version: second, .. } = engine.train_step().unwrap() else { panic!() };
    assert_eq!(engine.version(second).unwrap().info.parent, Some(PolicyVersion(0)));
    // An operator sees what waits.
    assert_eq!(engine.status().trainer.proposals, [version, second]);
    let told: Vec<News> = std::iter::from_fn(|| news.next(Some(Duration::ZERO)).unwrap()).collect();
    let proposed = |news: &News| match news {
        News::VersionProposed { version, parent, .. } => Some((version.0, parent.0)),
        _ => None,
    };
    assert_eq!(told.iter().filter_map(proposed).collect::<Vec<_>>(), [(1, 0), (2, 0)], "{told:?}");
    engine.activate(version).unwrap();
    assert_eq!(record(&engine, version).0, Ruling::Promoted);
    assert_eq!(engine.status().trainer.proposals, [second]);
    engine.shutdown();
    let said = versions_listed(dir.path());
    assert!(said.contains("\n*       1 ") && said.contains("\n?       2 "), "{said}");
    let hint = "`apad versions activate 2` serves it, `apad versions activate 1` refuses it";
    assert!(said.contains(&format!("? waits for a person (gate.mode): {hint}")), "{said}");

    // Who stays with what serves says no, and no version changes.
    let archive = Archive::open(&dir.path().join("data")).unwrap();
    archive.activate(version).unwrap();
    let said = archive.version(second).unwrap().verdict.unwrap();
    assert_eq!((said.ruling, said.decided.is_some()), (Ruling::Refused, true));
    assert_eq!(said.record["reason"], "a person stayed with version 1");
    let rulings: Vec<_> = archive.versions().unwrap().iter().map(|v| v.ruling).collect();
    assert_eq!(rulings, [None, Some(Ruling::Promoted), Some(Ruling::Refused)]);
    // It can be served all the same.
    archive.activate(second).unwrap();
}

#[test]
fn an_anchors_command_that_fails_is_named_in_the_error() {
    let dir = tempfile::tempdir().unwrap();
    let anchors = dir.path().join("anchors.jsonl");
    let line = json!({"prompt": "the", "name": "capital", "command": "echo why >&2; exit 3"}).to_string();
    std::fs::write(&anchors, line).unwrap();
    let engine = open_with(dir.path(), |c| (c.gate.count, c.gate.anchors) = (2, Some(anchors))).unwrap();
    rate_some(&engine, 8);
    let error = engine.train_step().unwrap_err();
    let said = "the command of the anchor capital (gate.anchors) ended with exit status: 3: why";
    assert!(error.message().contains(said), "{error}");
}

#[test]
fn what_was_rated_of_a_version_that_was_left_teaches_nobody_without_a_judgement() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| c.gate.count = 4).unwrap();
    rate_some(&engine, 8);
    assert_eq!(published(engine.train_step().unwrap()).0, PolicyVersion(1));
    rate_some(&engine, 8);
    assert_eq!(engine.rollback().unwrap(), PolicyVersion(0));
    // They wait for a step, and what that makes is held beside the version that serves now.
    assert_eq!((engine.status().trainer.pending_ratings, engine.versions().unwrap().len()), (8, 2));
    assert_eq!(published(engine.train_step().unwrap()).0, PolicyVersion(2));
    let verdict = engine.version(PolicyVersion(2)).unwrap().verdict.unwrap();
    assert_eq!(
        (verdict.parent, record(&engine, PolicyVersion(2)).1.examination.unwrap().prompts),
        (PolicyVersion(0), 4)
    );
    engine.shutdown();
    drop(engine);

    // Where a person judges, the version that was gone back to serves on.
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| c.gate.count = 4).unwrap();
    rate_some(&engine, 8);
    published(engine.train_step().unwrap());
    rate_some(&engine, 8);
    engine.rollback().unwrap();
    engine.shutdown();
    drop(engine);
    let engine = open_with(dir.path(), |c| (c.gate.count, c.gate.mode) = (4, Promotion::Propose)).unwrap();
    match engine.train_step().unwrap() {
        PublishOutcome::Pending { version: PolicyVersion(2), ruling: Ruling::Proposed, .. } => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(answer(&engine, "the", 1).policy_version, PolicyVersion(0));
}

#[test]
fn answers_that_miss_the_format_of_their_prompt_are_counted_and_a_format_can_be_an_anchor() {
    let dir = tempfile::tempdir().unwrap();
    let (prompts, anchors) = (dir.path().join("prompts.jsonl"), dir.path().join("anchors.jsonl"));
    // Whatever ends by itself is a text; nothing that the tiny model says is an object.
    let lines = "{\"prompt\": \"the\", \"schema\": {\"type\": \"object\"}}\n{\"prompt\": \"and\"}\n\
                 {\"prompt\": \"her\", \"grammar\": \"root ::= [^x] | [x] | root root\"}\n";
    std::fs::write(&prompts, lines).unwrap();
    std::fs::write(&anchors, "{\"prompt\": \"the\", \"name\": \"object\", \"schema\": {\"type\": \"object\"}}\n")
        .unwrap();
    let engine = open_with(dir.path(), |c| {
        c.gate.prompts = Some(prompts.display().to_string());
        c.gate.anchors = Some(anchors.clone());
    })
    .unwrap();
    rate_some(&engine, 8);
    let (version, _) = published(engine.train_step().unwrap());
    let examination = record(&engine, version).1.examination.unwrap();
    let malformed = examination.compared.iter().find(|c| c.name == "malformed").unwrap();
    assert_eq!((examination.prompts, malformed.difference.count), (3, 2), "of the prompts that ask for one");
    assert!(malformed.parent >= 0.5 && malformed.limit == Some(0.1), "{malformed:?}");
    let anchor = &examination.anchors[0];
    assert_eq!((anchor.name.as_str(), anchor.held_before), ("object", false));
    engine.shutdown();
    drop(engine);
    std::fs::write(&prompts, "{\"prompt\": \"the\", \"schema\": {\"type\": \"objekt\"}}\n").unwrap();
    let engine = open_with(dir.path(), |c| c.gate.prompts = Some(prompts.display().to_string())).unwrap();
    wait_until("the file being read", || engine.status().trainer.reason.is_some());
    let why = engine.status().trainer.reason.unwrap();
    assert!(why.contains("gate.prompts: ") && why.contains("prompts.jsonl:1: "), "{why}");
}

#[test]
fn the_examination_compares_what_a_command_says_of_the_answers_and_an_anchor_may_be_one() {
    let dir = tempfile::tempdir().unwrap();
    let anchors = dir.path().join("anchors.jsonl");
    let says = |score: i32| format!("awk '{{print \"{{\\\"score\\\": {score}}}\"}}'");
    let anchor = |name: &str, score| json!({"prompt": "the", "name": name, "command": says(score)}).to_string();
    std::fs::write(&anchors, format!("{}\n{}\n", anchor("holds", 1), anchor("never held", -1))).unwrap();
    let engine = open_with(dir.path(), |c| {
        (c.gate.count, c.gate.anchors) = (8, Some(anchors));
        // Longer answers are better.
        c.reward.command = Some("awk '{print \"{\\\"score\\\": \" length($0) \"}\"}'".into());
    })
    .unwrap();
    rate_some(&engine, 8);
    engine.train_step().unwrap();
    let verdict = engine.verdicts(1).unwrap().remove(0);
    let said: VerdictRecord = serde_json::from_value(verdict.record).unwrap();
    let examination = said.examination.unwrap();
    let score = examination.compared.iter().find(|c| c.name == "score").expect("scores are compared").difference;
    assert_eq!(score.count, 8, "pairs of answers to the same prompts");
    assert!(score.lower <= score.mean && score.mean <= score.upper && score.mean.is_finite(), "{score:?}");
    let held: Vec<(&str, bool, bool)> =
        examination.anchors.iter().map(|a| (a.name.as_str(), a.held_before, a.held)).collect();
    assert_eq!(held, [("holds", true, true), ("never held", false, false)]);
    let limits = examination.compared.iter().any(|c| c.crossed);
    assert!(limits || examination.reason.starts_with("its mean score differs by "), "{}", examination.reason);
}

#[test]
fn a_poisoned_snapshot_reaches_nobody_and_one_that_is_taken_in_has_a_verdict() {
    let (poisoned, fine, dir) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let snapshot = |from: &std::path::Path, lr: f64| {
        let engine = open_with(from, |c| {
            (c.gate.examine, c.train.lr) = (false, lr);
            (c.train.gate.kl_budget, c.train.kl_samples) = (1e9, if lr > 1.0 { 0 } else { 8 });
        })
        .unwrap();
        rate_some(&engine, 8);
        let (version, _) = published(engine.train_step().unwrap());
        let file = from.join("version.tar");
        engine.snapshot(version, &file).unwrap();
        engine.shutdown();
        file
    };
    let (bad, good) = (snapshot(poisoned.path(), 3.0), snapshot(fine.path(), 1e-2));
    let engine = open_with(dir.path(), |c| c.gate.count = 4).unwrap();
    wait_until("the trainer being ready", || engine.status().trainer.state == TrainerState::Idle);
    let error = engine.restore(&bad).unwrap_err();
    assert!(error.message().contains(" was refused: its "), "{error}");
    assert_eq!((engine.status().policy_version, engine.versions().unwrap().len()), (PolicyVersion(0), 1));
    assert_eq!(engine.verdicts(10).unwrap()[0].ruling, Ruling::Refused);
    assert_eq!(answer(&engine, "the", 1).policy_version, PolicyVersion(0));
    let version = engine.restore(&good).unwrap();
    let (ruling, said) = record(&engine, version);
    assert_eq!((ruling, said.examination.unwrap().prompts), (Ruling::Promoted, 4));
    assert!(said.reason.starts_with("a person restored it; "), "{}", said.reason);
}

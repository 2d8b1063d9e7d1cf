//! What learning does about rows, commands and folders that are in its way: others teach, and nothing spins.

use std::path::Path;
use std::time::{Duration, Instant};

use apa::engine::{AlertKind, exchange};
use apa::ledger::{Ledger, LedgerReader};
use apa::llama::Model;
use apa::reward::read_judgements;
use apa::types::*;
use serde_json::json;

use crate::support::engine::{answer, open_with, published, rate, rate_some};
use crate::support::tiny::{TinySpec, tiny_model};

/// Imports lines into the data folder beside the tiny model.
pub fn import(dir: &Path, lines: &str) -> exchange::Imported {
    let (path, model) = (dir.join("lines.jsonl"), dir.join("tiny.gguf"));
    if !model.exists() {
        tiny_model(&model, &TinySpec::new("llama")).unwrap();
    }
    std::fs::write(&path, lines).unwrap();
    let ledger = Ledger::open(&dir.join("data")).unwrap();
    let base = apa::gguf::Gguf::open(&model).unwrap().fingerprint().unwrap();
    ledger.bind_model(&base, "tiny").unwrap();
    let file = read_judgements(&path).unwrap();
    let model = Model::load(&model, 0).unwrap();
    let mut done = exchange::import(&ledger, &model, &file.entries, None).unwrap();
    done.refused.extend(file.refused);
    done
}

#[test]
fn an_imported_line_with_tokens_that_no_vocabulary_has_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    import(dir.path(), "");
    let base = apa::gguf::Gguf::open(&dir.path().join("tiny.gguf")).unwrap().fingerprint().unwrap();
    let line = |tokens: serde_json::Value| {
        let line = json!({"prompt": "p", "completion": "c", "rating": 1, "prompt_tokens": tokens, "base_sha256": base});
        format!("{line}\n")
    };
    let lines = line(json!([4_000_000_000u32])) + &line(json!([])) + &line(json!([288])) + &line(json!([287]));
    let done = import(dir.path(), &lines);
    assert_eq!((done.ratings, done.refused.len()), (1, 3), "{done:?}");
    assert!(done.refused[0].reason.contains("prompt_tokens has the token 4000000000, expected numbers below 288"));
    assert!(done.refused[1].reason.contains("prompt_tokens is empty"));
}

#[test]
fn a_byte_order_mark_and_a_line_too_long_cost_no_other_line() {
    let dir = tempfile::tempdir().unwrap();
    let line = |text: &str| format!("{}\n", json!({"prompt": "p", "completion": text, "rating": 1}));
    let lines = format!("\u{feff}{}{}{}", line("a"), line(&"x".repeat(17 << 20)), line("b"));
    let done = import(dir.path(), &lines);
    assert_eq!((done.ratings, done.refused.len(), done.refused[0].line), (2, 1, 2), "{:?}", done.refused);
}

#[test]
fn a_row_that_nothing_can_be_learned_from_is_set_aside_and_the_others_teach() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |_| ()).unwrap();
    rate_some(&engine, 4);
    let bad = answer(&engine, "the", 99);
    rate(&engine, &bad.id, 1.0).unwrap();
    engine.shutdown();
    drop(engine);
    // As an import of an earlier build left it.
    let script = format!(
        "import sqlite3,sys; c=sqlite3.connect(sys.argv[1]); c.execute(\"UPDATE generations SET prompt=x'00286bee' \
         WHERE id='{}'\"); c.commit()",
        bad.id
    );
    let done = std::process::Command::new("python3")
        .args(["-c", &script])
        .arg(dir.path().join("data/ledger.sqlite3"))
        .status();
    assert!(done.is_ok_and(|status| status.success()));
    let engine = open_with(dir.path(), |_| ()).unwrap();
    assert_eq!(engine.status().trainer.pending_ratings, 5);
    let (version, metrics) = published(engine.train_step().unwrap());
    assert_eq!((version, metrics.samples), (PolicyVersion(1), 4));
    let left = engine.left_out().unwrap();
    assert_eq!((left.len(), &left[0].generation_id), (1, &bad.id));
    assert!(left[0].reason.contains("outside the vocabulary"), "{left:?}");
    assert_eq!(engine.status().trainer.pending_ratings, 0);
}

#[test]
fn an_answer_that_the_reward_command_fails_on_is_set_aside_and_a_command_that_always_fails_is_not_spun() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |_| ()).unwrap();
    let answers: Vec<_> = (0..5).map(|seed| answer(&engine, "the", seed)).collect();
    engine.shutdown();
    drop(engine);
    // It gives up where it meets the third answer.
    let (first, third) = (&answers[0].text, &answers[2].text);
    assert!(answers.iter().filter(|g| g.text == *third).count() == 1 && first != third);
    std::fs::write(dir.path().join("third"), third).unwrap();
    let script = format!(
        "import sys,json\nbad=open({:?}).read()\nfor l in sys.stdin:\n  r=json.loads(l)['response']\n  \
         if r==bad: sys.exit(1)\n  print(json.dumps({{'score':len(r)}}))\n",
        dir.path().join("third")
    );
    std::fs::write(dir.path().join("judge.py"), script).unwrap();
    let command = format!("python3 {}", dir.path().join("judge.py").display());
    let engine = open_with(dir.path(), |c| c.reward.command = Some(command)).unwrap();
    for (g, rating) in answers.iter().zip([1.0, -1.0, 1.0, -1.0, 1.0]) {
        rate(&engine, &g.id, rating).unwrap();
    }
    assert_eq!(published(engine.train_step().unwrap()).1.samples, 4);
    assert_eq!(engine.left_out().unwrap()[0].generation_id, answers[2].id);
    engine.shutdown();
    drop(engine);

    let mark = dir.path().join("runs");
    let command = format!("echo x >> {}; false", mark.display());
    let engine = open_with(dir.path(), |c| {
        c.reward.command = Some(command);
        (c.train.auto, c.train.batch) = (true, 4);
    })
    .unwrap();
    rate_some(&engine, 4);
    let until = Instant::now() + Duration::from_secs(30);
    while !engine.status().alerts.iter().any(|alert| alert.kind == AlertKind::StepFails) {
        assert!(Instant::now() < until, "{:?}", engine.status().trainer);
        std::thread::sleep(Duration::from_millis(50));
    }
    let runs = || std::fs::read_to_string(&mark).unwrap().lines().count();
    let after = runs();
    rate(&engine, &answers[0].id, 0.5).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(runs(), after, "a rating must not start what failed a moment ago");
    assert!(engine.status().trainer.reason.unwrap().contains("it is tried again in 5 s"));
}

#[test]
fn a_folder_in_the_way_of_a_version_is_told_and_not_run_against_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| (c.train.auto, c.train.batch, c.gate.examine) = (true, 4, false)).unwrap();
    let way = dir.path().join("data/versions/000001");
    std::fs::create_dir_all(way.join("somebody's")).unwrap();
    rate_some(&engine, 4);
    let wait = |what: &str, holds: &dyn Fn() -> bool| {
        let until = Instant::now() + Duration::from_secs(60);
        while !holds() {
            assert!(Instant::now() < until, "{what}: {:?}", engine.status());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let fails = || engine.status().alerts.iter().any(|alert| alert.kind == AlertKind::StepFails);
    let reason = || engine.status().trainer.reason.unwrap_or_default();
    wait("it is told", &|| fails() && reason().contains("it is tried again in 5 s"));
    assert!(reason().contains("version 1 is on disk already"), "{}", reason());
    wait("later each time", &|| reason().contains("it is tried again in 20 s"));
    // It serves on, loses no rating, and what a person asks for is done at once.
    assert_eq!(answer(&engine, "the", 9).policy_version, PolicyVersion::INITIAL);
    assert_eq!(engine.status().trainer.pending_ratings, 4);
    assert!(way.join("somebody's").exists());
    std::fs::remove_dir_all(&way).unwrap();
    assert_eq!(published(engine.train_step().unwrap()).0, PolicyVersion(1));
    assert!(!fails());
}

#[test]
fn an_export_taken_in_where_it_came_from_is_known_and_elsewhere_whole() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |_| ()).unwrap();
    // Of an answer that ended at once there is no text to take in.
    let mut answers = (0..99).map(|seed| answer(&engine, "the", seed)).filter(|g| !g.text.is_empty());
    let (a, b) = (answers.next().unwrap(), answers.next().unwrap());
    let say = |g: &Generation, user: Option<&str>, signal: Signal, comment: Option<&str>| {
        let (user, comment) = (user.map(str::to_owned), comment.map(str::to_owned));
        engine.feedback(NewFeedback { generation_id: g.id.clone(), signal, user, comment }).unwrap();
    };
    say(&a, Some("ann"), Signal::Rating(1.0), None);
    say(&a, Some("ann"), Signal::Named("copied".into()), None);
    say(&a, None, Signal::Rating(-1.0), None);
    say(&b, Some("ann"), Signal::Correction("better".into()), None);
    say(&b, Some("bob"), Signal::Comment, Some("hm"));
    engine.prefer(&a.id, &b.id, Some("ann")).unwrap();
    engine.shutdown();
    drop(engine);
    let reader = LedgerReader::open(&dir.path().join("data")).unwrap();
    let base = reader.model_fingerprint().unwrap().unwrap();
    let model = Model::load(&dir.path().join("tiny.gguf"), 0).unwrap();
    let mut lines = String::new();
    reader
        .for_each(&mut |said| {
            lines += &format!("{}\n", exchange::line(&model, &base, said));
            Ok(())
        })
        .unwrap();
    drop(reader);
    let done = import(dir.path(), &lines);
    assert_eq!((done.known, done.ratings + done.preferences + done.others), (6, 0), "{done:?}");

    let other = tempfile::tempdir().unwrap();
    let done = import(other.path(), &lines);
    assert_eq!((done.ratings, done.preferences, done.others, done.known), (2, 1, 3, 0), "{done:?}");
    let mut users = Vec::new();
    LedgerReader::open(&other.path().join("data"))
        .unwrap()
        .for_each(&mut |said| {
            if let apa::ledger::Exported::Feedback(_, f, _) = said {
                users.push(f.user.clone().unwrap_or_else(|| "-".into()));
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(users, ["ann", "ann", "-", "ann", "bob"]);
}

#[test]
fn a_damaged_reward_model_is_told_and_answers_and_ratings_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let damaged = dir.path().join("reward.gguf");
    std::fs::write(&damaged, "GGUF, but not for long").unwrap();
    let engine = open_with(dir.path(), |c| c.reward.model = Some(damaged)).unwrap();
    // Training starts on a thread of its own.
    let until = Instant::now() + Duration::from_secs(30);
    while engine.status().alerts.is_empty() {
        assert!(Instant::now() < until, "{:?}", engine.status().trainer);
        std::thread::sleep(Duration::from_millis(20));
    }
    let (alerts, trainer) = (engine.status().alerts, engine.status().trainer);
    assert_eq!((alerts[0].kind, trainer.state), (AlertKind::NotTrained, apa::engine::TrainerState::Off), "{alerts:?}");
    assert!(trainer.reason.unwrap().contains("reward.gguf"));
    assert!(alerts[0].message.contains("a restart trains again"), "{alerts:?}");
    rate_some(&engine, 4);
    assert_eq!(engine.status().trainer.pending_ratings, 4);
    assert!(engine.train_step().unwrap_err().message().contains("reward.gguf"));
    engine.shutdown();

    // The file is no longer asked for: what was rated teaches.
    let engine = open_with(dir.path(), |c| c.train.batch = 4).unwrap();
    published(engine.train_step().unwrap());
    assert!(engine.status().alerts.is_empty());
}

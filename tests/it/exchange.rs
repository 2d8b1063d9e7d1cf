//! Exports taken in elsewhere, again, and around a chain: what was said last stays last, and nothing counts twice.

use std::path::Path;

use apa::engine::exchange;
use apa::ledger::{Exported, Ledger, LedgerReader};
use apa::llama::Model;
use apa::types::*;

use crate::setbacks::import;
use crate::support::engine::{answer, open_with};

/// The lines of a data folder beside its model.
fn export(dir: &Path) -> String {
    let reader = LedgerReader::open(&dir.join("data")).unwrap();
    let base = reader.model_fingerprint().unwrap().unwrap();
    let model = Model::load(&dir.join("tiny.gguf"), 0).unwrap();
    let mut lines = String::new();
    let mut add = |said: &Exported| {
        lines += &format!("{}\n", exchange::line(&model, &base, said));
        Ok(())
    };
    reader.for_each(&mut add).unwrap();
    lines
}

/// What was said, oldest first.
fn said(dir: &Path) -> Vec<(Signal, Option<String>)> {
    let mut all = Vec::new();
    let mut add = |said: &Exported| {
        if let Exported::Feedback(_, f, _) = said {
            all.push((f.signal.clone(), f.comment.clone()));
        }
        Ok(())
    };
    LedgerReader::open(&dir.join("data")).unwrap().for_each(&mut add).unwrap();
    all
}

#[test]
fn what_was_said_last_stays_last_over_imports_and_a_chain_of_them_adds_nothing() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [first, second, third] = [0, 1, 2].map(|i| dirs[i].path());
    let engine = open_with(first, |_| ()).unwrap();
    let mut answers = (0..99).map(|seed| answer(&engine, "the", seed)).filter(|g| !g.text.is_empty());
    let (a, b) = (answers.next().unwrap(), answers.next().unwrap());
    let rating = |rating: f64| (Signal::Rating(rating), None);
    let better = |text: &str| (Signal::Correction(text.into()), None);
    let words = [
        (&a, "ann", rating(1.0)),
        (&a, "ann", rating(-1.0)),
        (&a, "ann", (Signal::Rating(1.0), Some("after all".to_owned()))),
        (&a, "ann", rating(-1.0)),
        (&a, "ann", rating(1.0)),
        (&b, "bob", better("A")),
        (&b, "bob", better("B")),
        (&b, "bob", better("A")),
        (&b, "ann", rating(1.0)),
    ];
    for (g, user, (signal, comment)) in words.clone() {
        let (generation_id, user) = (g.id.clone(), Some(user.to_owned()));
        engine.feedback(NewFeedback { generation_id, signal, user, comment }).unwrap();
    }
    engine.prefer(&a.id, &b.id, Some("ann")).unwrap();
    engine.shutdown();
    drop(engine);
    let all: Vec<_> = words.into_iter().map(|(.., said)| said).collect();

    let lines = export(first);
    let done = import(second, &lines);
    assert_eq!((done.ratings, done.others, done.preferences, done.known), (6, 3, 1, 0), "{done:?}");
    assert_eq!(said(second), all);
    assert_eq!(import(second, &lines).known, 10);
    // On, with something that was said on the way, and around.
    let ledger = Ledger::open(&second.join("data")).unwrap();
    let generation_id = ledger.pending_batch(9).unwrap().remove(0).generation.id;
    assert!(generation_id.0.starts_with("imp-"));
    let (signal, user) = (Signal::Rating(0.5), Some("carl".to_owned()));
    ledger.add_feedback(&NewFeedback { generation_id, signal, user, comment: None }).unwrap();
    drop(ledger);
    let done = import(third, &export(second));
    assert_eq!((done.ratings, done.others, done.preferences, done.known), (7, 3, 1, 0), "{done:?}");
    for (to, from, new) in [(first, third, 1), (first, third, 0), (second, third, 0), (third, first, 0)] {
        let done = import(to, &export(from));
        assert_eq!((done.ratings, done.others, done.preferences, done.known), (new, 0, 0, 11 - new), "{done:?}");
    }
    let all: Vec<_> = all.into_iter().chain([rating(0.5)]).collect();
    assert!([first, second, third].into_iter().all(|dir| said(dir) == all));
    // It came back to the answer that it is about.
    let ledger = Ledger::open(&first.join("data")).unwrap();
    assert_eq!(ledger.feedback_of(&a.id).unwrap().last().unwrap().user.as_deref(), Some("carl"));
}

#[test]
fn lines_without_identities_are_known_by_what_they_say_and_keep_their_comments() {
    let dir = tempfile::tempdir().unwrap();
    let line = |rest: &str| format!("{{\"prompt\": \"p\", \"completion\": \"c\", \"user\": \"ann\", {rest}}}\n");
    let lines = [r#""rating": 1"#, r#""rating": -1"#, r#""rating": 1, "comment": "after all""#].map(line).concat();
    let done = import(dir.path(), &lines);
    assert_eq!((done.ratings, done.known), (3, 0), "{done:?}");
    assert_eq!(import(dir.path(), &lines).known, 3);
    // An export of them is known where they came from, and elsewhere whole.
    let lines = export(dir.path());
    assert_eq!(import(dir.path(), &lines).known, 3);
    let other = tempfile::tempdir().unwrap();
    assert_eq!(import(other.path(), &lines).ratings, 3);
    assert_eq!(said(other.path()), said(dir.path()));
    // What somebody changed in a line counts.
    let identity = format!("\"feedback_identity\": \"{}\"", "0a".repeat(16));
    let [good, bad, none] = ["1", "-0.5", "0"].map(|r| line(&format!("\"rating\": {r}, {identity}")));
    assert_eq!(import(other.path(), &good).ratings, 0, "one without an identity gets that of the line");
    assert_eq!((import(other.path(), &bad).ratings, import(other.path(), &bad).known), (1, 1));
    assert_eq!(import(other.path(), &none.replace("0a0a", "xx")).refused.len(), 1);
}

//! Tests of the ledger's promises: in normal use, on a full disk, and with the process killed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::db::Db;
use super::home_tests::{Home, suite};
use super::sqlite::Sqlite;
use super::*;
use crate::error::{Code, Result};
use crate::types::*;

pub(super) fn id(name: &str) -> GenerationId {
    GenerationId(name.into())
}

pub(super) fn answer(name: &str) -> Generation {
    Generation {
        id: id(name),
        policy_version: PolicyVersion(0),
        prompt: vec![1, 2, u32::MAX],
        response: vec![49_151, 0],
        text: "Grüße\0 🦀".into(),
        sampling: Sampling { temperature: 0.7, seed: Some(u64::MAX), ..Sampling::default() },
        finish: FinishReason::Length,
        user: Some("ann".into()),
        created: 1_700_000_000_000,
        unrecorded: false,
    }
}

pub(super) fn record(ledger: &Ledger, g: Generation) -> Result<()> {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    ledger.record_generation(Arc::new(g), Box::new(move |outcome| sender.send(outcome).unwrap()))?;
    receiver.recv().unwrap()
}

pub(super) fn rating(name: &str, rating: f64) -> NewFeedback {
    NewFeedback { generation_id: id(name), signal: Signal::Rating(rating), user: None, comment: None }
}

pub(super) fn rate(ledger: &Ledger, name: &str, value: f64) -> FeedbackReceipt {
    ledger.add_feedback(&rating(name, value)).unwrap()
}

pub(super) fn version(number: u64, parent: u64) -> VersionInfo {
    VersionInfo {
        version: PolicyVersion(number),
        parent: Some(PolicyVersion(parent)),
        active: true,
        created: 5,
        metrics: StepMetrics { samples: 16, mean_reward: -0.5, ..StepMetrics::default() },
        ruling: None,
    }
}

/// Name, rating and rows of each pending answer.
fn pending(ledger: &Ledger) -> Vec<(String, f64, Vec<u64>)> {
    let batch = ledger.pending_batch(100).unwrap();
    assert_eq!(ledger.pending_ratings(), batch.len() as u64);
    batch.into_iter().map(|r| (r.generation.id.0, r.rating.unwrap(), r.feedback_ids)).collect()
}

fn a_generation_comes_back_exactly_after_a_restart(home: &Home) {
    let ledger = home.open();
    record(&ledger, answer("a")).unwrap();
    let ledger = home.reopen(ledger);
    assert_eq!(ledger.generation(&id("a")).unwrap(), Some(answer("a")));
    assert_eq!(ledger.generation(&id("b")).unwrap(), None);
    let error = record(&ledger, answer("a")).unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Arg, "generation a is on record already"));
}

fn a_generation_that_could_not_be_read_back_is_refused(home: &Home) {
    let ledger = home.open();
    let mut unknown = answer("a");
    unknown.policy_version = PolicyVersion(3);
    assert_eq!(record(&ledger, unknown).unwrap_err().message(), "version 3 is not on record");
    let mut endless = answer("a");
    endless.sampling.temperature = f32::NAN;
    assert!(record(&ledger, endless).unwrap_err().message().contains("not finite"));
    for name in [String::new(), "x".repeat(65)] {
        assert!(record(&ledger, answer(&name)).unwrap_err().message().contains("expected 1 to 64"));
    }
    assert_eq!(ledger.generation(&id("a")).unwrap(), None);
}

fn feedback_is_kept_as_given(home: &Home) {
    let ledger = home.open();
    record(&ledger, answer("a")).unwrap();
    let first = NewFeedback { user: Some("bob".into()), comment: Some("meh".into()), ..rating("a", -1.0) };
    let second = NewFeedback { signal: Signal::Correction("better".into()), ..first.clone() };
    let receipts = [&first, &second].map(|f| ledger.add_feedback(f).unwrap());
    assert!(receipts[0].feedback_id < receipts[1].feedback_id);
    assert_eq!(receipts[0].policy_version, PolicyVersion(0));
    let ledger = home.reopen(ledger);
    let kept = ledger.feedback_of(&id("a")).unwrap();
    for ((kept, given), receipt) in kept.iter().zip([&first, &second]).zip(&receipts) {
        assert_eq!((&kept.signal, &kept.user, &kept.comment), (&given.signal, &given.user, &given.comment));
        assert_eq!((kept.feedback_id, &kept.used_by), (receipt.feedback_id, &None));
        assert!(kept.created > 1_700_000_000_000);
    }
    assert_eq!(kept.len(), 2);
    assert_eq!(ledger.feedback_of(&id("b")).unwrap(), []);
}

fn feedback_that_makes_no_sense_is_refused_and_not_kept(home: &Home) {
    let ledger = home.open();
    record(&ledger, answer("a")).unwrap();
    let long = |n: usize| "x".repeat(n);
    let cases = [
        (rating("b", 1.0), "generation b is not on record"),
        (rating(&long(1000), 1.0), "is not on record"),
        (rating("a", 1.01), "the rating is 1.01, expected a number from -1 to 1"),
        (rating("a", f64::NAN), "the rating is NaN, expected a number from -1 to 1"),
        (rating("a", f64::NEG_INFINITY), "the rating is -inf"),
        (NewFeedback { signal: Signal::Correction(String::new()), ..rating("a", 0.0) }, "the correction is empty"),
        (NewFeedback { signal: Signal::Correction(long(MAX_TEXT + 1)), ..rating("a", 0.0) }, "65537 bytes"),
        (NewFeedback { comment: Some(long(MAX_TEXT + 1)), ..rating("a", 0.0) }, "the comment has 65537 bytes"),
        (
            NewFeedback { user: Some(long(MAX_USER + 1)), ..rating("a", 0.0) },
            "name has 257 bytes, expected at most 256",
        ),
    ];
    for (feedback, part) in cases {
        let error = ledger.add_feedback(&feedback).unwrap_err();
        assert_eq!(error.code(), Code::Arg);
        assert!(error.message().contains(part) && error.message().len() < 200, "{error}");
    }
    assert_eq!(ledger.feedback_of(&id("a")).unwrap(), []);
    assert_eq!(ledger.pending_ratings(), 0);
    ledger
        .add_feedback(&NewFeedback { comment: Some(long(MAX_TEXT)), user: Some(long(MAX_USER)), ..rating("a", -1.0) })
        .unwrap();
}

fn the_last_rating_stands_and_takes_the_earlier_ones_along(home: &Home) {
    let ledger = home.open();
    for name in ["a", "b"] {
        record(&ledger, answer(name)).unwrap();
    }
    let b = rate(&ledger, "b", 0.5);
    let [first, second] = [rate(&ledger, "a", 1.0), rate(&ledger, "a", -1.0)];
    assert!(!first.replaces_earlier && second.replaces_earlier && !b.replaces_earlier);
    let expected =
        [("a".into(), -1.0, vec![first.feedback_id, second.feedback_id]), ("b".into(), 0.5, vec![b.feedback_id])];
    assert_eq!(pending(&ledger), expected);
    let ledger = home.reopen(ledger);
    assert_eq!(pending(&ledger), expected);
    let oldest = ledger.pending_batch(1).unwrap();
    assert_eq!((oldest.len(), &oldest[0].generation), (1, &answer("a")));
    assert_eq!(ledger.pending_batch(0).unwrap(), []);
}

fn a_rating_is_used_exactly_once_and_a_new_one_counts_again(home: &Home) {
    let ledger = home.open();
    for name in ["a", "b"] {
        record(&ledger, answer(name)).unwrap();
    }
    let [a, b] = [rate(&ledger, "a", 1.0).feedback_id, rate(&ledger, "b", 1.0).feedback_id];
    ledger.commit_version(&version(1, 0), TrainedBatch::of(&[a], &[])).unwrap();
    assert_eq!(pending(&ledger), [("b".into(), 1.0, vec![b])]);

    // A batch with a used or an unknown rating changes nothing.
    for (used, culprit) in [([b, a], a), ([b, 99], 99)] {
        let error = ledger.commit_version(&version(2, 1), TrainedBatch::of(&used, &[])).unwrap_err();
        assert!(error.message().starts_with(&format!("feedback {culprit} is not a rating that waits")), "{error}");
        assert!(ledger.commit_skipped("why", &used).is_err());
    }
    assert_eq!(ledger.next_version().unwrap(), PolicyVersion(2));
    assert_eq!(pending(&ledger), [("b".into(), 1.0, vec![b])]);

    ledger.commit_skipped("every step was dropped", &[b]).unwrap();
    assert_eq!(pending(&ledger), []);
    let again = rate(&ledger, "a", -1.0);
    assert!(again.replaces_earlier);
    assert_eq!(pending(&ledger), [("a".into(), -1.0, vec![again.feedback_id])]);

    let ledger = home.reopen(ledger);
    assert_eq!(pending(&ledger), [("a".into(), -1.0, vec![again.feedback_id])]);
    let used_by = |name| ledger.feedback_of(&id(name)).unwrap().into_iter().map(|f| f.used_by).collect::<Vec<_>>();
    assert_eq!(used_by("a"), [Some(Use::Version(PolicyVersion(1))), None]);
    assert_eq!(used_by("b"), [Some(Use::Skipped("every step was dropped".into()))]);
}

fn a_rating_that_comes_while_its_answer_is_trained_on_stays_pending(home: &Home) {
    let ledger = home.open();
    record(&ledger, answer("a")).unwrap();
    rate(&ledger, "a", 1.0);
    let batch = ledger.pending_batch(8).unwrap();
    let late = rate(&ledger, "a", -1.0).feedback_id;
    assert_eq!(ledger.pending_ratings(), 1);
    ledger.commit_version(&version(1, 0), TrainedBatch::of(&batch[0].feedback_ids, &[])).unwrap();
    assert_eq!(pending(&ledger), [("a".into(), -1.0, vec![late])]);
}

fn corrections_and_answers_without_tokens_are_never_offered(home: &Home) {
    let ledger = home.open();
    record(&ledger, answer("a")).unwrap();
    record(&ledger, Generation { response: vec![], text: String::new(), ..answer("empty") }).unwrap();
    ledger.add_feedback(&NewFeedback { signal: Signal::Correction("x".into()), ..rating("a", 0.0) }).unwrap();
    rate(&ledger, "empty", 1.0);
    assert!(rate(&ledger, "empty", 1.0).replaces_earlier);
    assert_eq!(pending(&ledger), []);
    assert_eq!(pending(&home.reopen(ledger)), []);
}

fn versions_are_listed_with_the_active_one_marked(home: &Home) {
    let ledger = home.open();
    let versions = ledger.versions().unwrap();
    assert_eq!((versions.len(), versions[0].version, versions[0].parent), (1, PolicyVersion(0), None));
    assert!(versions[0].active && versions[0].created > 1_700_000_000_000);

    let mut second = version(2, 1);
    second.metrics.explained_variance = f64::NAN; // JSON can't say it.
    second.metrics.kl_per_response = Nats(f64::NAN);
    ledger.commit_version(&version(1, 0), TrainedBatch::default()).unwrap();
    ledger.commit_version(&second, TrainedBatch::of(&[], &[])).unwrap();
    assert_eq!(ledger.active().unwrap(), PolicyVersion(2));
    ledger.set_active(PolicyVersion(1)).unwrap();

    let ledger = home.reopen(ledger);
    let versions = ledger.versions().unwrap();
    assert_eq!(versions[1], VersionInfo { active: true, ..version(1, 0) });
    assert_eq!(versions.iter().map(|v| v.active).collect::<Vec<_>>(), [false, true, false]);
    assert!(versions[2].metrics.explained_variance.is_nan() && versions[2].metrics.kl_per_response.0.is_nan());
    assert_eq!(ledger.active().unwrap(), PolicyVersion(1));
    // Numbers keep growing after a rollback.
    assert_eq!(ledger.next_version().unwrap(), PolicyVersion(3));
    assert_eq!(ledger.set_active(PolicyVersion(7)).unwrap_err().message(), "version 7 is not on record");
    let error = ledger.commit_version(&version(2, 1), TrainedBatch::default()).unwrap_err();
    assert_eq!(error.message(), "version 2 is not new, expected one above 2");
    assert_eq!(
        ledger.commit_version(&version(4, 3), TrainedBatch::default()).unwrap_err().message(),
        "version 3 is not on record"
    );
    assert_eq!(ledger.active().unwrap(), PolicyVersion(1));
}

fn preferences_name_two_known_answers(home: &Home) {
    let ledger = home.open();
    for name in ["a", "b"] {
        record(&ledger, answer(name)).unwrap();
    }
    let first = ledger.add_preference(&id("a"), &id("b"), Some("bob")).unwrap();
    assert!(ledger.add_preference(&id("b"), &id("a"), None).unwrap() > first);
    for (chosen, rejected, part) in [("a", "a", "the same"), ("a", "c", "c is not"), ("c", "a", "c is not")] {
        let error = ledger.add_preference(&id(chosen), &id(rejected), None).unwrap_err();
        assert!(error.code() == Code::Arg && error.message().contains(part), "{error}");
    }
    assert!(ledger.add_preference(&id("a"), &id("b"), Some(&"x".repeat(257))).is_err());
    let rows: i64 = ledger.read(|db| db.one("SELECT count(*) FROM preferences", (), |row| row.get(0))).unwrap();
    assert_eq!(rows, 2);
}

fn a_ledger_belongs_to_one_base_model(home: &Home) {
    let ledger = home.open();
    assert_eq!(ledger.model_fingerprint().unwrap(), None);
    let (ours, other) = ("a".repeat(64), "b".repeat(64));
    ledger.bind_model(&ours, "smollm2").unwrap();
    let ledger = home.reopen(ledger);
    ledger.bind_model(&ours, "renamed").unwrap();
    let error = ledger.bind_model(&other, "llama").unwrap_err();
    assert_eq!(error.code(), Code::Model);
    assert!(error.message().contains("smollm2 (sha256 aaaaaaaaaaaa), not to llama (sha256 bbbbbbbbbbbb)"), "{error}");
    assert_eq!(ledger.model_fingerprint().unwrap(), Some(ours));
}

#[test]
fn a_newer_damaged_or_foreign_ledger_is_refused_with_its_path() {
    let home = Home::sqlite();
    let ledger = home.open();
    drop(ledger);
    let path = home.file();
    home.db().engine::<Sqlite>().0.pragma_update(None, "user_version", 99).unwrap();
    let error = Ledger::open(home.place()).err().unwrap();
    assert_eq!(error.code(), Code::Unsupported);
    assert!(error.message().ends_with("ledger.sqlite3: it has format 99, this build knows formats up to 9"), "{error}");
    std::fs::write(&path, "not a database, but long enough to be looked at. ".repeat(20)).unwrap();
    let error = Ledger::open(home.place()).err().unwrap();
    assert!(error.code() == Code::Io && error.message().contains("damaged or not a database"), "{error}");
}

fn closing_writes_what_is_queued_and_frees_the_folder(home: &Home) {
    let ledger = home.open();
    for n in 0..200 {
        ledger.record_generation(Arc::new(answer(&n.to_string())), Box::new(|outcome| outcome.unwrap())).unwrap();
    }
    ledger.close();
    ledger.close();
    assert_eq!(ledger.generation(&id("0")).unwrap_err().code(), Code::Closed);
    assert_eq!(ledger.add_feedback(&rating("0", 1.0)).unwrap_err().code(), Code::Closed);
    // The handle still exists, but the folder is free.
    let next = home.open();
    assert_eq!(next.generation(&id("199")).unwrap(), Some(answer("199")));
}

fn a_panicking_callback_does_not_stop_the_ledger(home: &Home) {
    let ledger = home.open();
    ledger.record_generation(Arc::new(answer("a")), Box::new(|_| panic!("on purpose"))).unwrap();
    rate(&ledger, "a", 1.0);
    let error = ledger.writer.call(|_| -> Result<()> { panic!("on purpose") }).unwrap_err();
    assert_eq!(error.code(), Code::Panic);
    rate(&ledger, "a", 1.0);
}

fn the_last_handle_may_go_on_the_ledgers_own_thread(home: &Home) {
    let ledger = home.open();
    let ledger = Arc::new(ledger);
    let (go, wait) = crossbeam_channel::bounded::<()>(1);
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let handle = ledger.clone();
    let done = move |outcome: Result<()>| {
        wait.recv().unwrap();
        drop(handle);
        sender.send(outcome).unwrap();
    };
    ledger.record_generation(Arc::new(answer("a")), Box::new(done)).unwrap();
    drop(ledger);
    go.send(()).unwrap();
    receiver.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while Ledger::open(home.place()).is_err() {
        assert!(Instant::now() < until, "the folder is still locked");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn a_write_that_fails_does_not_undo_its_neighbours(home: &Home) {
    let ledger = home.open();
    record(&ledger, answer("a")).unwrap();
    // Blocks the thread until everything below is queued, to make one group.
    let (go, wait) = crossbeam_channel::bounded::<()>(1);
    ledger.record_generation(Arc::new(answer("b")), Box::new(move |_| wait.recv().unwrap())).unwrap();
    let (sender, outcomes) = crossbeam_channel::unbounded();
    for name in ["c", "a", "d"] {
        let sender = sender.clone();
        let done = move |outcome: Result<()>| sender.send((name, outcome.is_ok())).unwrap();
        ledger.record_generation(Arc::new(answer(name)), Box::new(done)).unwrap();
    }
    go.send(()).unwrap();
    drop(sender);
    assert_eq!(outcomes.iter().collect::<Vec<_>>(), [("c", true), ("a", false), ("d", true)]);
    for name in ["b", "c", "d"] {
        assert!(ledger.generation(&id(name)).unwrap().is_some());
    }
}

#[test]
fn a_full_disk_is_an_error_to_the_caller_and_nothing_more() {
    let home = Home::sqlite();
    let ledger = home.open();
    record(&ledger, answer("a")).unwrap();
    let kept = rate(&ledger, "a", 0.5);
    // SQLite's own limit on the file fails like a full disk.
    let limit = |ledger: &Ledger, pages: i64| {
        let set = move |db: &Db| {
            Ok(db.engine::<Sqlite>().0.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?)
        };
        ledger.writer.call(set).unwrap();
    };
    limit(&ledger, 1); // Clamped to the pages in use.
    let mut failures = 0;
    for n in 0..20 {
        let big = Generation { text: "x".repeat(20_000), ..answer(&format!("big{n}")) };
        if let Err(error) = record(&ledger, big) {
            assert_eq!((error.code(), error.message()), (Code::Io, "the disk is full"));
            assert_eq!(ledger.generation(&id(&format!("big{n}"))).unwrap(), None);
            failures += 1;
        }
    }
    assert!(failures > 0);
    let big = NewFeedback { comment: Some("x".repeat(MAX_TEXT)), ..rating("a", 1.0) };
    assert_eq!(ledger.add_feedback(&big).unwrap_err().message(), "the disk is full");
    assert_eq!(pending(&ledger), [("a".into(), 0.5, vec![kept.feedback_id])]);
    limit(&ledger, 1 << 30);
    ledger.add_feedback(&big).unwrap();
    assert_eq!(home.reopen(ledger).feedback_of(&id("a")).unwrap().len(), 2);
}

#[test]
#[ignore = "needs a file system of a few MB, named by APA_SMALL_DISK"]
fn a_disk_that_is_really_full_loses_nothing_acknowledged() {
    let disk = std::env::var_os("APA_SMALL_DISK").expect("APA_SMALL_DISK names a folder on a small file system");
    let home = Home::within(Path::new(&disk));
    let filler = home.path().join("filler");
    std::fs::write(&filler, vec![0; 1 << 20]).unwrap();
    let ledger = home.open();
    record(&ledger, answer("a")).unwrap();
    let (mut kept, mut failures) = (0, 0);
    while failures < 50 {
        match ledger.add_feedback(&NewFeedback { comment: Some("x".repeat(10_000)), ..rating("a", 1.0) }) {
            Ok(_) => kept += 1,
            Err(error) => {
                assert_eq!(error.message(), "the disk is full");
                failures += 1;
            }
        }
    }
    assert_eq!(ledger.feedback_of(&id("a")).unwrap().len(), kept);
    std::fs::remove_file(filler).unwrap();
    rate(&ledger, "a", 0.5);
    assert_eq!(home.reopen(ledger).feedback_of(&id("a")).unwrap().len(), kept + 1);
    println!("{kept} kept");
}

/// Operations on a ledger, to compare it with a simple model.
#[derive(Clone, Debug)]
enum Act {
    Rate(usize, f64),
    Correct(usize),
    Train(usize),
    Skip(usize),
    Reopen,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (0..4usize, -1.0..1.0).prop_map(|(n, r)| Act::Rate(n, r)),
        1 => (0..4usize).prop_map(Act::Correct),
        2 => (0..3usize).prop_map(Act::Train),
        1 => (0..3usize).prop_map(Act::Skip),
        1 => Just(Act::Reopen),
    ];
    proptest::collection::vec(act, 1..40)
}

fn any_history_offers_what_a_plain_model_offers(home: &Home) {
    let config = ProptestConfig { cases: 12, max_shrink_iters: 50, ..ProptestConfig::default() };
    proptest!(config, |(acts in acts())| {
        let home = home.another();
        let mut ledger = home.open();
        for n in 0..4 {
            record(&ledger, answer(&n.to_string())).unwrap();
        }
        // Waiting ratings, by answer.
        let mut model: BTreeMap<String, Vec<(u64, f64)>> = BTreeMap::new();
        for act in acts {
            match act {
                Act::Rate(n, value) => {
                    let receipt = rate(&ledger, &n.to_string(), value);
                    model.entry(n.to_string()).or_default().push((receipt.feedback_id, value));
                }
                Act::Correct(n) => {
                    let signal = Signal::Correction("x".into());
                    ledger.add_feedback(&NewFeedback { signal, ..rating(&n.to_string(), 0.0) }).unwrap();
                }
                Act::Train(max) | Act::Skip(max) => {
                    let batch = ledger.pending_batch(max).unwrap();
                    prop_assert_eq!(batch.len(), max.min(model.len()));
                    let used: Vec<u64> = batch.iter().flat_map(|r| r.feedback_ids.clone()).collect();
                    if let Act::Train(_) = act {
                        let next = ledger.next_version().unwrap();
                        ledger.commit_version(&version(next.0, 0), TrainedBatch::of(&used, &[])).unwrap();
                    } else {
                        ledger.commit_skipped("because", &used).unwrap();
                    }
                    model = model.into_iter().skip(batch.len()).collect();
                }
                Act::Reopen => ledger = home.reopen(ledger),
            }
            let expected: Vec<_> = model
                .iter()
                .map(|(name, rows)| (name.clone(), rows[rows.len() - 1].1, rows.iter().map(|(row, _)| *row).collect()))
                .collect();
            prop_assert_eq!(pending(&ledger), expected);
        }
    });
}

suite! {
    any_history_offers_what_a_plain_model_offers
    a_generation_comes_back_exactly_after_a_restart
    a_generation_that_could_not_be_read_back_is_refused
    feedback_is_kept_as_given
    feedback_that_makes_no_sense_is_refused_and_not_kept
    the_last_rating_stands_and_takes_the_earlier_ones_along
    a_rating_is_used_exactly_once_and_a_new_one_counts_again
    a_rating_that_comes_while_its_answer_is_trained_on_stays_pending
    corrections_and_answers_without_tokens_are_never_offered
    versions_are_listed_with_the_active_one_marked
    preferences_name_two_known_answers
    a_ledger_belongs_to_one_base_model
    closing_writes_what_is_queued_and_frees_the_folder
    a_panicking_callback_does_not_stop_the_ledger
    the_last_handle_may_go_on_the_ledgers_own_thread
    a_write_that_fails_does_not_undo_its_neighbours
}

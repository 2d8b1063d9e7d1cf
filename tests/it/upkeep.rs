//! What a year of learning leaves on disk: old versions and old words go as the settings say, and nothing else breaks.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use apa::engine::{GenerateRequest, TrainerState};
use apa::ledger::Ledger;
use apa::types::*;

use crate::support::engine::{answer, finish, open_with, published, rate, rate_some, request};

fn has(dir: &Path, version: u64, file: &str) -> bool {
    dir.join(format!("data/versions/{version:06}")).join(file).exists()
}

#[test]
fn of_older_versions_the_adapter_stays_and_a_rollback_to_one_trains_on_with_fresh_moments() {
    let dir = tempfile::tempdir().unwrap();
    let open = || open_with(dir.path(), |c| c.publish.keep_states = 1).unwrap();
    let engine = open();
    for version in 1..=4 {
        rate_some(&engine, 4);
        assert_eq!(published(engine.train_step().unwrap()).0, PolicyVersion(version));
    }
    for (version, whole) in [(1, false), (2, false), (3, true), (4, true)] {
        for file in ["critic.gguf", "trainer.safetensors"] {
            assert_eq!(has(dir.path(), version, file), whole, "{file} of version {version}");
        }
        assert!(has(dir.path(), version, "adapter.gguf"));
        assert_eq!(engine.version(PolicyVersion(version)).unwrap().damage, None);
    }
    let disk = engine.disk_use();
    assert!(disk.states > disk.versions / 2 && disk.states < disk.versions, "{disk:?}");
    engine.activate(PolicyVersion(1)).unwrap();
    assert_eq!(engine.status().trainer.state, TrainerState::Idle, "{:?}", engine.status().trainer.reason);
    engine.shutdown();
    drop(engine);
    // A start from such a version too.
    let engine = open();
    assert!(engine.status().alerts.is_empty());
    rate_some(&engine, 4);
    let (version, metrics) = published(engine.train_step().unwrap());
    assert_eq!((version, metrics.samples), (PolicyVersion(5), 4));
    assert_eq!(engine.version(version).unwrap().lineage, [PolicyVersion(1), PolicyVersion(0)]);
    let before = std::fs::read(dir.path().join("data/versions/000001/adapter.gguf")).unwrap();
    let after = std::fs::read(dir.path().join("data/versions/000005/adapter.gguf")).unwrap();
    assert!(before != after && before.len() == after.len());
}

#[test]
fn old_versions_are_removed_but_for_pinned_ones_and_those_that_a_rollback_goes_to() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| (c.publish.keep, c.publish.pinned) = (1, "2, 9".into())).unwrap();
    for _ in 0..5 {
        rate_some(&engine, 4);
        published(engine.train_step().unwrap());
    }
    let left: Vec<u64> = (1..=5).filter(|version| has(dir.path(), *version, "adapter.gguf")).collect();
    assert_eq!(left, [2, 4, 5]);
    assert_eq!(engine.rollback().unwrap(), PolicyVersion(4));
    let error = engine.activate(PolicyVersion(1)).unwrap_err();
    assert!(error.message().contains("version 1 has no files on disk"), "{error}");
    engine.activate(PolicyVersion(2)).unwrap();
    assert_eq!(engine.versions().unwrap().len(), 6, "their records stay");
    let record = |version| engine.version(PolicyVersion(version)).unwrap();
    assert!(record(1).removed && record(1).damage.is_none() && record(1).files.is_empty());
    assert!(!record(4).removed && record(4).damage.is_none());
    // One that is lost is not called removed, nor one that is damaged.
    std::fs::remove_dir_all(dir.path().join("data/versions/000004")).unwrap();
    assert_eq!((record(4).removed, record(4).damage.as_deref()), (false, Some("version 4 has no files on disk")));
    std::fs::write(dir.path().join("data/versions/000005/critic.gguf"), "x").unwrap();
    assert!(!record(5).removed && record(5).damage.unwrap().contains("critic.gguf has 1 bytes"));
}

#[test]
fn what_is_too_old_leaves_no_word_and_what_has_taught_stays_as_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |_| ()).unwrap();
    let say = |text: &str, seed: u64| {
        let asked = GenerateRequest { user: Some("ann".into()), ..request(&engine, text, seed) };
        finish(&engine.generate(asked).unwrap()).unwrap().1
    };
    let taught: Vec<_> = (0..4).map(|i| say("the zanzibar", i)).collect();
    for (g, rating) in taught.iter().zip([1.0, -1.0, 1.0, -1.0]) {
        let (generation_id, user) = (g.id.clone(), Some("ann".to_owned()));
        let comment = Some("about zanzibar".to_owned());
        engine.feedback(NewFeedback { generation_id, signal: Signal::Rating(rating), user, comment }).unwrap();
    }
    published(engine.train_step().unwrap());
    let (waiting, unrated) = (say("zanzibar waits", 9), say("zanzibar again", 10));
    rate(&engine, &waiting.id, 1.0).unwrap();
    engine.prefer(&waiting.id, &unrated.id, Some("ann")).unwrap();
    let tokens: Vec<u8> = engine.tokenize("zanzibar").unwrap().iter().flat_map(|t| t.to_le_bytes()).collect();
    engine.shutdown();
    drop(engine);

    let data = dir.path().join("data");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let ledger = Ledger::open(&data).unwrap();
    assert_eq!(ledger.expire(now - 3_600_000, now, 100).unwrap().generations, 0);
    assert_eq!(ledger.pending_ratings(), 1);
    let first = ledger.expire(now + 1000, now + 1000, 3).unwrap();
    assert_eq!((first.generations, first.taught), (3, 3), "the oldest first, no more than asked for");
    let rest = ledger.expire(now + 1000, now + 1000, 100).unwrap();
    assert_eq!((rest.generations, rest.taught, rest.feedback, rest.preferences), (3, 1, 1, 1));
    assert_eq!(
        ledger.expire(now + 1000, now + 1000, 100).unwrap().generations,
        0,
        "what has no words any more isn't old again"
    );
    assert_eq!(ledger.pending_ratings(), 0);
    let (kept, said) = (ledger.generation(&taught[0].id).unwrap().unwrap(), ledger.feedback_of(&taught[0].id).unwrap());
    assert_eq!((kept.prompt.len(), kept.response.len(), kept.text.as_str(), kept.user), (0, 0, "", None));
    assert_eq!((&said[0].signal, &said[0].user, &said[0].comment), (&Signal::Rating(1.0), &None, &None));
    assert_eq!(ledger.samples_of(&taught[0].id).unwrap()[0].version, Some(PolicyVersion(1)));
    assert!(ledger.generation(&unrated.id).unwrap().is_none());
    ledger.close();
    for file in std::fs::read_dir(&data).unwrap().map(|e| e.unwrap().path()).filter(|path| path.is_file()) {
        let bytes = std::fs::read(&file).unwrap();
        for word in [&b"zanzibar"[..], b"ann", &tokens] {
            assert!(!bytes.windows(word.len()).any(|w| w == word), "{} holds {word:?}", file.display());
        }
    }
    // It serves and learns on.
    let engine = open_with(dir.path(), |c| c.ledger.keep_days = 1).unwrap();
    rate_some(&engine, 4);
    assert_eq!(published(engine.train_step().unwrap()).0, PolicyVersion(2));
    assert_eq!(answer(&engine, "the", 1).policy_version, PolicyVersion(2));
}

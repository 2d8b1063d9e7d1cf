//! A data folder is copied while an engine works in it, and goes on elsewhere.

use std::fs;
use std::path::Path;

use apa::engine::{backup, restore};
use apa::types::PolicyVersion;
use apa::{Code, Engine};

use crate::support::engine::{answer, open_with, published, rate_some};

fn open(dir: &Path) -> Engine {
    open_with(dir, |_| ()).unwrap()
}

/// An engine that has published `count` versions, and the folder in which its data lies.
fn trained(count: u64) -> (tempfile::TempDir, Engine) {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    for version in 1..=count {
        rate_some(&engine, 4);
        assert_eq!(published(engine.train_step().unwrap()).0, PolicyVersion(version));
    }
    (dir, engine)
}

#[test]
fn a_backup_of_a_working_engine_goes_on_elsewhere() {
    let (dir, engine) = trained(2);
    let kept = answer(&engine, "the", 7);
    let to = dir.path().join("backup");
    let made = backup(&dir.path().join("data"), &to).unwrap();
    assert_eq!(made.versions, [PolicyVersion(1), PolicyVersion(2)]);
    // What comes later is not in it.
    let later = answer(&engine, "the", 8);
    rate_some(&engine, 4);
    published(engine.train_step().unwrap());
    engine.shutdown();

    let place = tempfile::tempdir().unwrap();
    fs::copy(dir.path().join("tiny.gguf"), place.path().join("tiny.gguf")).unwrap();
    restore(&to, &place.path().join("data")).unwrap();
    let there = open(place.path());
    assert_eq!(there.status().policy_version, PolicyVersion(2));
    assert!(there.status().alerts.is_empty(), "{:?}", there.status().alerts);
    assert_eq!(there.generation_record(&kept.id).unwrap().unwrap().generation.text, kept.text);
    assert!(there.generation_record(&later.id).unwrap().is_none());
    rate_some(&there, 4);
    assert_eq!(published(there.train_step().unwrap()).0, PolicyVersion(3));
    there.shutdown();
}

#[test]
fn what_was_forgotten_is_in_no_byte_of_a_later_backup() {
    let (dir, engine) = trained(1);
    let mut request = crate::support::engine::request(&engine, "zanzibar is my secret", 1);
    request.user = Some("ann".into());
    crate::support::engine::finish(&engine.generate(request).unwrap()).unwrap();
    let prompt: Vec<u8> =
        engine.tokenize("zanzibar is my secret").unwrap().iter().flat_map(|token| token.to_le_bytes()).collect();
    let data = dir.path().join("data");
    let holds = |name: &str| {
        backup(&data, &dir.path().join(name)).unwrap();
        let bytes = fs::read(dir.path().join(name).join("ledger.sqlite3")).unwrap();
        bytes.windows(prompt.len()).any(|window| window == prompt)
    };
    assert!(holds("before"));
    engine.forget("ann").unwrap();
    assert!(!holds("after"));
    engine.shutdown();
}

#[test]
fn a_backup_is_whole_or_refused_and_nothing_is_overwritten() {
    let (dir, engine) = trained(1);
    engine.shutdown();
    let (data, to) = (dir.path().join("data"), dir.path().join("backup"));
    let nowhere = dir.path().join("nowhere");
    assert_eq!(backup(&nowhere, &to).unwrap_err().code(), Code::Arg);
    assert!(!to.exists());
    let error = backup(&data, &data.join("backup")).unwrap_err();
    assert!(error.message().contains("lies in the data folder"), "{error}");
    backup(&data, &to).unwrap();
    for inside in [to.join("in"), to.join("a/b"), to.join("../backup/in")] {
        let error = restore(&to, &inside).unwrap_err();
        assert!(error.message().contains("lies in the backup, expected another place"), "{error}");
        assert!(!inside.exists());
    }
    let error = backup(&data, &to).unwrap_err();
    assert!(error.message().contains("is not empty"), "{error}");
    let error = restore(&to, &data).unwrap_err();
    assert!(error.message().contains("is not empty"), "{error}");

    let file = to.join("versions/000001/adapter.gguf");
    let whole = fs::read(&file).unwrap();
    for (damage, part) in [(&whole[..whole.len() - 1], "adapter.gguf"), (&b"x"[..], "adapter.gguf")] {
        fs::write(&file, damage).unwrap();
        let error = restore(&to, &nowhere).unwrap_err();
        assert!(error.message().contains(part), "{error}");
        assert!(!nowhere.exists());
    }
    fs::write(&file, whole).unwrap();
    let mark = to.join("backup.json");
    let text = fs::read_to_string(&mark).unwrap();
    fs::write(&mark, text.replace("\"format\": 1", "\"format\": 9")).unwrap();
    assert_eq!(restore(&to, &nowhere).unwrap_err().code(), Code::Unsupported);
    fs::remove_file(&mark).unwrap();
    assert!(restore(&to, &nowhere).unwrap_err().message().contains("no whole backup"));
    fs::write(&mark, text).unwrap();
    restore(&to, &nowhere).unwrap();
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".restoring")), "{left:?}");
}

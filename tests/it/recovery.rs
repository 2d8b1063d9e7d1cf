//! What a start makes of a data folder that was hurt: nothing trained is lost, and something serves.

use std::fs;
use std::path::{Path, PathBuf};

use apa::config::Promotion;
use apa::engine::{AlertKind, Archive, TrainerState};
use apa::types::*;
use apa::{Code, Engine};

use crate::support::engine::{answer, open_with, published, rate_some, versions_listed};

fn open(dir: &Path) -> Engine {
    open_with(dir, |_| ()).unwrap()
}

/// Trains versions 1 to `count`, and ends the engine.
fn trained(dir: &Path, count: u64) {
    trained_on(dir, 1..=count);
}

fn folders(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn versions(dir: &Path) -> PathBuf {
    dir.join("data/versions")
}

#[test]
fn an_older_or_lost_ledger_removes_no_version_and_says_what_it_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    trained(dir.path(), 1);
    let (ledger, old) = (dir.path().join("data/ledger.sqlite3"), dir.path().join("old"));
    fs::copy(&ledger, &old).unwrap();
    trained_on(dir.path(), 2..=3);
    let whole = fs::read(versions(dir.path()).join("000003/adapter.gguf")).unwrap();

    fs::copy(&old, &ledger).unwrap();
    let engine = open(dir.path());
    let alerts = engine.status().alerts;
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    assert_eq!(alerts[0].kind, AlertKind::VersionsAside);
    assert!(alerts[0].message.contains("000002, 000003; `apad versions adopt`"), "{alerts:?}");
    assert_eq!(folders(&versions(dir.path())), ["000001", "aside"]);
    engine.shutdown();
    drop(engine);
    fs::remove_file(&ledger).unwrap();
    let engine = open(dir.path());
    assert_eq!(folders(&versions(dir.path()).join("aside")), ["000001", "000002", "000003"]);
    assert_eq!(engine.status().policy_version, PolicyVersion::INITIAL);

    let adopted = engine.adopt(None).unwrap();
    assert_eq!(adopted.iter().map(|a| a.version.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(engine.status().alerts, []);
    let all = engine.versions().unwrap();
    assert_eq!(all.iter().map(|v| v.parent.map(|p| p.0)).collect::<Vec<_>>(), [None, Some(0), Some(1), Some(2)]);
    assert_eq!(all[3].metrics.samples, 4);
    assert_eq!(fs::read(versions(dir.path()).join("000003/adapter.gguf")).unwrap(), whole);
    assert!(engine.set_aside().unwrap().is_empty());
    engine.activate(PolicyVersion(3)).unwrap();
    assert_eq!(answer(&engine, "the", 1).policy_version, PolicyVersion(3));
    assert_eq!(engine.status().trainer.state, TrainerState::Idle);
    assert!(engine.adopt(Some("000009")).unwrap_err().is_unknown_id());
}

#[test]
fn a_damaged_version_that_was_set_aside_keeps_no_other_out() {
    let dir = tempfile::tempdir().unwrap();
    trained(dir.path(), 3);
    fs::remove_file(dir.path().join("data/ledger.sqlite3")).unwrap();
    fs::write(versions(dir.path()).join("000002/adapter.gguf"), "x").unwrap();
    let engine = open(dir.path());
    let adopted = engine.adopt(None).unwrap();
    assert_eq!(adopted.iter().map(|a| a.version.0).collect::<Vec<_>>(), [1, 3]);
    let left = engine.set_aside().unwrap();
    assert_eq!(left.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["000002"]);
    let alerts = engine.status().alerts;
    assert_eq!((alerts.len(), alerts[0].kind), (1, AlertKind::VersionsAside));
    assert!(
        alerts[0].message.starts_with("1 version folder(s)") && alerts[0].message.contains("000002; they are damaged"),
        "{alerts:?}"
    );
    assert_eq!(engine.adopt(None).unwrap_err().code(), Code::Io);
    // As long as it lies there.
    engine.shutdown();
    let alerts_then = open(dir.path()).status().alerts;
    assert_eq!(
        alerts_then.iter().map(|a| (a.kind, &a.message)).collect::<Vec<_>>(),
        [(alerts[0].kind, &alerts[0].message)]
    );
}

fn trained_on(dir: &Path, versions: std::ops::RangeInclusive<u64>) {
    let engine = open(dir);
    for version in versions {
        rate_some(&engine, 4);
        assert_eq!(published(engine.train_step().unwrap()).0, PolicyVersion(version));
    }
    engine.shutdown();
}

#[test]
fn a_version_whose_adapter_is_damaged_gives_way_to_its_nearest_whole_ancestor() {
    let dir = tempfile::tempdir().unwrap();
    trained(dir.path(), 3);
    let file = versions(dir.path()).join("000003/adapter.gguf");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, "x").unwrap();
    fs::remove_dir_all(versions(dir.path()).join("000002")).unwrap();

    let engine = open(dir.path());
    assert_eq!(engine.status().policy_version, PolicyVersion(1));
    let alert = engine.status().alerts.remove(0);
    assert_eq!(alert.kind, AlertKind::FellBack);
    assert!(alert.message.contains("version 3 was served last") && alert.message.contains("1 bytes"), "{alert:?}");
    assert_eq!(answer(&engine, "the", 1).policy_version, PolicyVersion(1));
    // Learning goes on from there.
    rate_some(&engine, 4);
    assert_eq!(published(engine.train_step().unwrap()).0, PolicyVersion(4));
    assert_eq!(engine.versions().unwrap()[4].parent, Some(PolicyVersion(1)));
    // And back, once the file is.
    assert_eq!(engine.activate(PolicyVersion(3)).unwrap_err().code(), Code::Io);
    fs::write(&file, whole).unwrap();
    engine.activate(PolicyVersion(3)).unwrap();
    assert_eq!(engine.status().trainer.state, TrainerState::Idle);
}

#[test]
fn a_version_of_which_only_the_trainers_files_are_damaged_is_served_without_training() {
    for name in ["trainer.json", "critic.gguf", "reward.json", "trainer.safetensors"] {
        let dir = tempfile::tempdir().unwrap();
        trained(dir.path(), 1);
        let snapshot = dir.path().join("snapshot");
        let engine = open(dir.path());
        engine.snapshot(PolicyVersion(1), &snapshot).unwrap();
        engine.shutdown();
        drop(engine);
        let file = versions(dir.path()).join("000001").join(name);
        let mut bytes = fs::read(&file).unwrap();
        bytes.push(b'x');
        fs::write(&file, bytes).unwrap();
        let engine = open(dir.path());
        rate_some(&engine, 4);
        let error = engine.train_step().unwrap_err();
        let status = engine.status();
        assert_eq!((status.policy_version, status.trainer.state), (PolicyVersion(1), TrainerState::Off), "{name}");
        assert!(error.message().contains(name), "{error}");
        let kinds: Vec<AlertKind> = status.alerts.iter().map(|alert| alert.kind).collect();
        assert_eq!(kinds, [AlertKind::NotTrained], "{name}");
        let way_out = &status.alerts[0].message;
        assert!(way_out.contains("once its files are restored, `apad versions activate 1`"), "{way_out}");
        assert_eq!(answer(&engine, "the", 1).policy_version, PolicyVersion(1), "{name}");
        // What nobody can examine is served to nobody.
        let error = engine.restore(&snapshot).unwrap_err();
        assert!(error.message().contains("can't be examined") && error.message().contains(name), "{error}");
        // The way out.
        engine.activate(PolicyVersion(0)).unwrap();
        assert!(engine.status().alerts.is_empty(), "{name}");
        published(engine.train_step().unwrap());
    }
}

#[test]
fn without_a_daemon_versions_of_a_folder_are_listed_shown_and_activated() {
    let dir = tempfile::tempdir().unwrap();
    trained(dir.path(), 2);
    let data = dir.path().join("data");
    fs::write(versions(dir.path()).join("000002/manifest.json"), "{").unwrap();
    let archive = Archive::open(&data).unwrap();
    assert_eq!(archive.versions().unwrap().iter().map(|v| v.active).collect::<Vec<_>>(), [false, false, true]);
    let record = archive.version(PolicyVersion(2)).unwrap();
    assert_eq!(record.lineage, [PolicyVersion(1), PolicyVersion(0)]);
    assert!(record.damage.unwrap().contains("manifest.json"));
    let record = archive.version(PolicyVersion(1)).unwrap();
    assert_eq!((record.damage, record.children), (None, vec![PolicyVersion(2)]));
    assert!(record.files.contains_key("adapter.gguf"));
    assert!(archive.version(PolicyVersion(9)).unwrap_err().is_unknown_id());
    assert_eq!(archive.activate(PolicyVersion(2)).unwrap_err().code(), Code::Io);
    archive.activate(PolicyVersion(1)).unwrap();
    drop(archive);
    let engine = open(dir.path());
    assert_eq!(engine.status().policy_version, PolicyVersion(1));
    assert!(engine.status().alerts.is_empty());
    // One folder, one holder.
    assert_eq!(Archive::open(&data).err().unwrap().code(), Code::Busy);
    assert_eq!(Archive::open(dir.path()).err().unwrap().code(), Code::Arg);
}

#[cfg(unix)]
#[test]
fn a_pipe_in_the_place_of_a_file_holds_up_neither_a_start_nor_a_check() {
    let pipe = |path: PathBuf| {
        fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let dir = tempfile::tempdir().unwrap();
    trained(dir.path(), 2);
    pipe(versions(dir.path()).join("000002/manifest.json"));
    let engine = open(dir.path());
    assert_eq!(engine.status().policy_version, PolicyVersion(1));
    engine.shutdown();
    drop(engine);
    pipe(versions(dir.path()).join("000001/critic.gguf"));
    let archive = Archive::open(&dir.path().join("data")).unwrap();
    for (version, file) in [(1, "critic.gguf"), (2, "manifest.json")] {
        let damage = archive.version(PolicyVersion(version)).unwrap().damage.unwrap();
        assert!(damage.contains(file), "{damage}");
    }
}

#[test]
fn a_folder_that_is_no_version_is_not_said_to_be_adoptable() {
    let dir = tempfile::tempdir().unwrap();
    trained(dir.path(), 1);
    let foreign = versions(dir.path()).join("000009");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("notes"), "mine").unwrap();
    let engine = open(dir.path());
    let alerts = engine.status().alerts;
    assert!(alerts[0].message.contains("000009; they are damaged or no versions"), "{alerts:?}");
    engine.shutdown();
    drop(engine);
    let said = versions_listed(dir.path());
    assert!(said.contains("set aside: 000009") && said.contains("what is damaged or no version stays aside"), "{said}");
}

#[test]
fn a_file_where_the_versions_should_be_is_named_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("data")).unwrap();
    fs::write(versions(dir.path()), "").unwrap();
    let error = open_with(dir.path(), |_| ()).map(drop).unwrap_err();
    assert!(error.message().contains("versions: it is there and is no folder, expected one"), "{error}");
}

#[test]
fn a_template_that_can_not_be_used_is_told_at_the_start() {
    use crate::support::tiny::{TinySpec, tiny_model};
    let dir = tempfile::tempdir().unwrap();
    tiny_model(&dir.path().join("tiny.gguf"), &TinySpec { template: "{% if %}", ..TinySpec::new("llama") }).unwrap();
    let engine = open(dir.path());
    let alerts = engine.status().alerts;
    assert_eq!(alerts[0].kind, AlertKind::NoTemplate, "{alerts:?}");
    assert!(alerts[0].message.contains("can't be parsed"), "{alerts:?}");
    assert!(!answer(&engine, "the", 1).response.is_empty());
}

#[test]
fn a_template_that_fails_on_a_plain_message_is_told_at_the_start() {
    use crate::support::tiny::{TinySpec, tiny_model};
    let dir = tempfile::tempdir().unwrap();
    let template = "{{ messages[0].content | nonsense }}";
    tiny_model(&dir.path().join("tiny.gguf"), &TinySpec { template, ..TinySpec::new("llama") }).unwrap();
    let engine = open(dir.path());
    let alerts = engine.status().alerts;
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    assert_eq!(alerts[0].kind, AlertKind::NoTemplate, "{alerts:?}");
    assert!(alerts[0].message.contains("nonsense"), "{alerts:?}");
    assert!(!answer(&engine, "the", 1).response.is_empty());
}

/// A tiny model's training state is short, and this one's is not.
#[test]
fn the_real_model_goes_on_learning_after_a_restart() {
    let Some(model) = std::env::var_os("APA_TEST_MODEL").map(PathBuf::from) else {
        eprintln!("SKIPPED: APA_TEST_MODEL names no model");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    for version in 1..=2 {
        let engine = open_with(dir.path(), |config| {
            (config.model, config.train.rank, config.train.alpha) = (model.clone(), 16, 32.0);
            (config.train.batch, config.train.minibatch, config.train.lr) = (2, 2, 1e-5);
            (config.serve.max_tokens, config.gate.mode, config.gate.count) = (4, Promotion::Serve, 2);
        })
        .unwrap();
        rate_some(&engine, 2);
        assert_eq!(published(engine.train_step().unwrap()).0, PolicyVersion(version));
        engine.shutdown();
    }
}

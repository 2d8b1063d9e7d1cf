//! Tests of version folders: committed, damaged, carried, pruned.

use super::*;
use crate::config::Algorithm;
use crate::types::{Nats, StepMetrics};

pub(super) fn about() -> About {
    let metrics = StepMetrics { mean_reward: 0.25, kl_per_response: Nats(1.5), ..StepMetrics::default() };
    About {
        parent: Some(PolicyVersion(0)),
        base_sha256: "ab".repeat(32),
        created: 1_700_000_000_000,
        algorithm: Algorithm::Apa,
        lambda: 0.1,
        rank: 16,
        alpha: 32.0,
        metrics,
    }
}

pub(super) fn store() -> (tempfile::TempDir, VersionStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = VersionStore::open(dir.path()).unwrap();
    (dir, store)
}

#[test]
fn a_version_is_carried_to_another_folder_in_one_file() {
    let ((dir, from), (_other, to)) = (store(), store());
    publish(&from, 3);
    let file = dir.path().join("version.tar");
    from.pack(PolicyVersion(3), &file).unwrap();
    let stage = to.stage(PolicyVersion(1)).unwrap();
    let manifest = stage.unpack(&file).unwrap();
    assert_eq!((manifest.version, &manifest.about), (PolicyVersion(3), &about()));
    let path = stage.commit(manifest.about).unwrap();
    assert_eq!(fs::read_to_string(path.join("adapter.gguf")).unwrap(), "weights of 3");
    to.verify(PolicyVersion(1)).unwrap();
    assert!(from.pack(PolicyVersion(4), &dir.path().join("none")).is_err());
    assert!(from.pack(PolicyVersion(3), &dir.path().join("no/folder")).is_err());
}

#[test]
fn a_snapshot_that_is_cut_damaged_or_none_is_refused_and_leaves_nothing() {
    let (dir, store) = store();
    publish(&store, 3);
    let file = dir.path().join("version.tar");
    store.pack(PolicyVersion(3), &file).unwrap();
    let whole = fs::read(&file).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        let stage = store.stage(PolicyVersion(4)).unwrap();
        let error = stage.unpack(&file).unwrap_err();
        assert_eq!(error.code(), crate::Code::Io, "{error}");
        error.message().to_owned()
    };
    for length in [0, 1, 511, 512, 600, 1024, 2048] {
        refused(&whole[..length.min(whole.len() - 1024)]);
    }
    let place = whole.windows(12).position(|w| w == b"weights of 3").unwrap();
    let mut damaged = whole.clone();
    damaged[place] = b'W';
    assert!(refused(&damaged).contains("adapter.gguf is damaged"));
    let text = String::from_utf8_lossy(&whole).replacen("\"critic.gguf\"", "\"../tic.gguf\"", 1);
    assert!(refused(text.as_bytes()).contains("plain file name"));
    assert!(refused(b"hello").contains("not a snapshot"));
    assert_eq!(store.list().unwrap(), versions(&[3]));
}

pub(super) fn publish(store: &VersionStore, version: u64) -> PathBuf {
    let stage = store.stage(PolicyVersion(version)).unwrap();
    fs::write(stage.path().join("adapter.gguf"), format!("weights of {version}")).unwrap();
    fs::write(stage.path().join("critic.gguf"), "critic").unwrap();
    stage.commit(about()).unwrap()
}

pub(super) fn versions(numbers: &[u64]) -> Vec<PolicyVersion> {
    numbers.iter().copied().map(PolicyVersion).collect()
}

#[test]
fn a_committed_version_verifies_and_tells_all_about_itself() {
    let (dir, store) = store();
    let path = publish(&store, 12);
    assert_eq!(path, dir.path().join("versions/000012"));
    let manifest = store.verify(PolicyVersion(12)).unwrap();
    assert_eq!((manifest.version, &manifest.about), (PolicyVersion(12), &about()));
    assert_eq!(manifest.files.keys().collect::<Vec<_>>(), ["adapter.gguf", "critic.gguf"]);
    assert_eq!(manifest.files["critic.gguf"].size, 6);
    assert_eq!(manifest.apa_version, env!("CARGO_PKG_VERSION"));
    assert_eq!(store.list().unwrap(), versions(&[12]));
}

#[test]
fn a_measurement_that_is_not_a_number_does_not_spoil_the_manifest() {
    let (_dir, store) = store();
    let stage = store.stage(PolicyVersion(1)).unwrap();
    fs::write(stage.path().join("adapter.gguf"), "x").unwrap();
    let mut about = about();
    about.metrics.explained_variance = f64::NAN;
    about.metrics.kl_per_response = Nats(f64::NAN);
    stage.commit(about).unwrap();
    let metrics = store.verify(PolicyVersion(1)).unwrap().about.metrics;
    assert!(metrics.explained_variance.is_nan() && metrics.kl_per_response.0.is_nan());
    assert_eq!(metrics.mean_reward, 0.25);
}

#[test]
fn damaged_missing_and_cut_files_are_named() {
    let (_dir, store) = store();
    let path = publish(&store, 1);
    fs::write(path.join("adapter.gguf"), "weights of 2").unwrap();
    let error = store.verify(PolicyVersion(1)).unwrap_err();
    assert!(error.message().contains("version 1: adapter.gguf is damaged: sha256"), "{error}");
    fs::write(path.join("adapter.gguf"), "weights").unwrap();
    let error = store.verify(PolicyVersion(1)).unwrap_err();
    assert_eq!(error.message(), "version 1: adapter.gguf has 7 bytes, expected 12");
    fs::remove_file(path.join("adapter.gguf")).unwrap();
    let error = store.verify(PolicyVersion(1)).unwrap_err();
    assert!(error.message().contains("adapter.gguf"), "{error}");
    fs::write(path.join("manifest.json"), "{").unwrap();
    let error = store.verify(PolicyVersion(1)).unwrap_err();
    assert!(error.message().contains("version 1: manifest.json"), "{error}");
    fs::remove_file(path.join("manifest.json")).unwrap();
    assert!(store.verify(PolicyVersion(1)).unwrap_err().message().contains("manifest.json"));
    for unknown in [0, 7] {
        assert_eq!(store.verify(PolicyVersion(unknown)).unwrap_err().code(), crate::Code::Arg);
    }
}

#[test]
fn a_manifest_cannot_point_outside_its_folder_or_at_another_version() {
    let (dir, store) = store();
    let path = publish(&store, 1);
    fs::write(dir.path().join("versions/secret"), "critic").unwrap();
    let text = fs::read_to_string(path.join("manifest.json")).unwrap();
    fs::write(path.join("manifest.json"), text.replace("critic.gguf", "../secret")).unwrap();
    let error = store.verify(PolicyVersion(1)).unwrap_err();
    assert!(error.message().contains("expected a plain file name"), "{error}");
    fs::write(path.join("manifest.json"), text.replace("\"version\": 1", "\"version\": 2")).unwrap();
    let error = store.verify(PolicyVersion(1)).unwrap_err();
    assert!(error.message().contains("is of version 2"), "{error}");
    fs::write(path.join("manifest.json"), text.replace("\"format\": 1", "\"format\": 2")).unwrap();
    assert_eq!(store.verify(PolicyVersion(1)).unwrap_err().code(), crate::Code::Unsupported);
}

#[test]
fn a_committed_version_is_never_written_again() {
    let (_dir, store) = store();
    let stage = store.stage(PolicyVersion(3)).unwrap();
    fs::write(stage.path().join("adapter.gguf"), "late").unwrap();
    let path = stage.target.clone();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("adapter.gguf"), "first").unwrap();
    assert!(stage.commit(about()).unwrap_err().message().contains("on disk already"));
    assert!(store.stage(PolicyVersion(3)).unwrap_err().message().contains("on disk already"));
    assert_eq!(fs::read_to_string(path.join("adapter.gguf")).unwrap(), "first");
    assert!(store.stage(PolicyVersion(0)).is_err());
}

#[test]
fn a_crash_between_stage_and_commit_leaves_no_number_taken_after_recovery() {
    let (dir, store) = store();
    publish(&store, 1);
    let stage = store.stage(PolicyVersion(2)).unwrap();
    fs::write(stage.path().join("adapter.gguf"), "half").unwrap();
    std::mem::forget(stage); // The process ended here.
    publish(&store, 3); // And here, before the ledger knew of it.
    fs::create_dir(dir.path().join("versions/.removing-000000")).unwrap();
    fs::create_dir(dir.path().join("versions/notes")).unwrap();

    let store = VersionStore::open(dir.path()).unwrap();
    let mut removed = store.remove_leftovers().unwrap();
    removed.sort();
    assert_eq!(removed, [".removing-000000", ".staging-000002"]);
    let aside = store.set_aside(&versions(&[0, 1])).unwrap();
    assert_eq!(aside.iter().map(|a| a.name.as_str()).collect::<Vec<_>>(), ["000003"]);
    let mut left: Vec<_> = fs::read_dir(dir.path().join("versions")).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["000001", "aside", "notes"]);
    store.verify(PolicyVersion(1)).unwrap();
    publish(&store, 2);
}

#[test]
fn a_stage_that_is_dropped_or_refused_leaves_nothing() {
    let (dir, store) = store();
    drop(store.stage(PolicyVersion(1)).unwrap());
    assert!(store.stage(PolicyVersion(1)).unwrap().commit(about()).unwrap_err().message().contains("no files"));
    let stage = store.stage(PolicyVersion(1)).unwrap();
    fs::create_dir(stage.path().join("nested")).unwrap();
    assert!(stage.commit(about()).unwrap_err().message().contains("expected plain files only"));
    assert_eq!(fs::read_dir(dir.path().join("versions")).unwrap().count(), 0);
}

#[test]
fn pruning_keeps_the_newest_and_the_protected() {
    let (_dir, store) = store();
    for version in 1..=6 {
        publish(&store, version);
    }
    assert_eq!(store.prune(0, &[]).unwrap(), versions(&[]));
    assert_eq!(store.prune(2, &versions(&[0, 2])).unwrap(), versions(&[1, 3, 4]));
    assert_eq!(store.list().unwrap(), versions(&[2, 5, 6]));
    assert_eq!(store.prune(9, &[]).unwrap(), versions(&[]));
}

#[test]
fn of_older_versions_what_only_training_needs_is_let_go_and_they_stay_whole() {
    let (_dir, store) = store();
    for version in 1..=5 {
        publish(&store, version);
    }
    assert_eq!(store.slim(0, &["critic.gguf"], &[]).unwrap(), versions(&[]));
    assert_eq!(store.slim(2, &["critic.gguf", "none"], &versions(&[2])).unwrap(), versions(&[1, 3]));
    assert_eq!(store.slim(2, &["critic.gguf", "none"], &versions(&[2])).unwrap(), versions(&[]));
    for version in 1..=5 {
        let manifest = store.verify(PolicyVersion(version)).unwrap();
        let critic = store.path(PolicyVersion(version)).join("critic.gguf").exists();
        assert_eq!(critic, ![1, 3].contains(&version));
        assert_eq!(manifest.files.contains_key("critic.gguf"), critic);
        assert_eq!(manifest.about, about());
    }
    // Cut off between the manifest and the files.
    fs::write(store.path(PolicyVersion(1)).join("critic.gguf"), "critic").unwrap();
    store.verify(PolicyVersion(1)).unwrap();
    assert_eq!(store.slim(2, &["critic.gguf"], &[]).unwrap(), versions(&[1, 2]));
    assert!(!store.path(PolicyVersion(1)).join("critic.gguf").exists());
}

#[test]
fn folders_beyond_six_digits_are_still_versions() {
    assert_eq!(committed("1234567"), Some(PolicyVersion(1_234_567)));
    assert_eq!(committed("000012"), Some(PolicyVersion(12)));
    for other in ["12", "000000", "+00012", "", "notes", ".staging-000001"] {
        assert_eq!(committed(other), None);
    }
}

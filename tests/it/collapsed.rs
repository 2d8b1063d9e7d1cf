//! What the examination says of candidates that training without limits led astray, on a real model: `make
//! check-collapse` trains them, and this has each judged as the daemon would. Never trains.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use apa::Engine;
use apa::config::{Algorithm, Config};
use apa::engine::{TrainerState, VerdictRecord};
use apa::publish::{About, VersionStore};
use apa::types::*;

use crate::support::engine::{answer, open_with};

/// A snapshot, as `apa_policy_snapshot` writes one, of an adapter alone.
fn packed(folder: &Path, adapter: &Path, base_sha256: &str) -> PathBuf {
    let store = VersionStore::open(folder).unwrap();
    let stage = store.stage(PolicyVersion(1)).unwrap();
    std::fs::copy(adapter, stage.path().join("adapter.gguf")).unwrap();
    let about = About {
        parent: None,
        base_sha256: base_sha256.to_owned(),
        created: 0,
        algorithm: Algorithm::Apa,
        lambda: 0.1,
        rank: 16,
        alpha: 32.0,
        metrics: StepMetrics::default(),
    };
    stage.commit(about).unwrap();
    let file = folder.join("version.tar");
    store.pack(PolicyVersion(1), &file).unwrap();
    file
}

fn open(dir: &Path, model: &str) -> Engine {
    let change = |c: &mut Config| {
        c.model = model.into();
        (c.train.rank, c.train.alpha) = (16, 32.0);
    };
    open_with(dir, change).unwrap()
}

#[test]
#[ignore = "needs the candidates that `make check-collapse` trains, and minutes"]
fn measure_collapsed_candidates_are_refused_before_anybody_sees_them() {
    let model = std::env::var("APA_TEST_MODEL").expect("APA_TEST_MODEL names a model");
    let candidates = std::env::var("APA_COLLAPSED").expect("APA_COLLAPSED names adapters");
    let sha256 = apa::publish::sha256_file(Path::new(&model)).unwrap().sha256;
    println!("| candidate | KL to the initial model | KL to its parent | cut off | entropy left | seconds | ruling |");
    println!("|---|---|---|---|---|---|---|");
    for adapter in candidates.split_whitespace() {
        let dir = tempfile::tempdir().unwrap();
        let file = packed(dir.path(), Path::new(adapter), &sha256);
        let engine = open(dir.path(), &model);
        let start = Instant::now();
        while engine.status().trainer.state != TrainerState::Idle {
            assert!(start.elapsed() < Duration::from_secs(600), "{:?}", engine.status().trainer);
            std::thread::sleep(Duration::from_millis(100));
        }
        // Somebody asks meanwhile.
        let asking = engine.clone();
        let (done, ended) = crossbeam_channel::bounded::<()>(0);
        let asked = std::thread::spawn(move || {
            let mut versions = Vec::new();
            while ended.recv_timeout(Duration::from_secs(3)).is_err_and(|error| error.is_timeout()) {
                versions.push(answer(&asking, "Name a colour.", versions.len() as u64).policy_version);
            }
            versions
        });
        let error = engine.restore(&file).expect_err(adapter);
        drop(done);
        let versions = asked.join().unwrap();
        assert!(error.message().contains(" was refused: its "), "{error}");
        assert!(!versions.is_empty() && versions.iter().all(|v| *v == PolicyVersion::INITIAL), "{versions:?}");
        assert_eq!((engine.status().policy_version, engine.versions().unwrap().len()), (PolicyVersion::INITIAL, 1));
        let verdict = engine.verdicts(1).unwrap().remove(0);
        let said: VerdictRecord = serde_json::from_value(verdict.record).unwrap();
        let examination = said.examination.unwrap();
        let of = |name: &str| examination.compared.iter().find(|c| c.name == name).cloned().unwrap();
        println!(
            "| {adapter} | {:.1} | {:.1} | {:.0}% | {:.2} | {:.0} | {:?}: {} |",
            of("kl_initial").candidate,
            of("kl_parent").candidate,
            100.0 * of("cut_off").candidate,
            of("entropy").candidate / of("entropy").parent,
            said.seconds.unwrap_or_default(),
            verdict.ruling,
            said.reason,
        );
        engine.shutdown();
    }
}

//! A disk that fills, while a version is written or before a start: what needs room is refused, answers are given, and
//! everything goes on once there is room.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use apa::Code;
use apa::engine::{AlertKind, TrainerState};
use apa::types::PolicyVersion;

use crate::support::engine::{answer, open_with, published, rate, rate_some};

/// Names the small file system to the test that runs in it.
const DISK: &str = "APA_TEST_SMALL_DISK";

#[test]
fn a_full_disk_while_a_version_is_written_loses_nothing() {
    on_a_small_disk("inside_a_small_disk");
}

#[cfg(feature = "daemon")]
#[test]
fn a_start_on_a_full_disk_serves_and_records_again_once_there_is_room() {
    on_a_small_disk("inside_a_full_disk");
}

/// Runs a test of this file as a process of its own, which sees a file system of 4 MB.
fn on_a_small_disk(test: &str) {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    // SAFETY: takes nothing and can't fail.
    let root = unsafe { libc::geteuid() } == 0;
    let namespaces: &[&str] = if root { &["--mount"] } else { &["--mount", "--user", "--map-root-user"] };
    let mounted = |then: &str| {
        let mut command = Command::new("unshare");
        let script = format!("mount -t tmpfs -o size=4m none \"${DISK}\" && {then}");
        command
            .args(namespaces)
            .args(["sh", "-c", &script, "sh"])
            .arg(std::env::current_exe().unwrap())
            .env(DISK, &disk);
        command
    };
    if !mounted("true").output().is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: this system lets nobody mount a small disk here");
        return;
    }
    let name = format!("full_disk::{test}");
    let run = mounted(&format!("exec \"$1\" --ignored --exact {name}")).output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && said.contains("1 passed"), "{said}");
}

/// Leaves a few kilobytes free.
fn fill(disk: &Path) {
    let mut ballast = fs::File::create(disk.join("ballast")).unwrap();
    let kilobyte = [0u8; 1024];
    while ballast.write_all(&kilobyte).is_ok() {}
    let size = ballast.metadata().unwrap().len();
    ballast.set_len(size - 32 * 1024).unwrap();
}

#[test]
#[ignore = "needs the disk that the test above makes"]
fn inside_a_small_disk() {
    let disk = std::env::var_os(DISK).map(std::path::PathBuf::from).unwrap();
    let home = tempfile::tempdir().unwrap();
    let data = disk.join("data");
    let engine = open_with(home.path(), |c| c.data = data.clone()).unwrap();
    rate_some(&engine, 8);
    fill(&disk);

    let error = engine.train_step().unwrap_err();
    assert_eq!(error.code(), Code::Io, "{error}");
    assert!(error.message().contains("the disk is full"), "{error}");
    let status = engine.status();
    assert_eq!((status.policy_version, status.trainer.pending_ratings), (PolicyVersion::INITIAL, 8));
    assert_eq!(status.trainer.state, TrainerState::Idle);
    assert_eq!(fs::read_dir(data.join("versions")).unwrap().count(), 0, "a half-written version stayed");

    assert!(status.alerts.iter().any(|alert| alert.kind == AlertKind::NoRoom), "{:?}", status.alerts);

    // Not a byte is left: answers are given all the same, and say that they are not recorded.
    let mut unrecorded = None;
    for seed in 0..200 {
        let g = answer(&engine, "the", 1000 + seed);
        if g.unrecorded {
            unrecorded = Some(g);
            break;
        }
    }
    let g = unrecorded.expect("the disk was never full");
    assert!(!g.text.is_empty());
    assert!(rate(&engine, &g.id, 1.0).unwrap_err().is_unknown_id());
    let told = engine.status().alerts;
    assert!(
        told.iter().any(|a| a.kind == AlertKind::NotRecorded && a.message.contains("the disk is full")),
        "{told:?}"
    );

    fs::remove_file(disk.join("ballast")).unwrap();
    assert!(!answer(&engine, "the", 98).unrecorded);
    assert!(!engine.status().alerts.iter().any(|alert| alert.kind == AlertKind::NotRecorded));
    rate(&engine, &answer(&engine, "the", 99).id, 1.0).unwrap();
    let (version, metrics) = published(engine.train_step().unwrap());
    assert_eq!((version, metrics.samples), (PolicyVersion(1), 9));
    engine.shutdown();
    drop(engine);

    let engine = open_with(home.path(), |c| c.data = data.clone()).unwrap();
    assert_eq!(engine.status().trainer.pending_ratings, 0);
    assert_eq!(answer(&engine, "the", 0).policy_version, version);
    engine.shutdown();
    drop(engine);

    // A copy that nobody can write to can still be read.
    assert!(Command::new("mount").args(["-o", "remount,ro"]).arg(&disk).status().unwrap().success());
    let mut read = 0;
    let mut each = |_: &apa::ledger::Exported| {
        read += 1;
        Ok(())
    };
    apa::ledger::LedgerReader::open(&data).unwrap().for_each(&mut each).unwrap();
    assert_eq!(read, 9);
}

/// Takes what is left, to the last byte.
#[cfg(feature = "daemon")]
fn fill_up(disk: &Path) {
    let mut ballast = fs::File::options().create(true).append(true).open(disk.join("ballast")).unwrap();
    for size in [4096, 1] {
        while ballast.write_all(&vec![0; size]).is_ok() {}
    }
}

#[cfg(feature = "daemon")]
#[tokio::test]
#[ignore = "needs the disk that a test above makes"]
async fn inside_a_full_disk() {
    use crate::support::daemon::Daemon;
    use serde_json::{Value, json};

    let disk = std::env::var_os(DISK).map(std::path::PathBuf::from).unwrap();
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(disk.join("data")).unwrap();
    std::os::unix::fs::symlink(disk.join("data"), home.path().join("data")).unwrap();
    let client = reqwest::Client::new();
    let ask = async |daemon: &Daemon, user: &str| -> Value {
        let body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "user": user});
        let asked = client.post(format!("{}/v1/chat/completions", daemon.url)).json(&body).send().await.unwrap();
        assert!(asked.status().is_success(), "{}", asked.text().await.unwrap());
        asked.json().await.unwrap()
    };
    let alerts = async |daemon: &Daemon| {
        let status: Value = client.get(format!("{}/v1/status", daemon.url)).send().await.unwrap().json().await.unwrap();
        status["alerts"].to_string()
    };
    let apad = |args: &[&str]| {
        let ran = Command::new(env!("CARGO_BIN_EXE_apad")).args(args).current_dir(home.path()).output().unwrap();
        assert!(ran.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    };
    let settings = ["train.enabled=false"];
    let daemon = Daemon::on(home.path(), &settings);
    for user in ["ann", "ben", "cat"] {
        ask(&daemon, user).await;
    }
    // Killed on a full disk, and again: with a log, then with what that start left, several times.
    for _ in 0..3 {
        fill_up(&disk);
    }
    drop(daemon);
    for start in 0..3 {
        fill_up(&disk);
        let daemon = Daemon::on(home.path(), &settings);
        let told = alerts(&daemon).await;
        assert!(told.contains("not_recorded") && told.contains("the disk is full"), "start {start}: {told}");
        fill_up(&disk);
        ask(&daemon, "dan").await;
    }
    fill_up(&disk);

    // Without a daemon: the log is folded, the versions are listed, a user is forgotten.
    assert!(apad(&["versions", "--data", "data"]).contains("parent"));
    fill_up(&disk);
    let gone = apad(&["forget", "--user", "ann", "--data", "data"]);
    assert!(gone.starts_with("deleted 1 answers"), "{gone}");
    fill_up(&disk);

    // After a clean stop, which left no log.
    assert!(!disk.join("data/ledger.sqlite3-wal").exists());
    let daemon = Daemon::on(home.path(), &settings);
    fill_up(&disk);
    let gone = apad(&["forget", "--user", "ben", "--url", &daemon.url]);
    assert!(gone.starts_with("deleted 1 answers"), "{gone}");
    let bytes = fs::read(disk.join("data/ledger.sqlite3")).unwrap();
    assert!(!bytes.windows(3).any(|word| word == b"ben") && bytes.windows(3).any(|word| word == b"cat"));

    fs::remove_file(disk.join("ballast")).unwrap();
    let answer = ask(&daemon, "eve").await;
    let told = alerts(&daemon).await;
    assert!(!told.contains("not_recorded"), "{told}");
    let body = json!({"generation_id": answer["id"], "rating": 1.0});
    let rated = client.post(format!("{}/v1/feedback", daemon.url)).json(&body).send().await.unwrap();
    assert!(rated.status().is_success(), "{}", rated.text().await.unwrap());
}

//! A disk that fills while a version is written: an error, and everything goes on once there is room.
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

/// Runs the test below again as a process of its own, which sees a file system of 4 MB.
#[test]
fn a_full_disk_while_a_version_is_written_loses_nothing() {
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
    let name = "full_disk::inside_a_small_disk";
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

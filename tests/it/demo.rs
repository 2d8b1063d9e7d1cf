//! `apad demo` on a tiny model: the whole loop over HTTP, its report, and its exit code.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::tiny::{TinySpec, tiny_model};

fn demo(model: &Path, dir: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
    command.current_dir(dir).args(["demo", "--batches", "2", "--json", "--out", "report", "--model"]).arg(model);
    command.args(more).output().expect("apad runs")
}

#[test]
fn the_demo_learns_reports_and_exits_by_what_it_reached() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("tiny.gguf");
    tiny_model(&model, &TinySpec::new("llama")).unwrap();
    let output = demo(&model, dir.path(), &["--data", "kept"]);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();

    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {log}"));
    assert_eq!(report["rows"].as_array().map(Vec::len), Some(2), "{log}");
    assert_eq!(report["before"]["version"], 0);
    assert_eq!(report["before"]["prompts"], report["after"]["prompts"]);
    assert_eq!(report["side_by_side"].as_array().map(Vec::len), Some(8));
    assert!(report["after"]["kl_per_response"].as_f64().is_some_and(f64::is_finite), "{log}");
    for version in ["before", "after"] {
        assert!(report[version]["text_logprob"].as_f64().is_some_and(|nats| nats < 0.0), "{log}");
    }
    let rise = report["after"]["mean_reward"].as_f64().unwrap() - report["before"]["mean_reward"].as_f64().unwrap();
    assert_eq!(report["reached"], rise >= 0.5);
    assert_eq!(output.status.code(), Some(if rise >= 0.5 { 0 } else { 1 }), "{log}");
    for file in ["report.html", "curves.png", "report.json"] {
        assert!(dir.path().join("report").join(file).exists(), "no {file}");
    }

    // A second demo must not start from what the first one learned.
    let again = demo(&model, dir.path(), &["--data", "kept"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("holds a record already"));
}

#[test]
fn a_model_that_is_not_there_is_one_sentence_and_leaves_no_report() {
    let dir = tempfile::tempdir().unwrap();
    let output = demo(&dir.path().join("missing.gguf"), dir.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(log.contains("missing.gguf"), "{log}");
    assert!(!dir.path().join("report").join("report.json").exists());
}

#[cfg(unix)]
#[test]
fn a_demo_that_is_interrupted_ends_with_130_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("tiny.gguf");
    tiny_model(&model, &TinySpec::new("llama")).unwrap();
    let temporary = dir.path().join("temporary");
    std::fs::create_dir(&temporary).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
    command.current_dir(dir.path()).args(["demo", "--batches", "1000", "--out", "reports/report", "--no-browser"]);
    command.arg("--model").arg(&model);
    let mut process = command.env("TMPDIR", &temporary).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The first row of its table: it serves and learns by then.
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("served on")));
    lines.next();
    let killed = Command::new("kill").args(["-INT", &process.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = process.wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{log}");
    assert!(log.ends_with("apad: interrupted\n"), "{log}");
    let left: Vec<_> = std::fs::read_dir(&temporary).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!dir.path().join("reports").exists());
}

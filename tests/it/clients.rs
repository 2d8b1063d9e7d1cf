//! What users use, against a real daemon on the tiny model: the `openai` packages of PyPI and npm, and schemathesis.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::c::run;
use crate::support::daemon::Daemon;

/// Where `scripts/setup.sh test` puts the packages. `None`, and a line that says so, where they are not; where they
/// have to be, that is a failure.
fn packages() -> Option<PathBuf> {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    let folder = cache.join("apa/clients");
    if folder.join("venv/bin/schemathesis").exists() && folder.join("node_modules/openai").exists() {
        return Some(folder);
    }
    let required = ["CI", "APA_TEST_CLIENTS"].iter().any(|name| std::env::var_os(name).is_some_and(|v| !v.is_empty()));
    assert!(!required, "scripts/setup.sh test installs openai and schemathesis to {}", folder.display());
    eprintln!("SKIPPED: scripts/setup.sh test installs openai and schemathesis to {}", folder.display());
    None
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

#[test]
fn the_openai_package_of_pypi_finds_what_it_expects() {
    let Some(packages) = packages() else { return };
    let daemon = Daemon::start();
    let output = run(Command::new(packages.join("venv/bin/python")).arg(script("openai_python.py")).arg(&daemon.url));
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("ok\n"));
}

#[test]
fn the_openai_package_of_npm_finds_what_it_expects() {
    let Some(packages) = packages() else { return };
    let daemon = Daemon::start();
    let output = run(Command::new("node").arg(script("openai_node.mjs")).arg(&daemon.url).arg(&packages));
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("ok\n"));
}

#[test]
fn the_jsonschema_package_finds_every_answer_valid_or_the_schema_refused_by_name() {
    let Some(packages) = packages() else { return };
    let daemon = Daemon::start();
    let mut command = Command::new(packages.join("venv/bin/python"));
    command.arg(script("schemas_python.py")).arg(&daemon.url);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemas"));
    let output = run(&mut command);
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("ok\n"));
}

#[test]
fn schemathesis_finds_no_server_error() {
    let Some(packages) = packages() else { return };
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(packages.join("venv/bin/schemathesis"));
    command.current_dir(folder.path()).args(["run", &format!("{}/openapi.json", daemon.url)]);
    command.args(["--checks", "not_a_server_error", "--max-examples", "15", "--seed", "1", "--request-timeout", "20"]);
    command.args(["--phases", "examples,coverage,fuzzing", "--workers", "2", "--no-color"]);
    run(&mut command);
}

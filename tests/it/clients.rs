//! What users use, against a real daemon on the tiny model: the packages of OpenAI and Anthropic, and schemathesis.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::c::run;
use crate::support::daemon::Daemon;
use crate::support::packages::packages;

fn installed() -> Option<PathBuf> {
    packages(&["venv/bin/schemathesis", "node_modules/openai"])
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

#[test]
fn the_openai_package_of_pypi_finds_what_it_expects() {
    let Some(packages) = installed() else { return };
    for daemon in [Daemon::start(), Daemon::without_tools()] {
        let mut python = Command::new(packages.join("venv/bin/python"));
        let output = run(python.arg(script("openai_python.py")).arg(&daemon.url));
        assert!(String::from_utf8_lossy(&output.stdout).ends_with("ok\n"));
    }
}

#[test]
fn the_anthropic_package_of_pypi_finds_what_it_expects() {
    let Some(folder) = installed() else { return };
    let import = Command::new(folder.join("venv/bin/python")).args(["-c", "import anthropic"]).output().unwrap();
    let packages = if import.status.success() { Some(folder) } else { packages(&["the anthropic package"]) };
    let Some(packages) = packages else { return };
    for daemon in [Daemon::start(), Daemon::without_tools()] {
        let mut python = Command::new(packages.join("venv/bin/python"));
        let output = run(python.arg(script("anthropic_python.py")).arg(&daemon.url));
        assert!(String::from_utf8_lossy(&output.stdout).ends_with("ok\n"));
    }
}

#[test]
fn the_functions_for_open_webui_send_the_thumbs_that_people_give() {
    let Some(packages) = installed() else { return };
    let (daemon, folder) = (Daemon::start(), tempfile::tempdir().unwrap());
    let mut python = Command::new(packages.join("venv/bin/python"));
    python.arg(script("open_webui_python.py")).arg(&daemon.url);
    python.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/open_webui")).arg(folder.path());
    let output = run(&mut python);
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("ok\n"));
}

#[test]
fn the_openai_package_of_npm_finds_what_it_expects() {
    let Some(packages) = installed() else { return };
    for daemon in [Daemon::start(), Daemon::without_tools()] {
        let output = run(Command::new("node").arg(script("openai_node.mjs")).arg(&daemon.url).arg(&packages));
        assert!(String::from_utf8_lossy(&output.stdout).ends_with("ok\n"));
    }
}

#[test]
fn the_jsonschema_package_finds_every_answer_valid_or_the_schema_refused_by_name() {
    let Some(packages) = installed() else { return };
    let daemon = Daemon::start();
    let mut command = Command::new(packages.join("venv/bin/python"));
    command.arg(script("schemas_python.py")).arg(&daemon.url);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemas"));
    let output = run(&mut command);
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("ok\n"));
}

#[test]
fn schemathesis_finds_no_server_error() {
    let Some(packages) = installed() else { return };
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(packages.join("venv/bin/schemathesis"));
    command.current_dir(folder.path()).args(["run", &format!("{}/openapi.json", daemon.url)]);
    command.args(["--checks", "not_a_server_error", "--max-examples", "15", "--seed", "1", "--request-timeout", "20"]);
    // One worker: two at once make Python 3.11 fail now and then ("AST constructor recursion depth mismatch").
    command.args(["--phases", "examples,coverage,fuzzing", "--workers", "1", "--no-color"]);
    run(&mut command);
}

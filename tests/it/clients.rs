//! What users use, against a real daemon on the tiny model: the `openai` packages of PyPI and npm, and schemathesis.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::ffi::run;
use crate::tiny::{TinySpec, tiny_model};

const TEMPLATE: &str = "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}{{'<|im_start|>' + \
    message['role'] + '\n' + message['content']}}{% for call in message.tool_calls %}{{ call | tojson }}{% endfor %}\
    {{ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// `apad serve` as a process of its own; ended with the test.
struct Daemon {
    process: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("tiny.gguf");
        tiny_model(&model, &TinySpec { template: TEMPLATE, ..TinySpec::new("llama") }).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
        command.current_dir(folder.path()).args(["serve", "--model"]).arg(&model);
        command.args([
            "--listen",
            "127.0.0.1:0",
            "--slots",
            "4",
            "--set",
            "serve.threads=1",
            "--set",
            "serve.context=8192",
        ]);
        command.args(["--set", "serve.max_tokens=16", "--set", "train.enabled=false", "--set", "serve.queue=256"]);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().rsplit(' ').next().unwrap().to_owned();
        assert!(url.starts_with("http://"), "{line}");
        Self { process, url, _folder: folder }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

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

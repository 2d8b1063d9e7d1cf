//! The Node package: builds its addon and runs its own tests and example against the library of this build. Tests
//! nothing by itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use crate::ffi::{run, shared_library};
use crate::tiny::{TinySpec, tiny_model};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The addon is built into the package's folder.
static BUILD: Mutex<()> = Mutex::new(());

/// `None`, and a line that says so, where it is not; where it has to be, that is a failure.
fn skipped(missing: &str) -> Option<Node> {
    let required = ["CI", "APA_TEST_NODE"].iter().any(|name| std::env::var_os(name).is_some_and(|v| !v.is_empty()));
    assert!(!required, "{missing}");
    eprintln!("SKIPPED: {missing}");
    None
}

pub struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    /// With the addon built.
    pub fn find() -> Option<Self> {
        let version = Command::new("node").arg("--version").output();
        let major = version.ok().and_then(|o| {
            String::from_utf8_lossy(&o.stdout).trim_start_matches('v').split('.').next()?.parse::<u32>().ok()
        });
        if major.is_none_or(|major| major < 20) {
            return skipped("Node 20 or newer tests bindings/node, with its headers");
        }
        let dir = tempfile::tempdir().unwrap();
        tiny_model(&dir.path().join("tiny.gguf"), &TinySpec::new("llama")).unwrap();
        let node = Self { dir };
        let _turn = BUILD.lock().unwrap_or_else(|e| e.into_inner());
        run(node.command("node").arg("build.mjs"));
        Some(node)
    }

    fn model(&self) -> PathBuf {
        self.dir.path().join("tiny.gguf")
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(Path::new(ROOT).join("bindings/node"));
        let library = shared_library();
        // cargo's own names a folder that may hold an older build.
        let folder = library.parent().unwrap();
        command.env("APA_LIB_DIR", folder).env("LD_LIBRARY_PATH", folder).env("APA_TINY_MODEL", self.model());
        command
    }
}

#[test]
fn the_node_package_passes_its_tests() {
    let Some(node) = Node::find() else { return };
    let mut tests = node.command("node");
    tests.args(["--expose-gc", "--test"]);
    tests.args(["test/engine.test.mjs", "test/streams.test.mjs", "test/process.test.mjs"]);
    let output = run(&mut tests);
    assert!(String::from_utf8_lossy(&output.stdout).contains("# pass 2"), "no test ran");
}

#[test]
fn the_node_package_types_allow_what_they_must_and_refuse_the_rest() {
    let Some(node) = Node::find() else { return };
    if !Path::new(ROOT).join("bindings/node/node_modules/.bin/tsc").exists() {
        let installed = node.command("npm").args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).output();
        if !installed.is_ok_and(|o| o.status.success()) {
            skipped("npm ci in bindings/node failed; TypeScript tests its types");
            return;
        }
    }
    run(node.command("node_modules/.bin/tsc").arg("--noEmit"));
}

#[test]
fn the_node_example_runs_the_whole_loop() {
    let Some(node) = Node::find() else { return };
    let data = node.dir.path().join("data");
    let output = run(node.command("node").arg("../../examples/chat.mjs").arg(node.model()).arg(data));
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.contains("training: 16 answers, "), "{out}");
    assert!(out.ends_with("answered by version 1, back to 0\n"), "{out}");
    assert!(output.stderr.is_empty(), "the library printed something");
}

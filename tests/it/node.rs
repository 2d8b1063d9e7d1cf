//! The Node package: builds its addon and runs its own tests and example against the library of this build. Tests
//! nothing by itself.

use std::path::Path;

use crate::support::c::{ROOT, run};
use crate::support::node::{Node, skipped};

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

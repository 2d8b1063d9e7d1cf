//! The Go package: runs its own tests, vet and example. Tests nothing by itself.

use std::process::Command;

use crate::support::c::{run, shared_library};
use crate::support::go::Go;

#[test]
fn the_go_package_passes_its_tests_under_the_race_detector() {
    let Some(go) = Go::find() else { return };
    run(&mut go.command(&["vet", "./..."]));
    // A collection after nearly every allocation: what C holds or what is freed too early shows.
    let output = run(go.command(&["test", "-race", "-count=1", "-timeout=120s", "./..."]).env("GOGC", "1"));
    assert!(String::from_utf8_lossy(&output.stdout).contains("ok  \t"), "no test ran");
}

#[test]
fn the_go_example_runs_the_whole_loop() {
    let Some(go) = Go::find() else { return };
    let program = go.dir.path().join("chat");
    run(go.command(&["build", "-o"]).arg(&program).arg("../../examples/chat.go"));
    let mut chat = Command::new(&program);
    chat.env("LD_LIBRARY_PATH", shared_library().parent().unwrap());
    let output = run(chat.arg(go.model()).arg(go.dir.path().join("data")));
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.contains("training: 16 answers, "), "{out}");
    assert!(out.ends_with("answered by version 1, back to 0\n"), "{out}");
    assert!(output.stderr.is_empty(), "the library printed something");
}

//! The Go package: runs its own tests, vet and example, and builds it as a module elsewhere. Tests nothing by itself.

use std::path::Path;
use std::process::Command;

use crate::support::c::{ROOT, run, shared_library};
use crate::support::go::Go;
use crate::support::installed::Installed;

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

/// The module alone, as a download of it is, against what `make install` puts in place.
#[test]
fn the_go_module_builds_and_runs_outside_the_repository() {
    let Some(go) = Go::find() else { return };
    let installed = Installed::new();
    let (module, application) = (installed.dir.path().join("module"), installed.dir.path().join("application"));
    std::fs::create_dir(&module).unwrap();
    std::fs::create_dir(&application).unwrap();
    for entry in std::fs::read_dir(Path::new(ROOT).join("bindings/go")).unwrap() {
        let file = entry.unwrap();
        assert!(file.file_type().unwrap().is_file(), "a module's zip leaves links out: {file:?}");
        std::fs::copy(file.path(), module.join(file.file_name())).unwrap();
    }
    std::fs::copy(Path::new(ROOT).join("examples/chat.go"), application.join("main.go")).unwrap();
    let path = "github.com/libapa/libapa/bindings/go";
    let text = format!("module example.com/chat\n\ngo 1.19\n\nrequire {path} v0.0.0\n\nreplace {path} => ../module\n");
    std::fs::write(application.join("go.mod"), text).unwrap();
    let mut build = go.command(&["build", "-o", "chat"]);
    // As the package's documentation says; the flags of pkg-config's --libs alone.
    build.current_dir(&application).env_remove("CGO_CFLAGS").env("CGO_LDFLAGS", installed.libs("apa").join(" "));
    run(&mut build);
    let mut chat = Command::new(application.join("chat"));
    chat.env("LD_LIBRARY_PATH", installed.prefix().join("lib"));
    let output = run(chat.arg(go.model()).arg(installed.dir.path().join("data")));
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.ends_with("answered by version 1, back to 0\n"), "{out}");
}

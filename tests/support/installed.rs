//! What `scripts/install.sh` puts in place, in a folder of its own. Tests nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::c::{ROOT, run, shared_library};
use super::tiny::{TOOLS, TinySpec, tiny_model};

/// An installed copy, and a model.
pub struct Installed {
    pub dir: tempfile::TempDir,
}

impl Installed {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        tiny_model(&dir.path().join("tiny.gguf"), &TinySpec { template: TOOLS, ..TinySpec::new("llama") }).unwrap();
        let mut install = Command::new(Path::new(ROOT).join("scripts/install.sh"));
        install.arg(shared_library().parent().unwrap());
        run(install.env("PREFIX", "/opt/apa").env("DESTDIR", dir.path()));
        Self { dir }
    }

    pub fn prefix(&self) -> PathBuf {
        self.dir.path().join("opt/apa")
    }

    pub fn library(&self, name: &str) -> PathBuf {
        self.prefix().join("lib").join(name)
    }

    /// What pkg-config says of a package.
    pub fn flags(&self, package: &str) -> Vec<String> {
        self.pkg_config(&["--cflags", "--libs", package])
    }

    /// The same for the linker alone.
    pub fn libs(&self, package: &str) -> Vec<String> {
        self.pkg_config(&["--libs", package])
    }

    fn pkg_config(&self, arguments: &[&str]) -> Vec<String> {
        let mut config = Command::new("pkg-config");
        config.env("PKG_CONFIG_PATH", self.library("pkgconfig"));
        let output = run(config.args(arguments));
        String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
    }

    /// Runs an example, from C or C++, to its last line.
    pub fn example_runs(&self, program: &Path) {
        let data = tempfile::tempdir().unwrap();
        let mut example = Command::new(program);
        example.env("LD_LIBRARY_PATH", self.prefix().join("lib"));
        let output = run(example.arg(self.dir.path().join("tiny.gguf")).arg(data.path()));
        let out = String::from_utf8_lossy(&output.stdout);
        assert!(out.contains("versions: 0, then 1, back to 0\n"), "{out}");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

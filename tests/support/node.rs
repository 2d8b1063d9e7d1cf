//! The commands of the Node package, with its addon built against the library of this build. Tests nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use super::c::{ROOT, run, shared_library};
use super::tiny::{TOOLS, TinySpec, tiny_model};

/// The addon is built into the package's folder.
static BUILD: Mutex<()> = Mutex::new(());

/// `None`, and a line that says so, where it is not; where it has to be, that is a failure.
pub fn skipped(missing: &str) -> Option<Node> {
    let required = ["CI", "APA_TEST_NODE"].iter().any(|name| std::env::var_os(name).is_some_and(|v| !v.is_empty()));
    assert!(!required, "{missing}");
    eprintln!("SKIPPED: {missing}");
    None
}

pub struct Node {
    pub dir: tempfile::TempDir,
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
        tiny_model(&dir.path().join("tiny.gguf"), &TinySpec { template: TOOLS, ..TinySpec::new("llama") }).unwrap();
        let node = Self { dir };
        let _turn = BUILD.lock().unwrap_or_else(|e| e.into_inner());
        run(node.command("node").arg("build.mjs"));
        Some(node)
    }

    pub fn model(&self) -> PathBuf {
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

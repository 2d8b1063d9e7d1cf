//! A folder with a tiny model in which `apad` runs as a command. Tests nothing.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use super::tiny::{TinySpec, tiny_model};

/// The folder; its model is `tiny.gguf`.
pub struct Bench {
    pub dir: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        tiny_model(&bench.path("tiny.gguf"), &TinySpec::new("llama")).unwrap();
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `apad` with that subcommand, in the folder, with no settings of whoever runs the tests.
    pub fn apad(&self, subcommand: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
        command.current_dir(self.dir.path()).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        // A proxy that nobody answers: what is asked of this machine goes through none.
        for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"] {
            command.env(name, "http://127.0.0.1:1");
        }
        command.arg(subcommand);
        command
    }
}

/// What a command wrote to stderr.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The JSON of a command that ended well.
pub fn result(output: &Output) -> Value {
    assert!(output.status.success(), "{}", said(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// That a command ended with that code and said that.
pub fn fails(output: &Output, code: i32, part: &str) {
    assert_eq!(output.status.code(), Some(code), "{}", said(output));
    assert!(said(output).contains(part), "{}", said(output));
}

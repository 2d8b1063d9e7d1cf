//! `apad serve` as a process of its own, on a tiny model. Tests nothing.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::tiny::{TOOLS, TinySpec, tiny_model};

/// `apad serve` as a process of its own; ended with the test.
pub struct Daemon {
    process: Child,
    pub url: String,
    _folder: tempfile::TempDir,
}

impl Daemon {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("tiny.gguf");
        tiny_model(&model, &TinySpec { template: TOOLS, ..TinySpec::new("llama") }).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
        command.current_dir(folder.path()).args(["serve", "--model"]).arg(&model);
        command.args([
            "--listen",
            "127.0.0.1:0",
            "--slots",
            "4",
            "--set",
            "serve.threads=1",
            "--set",
            "serve.context=8192",
        ]);
        command.args(["--set", "serve.max_tokens=16", "--set", "train.enabled=false", "--set", "serve.queue=256"]);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().rsplit(' ').next().unwrap().to_owned();
        assert!(url.starts_with("http://"), "{line}");
        Self { process, url, _folder: folder }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

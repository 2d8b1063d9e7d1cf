//! `apad serve` as a process of its own, on a tiny model. Tests nothing.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::tiny::{TEMPLATE, TOOLS, TinySpec, tiny_model};

const MODEL: &str = "tiny.gguf";

/// `apad serve` as a process of its own; killed when it is dropped.
pub struct Daemon {
    process: Child,
    pub url: String,
    /// Removed with it.
    folder: Option<tempfile::TempDir>,
}

impl Daemon {
    pub fn start() -> Self {
        Self::of(TOOLS)
    }

    /// One whose template knows no tools.
    pub fn without_tools() -> Self {
        Self::of(TEMPLATE)
    }

    fn of(template: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = ["serve.context=8192", "serve.max_tokens=16", "train.enabled=false", "serve.queue=256"];
        tiny_model(&folder.path().join(MODEL), &TinySpec { template, ..TinySpec::new("llama") }).unwrap();
        let mut daemon = Self::on(folder.path(), &settings);
        daemon.folder = Some(folder);
        daemon
    }

    /// In that folder, which keeps its model and its data, with those settings.
    pub fn on(folder: &Path, settings: &[&str]) -> Self {
        Self::with(folder, settings, &[])
    }

    /// The same, with those variables in its environment.
    pub fn with(folder: &Path, settings: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::at("127.0.0.1:0", folder, settings, variables)
    }

    /// The same, at that address.
    pub fn at(listen: &str, folder: &Path, settings: &[&str], variables: &[(&str, &str)]) -> Self {
        let model = folder.join(MODEL);
        if !model.exists() {
            tiny_model(&model, &TinySpec { template: TOOLS, ..TinySpec::new("llama") }).unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
        command.current_dir(folder).args(["serve", "--model"]).arg(&model).envs(variables.iter().copied());
        command.args(["--data", "data", "--listen", listen, "--slots", "4"]);
        command.args(["--set", "serve.threads=1", "--set", "serve.speculate=false"]);
        command.args(settings.iter().flat_map(|setting| ["--set", setting]));
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().rsplit(' ').next().unwrap().to_owned();
        assert!(url.starts_with("http://"), "{line}");
        Self { process, url, folder: None }
    }

    /// Sends it a signal, like `STOP`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.process.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(mut self) {
        self.signal("TERM");
        assert!(self.process.wait().unwrap().success());
    }

    /// Its memory that is no file's, in MiB.
    pub fn anonymous_mb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let kb = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        kb.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() / 1024
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

//! The command line's promises: exit code 2 for wrong use, 1 for failure, one clear sentence on stderr.

use std::process::{Command, Output};

fn apad(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
    let folder = tempfile::tempdir().unwrap();
    // No settings of whoever runs the tests, and no daemon of theirs.
    command.args(args).current_dir(folder.path()).env_clear().env("HOME", folder.path());
    command.env("APAD_URL", "http://127.0.0.1:1");
    command.output().unwrap()
}

fn fails(args: &[&str], code: i32, part: &str) {
    let output = apad(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(said.contains(part), "{args:?}: {said}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

#[test]
fn wrong_use_ends_with_2() {
    fails(&["fly"], 2, "fly");
    fails(&["serve"], 2, "--model");
    fails(&["serve", "--model", "no-such-model"], 2, "smollm2-135m-instruct");
    fails(&["serve", "--model", "x.gguf", "--set", "train.lamda=1"], 2, "train.lambda");
    fails(&["serve", "--model", "x.gguf", "--lambda", "-1"], 2, "train.lambda");
    fails(&["serve", "--model", "x.gguf", "--config", "missing.toml", "--batch", "x"], 2, "--batch");
    fails(&["pull", "no-such-model"], 2, "smollm2-135m-instruct");
    fails(&["versions", "activate", "one"], 2, "one");
    fails(&["bench", "train", "--model", "x.gguf", "--prompt", "9", "--seq", "9"], 2, "less than --seq, 9");
    fails(&["bench", "train", "--model", "x.gguf", "--batch", "1"], 2, "--batch");
}

#[test]
fn failure_ends_with_1_and_one_sentence() {
    let listen = ["--listen", "127.0.0.1:0"];
    fails(&["serve", "--model", "missing.gguf", listen[0], listen[1]], 1, "missing.gguf");
    fails(&["serve", "--model", "x.gguf", "--listen", "0.0.0.0:0"], 1, "http.keys");
    fails(&["serve", "--model", "x.gguf", "--config", "missing.toml"], 1, "missing.toml");
    fails(&["bench", "train", "--model", "missing.gguf"], 1, "missing.gguf");
    for args in [vec!["status"], vec!["versions", "list"], vec!["chat"]] {
        fails(&args, 1, "apad serve");
    }
}

#[test]
fn a_port_in_use_is_said_so() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    fails(&["serve", "--model", "x.gguf", "--listen", &address], 1, "in use");
}

#[test]
fn every_command_has_an_example() {
    let nested = [&["versions", "activate"][..], &["bench", "train"]];
    for command in [&["pull"][..], &["serve"], &["chat"], &["status"], &["versions"], &["bench"]].into_iter().chain(nested) {
        let output = apad(&[command, &["--help"]].concat());
        let help = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && help.contains("Example"), "{command:?}: {help}");
    }
}

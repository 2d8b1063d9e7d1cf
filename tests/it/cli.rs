//! The command line's promises: exit code 2 for wrong use, 1 for failure, one clear sentence on stderr.

use std::process::{Command, Output};

fn apad(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("damaged.gguf"), "GGUF, but not for long").unwrap();
    // No settings of whoever runs the tests, and no daemon of theirs.
    command.args(args).current_dir(folder.path()).env_clear().env("HOME", folder.path());
    command.env("APAD_URL", "http://127.0.0.1:1");
    let output = command.output().unwrap();
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["damaged.gguf"], "{args:?} leaves something behind");
    output
}

fn fails(args: &[&str], code: i32, part: &str) {
    let output = apad(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(said.contains(part), "{args:?}: {said}");
    assert!(output.stdout.is_empty(), "{args:?}");
    // What is said is one sentence, behind the usage where clap has found the fault.
    assert!(code == 2 || said.trim_end().lines().count() == 1, "{args:?}: {said}");
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
    fails(&["serve", "--model", "damaged.gguf", listen[0], listen[1]], 1, "damaged.gguf");
    fails(&["serve", "--model", "damaged.gguf", "--data", "a/b/c", listen[0], listen[1]], 1, "damaged.gguf");
    fails(&["bench", "train", "--model", "missing.gguf"], 1, "missing.gguf");
    fails(&["bench", "serve", "--streams", "1", "--url", "http://127.0.0.1:1"], 1, "http://127.0.0.1:1 gave no answer");
    for args in [vec!["status"], vec!["versions", "list"], vec!["chat"]] {
        fails(&args, 1, "apad serve");
    }
}

#[cfg(unix)]
#[test]
fn a_configuration_without_an_end_is_refused() {
    fails(&["serve", "--model", "x.gguf", "--config", "/dev/zero"], 1, "/dev/zero: it is longer than 1048576 bytes");
}

#[test]
fn no_argument_moves_the_terminals_cursor() {
    for (args, code) in [
        (vec!["serve", "--model", "a\u{1b}[31mb\u{9b}\u{202e}"], 2),
        (vec!["serve", "--model", "a\u{1b}[31mb\u{9b}\u{202e}.gguf", "--listen", "127.0.0.1:0"], 1),
        (vec!["fly\u{202e}"], 2),
    ] {
        let output = apad(&args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said:?}");
        assert!(said.contains("\\u{202e}"), "{said:?}");
        assert!(!said.chars().any(|c| c != '\n' && apa::shown::is_obeyed(c)), "{said:?}");
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
    let nested = [&["versions", "activate"][..], &["bench", "train"], &["convert", "gptj"]];
    let plain = [&["pull"][..], &["serve"], &["chat"], &["status"], &["config"], &["versions"], &["bench"]];
    for command in plain.into_iter().chain(nested) {
        let output = apad(&[command, &["--help"]].concat());
        let help = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && help.contains("Example"), "{command:?}: {help}");
    }
}

#[test]
fn a_first_signal_drains_and_a_second_one_stops() {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny.gguf");
    crate::support::tiny::tiny_model(&model, &crate::support::tiny::TinySpec::new("llama")).unwrap();
    // What ends an answer is banned, so that it is long.
    let last = crate::support::tiny::vocabulary().len();
    let body = format!(
        r#"{{"prompt": "on", "stream": true, "max_tokens": 60000,
            "logit_bias": {{"{}": -100, "{}": -100, "{}": -100}}}}"#,
        last - 1,
        last - 2,
        last - 3
    );
    for (name, signals) in [("TERM", 1), ("TERM", 2), ("HUP", 1)] {
        let data = folder.path().join(format!("{name}{signals}"));
        let mut daemon = Command::new(env!("CARGO_BIN_EXE_apad"))
            .args(["serve", "--model", model.to_str().unwrap(), "--listen", "127.0.0.1:0"])
            .args(["--set", "serve.threads=1", "--set", "serve.context=65536", "--set", "train.enabled=false"])
            .arg("--data")
            .arg(&data)
            .env_remove("APAD_LOG")
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let address = said.trim().rsplit("//").next().unwrap().to_owned();
        let mut client = std::net::TcpStream::connect(&address).unwrap();
        let length = body.len();
        write!(client, "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        // What is recorded is for its user alone.
        let mode = |path: std::path::PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!([mode(data.clone()), mode(data.join("versions"))], [0o700; 2]);
        assert_eq!(["ledger.sqlite3", "ledger.sqlite3-wal", "lock"].map(|name| mode(data.join(name))), [0o600; 3]);
        // Under way.
        client.read_exact(&mut [0; 400]).unwrap();
        let terminate = || {
            let sent = Command::new("kill").args(["-s", name, &daemon.id().to_string()]).status().unwrap();
            assert!(sent.success());
        };
        terminate();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let state = || {
            let mut asked = std::net::TcpStream::connect(&address).ok()?;
            asked.write_all(b"GET /health HTTP/1.0\r\n\r\n").ok()?;
            let mut answer = String::new();
            asked.read_to_string(&mut answer).ok()?;
            Some(answer)
        };
        while !state().is_some_and(|answer| answer.contains("draining")) {
            assert!(std::time::Instant::now() < until, "it doesn't drain");
        }
        if signals == 2 {
            terminate();
            assert_eq!(daemon.wait().unwrap().code(), Some(130));
            continue;
        }
        // The answer goes on until its client leaves; then nothing is left to wait for.
        client.read_exact(&mut [0; 400]).unwrap();
        drop(client);
        assert_eq!(daemon.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn config_lists_every_setting_with_its_value_and_where_it_came_from() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("apad.toml"), "[train]\nlambda = 0.2\nbatch = 8\n").unwrap();
    let config = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
        command.arg("config").args(args).current_dir(folder.path()).env_clear().env("APAD_TRAIN_BATCH", "4");
        command.output().unwrap()
    };
    let listed = config(&["--json", "--set", "train.epochs=3"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let of = |name: &str| listed.as_array().unwrap().iter().find(|s| s["name"] == name).unwrap().clone();
    for (name, value, from) in [
        ("train.lambda", 0.2.into(), "apad.toml"),
        ("train.batch", serde_json::json!(4), "APAD_TRAIN_BATCH"),
        ("train.epochs", 3.into(), "--set"),
        ("train.minibatch", 8.into(), "default"),
    ] {
        assert_eq!((&of(name)["value"], &of(name)["from"]), (&value, &from.into()), "{name}");
    }
    let lambda = of("train.lambda");
    assert_eq!((&lambda["variable"], &lambda["type"]), (&"APAD_TRAIN_LAMBDA".into(), &"a number".into()));
    assert_eq!((&lambda["range"], &lambda["default"]), (&"above 0".into(), &0.1.into()));
    assert_eq!(listed.as_array().unwrap().len(), apa::config::Config::keys().len());

    let one = String::from_utf8(config(&["train.lambda"]).stdout).unwrap();
    assert!(one.starts_with("train.lambda = 0.2  (apad.toml)\n"), "{one}");
    assert!(one.ends_with("    APAD_TRAIN_LAMBDA; a number: above 0; default 0.1\n\n"), "{one}");
    let wrong = config(&["train.lambda", "--set", "train.lambda=-1"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stdout).starts_with("train.lambda = -1"), "what is wrong is shown too");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("train.lambda is -1, expected a number above 0"));
    let unknown = config(&["train.lamda"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("did you mean train.lambda?"));
}

#[test]
fn the_document_of_the_settings_is_current() {
    let now = String::from_utf8(apad(&["config", "--markdown"]).stdout).unwrap();
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/CONFIG.md")).unwrap();
    assert!(now == document, "docs/CONFIG.md is not what `apad config --markdown` says: run make docs");
}

#[test]
#[cfg(target_os = "linux")]
fn output_that_can_t_be_written_is_said_in_one_line() {
    for args in [&["config"][..], &["config", "--markdown"], &["pull", "--list"], &["doctor", "--json"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_apad")).args(args).stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("apad: ")).collect();
        assert_eq!((output.status.code(), lines.len()), (Some(1), 1), "{args:?}: {said}");
        assert!(lines[0].contains("No space left") && !said.contains("panicked"), "{args:?}: {said}");
    }
}

#[test]
fn a_reader_that_has_left_ends_a_command_without_a_word() {
    let all = [
        &["config"][..],
        &["config", "--markdown"],
        &["pull", "--list"],
        &["--help"],
        &["serve", "--help"],
        &["fly"],
        &["status"],
        &["bench", "promotion", "--help"],
    ];
    for args in all {
        for closed in ["stdout", "stderr", "both"] {
            let gone = || {
                let (reader, writer) = std::io::pipe().unwrap();
                drop(reader);
                writer
            };
            let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
            command.args(args).env("APAD_URL", "http://127.0.0.1:1").env("RUST_BACKTRACE", "1");
            if closed != "stdout" {
                command.stderr(gone());
            }
            if closed != "stderr" {
                command.stdout(gone());
            }
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!said.contains("panicked") && output.status.code() != Some(101), "{args:?} {closed}: {said}");
            assert!(output.status.code().is_some(), "{args:?} {closed}: {:?}", output.status);
        }
    }
}

#[test]
fn a_subcommand_of_versions_offers_a_data_folder_if_it_takes_one() {
    let help = |action: &str| String::from_utf8(apad(&["versions", action, "--help"]).stdout).unwrap();
    for action in ["list", "show", "verify", "activate", "rollback", "adopt"] {
        assert!(help(action).contains("--data <DIR>"), "{action}");
    }
    for action in ["snapshot", "restore", "train"] {
        assert!(!help(action).contains("--data"), "{action}");
    }
    for args in [
        &["versions", "--data", "none"][..],
        &["versions", "--data", "none", "list"],
        &["versions", "list", "--data", "none"],
    ] {
        fails(args, 1, "none");
    }
    fails(&["versions", "train", "--data", "none"], 2, "--data");
}

#[test]
fn options_stand_before_and_behind_subcommands() {
    for args in [
        &["versions", "--url", "http://127.0.0.1:2", "list"][..],
        &["versions", "list", "--url", "http://127.0.0.1:2", "--json", "--key", "k"],
        &["--log", "warn", "versions", "show", "3", "--url", "http://127.0.0.1:2"],
        &["versions", "activate", "3", "--log", "warn", "--log-json", "--url", "http://127.0.0.1:2"],
    ] {
        fails(args, 1, "127.0.0.1:2");
    }
}

//! `apad chat` at a terminal, driven by a script that types and reads, against a real service on the tiny model.

use std::path::Path;
use std::process::Command;

use crate::support::c::run;
use crate::support::server::Server;

#[tokio::test(flavor = "multi_thread")]
async fn a_person_at_a_terminal_edits_lines_stops_answers_and_hears_what_is_learned() {
    let server = Server::learning().await;
    let cache = tempfile::tempdir().unwrap();
    let mut command = Command::new("python3");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/chat_pty.py"));
    command.arg(env!("CARGO_BIN_EXE_apad")).arg(&server.url).arg(cache.path());
    let output = tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("ok\n"));
    server.close().await;
}

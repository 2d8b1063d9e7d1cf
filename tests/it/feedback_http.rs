//! What people say of answers, over HTTP and in the terminal, on a tiny model.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use apa::ledger::{Exported, LedgerReader};
use apa::types::Signal;
use serde_json::json;

use crate::support::server::Server;

/// What a conversation in the terminal printed, and whether it ended well.
async fn chat(url: &str, lines: &str) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
    command.args(["chat", "--url", url, "--user", "ann", "--max-tokens", "4"]);
    let lines = lines.to_owned();
    tokio::task::spawn_blocking(move || {
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_can_be_said_of_an_answer_can_be_said_in_the_terminal() {
    let server = Server::start().await;
    let lines =
        "/help\nhello\n+\n-\n/rate 0.5\n/note hm\n/signal copied\n/again\n/better\n/fix Good day.\nmore\n/new\n";
    let (good, out, err) = chat(&server.url, lines).await;
    assert!(good, "{out}{err}");
    for said in [
        "/fix TEXT",
        "rated +1;",
        "rated -1, replaces",
        "rated +0.5, replaces",
        "noted",
        "once more",
        "preferred",
        "corrected",
    ] {
        assert!(out.contains(said), "no {said:?} in {out}");
    }
    let (mut said, mut preferred) = (Vec::new(), 0);
    let mut note = |one: &Exported| {
        match one {
            Exported::Feedback(_, feedback, _) => said.push(feedback.clone()),
            Exported::Preference(..) => preferred += 1,
        }
        Ok(())
    };
    LedgerReader::open(&server.folder.path().join("data")).unwrap().for_each(&mut note).unwrap();
    assert_eq!(preferred, 1);
    let signals: Vec<&Signal> = said.iter().map(|f| &f.signal).collect();
    let named = |name: &str| Signal::Named(name.into());
    let (copied, regenerated, fixed) = (named("copied"), named("regenerated"), Signal::Correction("Good day.".into()));
    let rated = [1.0, -1.0, 0.5].map(Signal::Rating);
    let expected = [&rated[0], &rated[1], &rated[2], &Signal::Comment, &copied, &regenerated, &fixed];
    assert_eq!(signals, expected);
    assert!(said.iter().all(|f| f.user.as_deref() == Some("ann")));

    for (lines, message) in [
        ("+\n", "no answer yet"),
        ("hello\n/better\n", "no two answers"),
        ("hello\n/rate much\n", "is no number"),
        ("hello\n/fix\n", "needs some words"),
        ("/what\n", "there is no \"/what\" here"),
    ] {
        let (good, _, err) = chat(&server.url, lines).await;
        assert!(!good && err.contains(message), "{lines:?}: {err}");
    }
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure_feedback_of_16_clients_over_http() {
    let server = Server::start().await;
    let mut ids = Vec::new();
    for seed in 0..64 {
        let body = json!({"messages": [{"role": "user", "content": "hello"}], "seed": seed, "max_tokens": 1});
        let (_, answer) = server.post("/v1/chat/completions", body).await;
        ids.push(answer["id"].as_str().unwrap().to_owned());
    }
    const EACH: usize = 1000;
    let start = Instant::now();
    let clients: Vec<_> = (0..16)
        .map(|client| {
            let (http, url, ids) = (server.client.clone(), format!("{}/v1/feedback", server.url), ids.clone());
            tokio::spawn(async move {
                let mut waits = Vec::with_capacity(EACH);
                for n in 0..EACH {
                    // A new user every hundred: below the limit of an hour, all of it counts.
                    let user = format!("{client}-{}", n / 100);
                    let id = &ids[(client + n) % ids.len()];
                    let body = json!({"generation_id": id, "rating": 0.5, "user": user}).to_string();
                    let asked = Instant::now();
                    let response = http.post(&url).body(body).send().await.unwrap();
                    assert_eq!(response.status(), 200);
                    response.bytes().await.unwrap();
                    waits.push(asked.elapsed());
                }
                waits
            })
        })
        .collect();
    let mut waits = Vec::new();
    for client in clients {
        waits.extend(client.await.unwrap());
    }
    let rate = waits.len() as f64 / start.elapsed().as_secs_f64();
    waits.sort();
    let p99 = waits[waits.len() * 99 / 100];
    println!("over HTTP: {rate:.0} ratings/s, p50 {:?}, p99 {p99:?}", waits[waits.len() / 2]);
    assert!(rate >= 2000.0 && p99 < Duration::from_millis(50), "{rate:.0} ratings/s, p99 {p99:?}");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_name_moves_no_cursor_and_one_that_nobody_has_is_not_reviewed() {
    let server = Server::start().await;
    let name = "ann\u{1b}[2J\u{7}\u{9b}31m\u{202e}";
    let id = server.say(1).await["id"].clone();
    let (status, said) = server.post("/v1/feedback", json!({"generation_id": id, "rating": 1, "user": name})).await;
    assert!(status.is_success(), "{said}");
    let review = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
        command.arg("review").args(args).args(["--url", &server.url]);
        tokio::task::block_in_place(|| command.output().unwrap())
    };
    let calm = |bytes: &[u8]| {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        assert!(!text.chars().any(|c| c != '\n' && apa::shown::is_obeyed(c)), "{text:?}");
        text
    };
    for unknown in ["", "nobody", "no\u{1b}body"] {
        let ran = review(&["--user", unknown, "trust"]);
        assert!(!ran.status.success() && calm(&ran.stderr).contains("expected one who asked or rated"), "{ran:?}");
    }
    let ran = review(&[]);
    assert_eq!(calm(&ran.stdout), "nobody's feedback waits for review\n", "{ran:?}");
    let ran = review(&["--user", name, "trust"]);
    assert!(ran.status.success(), "{ran:?}");
    assert!(calm(&ran.stdout).starts_with("ann\\u{1b}[2J\\u{7}\\u{9b}31m\\u{202e}: trust"), "{ran:?}");
    let listed = review(&["--json"]);
    let json: serde_json::Value = serde_json::from_str(&calm(&listed.stdout)).unwrap();
    let users: Vec<_> = json["data"].as_array().unwrap().iter().map(|entry| entry["user"].clone()).collect();
    assert_eq!(users, [json!(name)], "the name itself, and nobody else");
}

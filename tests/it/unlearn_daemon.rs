//! `apad forget --unlearn` as an operator uses it: the cost first, the progress, by the command and by HTTP; and a
//! daemon that is killed in the middle of it. On a tiny model.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::daemon::Daemon;

/// Steps by order alone, each of which takes most of a second on a fast machine too: the replay must be seen, and
/// killed, on its way.
const SETTINGS: &[&str] = &[
    "serve.context=1024",
    "train.auto=false",
    "train.rank=4",
    "train.threads=1",
    "train.lr=7e-5",
    "train.epochs=400",
    "train.kl_step=0",
    "train.kl_budget=0",
    "gate.count=2",
    "gate.max_tokens=8",
    "gate.watch=false",
    "reward.user_hourly=0",
    "reward.user_share=1",
    "publish.keep_states=0",
];
const ROUNDS: u64 = 5;

struct Client {
    http: reqwest::Client,
    runtime: tokio::runtime::Runtime,
    url: String,
}

impl Client {
    fn of(daemon: &Daemon) -> Self {
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(120)).build().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { http, runtime, url: daemon.url.clone() }
    }

    fn post(&self, path: &str, body: Value) -> Value {
        self.call(path, self.http.post(format!("{}{path}", self.url)).body(body.to_string()))
    }

    fn get(&self, path: &str) -> Value {
        self.call(path, self.http.get(format!("{}{path}", self.url)))
    }

    fn call(&self, path: &str, request: reqwest::RequestBuilder) -> Value {
        self.runtime.block_on(async {
            let response = request.send().await.unwrap();
            let (status, body) = (response.status(), response.text().await.unwrap());
            assert_eq!(status, 200, "{path}: {body}");
            serde_json::from_str(&body).unwrap()
        })
    }

    fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let trainer = self.get("/v1/trainer");
            if holds(&trainer) {
                return trainer;
            }
            assert!(start.elapsed() < Duration::from_secs(240), "never: {what}: {trainer}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks and rates for three users, and trains, so many times; the versions after the first learned from Ann.
    fn learn(&self) {
        self.until("the trainer is ready", |trainer| trainer["state"] == "idle");
        for round in 0..ROUNDS {
            let users = if round == 0 { &["bob", "cyn"][..] } else { &["bob", "cyn", "ann"] };
            for (n, user) in users.iter().enumerate() {
                let asked = json!({"prompt": "the", "max_tokens": 8, "user": user, "seed": 10 * round + n as u64});
                let answer = self.post("/v1/completions", asked);
                let rating = if n == 0 { 1.0 } else { -0.5 };
                let id = answer["generation_id"].as_str().or(answer["id"].as_str()).unwrap().to_owned();
                self.post("/v1/feedback", json!({"generation_id": id, "rating": rating, "user": user}));
            }
            let step = self.post("/v1/trainer/step", json!({}));
            assert_eq!(step["outcome"], "published", "{step}");
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)
        } else {
            let _ = std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn learned(folder: &Path, version: u64) -> Vec<Vec<u8>> {
    let version = folder.join(format!("data/versions/{version:06}"));
    ["adapter.gguf", "critic.gguf", "trainer.safetensors"].map(|name| std::fs::read(version.join(name)).unwrap()).into()
}

fn apad(daemon: &Daemon, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
    let output = command.args(args).args(["--url", &daemon.url]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{args:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[test]
fn an_operator_is_told_the_cost_first_and_a_daemon_killed_in_the_middle_comes_to_the_same() {
    let (killed, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = Daemon::on(killed.path(), SETTINGS);
    Client::of(&daemon).learn();
    drop(daemon);
    copy(killed.path(), whole.path());

    // By the command, to its end.
    let daemon = Daemon::on(whole.path(), SETTINGS);
    let client = Client::of(&daemon);
    client.until("the trainer is ready", |trainer| trainer["state"] == "idle");
    let cost = apad(&daemon, &["forget", "--user", "ann", "--unlearn", "--dry-run"]);
    let first = "version 2 was the first to learn from the user; it and all later ones will be removed: 4 on record\n";
    assert!(cost.starts_with(first), "{cost}");
    assert!(
        cost.contains("4 batches of 12 answers are trained on again without the user's, from version 1; "),
        "{cost}"
    );
    assert_eq!(client.get("/v1/trainer")["unlearning"], Value::Null, "nothing has begun");
    // A folder takes no --dry-run, and what is asked for that way is not deleted.
    let mut folder = std::process::Command::new(env!("CARGO_BIN_EXE_apad"));
    let asked = folder.args(["forget", "--user", "ann", "--dry-run", "--data"]).arg(whole.path().join("data"));
    let said = asked.output().unwrap();
    assert_eq!((said.status.code(), said.stdout.len()), (Some(2), 0), "{said:?}");
    let said = apad(&daemon, &["forget", "--user", "ann", "--unlearn"]);
    assert!(said.starts_with(first), "{said}");
    assert!(said.contains("\ndeleted 4 answers, 4 pieces of feedback, 0 preferences\n"), "{said}");
    assert!(said.contains(" of 4 batches, some "), "{said}");
    // With what the judgement said.
    assert!(said.lines().last().unwrap().starts_with("version 6 serves; nothing scores its answers"), "{said}");
    let list = apad(&daemon, &["versions", "verify"]);
    for gone in 2..=5 {
        assert!(list.contains(&format!("{gone}  removed (publish.keep, or a user was forgotten)\n")), "{list}");
    }
    assert!(list.contains("*       6  whole\n"), "{list}");
    drop(daemon);

    // By HTTP, killed after the first batch.
    let daemon = Daemon::on(killed.path(), SETTINGS);
    let client = Client::of(&daemon);
    client.until("the trainer is ready", |trainer| trainer["state"] == "idle");
    let plan = client.post("/v1/forget", json!({"user": "ann", "unlearn": true, "dry_run": true}));
    let receipt = client.post("/v1/forget", json!({"user": "ann", "unlearn": true}));
    assert_eq!((&receipt["unlearning"], &receipt["generations"]), (&plan["unlearning"], &json!(4)), "{receipt}");
    let on = client.until("a batch", |trainer| trainer["unlearning"]["replayed"].as_u64() != Some(0));
    let replayed = on["unlearning"]["replayed"].as_u64().expect("it was done before it could be killed");
    assert!((1..4).contains(&replayed) && on["unlearning"]["batches"] == 4, "{on}");
    drop(daemon);
    let daemon = Daemon::on(killed.path(), SETTINGS);
    let client = Client::of(&daemon);
    let done = |trainer: &Value| trainer["state"] == "idle" && trainer["unlearning"].is_null();
    client.until("it is done", done);
    assert_eq!(client.get("/v1/status")["policy_version"], 6);
    let version = client.get("/v1/policy/versions/6");
    assert_eq!((&version["lineage"], &version["verdict"]["ruling"]), (&json!([1, 0]), &json!("promoted")), "{version}");
    assert!(learned(killed.path(), 6) == learned(whole.path(), 6), "a kill changes what is learned");
}

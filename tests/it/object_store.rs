//! Versions that are in an object store too: a machine that lost its own serves on, from a folder and from a server
//! that speaks S3.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use apa::types::PolicyVersion;
use apa::{Code, Engine};
use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::engine::{answer, open_with, published, rate_some};
use crate::support::packages::packages;

fn open(dir: &Path, url: &str) -> apa::Result<Engine> {
    open_with(dir, |config| {
        config.publish.store = Some(url.to_owned());
        config.gate.examine = false;
        config.train.batch = 4;
    })
}

#[test]
fn what_a_machine_lost_comes_back_from_the_store() {
    let (dir, bucket) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let url = format!("file://{}", bucket.path().display());
    let engine = open(dir.path(), &url).unwrap();
    for version in 1..=2 {
        rate_some(&engine, 4);
        assert_eq!(published(engine.train_step().unwrap()).0, PolicyVersion(version));
    }
    let said = answer(&engine, "the", 1).text.clone();
    engine.shutdown();
    drop(engine);
    fs::remove_dir_all(dir.path().join("data/versions")).unwrap();

    let engine = open(dir.path(), &url).unwrap();
    assert_eq!((engine.status().policy_version, engine.status().alerts), (PolicyVersion(2), vec![]));
    assert_eq!(answer(&engine, "the", 1).text, said);
    // The one before is fetched when it is asked for, and learning goes on from it with its moments.
    engine.activate(PolicyVersion(1)).unwrap();
    assert_eq!(answer(&engine, "the", 1).policy_version, PolicyVersion(1));
    rate_some(&engine, 4);
    assert_eq!(published(engine.train_step().unwrap()).0, PolicyVersion(3));
    assert!(bucket.path().join("versions/000003").is_dir());
}

#[test]
fn a_store_that_is_away_keeps_learning_from_making_a_version_and_loses_no_rating() {
    let (dir, bucket) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let place = bucket.path().join("store");
    let engine = open(dir.path(), &format!("file://{}", place.display())).unwrap();
    fs::write(&place, "not a folder").unwrap();
    rate_some(&engine, 4);
    let error = engine.train_step().unwrap_err();
    assert!(error.code() == Code::Io && error.message().contains("the object store file://"), "{error}");
    assert_eq!(answer(&engine, "the", 1).policy_version, PolicyVersion::INITIAL);
    assert_eq!(engine.status().trainer.pending_ratings, 4);
    fs::remove_file(&place).unwrap();
    assert_eq!(published(engine.train_step().unwrap()).0, PolicyVersion(1));
    assert_eq!(open(tempfile::tempdir().unwrap().path(), "ftp://x/y").err().unwrap().code(), Code::Arg);
}

/// A server that speaks S3, ended when it is dropped.
struct S3(Child, String);

impl S3 {
    fn start() -> Option<Self> {
        let server = packages(&["venv/bin/moto_server"])?.join("venv/bin/moto_server");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let mut command = Command::new(server);
        command.args(["-H", "127.0.0.1", "-p", &port]).stdout(Stdio::null()).stderr(Stdio::null());
        Some(Self(command.spawn().unwrap(), format!("http://127.0.0.1:{port}")))
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn post(url: String, body: Value) -> Value {
    let response = reqwest::Client::new().post(url).body(body.to_string()).send().await.unwrap();
    let body = response.text().await.unwrap();
    serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}"))
}

/// An answer's version and id.
async fn ask(daemon: &Daemon) -> (u64, Value) {
    let question = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4});
    let answer = post(format!("{}/v1/chat/completions", daemon.url), question).await;
    (answer["policy_version"].as_u64().unwrap_or_else(|| panic!("{answer}")), answer["id"].clone())
}

#[tokio::test]
async fn a_daemon_keeps_its_versions_in_s3() {
    let Some(s3) = S3::start() else { return };
    let began = Instant::now();
    let bucket = format!("{}/versions-of-apad", s3.1);
    while !reqwest::Client::new().put(&bucket).send().await.is_ok_and(|made| made.status().is_success()) {
        assert!(began.elapsed() < Duration::from_secs(60), "the S3 server doesn't start");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        "publish.store=s3://versions-of-apad/tiny",
        "gate.examine=false",
        "train.batch=4",
        "train.rank=4",
        "train.threads=1",
        "reward.user_share=1",
        "serve.context=2048",
    ];
    let variables = [
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT", s3.1.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
    ];
    // What a first version would find out is told before.
    let doctor = |store: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_apad"));
        command.current_dir(folder.path()).args(["doctor", "--json", "--set", &format!("publish.store={store}")]);
        let output = command.envs(variables).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.success(), report["report"]["store"].clone())
    };
    let (well, told) = doctor("s3://versions-of-apad/tiny");
    assert!(well && told["Ok"] == "s3://versions-of-apad/tiny", "{told}");
    let (well, told) = doctor("s3://none-of-that-name/tiny");
    let said = told["Err"].as_str().unwrap();
    assert!(!well && said.contains("s3://none-of-that-name/tiny") && said.contains("NoSuchBucket"), "{said}");
    let daemon = Daemon::with(folder.path(), &settings, &variables);
    for n in 0..4 {
        let (_, id) = ask(&daemon).await;
        let rating = json!({"generation_id": id, "rating": if n % 2 == 0 { 1.0 } else { -1.0 }, "user": "ann"});
        post(format!("{}/v1/feedback", daemon.url), rating).await;
    }
    while ask(&daemon).await.0 == 0 {
        assert!(began.elapsed() < Duration::from_secs(120), "nothing was learned");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let version = ask(&daemon).await.0;
    drop(daemon);
    fs::remove_dir_all(folder.path().join("data/versions")).unwrap();
    let daemon = Daemon::with(folder.path(), &settings, &variables);
    assert_eq!(ask(&daemon).await.0, version);
}

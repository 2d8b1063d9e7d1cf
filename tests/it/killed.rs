//! A daemon that is killed while it answers, is rated, trains and swaps, again and again. `make bench-feedback` does it
//! a thousand times.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use apa::ledger::{Exported, LedgerReader, Use};
use apa::publish::Manifest;
use apa::types::PolicyVersion;
use serde_json::{Value, json};

use crate::support::daemon::Daemon;

const CLIENTS: usize = 4;

/// Every step makes a version, at once, and every rating counts.
const SETTINGS: &[&str] = &[
    "serve.context=2048",
    "train.batch=4",
    "train.minibatch=2",
    "train.rank=4",
    "train.threads=1",
    "train.kl_step=0",
    "train.kl_budget=0",
    "gate.examine=false",
    "gate.watch=false",
    "reward.user_hourly=0",
    "reward.user_share=1",
];

/// What the daemon acknowledged, as its clients saw it.
#[derive(Default)]
struct Told {
    /// Answers of the ratings, by the ratings' numbers.
    ratings: HashMap<u64, String>,
    /// Versions that answered.
    versions: HashSet<u64>,
}

/// Asks and rates, until the daemon is gone.
async fn ask_and_rate(http: reqwest::Client, url: String, client: usize, told: Arc<Mutex<Told>>) {
    let post = async |path: &str, body: Value| -> Option<Value> {
        let response = http.post(format!("{url}{path}")).body(body.to_string()).send().await.ok()?;
        let (status, body) = (response.status(), response.bytes().await.ok()?);
        let body = serde_json::from_slice(&body).unwrap();
        assert_eq!(status, 200, "{path}: {body}");
        Some(body)
    };
    for n in 0.. {
        let question = json!({"messages": [{"role": "user", "content": format!("hello {client}")}], "max_tokens": 4});
        let Some(answer) = post("/v1/chat/completions", question).await else { return };
        let id = answer["id"].as_str().unwrap().to_owned();
        told.lock().unwrap().versions.insert(answer["policy_version"].as_u64().unwrap());
        let rating = if (n + client).is_multiple_of(2) { 1.0 } else { -1.0 };
        let rated = json!({"generation_id": id, "rating": rating, "user": format!("{client}")});
        let Some(receipt) = post("/v1/feedback", rated).await else { return };
        let row = receipt["feedback_id"].as_u64().unwrap();
        assert!(told.lock().unwrap().ratings.insert(row, id).is_none(), "rating {row} was acknowledged twice");
    }
}

/// Parent and adapter of the versions of a data folder.
fn kept(data: &Path) -> BTreeMap<u64, (Option<PolicyVersion>, String)> {
    let Ok(folders) = std::fs::read_dir(data.join("versions")) else { return BTreeMap::new() };
    let numbered = |folder: std::fs::DirEntry| {
        let number = folder.file_name().to_str()?.parse().ok()?;
        let manifest = Manifest::read(&folder.path()).unwrap();
        Some((number, (manifest.about.parent, manifest.files["adapter.gguf"].sha256.clone())))
    };
    folders.filter_map(|folder| numbered(folder.unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_loses_no_rating_teaches_none_twice_and_keeps_what_it_served() {
    let rounds: usize = std::env::var("APA_KILL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
    let told = Arc::new(Mutex::new(Told::default()));
    let mut versions = BTreeMap::new();
    for round in 0..rounds {
        let start = {
            let folder = folder.path().to_owned();
            move || Daemon::on(&folder, SETTINGS)
        };
        let daemon = tokio::task::spawn_blocking(start).await.unwrap();
        let before = told.lock().unwrap().ratings.len();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| tokio::spawn(ask_and_rate(http.clone(), daemon.url.clone(), client, told.clone())))
            .collect();
        // However busy the machine is, it is killed at work.
        while told.lock().unwrap().ratings.len() < before + 8 {
            assert!(!clients.iter().all(|client| client.is_finished()), "round {round}: nobody was answered");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // In every other round a new version has answered.
        let newest = || told.lock().unwrap().versions.iter().max().copied().unwrap_or(0);
        let served = versions.keys().max().copied().unwrap_or(0);
        let until = Instant::now() + Duration::from_secs(30);
        while round % 2 == 1 && newest() <= served {
            assert!(Instant::now() < until, "round {round}: nothing is learned");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..700))).await;
        drop(daemon);
        for client in clients {
            client.await.unwrap();
        }

        // A version is never another than it was.
        for (number, version) in kept(&data) {
            let was = versions.entry(number).or_insert_with(|| version.clone());
            assert_eq!(*was, version, "round {round}: version {number}");
        }
        let told = told.lock().unwrap();
        for version in &told.versions {
            assert!(*version == 0 || versions.contains_key(version), "round {round}: version {version} answered");
        }
        // All is read now and then, since that takes longer with each round.
        if round % 50 < 4 || round + 1 == rounds {
            check_ledger(&data, &told, &versions, round);
        }
    }
    let told = told.lock().unwrap();
    println!(
        "killed {rounds} times: {} ratings, {} versions, {} of them answered",
        told.ratings.len(),
        versions.len(),
        told.versions.len()
    );
    assert!(versions.len() >= rounds / 2 && told.versions.len() > 1, "{} versions", versions.len());
}

/// Every acknowledged rating is there, once; nothing else is but what was under way; and each version was taught by as
/// many ratings as it says.
fn check_ledger(data: &Path, told: &Told, versions: &BTreeMap<u64, (Option<PolicyVersion>, String)>, round: usize) {
    let (mut ratings, mut rated, mut taught) = (HashMap::new(), HashSet::new(), BTreeMap::<u64, u64>::new());
    let mut read = |one: &Exported| {
        let Exported::Feedback(generation, feedback, _) = one else { panic!("a preference") };
        let id = generation.id.to_string();
        assert!(rated.insert(id.clone()), "round {round}: {id} has two ratings");
        ratings.insert(feedback.feedback_id, id);
        match &feedback.used_by {
            Some(Use::Version(version)) => *taught.entry(version.0).or_default() += 1,
            Some(Use::Skipped(_)) | None => {}
        }
        Ok(())
    };
    let reader = LedgerReader::open(data).unwrap();
    reader.for_each(&mut read).unwrap();
    for (row, id) in &told.ratings {
        assert_eq!(ratings.get(row), Some(id), "round {round}: rating {row}");
    }
    assert!(ratings.len() <= told.ratings.len() + CLIENTS * (round + 1), "{} ratings", ratings.len());
    for version in taught.keys() {
        assert!(versions.contains_key(version), "round {round}: version {version} has taken ratings and is gone");
    }
}

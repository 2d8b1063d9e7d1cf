//! Several servers of one ledger in Postgres, with their versions in one object store: one trains and decides, the
//! others serve what it decided.

use std::path::Path;
use std::time::{Duration, Instant};

use apa::config::Role;
use apa::engine::{AlertKind, TrainerState};
use apa::types::*;
use apa::{Code, Engine};

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::database;
use crate::support::engine::{answer, open_with, published, rate, rate_some, request};

/// What a new version may take to serve everywhere.
const SOON: Duration = Duration::from_secs(5);

fn open(dir: &Path, ledger: &str, store: &Path, role: Role) -> Engine {
    open_with(dir, |config| {
        config.ledger.url = Some(ledger.to_owned());
        config.publish.store = Some(format!("file://{}", store.display()));
        config.gate.examine = false;
        config.gate.watch = false;
        config.train.batch = 4;
        config.serve.role = role;
    })
    .unwrap()
}

fn serves_soon(engine: &Engine, version: u64) {
    let began = Instant::now();
    while answer(engine, "the", 1).policy_version != PolicyVersion(version) {
        assert!(began.elapsed() < SOON, "version {version} is not served: {:?}", engine.status().alerts);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn servers_serve_within_seconds_what_one_of_them_trained_or_a_person_chose() {
    let Some(ledger) = database() else { return };
    let [a, b, c, store] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    let trainer = open(a.path(), &ledger, store.path(), Role::All);
    let servers = [&b, &c].map(|dir| open(dir.path(), &ledger, store.path(), Role::Server));
    assert_eq!(servers[0].status().trainer.state, TrainerState::Off);

    // Ratings given anywhere are learned from.
    rate_some(&servers[0], 2);
    rate_some(&servers[1], 2);
    assert_eq!(published(trainer.train_step().unwrap()).0, PolicyVersion(1));
    servers.iter().for_each(|server| serves_soon(server, 1));
    let said = answer(&trainer, "the", 5).text.clone();
    servers.iter().for_each(|server| assert_eq!(answer(server, "the", 5).text, said));

    // What isn't theirs to do is said.
    for error in [servers[0].train_step().unwrap_err(), servers[1].restore(Path::new("x")).unwrap_err()] {
        assert!(error.code() == Code::Unsupported && error.message().contains("serve.role"), "{error}");
    }

    // A person goes back, at a server that doesn't decide: the others hear of it, and the one that trains goes on from
    // it.
    servers[0].activate(PolicyVersion::INITIAL).unwrap();
    serves_soon(&servers[1], 0);
    let began = Instant::now();
    while trainer.status().policy_version != PolicyVersion::INITIAL {
        assert!(began.elapsed() < SOON + SOON, "the trainer doesn't follow");
        std::thread::sleep(Duration::from_millis(50));
    }
    rate_some(&servers[0], 4);
    assert_eq!(published(trainer.train_step().unwrap()).0, PolicyVersion(2));
    assert_eq!(trainer.version(PolicyVersion(2)).unwrap().info.parent, Some(PolicyVersion::INITIAL));
    servers.iter().for_each(|server| serves_soon(server, 2));

    // A new machine has nothing of its own.
    let d = tempfile::tempdir().unwrap();
    let late = open(d.path(), &ledger, store.path(), Role::Server);
    assert_eq!(answer(&late, "the", 1).policy_version, PolicyVersion(2));
}

#[test]
fn a_server_that_can_not_fetch_a_version_serves_on_says_so_and_catches_up() {
    let Some(ledger) = database() else { return };
    let [a, b, store] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    let trainer = open(a.path(), &ledger, store.path(), Role::All);
    let server = open(b.path(), &ledger, store.path(), Role::Server);
    // The server sees another store than the trainer wrote to, for a while.
    let (there, away) = (store.path().join("versions"), store.path().join("away"));
    rate_some(&trainer, 4);
    std::fs::create_dir_all(&there).unwrap();
    std::fs::write(there.join("000001"), "no folder").unwrap();
    assert_eq!(trainer.train_step().unwrap_err().code(), Code::Io, "no version that others can't fetch");
    std::fs::remove_file(there.join("000001")).unwrap();
    published(trainer.train_step().unwrap());
    serves_soon(&server, 1);

    server.shutdown();
    drop(server);
    std::fs::remove_dir_all(b.path().join("data/versions")).unwrap();
    std::fs::rename(&there, &away).unwrap();
    let server = open(b.path(), &ledger, store.path(), Role::Server);
    let g = answer(&server, "the", 1);
    assert_eq!(g.policy_version, PolicyVersion::INITIAL);
    rate(&server, &g.id, 1.0).unwrap();
    let began = Instant::now();
    while server.status().alerts.iter().all(|alert| alert.kind != AlertKind::FellBack) {
        assert!(began.elapsed() < SOON, "nothing is said");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(trainer.status().policy_version, PolicyVersion(1), "it chose for itself alone");
    std::fs::rename(&away, &there).unwrap();
    let began = Instant::now();
    while answer(&server, "the", 1).policy_version != PolicyVersion(1) {
        assert!(began.elapsed() < SOON + SOON, "{:?}", server.status().alerts);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(server.status().alerts, []);
}

/// Waits until it is so, for at most so many seconds.
fn until(seconds: u64, what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !is() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn of_two_servers_that_may_train_one_does_and_the_other_takes_its_place_when_it_ends() {
    let Some(ledger) = database() else { return };
    let [a, b, c, store] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    let [first, second] = [&a, &b].map(|dir| open(dir.path(), &ledger, store.path(), Role::All));
    let trainer = open(c.path(), &ledger, store.path(), Role::Trainer);
    until(5, "the second follows", || second.status().trainer.state == TrainerState::Off);
    let told = second.status().trainer.reason.unwrap();
    let process = format!("process {} trains and decides; this one takes over when nobody does", std::process::id());
    assert!(told.contains(&process), "{told}");
    let Err(refused) = trainer.generate(request(&second, "the", 1)) else { panic!("it answers") };
    assert!(refused.code() == Code::Unsupported && refused.message().contains("only trains"), "{refused}");

    rate_some(&second, 4);
    assert_eq!(second.train_step().unwrap_err().code(), Code::Unsupported);
    assert_eq!(published(first.train_step().unwrap()).0, PolicyVersion(1));
    serves_soon(&second, 1);
    first.shutdown();
    // Whichever is faster takes the place; the other waits for it in turn.
    let idle = |engine: &Engine| engine.status().trainer.state == TrainerState::Idle;
    until(20, "nobody takes over", || idle(&second) || idle(&trainer));
    let (next, last) = if idle(&second) { (second, trainer) } else { (trainer, second) };
    rate_some(if last.config().serve.role == Role::All { &last } else { &next }, 4);
    assert_eq!(published(next.train_step().unwrap()).0, PolicyVersion(2));
    drop(next);
    until(20, "nobody takes over", || idle(&last));
    assert_eq!(last.status().policy_version, PolicyVersion(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_slept_through_the_end_of_its_time_publishes_nothing_and_follows() {
    let Some(ledger) = database() else { return };
    let [a, b, store] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    let (url, store) = (format!("ledger.url={ledger}"), format!("publish.store=file://{}", store.path().display()));
    let settings = [
        &url,
        &store,
        "gate.examine=false",
        "gate.watch=false",
        "train.batch=4",
        "train.kl_step=0",
        "reward.user_hourly=0",
        "reward.user_share=1",
    ];
    let servers = [&a, &b].map(|dir| Daemon::on(dir.path(), &settings));
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
    let call = async |at: usize, path: &str, body: Option<Value>| -> Value {
        let url = format!("{}{path}", servers[at].url);
        let asked = match body {
            Some(body) => http.post(url).body(body.to_string()),
            None => http.get(url),
        };
        let response = asked.send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
    };
    let ask = async |at: usize, prompt: &str| {
        let body = json!({"prompt": prompt, "max_tokens": 8, "temperature": 0});
        call(at, "/v1/completions", Some(body)).await
    };
    let serves = async |at: usize, version: u64, seconds: u64| {
        let end = Instant::now() + Duration::from_secs(seconds);
        while ask(at, "hello").await["policy_version"] != version {
            let (trainer, all) = (call(at, "/v1/trainer", None).await, call(at, "/v1/policy/versions", None).await);
            assert!(Instant::now() < end, "server {at} doesn't serve version {version}: {trainer}, of {all}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let mut rated = 0;
    let mut rate_four = async |at: usize| {
        for n in rated..rated + 4 {
            let id = ask(at, &format!("hello {n}")).await["id"].clone();
            let rating = if n % 2 == 0 { 1.0 } else { -1.0 };
            let said = json!({"generation_id": id, "rating": rating, "user": format!("{n}")});
            call(at, "/v1/feedback", Some(said)).await;
        }
        rated += 4;
    };
    let leads = async |at: usize| {
        let end = Instant::now() + Duration::from_secs(60);
        while call(at, "/v1/trainer", None).await["state"] != "idle" {
            assert!(Instant::now() < end, "server {at} doesn't take over");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    leads(0).await;
    for round in 0..2 {
        let (leader, other) = (round % 2, 1 - round % 2);
        // The last rating starts a step, in which the server stops.
        rate_four(other).await;
        tokio::time::sleep(Duration::from_millis(40)).await;
        servers[leader].signal("STOP");
        leads(other).await;
        // It learned from what waited, unless that was learned from before.
        rate_four(other).await;
        serves(other, round as u64 * 2 + 2, 30).await;
        servers[leader].signal("CONT");
        serves(leader, round as u64 * 2 + 2, 30).await;
        assert_eq!(call(leader, "/v1/trainer", None).await["state"], "off");
        let said = ask(leader, "hello").await["choices"][0]["text"].clone();
        assert_eq!(said, ask(other, "hello").await["choices"][0]["text"]);
    }
    let listed = call(0, "/v1/policy/versions", None).await;
    assert_eq!(listed, call(1, "/v1/policy/versions", None).await);
    assert_eq!(listed["data"].as_array().unwrap().len(), 5, "{listed}");
}

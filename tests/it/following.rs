//! Several servers of one ledger in Postgres, with their versions in one object store: one trains and decides, the
//! others serve what it decided.

use std::path::Path;
use std::time::{Duration, Instant};

use apa::config::Role;
use apa::engine::{AlertKind, TrainerState};
use apa::types::*;
use apa::{Code, Engine};

use crate::support::database;
use crate::support::engine::{answer, open_with, published, rate, rate_some};

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

//! Tests of a ledger in Postgres whose servers, trainer or Postgres are killed, each a process of its own; and of what
//! four servers write together.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::process::Child;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::home_tests::Home;
use super::process_tests::{child, default_rules, spawn};
use super::server_tests::{Server, shared};
use super::spool_tests::drained;
use super::tests::{answer, id, rating, record, version};
use super::*;
use crate::types::*;

/// Clients of a server.
const CLIENTS: u32 = 4;

fn say(line: String) {
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

/// Clients rate, each answer once, and print what was acknowledged, whatever becomes of Postgres.
#[test]
#[ignore = "run by whoever_is_killed_nothing_acknowledged_is_lost_and_nothing_used_twice"]
fn child_serves() {
    let Some(ledger) = child(Rules::default()) else { return };
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let ledger = &ledger;
            scope.spawn(move || {
                for n in 0.. {
                    let name = format!("{}-{client}-{n}", std::process::id());
                    match record(ledger, answer(&name)).and_then(|()| ledger.add_feedback(&rating(&name, 0.5))) {
                        Ok(receipt) => {
                            say(format!("\ndone {} {name}\n", receipt.feedback_id));
                            // What waits is recorded more slowly than it is written down.
                            std::thread::sleep(Duration::from_millis(if receipt.spooled { 50 } else { 0 }));
                        }
                        Err(_) => std::thread::sleep(Duration::from_millis(5)),
                    }
                }
            });
        }
    });
}

/// Uses ratings up, and prints which.
#[test]
#[ignore = "run by whoever_is_killed_nothing_acknowledged_is_lost_and_nothing_used_twice"]
fn child_trains() {
    let Some(ledger) = child(Rules::default()) else { return };
    loop {
        let step = || -> crate::error::Result<Vec<u64>> {
            let used: Vec<u64> = ledger.pending_batch(8)?.into_iter().flat_map(|r| r.feedback_ids).collect();
            let next = ledger.next_version()?;
            if !used.is_empty() {
                ledger.commit_version(&version(next.0, next.0 - 1), TrainedBatch::of(&used, &[]))?;
            }
            Ok(used)
        };
        match step() {
            Ok(used) if !used.is_empty() => {
                let used: Vec<String> = used.iter().map(u64::to_string).collect();
                say(format!("\ndone {}\n", used.join(" ")));
            }
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// A process of the ledger, in a folder of its own.
struct Process {
    test: &'static str,
    home: Home,
    child: Child,
    /// What was acknowledged, in words.
    done: Receiver<String>,
}

impl Process {
    fn start(test: &'static str, home: Home) -> Self {
        let mut child = spawn(test, &home);
        let (sender, done) = channel();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        std::thread::spawn(move || {
            let told = lines.filter_map(|line| line.strip_prefix("done ").map(str::to_owned));
            told.for_each(|line| drop(sender.send(line)));
        });
        Self { test, home, child, done }
    }

    /// Waits until it has done something.
    fn at_work(&self) -> String {
        self.done.recv_timeout(Duration::from_secs(120)).unwrap_or_else(|e| panic!("{}: {e}", self.test))
    }

    /// Kills it, and returns what it had said.
    fn kill(mut self) -> (Home, Vec<String>) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        // Its end ends the output.
        (self.home, self.done.iter().collect())
    }
}

#[test]
fn whoever_is_killed_nothing_acknowledged_is_lost_and_nothing_used_twice() {
    let Some(server) = Server::start() else { return };
    let url = server.database();
    let start = |test| Process::start(test, Home::beside(&url));
    const SERVES: &str = "killed_tests::child_serves";
    const TRAINS: &str = "killed_tests::child_trains";
    let mut processes = vec![start(SERVES), start(SERVES), start(TRAINS)];
    let (mut rated, mut spooled, mut used) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
    let mut heard = |test: &str, line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |word: &str| word.parse::<u64>().unwrap();
        if test == SERVES && words[0] == "0" {
            spooled.push(words[1].to_owned());
        } else if test == SERVES {
            assert!(rated.insert(number(words[0]), words[1].to_owned()).is_none(), "{line}");
        } else {
            words.iter().for_each(|word| assert!(used.insert(number(word)), "feedback {word} was used twice"));
        }
    };
    let rounds = std::env::var("APA_KILL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    for round in 0..rounds {
        // However busy the machine is, all are at work: each server and the trainer in turn, or Postgres.
        processes.iter().for_each(|process| heard(process.test, &process.at_work()));
        std::thread::sleep(Duration::from_millis(rand::random_range(0..200)));
        match round % 4 {
            3 => server.kill_and_restart(),
            killed => {
                let test = processes[killed].test;
                let (home, said) = processes.remove(killed).kill();
                said.iter().for_each(|line| heard(test, line));
                processes.insert(killed, Process::start(test, home));
            }
        }
        for process in &processes {
            process.done.try_iter().for_each(|line| heard(process.test, &line));
        }
    }
    processes.iter().for_each(|process| heard(process.test, &process.at_work()));
    for process in processes {
        let test = process.test;
        let (home, said) = process.kill();
        said.iter().for_each(|line| heard(test, line));
        // What waits there is recorded by the next process of the folder.
        drained(&home.open());
    }
    let home = Home::beside(&url);
    let ledger = home.open();
    for (row, name) in &rated {
        let kept = ledger.feedback_of(&id(name)).unwrap();
        let [kept] = &kept[..] else { panic!("{} rows for {name}", kept.len()) };
        assert_eq!(kept.feedback_id, *row);
        assert!(kept.used_by.is_some() || !used.contains(row), "the use of feedback {row} is lost");
    }
    for name in &spooled {
        let kept = ledger.feedback_of(&id(name)).unwrap();
        assert_eq!(kept.len(), 1, "{name}, which waited for the database");
    }
    let (rated_at_once, waited) = (rated.len(), spooled.len());
    let used_up = used.len();
    println!(
        "{rounds} kills: {rated_at_once} ratings acknowledged, {waited} waited, {used_up} used, none lost or twice"
    );
    assert!(rated.len() > 20 && used.len() > 20, "{} ratings, {} used", rated.len(), used.len());
}

/// Rates when it is told to.
#[test]
#[ignore = "run by measure_durable_feedback_of_four_servers"]
fn child_rates_when_told() {
    let Some(ledger) = child(default_rules()) else { return };
    let name = |client: u32, n: u32| format!("{}-{client}-{n}", std::process::id());
    for client in 0..16 {
        for n in 0..EACH {
            let g = Generation { response: vec![std::process::id(), client, n], ..answer(&name(client, n)) };
            ledger.record_generation(Arc::new(g), Box::new(|outcome| outcome.unwrap())).unwrap();
        }
    }
    ledger.active().unwrap();
    ledger.response(&id("none")).unwrap(); // Behind what is queued.
    say("\ndone ready\n".into());
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let mut waits: Vec<Duration> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..16)
            .map(|client| {
                let ledger = &ledger;
                scope.spawn(move || {
                    let user = Some(format!("user {}-{client}", std::process::id()));
                    let one = |n| {
                        let start = Instant::now();
                        let feedback = NewFeedback { user: user.clone(), ..rating(&name(client, n), 0.5) };
                        ledger.add_feedback(&feedback).unwrap();
                        start.elapsed()
                    };
                    (0..EACH).map(one).collect::<Vec<_>>()
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    waits.sort();
    say(format!("\ndone {:?} {:?}\n", waits[waits.len() / 2], waits[waits.len() * 99 / 100]));
}

/// Ratings of each client.
const EACH: u32 = 500;

#[test]
#[ignore = "a measurement"]
fn measure_durable_feedback_of_four_servers() {
    let Some(server) = shared() else { return };
    let rates = (1..=4).map(|count| durable_feedback(server, count));
    let four = rates.last().unwrap();
    assert!(four >= 2000.0, "{four:.0} ratings/s");
}

/// Ratings a second of so many servers.
fn durable_feedback(server: &Server, count: u32) -> f64 {
    let url = server.database();
    let start = Instant::now();
    let mut servers: Vec<_> =
        (0..count).map(|_| Process::start("killed_tests::child_rates_when_told", Home::beside(&url))).collect();
    servers.iter().for_each(|server| assert_eq!(server.at_work(), "ready"));
    let all = f64::from(count * 16 * EACH);
    let answers = all / start.elapsed().as_secs_f64();
    let start = Instant::now();
    for server in &mut servers {
        server.child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }
    let waits: Vec<String> = servers.iter().map(Process::at_work).collect();
    let rate = all / start.elapsed().as_secs_f64();
    println!(
        "{count} servers on one Postgres: {answers:.0} answers/s, {rate:.0} ratings/s; p50 and p99 of each: {}",
        waits.join(", ")
    );
    servers.into_iter().for_each(|server| drop(server.kill()));
    rate
}

//! Tests of the ledger when its process is killed or its folder is held, and measurements at full size.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::db::Db;
use super::home_tests::{Home, suite};
use super::tests::{answer, id, rate, rating, record, version};
use super::*;
use crate::error::Code;
use crate::types::*;

/// Clients of a process that is killed.
const CLIENTS: u64 = 16;

/// Tells a re-executed test binary which folder to work in.
const CHILD_DIR: &str = "APA_LEDGER_TEST_DIR";
/// And which database, if any.
const CHILD_URL: &str = "APA_LEDGER_TEST_URL";
/// Runs one of the ignored tests below in a process of its own.
pub(super) fn spawn(test: &str, home: &Home) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([&format!("ledger::{test}"), "--exact", "--ignored", "--nocapture"])
        .env(CHILD_DIR, home.path())
        .env(CHILD_URL, home.url().unwrap_or_default())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The ledger that a child is told to use.
pub(super) fn child(rules: Rules) -> Option<Ledger> {
    let (dir, url) = (std::env::var_os(CHILD_DIR)?, std::env::var(CHILD_URL).ok()?);
    Some(Ledger::open_with(Place::new(Path::new(&dir), Some(&url)), rules).unwrap())
}

#[test]
#[ignore = "run by the_second_process_is_told_who_holds_the_folder"]
fn child_holds_the_folder() {
    let Some(_ledger) = child(Rules::default()) else { return };
    println!("\nheld");
    let _ = std::io::stdin().read_line(&mut String::new());
}

fn the_second_process_is_told_who_holds_the_folder(home: &Home) {
    let mut child = spawn("process_tests::child_holds_the_folder", home);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "held"));
    let error = Ledger::open(home.place()).err().unwrap();
    assert_eq!(error.code(), Code::Busy);
    let expected = format!("the data folder {} is in use by process {}", home.path().display(), child.id());
    assert_eq!(error.message(), expected);
    child.kill().unwrap();
    child.wait().unwrap();
    // Killed rather than closed, but the lock is free.
    home.open();
}

/// Sixteen clients rate, each answer once, and print what was acknowledged. A trainer uses ratings up, and prints that
/// too.
#[test]
#[ignore = "run by a_killed_process_loses_and_doubles_nothing"]
fn child_rates_until_killed() {
    let Some(ledger) = child(Rules::default()) else { return };
    let say = |line: String| std::io::stdout().write_all(line.as_bytes()).unwrap();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (ledger, say) = (&ledger, &say);
            scope.spawn(move || {
                for n in 0.. {
                    let name = format!("{}-{client}-{n}", std::process::id());
                    record(ledger, answer(&name)).unwrap();
                    let receipt = rate(ledger, &name, 0.25);
                    say(format!("\nrated {} {name}\n", receipt.feedback_id));
                }
            });
        }
        loop {
            let used: Vec<u64> = ledger.pending_batch(8).unwrap().into_iter().flat_map(|r| r.feedback_ids).collect();
            let next = ledger.next_version().unwrap();
            ledger.commit_version(&version(next.0, next.0 - 1), TrainedBatch::of(&used, &[])).unwrap();
            let used: Vec<String> = used.iter().map(u64::to_string).collect();
            say(format!("\nused {next} {}\n", used.join(" ")));
        }
    });
}

fn a_killed_process_loses_and_doubles_nothing(home: &Home) {
    let (mut rated, mut used) = (HashMap::new(), HashMap::new());
    let rounds = std::env::var("APA_KILL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    for round in 0..rounds {
        let mut child = spawn("process_tests::child_rates_until_killed", home);
        let output = BufReader::new(child.stdout.take().unwrap());
        let (at_work, begun) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let tell = |line: &String| {
                if line.starts_with("rated") {
                    let _ = at_work.send(());
                }
            };
            output.lines().map_while(Result::ok).inspect(tell).collect::<Vec<_>>()
        });
        // However busy the machine is, it is killed at work.
        begun.recv_timeout(Duration::from_secs(60)).unwrap();
        std::thread::sleep(Duration::from_millis(rand::random_range(0..250)));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in reader.join().unwrap() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["rated", row, name] => assert!(rated.insert(row.parse::<u64>().unwrap(), name.to_owned()).is_none()),
                ["used", version, ref rows @ ..] => {
                    for row in rows.iter().filter(|row| !row.is_empty()) {
                        let doubled = used.insert(row.parse::<u64>().unwrap(), version.parse::<u64>().unwrap());
                        assert_eq!(doubled, None, "feedback {row} was used twice");
                    }
                }
                _ => {}
            }
        }
        let ledger = home.open();
        for (row, name) in &rated {
            let kept = ledger.feedback_of(&id(name)).unwrap();
            let [kept] = &kept[..] else { panic!("round {round}: {} rows for {name}", kept.len()) };
            assert_eq!(kept.feedback_id, *row);
            match (used.get(row), &kept.used_by) {
                (Some(version), found) => assert_eq!(*found, Some(Use::Version(PolicyVersion(*version)))),
                // Killed between the commit and the print: only the child's last lines can be missing.
                (None, found) => assert!(!matches!(found, Some(Use::Skipped(_)))),
            }
        }
        let (total, unused): (u64, u64) = ledger
            .read(|db| {
                let sql = "SELECT count(*), count(*) FILTER (WHERE batch IS NULL) FROM feedback";
                db.one(sql, (), |row| Ok((rows::unsigned(row, 0)?, rows::unsigned(row, 1)?)))
            })
            .unwrap();
        assert_eq!(ledger.pending_ratings(), unused);
        // Besides what was acknowledged, only ratings in flight can be there: one per client and round.
        assert!(total >= rated.len() as u64 && total <= rated.len() as u64 + CLIENTS * (round + 1));
        home.check(&ledger);
    }
    println!("killed {rounds} times: {} ratings acknowledged, {} used, none lost, none twice", rated.len(), used.len());
    assert!(rated.len() > 20 && !used.is_empty(), "{} ratings, {} used", rated.len(), used.len());
}

/// The rules of the default settings.
pub(super) fn default_rules() -> Rules {
    Rules::new(&crate::config::RewardConfig::default()).unwrap()
}

#[test]
#[ignore = "a measurement"]
fn measure_durable_feedback_of_16_clients() {
    let home = Home::sqlite();
    let ledger = home.open_with(default_rules());
    let (clients, each) = (16, 1000);
    for client in 0..clients {
        for n in 0..each {
            let response = vec![client, n];
            let g = Generation { response, ..answer(&format!("{client}-{n}")) };
            ledger.record_generation(Arc::new(g), Box::new(|outcome| outcome.unwrap())).unwrap();
        }
    }
    let start = Instant::now();
    let mut waits: Vec<Duration> = std::thread::scope(|scope| {
        let client = |client: u32| {
            let ledger = &ledger;
            move || -> Vec<Duration> {
                let one = |n| {
                    let user = Some(format!("user {client}"));
                    let feedback = NewFeedback { user, ..rating(&format!("{client}-{n}"), 0.5) };
                    let start = Instant::now();
                    ledger.add_feedback(&feedback).unwrap();
                    start.elapsed()
                };
                (0..each).map(one).collect()
            }
        };
        let clients: Vec<_> = (0..clients).map(|n| scope.spawn(client(n))).collect();
        clients.into_iter().flat_map(|c| c.join().unwrap()).collect()
    });
    let rate = f64::from(clients * each) / start.elapsed().as_secs_f64();
    waits.sort();
    let p99 = waits[waits.len() * 99 / 100];
    println!("in the ledger: {rate:.0} ratings/s, p50 {:?}, p99 {p99:?}", waits[waits.len() / 2]);
    assert!(rate >= 2000.0 && p99 < Duration::from_millis(50), "{rate:.0} ratings/s, p99 {p99:?}");
}

#[test]
#[ignore = "a measurement: writes a million generations, about 1 GB"]
fn measure_a_million_generations() {
    let home = Home::sqlite();
    let rules = default_rules();
    let ledger = home.open_with(rules.clone());
    let start = Instant::now();
    // What the limits must skip: the oldest quarter million ratings are of one user who is held for review; then come
    // those of one user beyond a share; then a thousand users in turn.
    let user = |n: u32| match n {
        0..500_000 => "held".into(),
        500_000..700_000 => "eager".into(),
        _ => format!("user {}", n % 1000),
    };
    for n in 0..1_000_000u32 {
        let g = Generation { prompt: vec![7; 60], response: vec![n; 60], ..answer(&n.to_string()) };
        ledger.record_generation(Arc::new(g), Box::new(|outcome| outcome.unwrap())).unwrap();
        if n % 2 == 0 {
            let f = NewFeedback { user: Some(user(n)), ..rating(&n.to_string(), 0.5) };
            // The hourly limit would leave out most of them, and so avoid the work.
            let rules = Rules { hourly: 0, ..rules.clone() };
            let work = move |db: &Db| said::insert_feedback(db, &f, &rules, &said::new_identity());
            ledger.writer.submit(work, |outcome| drop(outcome.unwrap())).unwrap();
        }
    }
    ledger.review("held", ReviewVerdict::Hold).unwrap();
    drop(ledger);
    println!("filled in {:?}", start.elapsed());
    let start = Instant::now();
    let ledger = home.open_with(rules.clone());
    let opening = start.elapsed();
    let choose = |ledger: &Ledger, size: usize| {
        let start = Instant::now();
        let batch = ledger.pending_batch(size).unwrap();
        (batch, start.elapsed())
    };
    let (batch, first) = choose(&ledger, 16);
    let of = |who: &str| batch.iter().filter(|r| user(r.generation.id.0.parse().unwrap()) == who).count();
    assert_eq!((batch.len(), of("held"), of("eager")), (16, 0, 8));
    let (_, large) = choose(&ledger, 256);
    let used: Vec<u64> = batch.iter().flat_map(|r| r.feedback_ids.clone()).collect();
    let start = Instant::now();
    ledger.commit_version(&version(1, 0), TrainedBatch::of(&used, &[])).unwrap();
    println!("opening {opening:?}; a batch of 16 {first:?}, of 256 {large:?}; its commit {:?}", start.elapsed());
    ledger.review("held", ReviewVerdict::Trust).unwrap();
    let again = choose(&ledger, 16).1;
    println!("a batch of 16 with nobody held {again:?}");
    let slowest = first.max(large).max(again);
    assert!(opening < Duration::from_secs(2) && slowest < Duration::from_millis(50), "{opening:?} {slowest:?}");
}

fn a_panic_of_the_writing_thread_is_told_to_those_who_wait_and_the_next_write_is_made(home: &Home) {
    let ledger = home.open();
    record(&ledger, answer("a")).unwrap();
    let failed = ledger.writer.call_and_overwrite(|_| Ok(()), |(), _| panic!("a bug, for this test"));
    assert_eq!(failed.unwrap_err().code(), Code::Panic);
    record(&ledger, answer("b")).unwrap();
    assert!(ledger.generation(&id("b")).unwrap().is_some());
    ledger.close();
}

suite! {
    the_second_process_is_told_who_holds_the_folder
    a_killed_process_loses_and_doubles_nothing
    a_panic_of_the_writing_thread_is_told_to_those_who_wait_and_the_next_write_is_made
}

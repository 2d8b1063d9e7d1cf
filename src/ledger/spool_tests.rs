//! Tests of a database that is away: what is answered and rated meanwhile waits on this machine and is recorded after.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::home_tests::Home;
use super::server_tests::Server;
use super::spool::{MOST, Spool};
use super::tests::{answer, id, record};
use super::*;
use crate::error::{Code, Result};
use crate::types::*;

fn rating(name: &str, value: f64) -> NewFeedback {
    NewFeedback { generation_id: id(name), signal: Signal::Rating(value), user: Some("ann".into()), comment: None }
}

pub(super) fn drained(ledger: &Ledger) {
    let end = Instant::now() + Duration::from_secs(30);
    while ledger.spool.as_ref().unwrap().holds() {
        assert!(Instant::now() < end, "what waits is not recorded");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Records an answer that repeats another's words.
fn record_from(ledger: &Ledger, name: &str, origin: &str) -> Result<bool> {
    let (sender, told) = channel();
    let done = Box::new(move |written| drop(sender.send(written)));
    ledger.record_from(Arc::new(answer(name)), Some(id(origin)), done).unwrap();
    told.recv().unwrap()
}

#[test]
fn what_is_said_while_the_database_is_away_waits_on_disk_and_is_recorded_once() {
    let Some(server) = Server::start() else { return };
    let home = Home::beside(&server.database());
    let file = home.path().join("spool.jsonl");
    let ledger = home.open();
    let (told, heard) = channel();
    ledger.on_spool(move |waiting| told.send(waiting.entries).unwrap());
    record(&ledger, answer("before")).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 0);

    server.kill();
    assert_eq!(ledger.add_feedback(&rating("elsewhere", 1.0)).unwrap_err().code(), Code::Io);
    // What finds out that it is away waits like the rest.
    assert!(ledger.add_feedback(&rating("before", 1.0)).unwrap().spooled);
    record(&ledger, answer("during")).unwrap();
    assert!(record_from(&ledger, "repeats", "before").unwrap());
    let receipt = ledger.add_feedback(&rating("during", 1.0)).unwrap();
    assert!(receipt.spooled && receipt.feedback_id == 0, "{receipt:?}");
    assert_eq!(receipt.policy_version, PolicyVersion::INITIAL);
    // Nobody knows whether there is such an answer, and what is no rating is told at once.
    assert_eq!(ledger.add_feedback(&rating("elsewhere", 1.0)).unwrap_err().code(), Code::Io);
    assert_eq!(ledger.add_feedback(&rating("before", 7.0)).unwrap_err().code(), Code::Arg);
    assert_eq!(ledger.forget("ann").unwrap_err().code(), Code::Busy);
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    let kept = std::fs::read(&file).unwrap();
    assert_eq!(kept.iter().filter(|byte| **byte == b'\n').count(), 4);

    // It may be the process that ends first. A line that was half written was told to nobody.
    ledger.close();
    drop(ledger);
    std::fs::write(&file, [&kept[..], b"{\"Answer\":"].concat()).unwrap();
    server.restart();
    let ledger = home.open();
    drained(&ledger);
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 0);
    let check = |ledger: &Ledger| {
        for name in ["before", "during"] {
            let [one] = &ledger.feedback_of(&id(name)).unwrap()[..] else { panic!("expected one rating of {name}") };
            assert_eq!((one.signal.clone(), one.user.as_deref()), (Signal::Rating(1.0), Some("ann")));
        }
        assert_eq!(ledger.generation(&id("during")).unwrap().unwrap(), answer("during"));
        assert!(ledger.generation(&id("repeats")).unwrap().is_some());
        assert_eq!(ledger.pending_ratings(), 2);
    };
    check(&ledger);

    // It was recorded, and the process was killed before it took note of that.
    drop(ledger);
    std::fs::write(&file, &kept).unwrap();
    let ledger = home.open();
    drained(&ledger);
    check(&ledger);
    assert_eq!(ledger.forget("ann").unwrap().feedback, 2);
    record(&ledger, answer("after")).unwrap();
    let receipt = ledger.add_feedback(&rating("after", -1.0)).unwrap();
    assert!(!receipt.spooled && receipt.feedback_id > 0);
}

#[test]
fn what_waits_is_bounded_and_recorded_in_its_order_under_load() {
    let Some(server) = Server::start() else { return };
    let home = Home::beside(&server.database());
    let ledger = home.open();
    server.kill();
    for n in 0..600 {
        record(&ledger, answer(&n.to_string())).unwrap();
        assert!(ledger.add_feedback(&rating(&n.to_string(), 0.5)).unwrap().spooled);
    }
    server.restart();
    // New ones come while the old ones are recorded.
    for n in 600..700 {
        record(&ledger, answer(&n.to_string())).unwrap();
        ledger.add_feedback(&rating(&n.to_string(), 0.5)).unwrap();
    }
    drained(&ledger);
    for n in 0..700 {
        assert_eq!(ledger.feedback_of(&id(&n.to_string())).unwrap().len(), 1, "{n}");
    }
    ledger.close();

    let spool = Spool::open(home.path()).unwrap();
    let long = "x".repeat(1 << 20);
    let entry = super::spool::Entry::Feedback(
        Box::new(NewFeedback { comment: Some(long), ..rating("0", 1.0) }),
        "an identity".to_owned(),
    );
    let kept = (0..100).take_while(|_| spool.keep(&entry).is_ok()).count();
    assert_eq!(kept as u64, MOST / (1 << 20) - 1);
    assert!(spool.keep(&entry).unwrap_err().message().contains("is full"));
    let full = spool.waiting();
    assert!(full.bytes <= MOST && full.entries == kept as u64);
    drop(spool);
    assert_eq!(Spool::open(home.path()).unwrap().waiting(), full);

    std::fs::write(home.path().join("spool.jsonl"), "no entry\n").unwrap();
    let error = Spool::open(home.path()).err().unwrap();
    assert!(error.message().contains("spool.jsonl is damaged"), "{error}");
}

#[test]
fn a_server_that_hangs_in_the_middle_of_a_write_holds_the_others_up_for_seconds_and_loses_nothing_of_theirs() {
    let Some(home) = Home::postgres() else { return };
    let ledger = home.open();
    record(&ledger, answer("before")).unwrap();
    let hanging = super::postgres::connection(home.url().unwrap());
    std::thread::scope(|scope| {
        let (begun, held) = channel();
        let hangs = scope.spawn(move || {
            hanging.writing(|_| {
                begun.send(()).unwrap();
                std::thread::sleep(Duration::from_secs(14));
                Ok(())
            })
        });
        held.recv().unwrap();
        let start = Instant::now();
        record(&ledger, answer("during")).unwrap();
        for name in ["before", "during"] {
            ledger.add_feedback(&rating(name, 1.0)).unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(14), "{:?}", start.elapsed());
        assert!(hangs.join().unwrap().is_err(), "its session was ended");
    });
    drained(&ledger);
    for name in ["before", "during"] {
        assert_eq!(ledger.feedback_of(&id(name)).unwrap().len(), 1, "{name}");
    }
}

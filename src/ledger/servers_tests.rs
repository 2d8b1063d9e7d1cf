//! Tests of several servers of one ledger in Postgres: what one commits the others know, and nothing is used twice. And
//! of what can be wrong with a database.

use std::time::{Duration, Instant};

use super::home_tests::Home;
use super::server_tests::{ROLE, Server, shared};
use super::spool_tests::drained;
use super::tests::{answer, id, rate, record, version};
use super::*;
use crate::error::Code;
use crate::types::*;

/// Waits until it is so.
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_one_server_commits_the_others_know() {
    let Some(home) = Home::postgres() else { return };
    let beside = Home::beside(home.url().unwrap());
    let (one, other) = (home.open(), beside.open());
    let (heard, news) = std::sync::mpsc::channel();
    other.on_news(move |news| heard.send(news).unwrap());
    record(&one, answer("a")).unwrap();
    record(&other, answer("b")).unwrap();
    rate(&one, "a", 1.0);
    rate(&other, "b", 1.0);
    // The second of an answer is no further answer.
    rate(&other, "a", -1.0);
    for ledger in [&one, &other] {
        until("both know of two answers", || ledger.pending_ratings() == 2);
    }
    assert_eq!(news.recv_timeout(Duration::from_secs(20)).unwrap(), News { waiting: 1, versions: false });
    let used = one.pending_batch(9).unwrap().into_iter().flat_map(|rated| rated.feedback_ids).collect::<Vec<_>>();
    one.commit_version(&version(1, 0), TrainedBatch::of(&used, &[])).unwrap();
    until("the other knows that they are used", || other.pending_ratings() == 0);
    assert_eq!(other.active().unwrap(), PolicyVersion(1));
    let expected = News { waiting: -2, versions: true };
    until("the other hears of the version", || news.try_iter().any(|news| news == expected));
    let third = Home::beside(home.url().unwrap());
    assert_eq!(third.open().pending_ratings(), 0);
}

#[test]
fn what_two_servers_train_on_at_once_is_used_by_one() {
    let Some(home) = Home::postgres() else { return };
    let beside = Home::beside(home.url().unwrap());
    let (one, other) = (home.open(), beside.open());
    for n in 0..20 {
        record(&one, answer(&n.to_string())).unwrap();
        rate(&one, &n.to_string(), 1.0);
    }
    for round in 0..20 {
        let batch = |ledger: &Ledger| -> Vec<u64> {
            ledger.pending_batch(1).unwrap().into_iter().flat_map(|rated| rated.feedback_ids).collect()
        };
        let (first, second) = (batch(&one), batch(&other));
        assert_eq!(first, second);
        let skip = |ledger: &Ledger, used: &[u64]| ledger.commit_skipped("a test", used);
        let both = std::thread::scope(|scope| {
            let theirs = scope.spawn(|| skip(&other, &second));
            [skip(&one, &first), theirs.join().unwrap()]
        });
        let failed: Vec<_> = both.iter().filter_map(|done| done.as_ref().err()).collect();
        assert_eq!(failed.len(), 1, "round {round}: {both:?}");
        assert!(failed[0].message().contains("not a rating that waits"), "{}", failed[0]);
    }
    for ledger in [&one, &other] {
        until("both know that nothing waits", || ledger.pending_ratings() == 0);
    }
}

#[test]
fn what_only_one_server_decides_is_refused_without_the_lease() {
    let Some(home) = Home::postgres() else { return };
    let beside = Home::beside(home.url().unwrap());
    let (one, other) = (home.open(), beside.open());
    for ledger in [&one, &other] {
        ledger.need_lease();
        assert!(!ledger.may_decide());
        record(ledger, answer(&format!("of {:p}", ledger))).unwrap();
    }
    assert_eq!(one.lease().unwrap(), None);
    assert!(one.take_lease(None, "one").unwrap());
    assert!(!other.take_lease(None, "other").unwrap(), "it is another's");
    assert!(one.keep_lease().unwrap() && !other.keep_lease().unwrap());
    one.commit_version(&version(1, 0), TrainedBatch::default()).unwrap();
    let verdict = one.add_verdict(None, PolicyVersion(1), Ruling::Refused, serde_json::json!({})).unwrap();

    // It is silent for long: another takes its place, and the first finds out when it writes.
    let seen = other.lease().unwrap();
    assert!(other.take_lease(seen.as_ref(), "other").unwrap());
    assert!(one.may_decide(), "it can't know yet");
    let none = || serde_json::json!({});
    let refused = [
        one.commit_version(&version(2, 1), TrainedBatch::default()),
        one.record_version(&version(2, 1)),
        one.commit_skipped("a test", &[]).map(drop),
        one.set_active(PolicyVersion::INITIAL),
        one.add_verdict(None, PolicyVersion(1), Ruling::Trial, none()).map(drop),
        one.set_verdict(verdict, Ruling::Promoted, none()),
        one.note_removed(&[PolicyVersion(1)]),
        one.note_clock(1),
        one.leave_out(&[]),
        one.expire(1, 2, 3).map(drop),
        one.clear_unlearning(),
    ];
    for error in refused.map(Result::unwrap_err) {
        assert!(error.code() == Code::Busy && error.message().contains("another server"), "{error}");
    }
    assert_eq!(other.versions().unwrap().len(), 2, "nothing was written");
    assert_eq!(other.active().unwrap(), PolicyVersion(1));
    // Ratings and people's choices are everyone's.
    rate(&one, &format!("of {:p}", &one), 1.0);
    one.set_active_as(PolicyVersion::INITIAL, Decides::Person).unwrap();
    assert!(!one.keep_lease().unwrap() && !one.may_decide());
    other.commit_version(&version(2, 1), TrainedBatch::default()).unwrap();

    // Given back at the end, it is free at once.
    other.close();
    let free = one.lease().unwrap();
    assert_eq!(free.as_ref().unwrap().holder, None);
    assert!(one.take_lease(free.as_ref(), "one").unwrap());
    one.commit_version(&version(3, 2), TrainedBatch::default()).unwrap();
}

#[test]
fn a_postgres_that_is_killed_loses_nothing_acknowledged_and_is_found_again() {
    let Some(server) = Server::start() else { return };
    let url = server.database();
    let (home, beside) = (Home::beside(&url), Home::beside(&url));
    let (one, other) = (home.open(), beside.open());
    let rounds = std::env::var("APA_KILL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let (mut rated, mut used) = (Vec::new(), std::collections::BTreeSet::new());
    for round in 0..rounds {
        let stop = std::sync::atomic::AtomicBool::new(false);
        let stop = &stop;
        let work = |ledger: &'static str, on: &Ledger| {
            let mut kept = Vec::new();
            for n in 0.. {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                let name = format!("{ledger}-{round}-{n}");
                if record(on, answer(&name)).is_ok()
                    && let Ok(receipt) = on.add_feedback(&super::tests::rating(&name, 0.5))
                {
                    kept.push((name, receipt.feedback_id));
                    // What waits is recorded more slowly than it is written down.
                    std::thread::sleep(Duration::from_millis(if receipt.spooled { 20 } else { 0 }));
                }
            }
            kept
        };
        let train = |on: &Ledger| {
            let mut done = Vec::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let Ok(batch) = on.pending_batch(4) else { continue };
                let ids: Vec<u64> = batch.into_iter().flat_map(|rated| rated.feedback_ids).collect();
                if on.commit_skipped("a test", &ids).is_ok() {
                    done.extend(ids);
                }
            }
            done
        };
        std::thread::scope(|scope| {
            let writers = [scope.spawn(|| work("one", &one)), scope.spawn(|| work("other", &other))];
            let trainer = scope.spawn(|| train(&other));
            std::thread::sleep(Duration::from_millis(rand::random_range(50..300)));
            server.kill_and_restart();
            std::thread::sleep(Duration::from_millis(100));
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            writers.into_iter().for_each(|writer| rated.extend(writer.join().unwrap()));
            for id in trainer.join().unwrap() {
                assert!(used.insert(id), "feedback {id} was used twice");
            }
        });
        [&one, &other].into_iter().for_each(drained);
        for ledger in [&one, &other] {
            until("the count is right again", || {
                ledger.pending_ratings() == ledger.pending_batch(1 << 20).unwrap().len() as u64
            });
        }
    }
    for (name, feedback) in &rated {
        let kept = one.feedback_of(&id(name)).unwrap();
        let [found] = &kept[..] else { panic!("{} rows for {name}", kept.len()) };
        assert!(*feedback == 0 || found.feedback_id == *feedback, "feedback {feedback} is {}", found.feedback_id);
        assert!(found.used_by.is_some() || !used.contains(&found.feedback_id), "the use of {feedback} is lost");
    }
    println!("Postgres was killed {rounds} times: {} acknowledged, {} used, none lost", rated.len(), used.len());
    assert!(rated.len() > 10 && !used.is_empty(), "{} {}", rated.len(), used.len());
}

#[test]
fn what_is_wrong_with_a_database_is_said_and_never_the_password() {
    let Some(server) = shared() else { return };
    let opened = |url: &str| {
        let home = Home::beside(url);
        let error = Ledger::open(home.place()).err().unwrap_or_else(|| panic!("{url}"));
        assert!(!error.message().contains("s3cret"), "{error}");
        error
    };
    for url in ["postgres://apa:x@s3cret#w@127.0.0.1:1/ledger", "postgres://apa:a@s3cret@127.0.0.1:1/ledger"] {
        let unread = opened(url);
        assert!(unread.code() == Code::Arg && unread.message().contains("%40"), "{unread}");
    }
    let refused = opened("postgres://apa:s3cret@127.0.0.1:1/ledger");
    assert!(refused.code() == Code::Io && refused.message().contains("127.0.0.1:1/ledger"), "{refused}");
    assert!(refused.message().contains("Connection refused"), "{refused}");
    let wrong = opened(&format!("postgres://{ROLE}:other@127.0.0.1:{}/postgres", server.port));
    assert!(wrong.message().contains("refuses the role or its password"), "{wrong}");
    let missing = opened(&server.url("nowhere"));
    assert!(missing.message().contains("\"nowhere\" does not exist"), "{missing}");
    let unencrypted = opened(&(server.url("postgres") + "?sslmode=require"));
    assert!(unencrypted.message().contains("TLS"), "{unencrypted}");

    let newer = Home::beside(&server.database());
    newer.open().close();
    newer.db().execute("UPDATE ledger_format SET format = 99", ()).unwrap();
    let error = opened(newer.url().unwrap());
    assert_eq!(error.code(), Code::Unsupported);
    assert!(error.message().ends_with("it has format 99 of Postgres, this build knows formats up to 1"), "{error}");
    assert!(LedgerReader::open(newer.place()).err().unwrap().message().contains("format 99"));

    let foreign = Home::beside(&server.database());
    foreign.db().execute("CREATE TABLE bookmarks (url TEXT)", ()).unwrap();
    let error = opened(foreign.url().unwrap());
    assert!(error.message().contains("another program"), "{error}");
}

#[test]
fn a_server_is_trusted_as_the_url_says() {
    let Some(server) = Server::start_with_tls() else { return };
    let url = server.database();
    let open = |query: &str| Ledger::open(Home::beside(&format!("{url}?{query}")).place()).map(drop);
    let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    for (query, expected) in [("sslmode=disable", false), ("sslmode=prefer", true), ("sslmode=require", true)] {
        open(query).unwrap();
        let db = Home::beside(&format!("{url}?{query}")).db();
        assert_eq!(db.one(encrypted, (), |row| row.get::<bool>(0)).unwrap(), expected, "{query}");
    }
    let authority = server.authority();
    open(&format!("sslmode=verify-full&sslrootcert={}", authority.display())).unwrap();
    let unknown = open("sslmode=verify-full").unwrap_err();
    assert!(unknown.message().contains("certificate"), "{unknown}");
    // The certificate is for 127.0.0.1 alone.
    let other = url.replace("127.0.0.1", "localhost");
    let query = format!("sslmode=verify-full&sslrootcert={}", authority.display());
    let wrong = Ledger::open(Home::beside(&format!("{other}?{query}")).place()).err().unwrap();
    assert!(wrong.message().contains("not valid for name"), "{wrong}");
}

#[test]
fn a_folder_is_not_opened_for_a_ledger_that_is_elsewhere() {
    let Some(home) = Home::postgres() else { return };
    home.open().close();
    let error = Ledger::open(home.path()).err().unwrap();
    assert!(error.code() == Code::Arg && error.message().contains("expected ledger.url to name it"), "{error}");
    let own = Home::sqlite();
    own.open().close();
    let error = Ledger::open(Place::new(own.path(), home.url())).err().unwrap();
    assert!(error.code() == Code::Arg && error.message().contains("has a ledger of its own"), "{error}");
}

#[test]
fn servers_that_start_at_once_make_the_tables_once() {
    let Some(home) = Home::postgres() else { return };
    let homes: Vec<Home> = (0..4).map(|_| Home::beside(home.url().unwrap())).collect();
    let ledgers: Vec<Ledger> = std::thread::scope(|scope| {
        let starts: Vec<_> = homes.iter().map(|home| scope.spawn(|| home.open())).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    record(&ledgers[0], answer("a")).unwrap();
    for ledger in &ledgers {
        assert_eq!(ledger.generation(&id("a")).unwrap(), Some(answer("a")));
        assert_eq!(ledger.versions().unwrap().len(), 1);
    }
}

#[test]
fn a_ledger_is_used_from_a_thread_that_runs_tasks() {
    let Some(home) = Home::postgres() else { return };
    let ledger = home.open();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        record(&ledger, answer("a")).unwrap();
        rate(&ledger, "a", 1.0);
        assert_eq!(ledger.pending_batch(1).unwrap().len(), 1);
        drop(ledger);
    });
}

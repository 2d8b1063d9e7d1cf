//! Versions that serve are watched, and taken back when their users' ratings fall. On a tiny model.

use std::path::Path;
use std::time::Duration;

use apa::Engine;
use apa::config::Promotion;
use apa::types::*;

use crate::promotion::{rated, record, wait_until};
use crate::support::engine::{answer, open_with, published, rate};

/// An engine that serves each version at once, and takes it back on little evidence.
fn open(dir: &Path) -> Engine {
    open_with(dir, |c| {
        (c.gate.count, c.gate.mode, c.gate.alpha, c.reward.user_hourly) = (2, Promotion::Serve, 0.1, 0);
    })
    .unwrap()
}

#[test]
fn a_version_whose_ratings_fall_is_taken_back_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    for i in 0..60 {
        rated(&engine, &format!("user {}", i % 20), i, |_| if i % 15 == 0 { 0.5 } else { 1.0 });
    }
    let (version, _) = published(engine.train_step().unwrap());
    for i in 0..60 {
        rated(&engine, &format!("user {}", i % 20), i, |v| if v == version { -1.0 } else { 1.0 });
        if engine.status().policy_version != version {
            break;
        }
    }
    wait_until("the rollback", || engine.status().policy_version == PolicyVersion(0));
    wait_until("its record", || record(&engine, version).0 == Ruling::RolledBack);
    let reason = record(&engine, version).1.reason;
    assert!(reason.starts_with("the mean rating of version 1 is") && reason.contains("that of version 0"), "{reason}");
    assert_eq!(engine.status().trainer.rolled_back, 1);
}

#[test]
fn versions_that_are_replaced_before_they_can_be_judged_are_taken_back_together() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let like = |v| if v == PolicyVersion(0) { 1.0 } else { -1.0 };
    for i in 0..40 {
        rated(&engine, &format!("user {}", i % 20), i, |_| if i % 15 == 0 { 0.5 } else { 1.0 });
    }
    // Each gets eight ratings, far too few to tell it from its parent, which is as bad.
    for round in 0..12 {
        if engine.status().trainer.rolled_back > 0 {
            break;
        }
        let _ = engine.train_step().unwrap();
        for i in 0..8 {
            rated(&engine, &format!("user {}", (8 * round + i) % 20), i, like);
        }
    }
    wait_until("the rollback", || engine.status().policy_version == PolicyVersion(0));
    let of = |v: u64| record(&engine, PolicyVersion(v));
    wait_until("its record", || of(2).0 == Ruling::RolledBack);
    assert_eq!((of(1).0, of(1).1.reason), (Ruling::RolledBack, of(2).1.reason));
    assert!(of(1).1.reason.starts_with("the mean rating of versions 1 to "), "{:?}", of(1).1);
}

#[test]
fn one_user_among_many_takes_nothing_back_and_one_who_is_served_alone_does() {
    let like = |v| if v == PolicyVersion(0) { 1.0 } else { -1.0 };
    for (many, named, back) in [(true, true, false), (true, false, false), (false, true, true)] {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        let user = |i: u64| if many { format!("user {}", i % 20) } else { "mallory".to_owned() };
        for i in 0..60 {
            rated(&engine, &user(i), i, |_| if i % 15 == 0 { 0.5 } else { 1.0 });
        }
        published(engine.train_step().unwrap());
        for i in 0..60 {
            // Everyone else likes it.
            if many && i % 3 == 0 {
                rated(&engine, &user(i), i, |_| 1.0);
            }
            if named {
                rated(&engine, "mallory", i, like);
            } else {
                let g = answer(&engine, "the", 1000 + i);
                rate(&engine, &g.id, like(g.policy_version)).unwrap();
            }
        }
        if back {
            wait_until("the rollback", || engine.status().policy_version == PolicyVersion(0));
        } else {
            std::thread::sleep(Duration::from_secs(6));
            assert_eq!((engine.status().policy_version, engine.status().trainer.rolled_back), (PolicyVersion(1), 0));
        }
        engine.shutdown();
    }
}

#[test]
fn a_version_that_is_rated_better_than_people_rated_last_is_not_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    // They liked it once, and then no more.
    for i in 0..300 {
        rated(&engine, &format!("user {}", i % 20), i, |_| if i < 60 || i % 20 == 0 { 1.0 } else { -1.0 });
    }
    published(engine.train_step().unwrap());
    for i in 0..60 {
        rated(&engine, &format!("user {}", i % 20), i, |_| if i % 3 == 0 { 1.0 } else { -1.0 });
    }
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!((engine.status().policy_version, engine.status().trainer.rolled_back), (PolicyVersion(1), 0));
    engine.shutdown();
}

//! Ratings that nothing tells good from bad yet: they wait, and are learned from with others. A tiny model.

use apa::engine::PublishOutcome;
use apa::types::PolicyVersion;

use crate::support::engine::{answer, open_with, published, rate};

#[test]
fn ratings_that_all_agree_wait_until_others_tell_good_from_bad() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |_| ()).unwrap();
    for i in 0..4 {
        rate(&engine, &answer(&engine, "the", i).id, 0.5).unwrap();
    }
    let outcome = engine.train_step().unwrap();
    assert!(matches!(outcome, PublishOutcome::Skipped { consumed: 0, .. }), "{outcome:?}");
    assert_eq!(engine.status().policy_version, PolicyVersion::INITIAL);
    assert_eq!((engine.status().trainer.pending_ratings, engine.status().trainer.skipped), (4, 0));

    // A batch full of thumbs up, then as many down: both are learned from, together.
    let up = |from: u64, n: u64, rating: f64| {
        for i in from..from + n {
            rate(&engine, &answer(&engine, "the", i).id, rating).unwrap();
        }
    };
    up(4, 12, 0.5);
    assert!(matches!(engine.train_step().unwrap(), PublishOutcome::Skipped { consumed: 0, .. }));
    up(16, 16, -1.0);
    let (_, metrics) = published(engine.train_step().unwrap());
    assert_eq!((metrics.samples, engine.status().trainer.pending_ratings), (32, 0));
    // Now a mean is known, and what all agree on is told from it.
    up(32, 16, 0.5);
    let (_, metrics) = published(engine.train_step().unwrap());
    assert!(metrics.baseline < 0.5 && metrics.samples == 16, "{metrics:?}");
}

#[test]
fn of_very_many_ratings_that_all_agree_the_oldest_set_the_mean() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| (c.train.auto, c.train.batch) = (false, 2)).unwrap();
    for i in 0..16 {
        rate(&engine, &answer(&engine, "the", i).id, 1.0).unwrap();
    }
    let PublishOutcome::Skipped { reason, consumed } = engine.train_step().unwrap() else { panic!("it was published") };
    assert!(consumed == 2 && reason.contains("set the mean"), "{consumed} {reason}");
    // One that differs is learned from with the others, though it is the last.
    rate(&engine, &answer(&engine, "the", 99).id, -1.0).unwrap();
    let (_, metrics) = published(engine.train_step().unwrap());
    assert!(metrics.samples == 15 && metrics.baseline < 1.0, "{metrics:?}");
}

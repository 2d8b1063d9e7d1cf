//! Candidates that a share of the users tries. On a tiny model.

use apa::Engine;
use apa::config::Promotion;
use apa::engine::PublishOutcome;
use apa::types::*;

use crate::promotion::{rated, record, wait_until};
use crate::support::engine::{answer, finish, open_with, rate, rate_some, request};

/// A candidate on trial with half of the users.
fn on_trial(dir: &std::path::Path) -> (Engine, PolicyVersion) {
    let engine = open_with(dir, |c| {
        (c.gate.count, c.gate.mode, c.gate.shares) = (2, Promotion::Canary, [0.5, 0.5]);
        (c.gate.alpha, c.gate.settle, c.reward.user_hourly) = (0.05, 0, 0);
    })
    .unwrap();
    rate_some(&engine, 8);
    match engine.train_step().unwrap() {
        PublishOutcome::Pending { version, ruling: Ruling::Trial, .. } => (engine, version),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_candidate_that_users_like_better_takes_its_parents_place() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, candidate) = on_trial(dir.path());
    assert_eq!(engine.status().policy_version, PolicyVersion(0));
    assert!(engine.status().load.versions.contains(&candidate));
    let like = |version| if version == candidate { 1.0 } else { -1.0 };
    let (mut theirs, mut others) = (0, 0);
    for i in 0..200 {
        let user = format!("user {}", i % 40);
        let version = rated(&engine, &user, i, like);
        // A user stays with a version.
        if engine.status().policy_version == PolicyVersion(0) {
            *(if version == candidate { &mut theirs } else { &mut others }) += 1;
        } else {
            break;
        }
    }
    assert!(theirs > 5 && others > 5, "{theirs} and {others}");
    wait_until("the promotion", || engine.status().policy_version == candidate);
    wait_until("its record", || record(&engine, candidate).0 == Ruling::Promoted);
    let trial = record(&engine, candidate).1.trial.unwrap();
    assert!(trial.rating.lower > -0.1 && trial.candidate_ratings > 0, "{trial:?}");
    wait_until("its end", || engine.status().trainer.trial.is_none());
    // What was said of both is learned from.
    assert!(engine.status().trainer.pending_ratings > 10);
}

#[test]
fn a_candidate_that_users_dislike_leaves_and_a_trial_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, candidate) = on_trial(dir.path());
    let like = |version| if version == candidate { -1.0 } else { 1.0 };
    for i in 0..6 {
        rated(&engine, &format!("user {i}"), i, like);
    }
    let PublishOutcome::Skipped { reason, consumed: 0 } = engine.train_step().unwrap() else { panic!("it trained") };
    assert!(reason.contains("is on trial"), "{reason}");
    engine.shutdown();
    let engine = open_with(dir.path(), |c| {
        (c.gate.mode, c.gate.shares, c.reward.user_hourly) = (Promotion::Canary, [0.5, 0.5], 0);
        c.gate.alpha = 0.05;
    })
    .unwrap();
    wait_until("going on", || engine.status().trainer.trial.is_some_and(|t| t.version == candidate));
    for i in 0..200 {
        rated(&engine, &format!("user {}", i % 40), i, like);
        if engine.status().trainer.trial.is_none() {
            break;
        }
    }
    wait_until("the end", || record(&engine, candidate).0 == Ruling::Refused);
    assert_eq!(engine.status().policy_version, PolicyVersion(0));
    assert!(record(&engine, candidate).1.reason.starts_with("its mean rating is lower by"));
    wait_until("its leaving", || engine.status().load.versions == [PolicyVersion(0)]);
    // A person may still serve it.
    engine.activate(candidate).unwrap();
    assert_eq!(answer(&engine, "the", 1).policy_version, candidate);
}

#[test]
fn a_conversation_keeps_its_version_over_a_restart_in_mid_trial_though_the_share_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, candidate) = on_trial(dir.path());
    let versions = |engine: &Engine| -> Vec<PolicyVersion> {
        (0..40).map(|i| rated(engine, &format!("user {i}"), i, |_| 0.0)).collect()
    };
    let before = versions(&engine);
    let theirs = before.iter().filter(|v| **v == candidate).count();
    assert!((8..=32).contains(&theirs), "{theirs} of 40");
    engine.shutdown();
    let engine = open_with(dir.path(), |c| {
        (c.gate.mode, c.gate.shares, c.reward.user_hourly) = (Promotion::Canary, [0.01, 0.01], 0);
    })
    .unwrap();
    // At once, before the trainer is ready to go on with the trial, and after.
    assert_eq!(versions(&engine), before);
    wait_until("going on", || engine.status().trainer.trial.is_some_and(|t| t.version == candidate));
    assert_eq!(versions(&engine), before);
    let new = (0..40).filter(|i| rated(&engine, &format!("new {i}"), *i, |_| 0.0) == candidate).count();
    assert!(new < 8, "{new} of 40");
}

#[test]
fn whoever_chooses_a_version_by_hand_ends_the_trial() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, candidate) = on_trial(dir.path());
    engine.activate(candidate).unwrap();
    assert_eq!(
        record(&engine, candidate),
        (Ruling::Promoted, {
            let said = record(&engine, candidate).1;
            assert_eq!(said.reason, "a person promoted it");
            said
        })
    );
    assert!(engine.status().trainer.trial.is_none());
}

#[test]
fn requests_that_name_the_version_on_trial_share_its_context() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, candidate) = on_trial(dir.path());
    for seed in 0..8 {
        let named = apa::engine::GenerateRequest {
            version: Some(candidate),
            exact_version: true,
            ..request(&engine, "the", seed)
        };
        assert_eq!(finish(&engine.generate(named).unwrap()).unwrap().1.policy_version, candidate);
        assert_eq!(engine.status().load.versions, [candidate, PolicyVersion(0)]);
    }
    engine.activate(PolicyVersion(0)).unwrap();
    wait_until("its leaving", || engine.status().load.versions == [PolicyVersion(0)]);
}

#[test]
fn what_is_said_of_the_candidate_by_whoever_asked_for_it_by_number_decides_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, candidate) = on_trial(dir.path());
    let (mut theirs, mut user, mut other) = (0, None, None);
    for i in 0..10 {
        let name = format!("user {i}");
        match rated(&engine, &name, i, |_| 1.0) == candidate {
            true => (theirs, user) = (theirs + 1, Some(name)),
            false => other = Some(name),
        }
    }
    assert!(user.is_some() && other.is_some());
    for (seed, user) in (100..).zip([&user, &other, &None].into_iter().cycle().take(12)) {
        let named = apa::engine::GenerateRequest {
            version: Some(candidate),
            exact_version: true,
            user: user.clone(),
            ..request(&engine, "the", seed)
        };
        let answer = finish(&engine.generate(named).unwrap()).unwrap().1;
        assert_eq!(answer.policy_version, candidate);
        rate(&engine, &answer.id, -1.0).unwrap();
    }
    let counted = || engine.status().trainer.trial.and_then(|trial| trial.record);
    wait_until("the count", || counted().is_some_and(|of| of.parent_ratings + of.candidate_ratings >= 10));
    std::thread::sleep(std::time::Duration::from_secs(6));
    assert_eq!(counted().unwrap().candidate_ratings, theirs);
}

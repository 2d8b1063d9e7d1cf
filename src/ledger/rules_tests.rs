//! Tests of whose feedback counts, and of what is set aside. Forgetting a user has a file of its own.

use super::home_tests::{Home, suite};
use super::tests::{answer, id, rate, rating, record, version};
use super::*;
use crate::types::*;

/// Records an answer of its own content.
fn fresh(ledger: &Ledger, name: &str) {
    let response = name.bytes().map(u32::from).collect();
    record(ledger, Generation { response, user: None, ..answer(name) }).unwrap();
}

fn say(ledger: &Ledger, name: &str, user: &str, value: f64) -> FeedbackReceipt {
    ledger.add_feedback(&NewFeedback { user: Some(user.into()), ..rating(name, value) }).unwrap()
}

pub(super) fn names(batch: &[RatedGeneration]) -> Vec<&str> {
    batch.iter().map(|r| r.generation.id.0.as_str()).collect()
}

fn one_user_fills_at_most_their_share_of_a_batch_once_there_are_others(home: &Home) {
    let ledger = home.open_with(Rules { share: 0.25, ..Rules::default() });
    for n in 0..8 {
        fresh(&ledger, &format!("m{n}"));
        say(&ledger, &format!("m{n}"), "mallory", 1.0);
    }
    assert_eq!(ledger.pending_batch(8).unwrap().len(), 8, "nobody else is there to protect");
    for n in 0..3 {
        fresh(&ledger, &format!("a{n}"));
        say(&ledger, &format!("a{n}"), &format!("ann{n}"), 1.0);
    }
    let batch = ledger.pending_batch(8).unwrap();
    assert_eq!(names(&batch), ["m0", "a0", "a1", "a2"], "a quarter of what it comes to be");
    assert_eq!(ledger.pending_ratings(), 11, "what doesn't fit waits");
}

fn what_is_over_a_users_limit_of_the_hour_is_kept_and_does_not_count(home: &Home) {
    let ledger = home.open_with(Rules { hourly: 2, ..Rules::default() });
    fresh(&ledger, "a");
    say(&ledger, "a", "ann", 1.0);
    let said: Vec<_> = (0..4)
        .map(|n| {
            fresh(&ledger, &format!("m{n}"));
            say(&ledger, &format!("m{n}"), "mallory", -1.0).left_out
        })
        .collect();
    let over = Some("over the user's limit of this hour".to_owned());
    assert_eq!(said, [None, None, over.clone(), over.clone()]);
    assert_eq!(names(&ledger.pending_batch(9).unwrap()), ["a", "m0", "m1"]);
    let kept = ledger.feedback_of(&id("m3")).unwrap();
    assert_eq!((&kept[0].signal, &kept[0].left_out), (&Signal::Rating(-1.0), &over));
    let f = NewFeedback { user: Some("mallory".into()), ..rating("m3", -0.9) };
    assert!(ledger.import(Vec::new(), Judgement::Feedback(f, None)).unwrap().recv().unwrap().unwrap());
    let kept = ledger.feedback_of(&id("m3")).unwrap();
    assert_eq!(kept[1].left_out, None, "an operator brings in what they like");
}

fn the_same_word_of_the_same_answer_counts_once_while_it_waits(home: &Home) {
    let ledger = home.open_with(Rules { duplicates_once: true, ..Rules::default() });
    // The same tokens to the same prompt, twice.
    for name in ["a", "b"] {
        record(&ledger, answer(name)).unwrap();
    }
    assert_eq!(say(&ledger, "a", "ann", 1.0).left_out, None);
    assert_eq!(say(&ledger, "b", "ann", 1.0).left_out, Some("duplicate".into()));
    assert_eq!(say(&ledger, "b", "bob", 1.0).left_out, None);
    let batch = ledger.pending_batch(9).unwrap();
    assert_eq!((names(&batch), batch[1].feedback_ids.len()), (vec!["a", "b"], 1));
    let used: Vec<u64> = batch.iter().flat_map(|r| r.feedback_ids.clone()).collect();
    ledger.commit_version(&version(1, 0), TrainedBatch::of(&used, &[])).unwrap();
    assert_eq!(say(&ledger, "b", "ann", 1.0).left_out, None, "said again after it was used, it is news");
}

fn several_users_of_one_answer_count_by_their_mean_and_each_by_their_last_word(home: &Home) {
    let ledger = home.open();
    fresh(&ledger, "a");
    let words = [("ann", -1.0), ("bob", -0.5), ("ann", 1.0)];
    let replaces = words.map(|(user, value)| say(&ledger, "a", user, value).replaces_earlier);
    assert_eq!(replaces, [false, false, true]);
    let batch = ledger.pending_batch(9).unwrap();
    assert_eq!((batch[0].rating, batch[0].feedback_ids.len()), (Some(0.25), 3));
}

fn a_user_who_disagrees_with_everyone_waits_until_somebody_decides(home: &Home) {
    let rules = Rules { flag_after: 3, flag_share: 0.6, ..Rules::default() };
    let ledger = home.open_with(rules.clone());
    for n in 0..4 {
        let name = format!("g{n}");
        fresh(&ledger, &name);
        for user in ["ann", "bob"] {
            say(&ledger, &name, user, 1.0);
        }
        say(&ledger, &name, "mallory", -1.0);
        // Said again it is no second comparison.
        say(&ledger, &name, "mallory", -0.5);
    }
    let list = ledger.reviews().unwrap();
    let expected = ReviewEntry { user: "mallory".into(), compared: 8, disagreed: 8, waiting: 8, verdict: None };
    assert_eq!(list, [expected]);
    let ratings = |ledger: &Ledger| ledger.pending_batch(9).unwrap().iter().map(|r| r.rating).collect::<Vec<_>>();
    assert_eq!(ratings(&ledger), [Some(1.0); 4]);

    ledger.review("mallory", ReviewVerdict::Trust).unwrap();
    assert_eq!(ratings(&ledger), [Some(0.5); 4]);
    drop(ledger);
    let ledger = home.open_with(rules);
    assert_eq!(ledger.reviews().unwrap()[0].verdict, Some(ReviewVerdict::Trust));
    ledger.review("mallory", ReviewVerdict::Reject).unwrap();
    assert_eq!(ratings(&ledger), [Some(1.0); 4]);
    fresh(&ledger, "later");
    assert_eq!(say(&ledger, "later", "mallory", 1.0).left_out, Some("user rejected".into()));
    assert_eq!(ledger.pending_ratings(), 4);
    assert_eq!(ledger.feedback_of(&id("g0")).unwrap().len(), 4, "all is kept");
}

fn feedback_in_quarantine_waits_and_is_used_once_it_is_ripe(home: &Home) {
    let rules = Rules { delay_ms: 300, ..Rules::default() };
    let ledger = home.open_with(rules);
    fresh(&ledger, "a");
    say(&ledger, "a", "ann", 1.0);
    assert_eq!((ledger.pending_ratings(), ledger.pending_batch(9).unwrap().len()), (1, 0));
    std::thread::sleep(std::time::Duration::from_millis(350));
    assert_eq!(ledger.pending_batch(9).unwrap().len(), 1);
}

fn a_share_delays_and_never_starves(home: &Home) {
    // Far longer than twenty durable writes take.
    let rules = Rules { share: 0.5, patience_ms: 20_000, ..Rules::default() };
    let ledger = home.open_with(rules.clone());
    fresh(&ledger, "lone");
    ledger.add_feedback(&rating("lone", 1.0)).unwrap();
    for n in 0..20 {
        let name = format!("a{n}");
        fresh(&ledger, &name);
        say(&ledger, &name, "ann", 1.0);
    }
    assert!(ledger.pending_batch(8).unwrap().len() < 8, "her share waits for others first");
    ledger.close();
    home.db().execute("UPDATE feedback SET created = created - 20000", ()).unwrap();
    let ledger = home.open_with(rules);
    let batch = ledger.pending_batch(8).unwrap();
    assert_eq!(names(&batch), ["lone", "a0", "a1", "a2", "a3", "a4", "a5", "a6"], "the oldest fill it");
}

fn times_of_the_future_hold_no_feedback_up_and_count_for_no_hour(home: &Home) {
    let rules = Rules { delay_ms: 60_000, hourly: 2, ..Rules::default() };
    let ledger = home.open_with(rules.clone());
    for name in ["a", "b", "c", "d"] {
        fresh(&ledger, name);
    }
    say(&ledger, "a", "bob", 1.0);
    say(&ledger, "a", "ann", 1.0);
    say(&ledger, "b", "ann", 1.0);
    ledger.close();
    home.db().execute("UPDATE feedback SET created = created + 864000000", ()).unwrap();
    let ledger = home.open_with(rules);
    assert_eq!(names(&ledger.pending_batch(9).unwrap()), ["a", "b"]);
    assert_eq!(say(&ledger, "c", "ann", 1.0).left_out, None);
    assert_eq!(names(&ledger.pending_batch(9).unwrap()), ["a", "b"], "what is in quarantine now still waits");
}

fn times_that_a_wrong_clock_gave_neither_delete_what_is_young_nor_keep_what_is_old(home: &Home) {
    let ledger = home.open();
    let names = ["a", "b", "c", "d", "e", "f"];
    names.iter().for_each(|name| fresh(&ledger, name));
    ledger.close();
    let (day, now) = (86_400_000_i64, 2_000_000_000_000_i64);
    // The clock was a year ahead, went right, went back to 1970 at a start, and went right again.
    let times = [now - 90 * day, now + 365 * day, now - 80 * day, now - 5 * day, 1000, now - 4 * day];
    let db = home.db();
    for (name, time) in names.iter().zip(times) {
        db.execute("UPDATE generations SET created = ?2 WHERE id = ?1", (&id(name).0, time)).unwrap();
    }
    drop(db);
    let ledger = home.open();
    let left =
        || names.iter().filter(|name| ledger.generation(&id(name)).unwrap().is_some()).copied().collect::<String>();
    let expire = |days: i64, now: i64| ledger.expire((now - days * day) as u64, now as u64, 100).unwrap().generations;
    assert_eq!((expire(85, now), left().as_str()), (1, "bcdef"), "what is after it tells nothing of the next one yet");
    assert_eq!((expire(30, now), left().as_str()), (2, "def"));
    assert_eq!((expire(30, now), left().as_str()), (0, "def"));
    assert_eq!((expire(30, now + 26 * day), left().as_str()), (2, "f"));
    assert_eq!((expire(30, now + 28 * day), left().as_str()), (1, ""));
}

fn what_nothing_can_be_learned_from_is_kept_with_its_reason_and_waits_no_more(home: &Home) {
    let ledger = home.open();
    fresh(&ledger, "a");
    fresh(&ledger, "b");
    let bad = say(&ledger, "a", "ann", 1.0).feedback_id;
    say(&ledger, "b", "ann", 1.0);
    ledger.leave_out(&[(vec![bad, 999], "token 9 is outside the vocabulary of 8".into())]).unwrap();
    assert_eq!((ledger.pending_ratings(), names(&ledger.pending_batch(9).unwrap())), (1, vec!["b"]));
    let left = ledger.left_out(9).unwrap();
    assert_eq!((left.len(), left[0].feedback_id, left[0].user.as_deref()), (1, bad, Some("ann")));
    assert_eq!(left[0].reason, "token 9 is outside the vocabulary of 8");
    assert_eq!(ledger.feedback_of(&id("a")).unwrap().len(), 1);
}

fn signals_corrections_and_remarks_are_kept_and_teach_as_the_rules_say(home: &Home) {
    let rules = Rules { signals: ["copied".to_owned()].into(), corrections: true, ..Rules::default() };
    let ledger = home.open_with(rules);
    for name in ["a", "b", "c"] {
        fresh(&ledger, name);
    }
    let add = |name: &str, signal: Signal, comment: Option<&str>| {
        ledger.add_feedback(&NewFeedback { signal, comment: comment.map(str::to_owned), ..rating(name, 0.0) })
    };
    add("a", Signal::Named("copied".into()), None).unwrap();
    add("a", Signal::Named("copied".into()), None).unwrap();
    add("a", Signal::Correction("better".into()), None).unwrap();
    add("b", Signal::Named("unheard".into()), None).unwrap();
    add("c", Signal::Comment, Some("hm")).unwrap();
    assert!(add("c", Signal::Comment, None).is_err());
    assert!(add("c", Signal::Named("x".repeat(65)), None).is_err());
    let batch = ledger.pending_batch(9).unwrap();
    assert_eq!((names(&batch), batch[0].rating), (vec!["a"], None));
    assert_eq!((&batch[0].signals[..], batch[0].correction.as_deref()), (&["copied".to_owned()][..], Some("better")));
    assert_eq!(ledger.feedback_of(&id("c")).unwrap()[0].comment.as_deref(), Some("hm"));
    let pairs = ledger.pairs().unwrap();
    assert_eq!(pairs.len(), 1);
    assert_eq!(pairs[0].chosen, PairAnswer::Text("better".into()));
}

fn pairs_of_a_reward_model_have_the_limits_of_ratings(home: &Home) {
    let limits = Rules { hourly: 5, share: 0.5, duplicates_once: true, flag_after: 1, ..Rules::default() };
    let ledger = home.open_with(limits);
    for n in 0..24 {
        fresh(&ledger, &format!("g{n}"));
    }
    let prefer = |user: &str, chosen: u32, rejected: u32| {
        ledger.add_preference(&id(&format!("g{chosen}")), &id(&format!("g{rejected}")), Some(user)).unwrap();
    };
    let users = || ledger.pairs().unwrap().into_iter().map(|p| p.user.unwrap()).collect::<Vec<_>>();
    (0..8).for_each(|n| prefer("mallory", 2 * n, 2 * n + 1));
    assert_eq!(users().len(), 8, "nobody else is there to protect");
    // The same answers under other names are the same words.
    for name in ["twin", "other twin"] {
        let tokens = ["g0", "g1"].map(|of| ledger.generation(&id(of)).unwrap().unwrap().response);
        for (side, response) in tokens.into_iter().enumerate() {
            record(&ledger, Generation { response, user: None, ..answer(&format!("{name} {side}")) }).unwrap();
        }
        ledger.add_preference(&id(&format!("{name} 0")), &id(&format!("{name} 1")), Some("mallory")).unwrap();
    }
    assert_eq!(users().len(), 8);

    prefer("ann", 17, 16);
    prefer("ann", 19, 18);
    let five = ["mallory", "mallory", "ann", "ann"];
    assert_eq!(users(), five, "five in an hour, and of those half of what there is");
    let kept: Vec<Vec<u32>> = ledger
        .pairs()
        .unwrap()
        .into_iter()
        .map(|pair| match pair.chosen {
            PairAnswer::Tokens(tokens, _) => tokens,
            PairAnswer::Text(_) => Vec::new(),
        })
        .collect();
    assert_eq!(kept[0], "g6".bytes().map(u32::from).collect::<Vec<_>>(), "the newest");

    // What an operator brought in is no user's share.
    for n in 0..6 {
        for side in ["a", "b"] {
            let response = format!("imp {n} {side}").bytes().map(u32::from).collect();
            let user = Some("import".into());
            record(&ledger, Generation { response, user, ..answer(&format!("imp-{n}{side}")) }).unwrap();
        }
        ledger.add_preference(&id(&format!("imp-{n}a")), &id(&format!("imp-{n}b")), Some("import")).unwrap();
    }
    let of = |who: &str| users().iter().filter(|user| *user == who).count();
    assert_eq!((of("mallory"), of("ann"), of("import")), (5, 2, 6));
    ledger.review("mallory", ReviewVerdict::Reject).unwrap();
    assert_eq!((of("mallory"), of("ann"), of("import")), (0, 2, 6));
    assert_eq!(ledger.pair_count().unwrap(), 18, "all is kept");
}

fn what_made_a_sample_is_on_record_and_answers_nobody_rated_are_found(home: &Home) {
    let ledger = home.open();
    for name in ["a", "b", "c"] {
        fresh(&ledger, name);
    }
    let used = ledger.add_feedback(&rating("a", 1.0)).unwrap().feedback_id;
    assert_eq!(names(&ledger.unrated(9, PolicyVersion(0)).unwrap()), ["c", "b"]);
    let term = Term { name: "model".into(), value: 0.5, weight: 2.0, raw: Some(-3.25) };
    let score = Score { score: 1.0, terms: vec![term] };
    let sample = |name: &str| SampleRecord { generation_id: id(name), kind: SampleKind::Answer, score: score.clone() };
    ledger.commit_version(&version(1, 0), TrainedBatch::of(&[used], &[sample("a"), sample("c")])).unwrap();
    let stored = StoredSample { version: Some(PolicyVersion(1)), kind: SampleKind::Answer, score: score.clone() };
    assert_eq!(ledger.samples_of(&id("c")).unwrap(), [stored]);
    assert_eq!(ledger.samples_of(&id("b")).unwrap(), []);
    assert_eq!(names(&ledger.unrated(9, PolicyVersion(0)).unwrap()), ["b"]);
    assert_eq!(ledger.unrated(9, PolicyVersion(1)).unwrap(), []);
}

fn what_is_said_of_one_answer_is_bounded(home: &Home) {
    let ledger = home.open();
    record(&ledger, answer("a")).unwrap();
    record(&ledger, answer("b")).unwrap();
    let remark = |name: &str, bytes: usize| NewFeedback { comment: Some("x".repeat(bytes)), ..rating(name, 1.0) };
    for _ in 0..MAX_SAID_TEXT / MAX_TEXT as u64 {
        ledger.add_feedback(&remark("a", MAX_TEXT)).unwrap();
    }
    let error = ledger.add_feedback(&remark("a", 1)).unwrap_err();
    assert!(error.message().contains("1048576 bytes, and 1 more"), "{error}");
    rate(&ledger, "a", 0.5);
    for _ in 0..MAX_SAID {
        rate(&ledger, "b", 0.5);
    }
    let error = ledger.add_feedback(&rating("b", 1.0)).unwrap_err();
    assert!(error.message().contains("has 1024 pieces of feedback, expected at most 1024"), "{error}");
    assert_eq!(ledger.feedback_of(&id("b")).unwrap().len(), 1024);
}

#[test]
fn a_ledger_of_the_first_format_is_brought_along_with_its_feedback() {
    let home = Home::sqlite();
    {
        let db = sqlite::of_format(&home.file(), 1);
        db.execute_batch(
            "INSERT INTO generations VALUES (1, 'g', 0, x'01000000', x'02000000', 't', '{}', 'stop', 'ann', 5);
             INSERT INTO feedback VALUES (7, 1, 0.5, NULL, 1, 'ann', 'ok', 6, NULL);
             INSERT INTO feedback VALUES (9, 1, NULL, 'c', 0, NULL, NULL, 6, NULL);",
        )
        .unwrap();
    }
    assert!(LedgerReader::open(home.place()).err().unwrap().message().contains("has format 1, expected 9"));
    let ledger = home.open();
    assert_eq!(ledger.pending_ratings(), 1);
    let kept = ledger.feedback_of(&id("g")).unwrap();
    assert_eq!((kept[0].feedback_id, kept[0].signal.clone()), (7, Signal::Rating(0.5)));
    assert_eq!((kept[1].feedback_id, kept[1].signal.clone()), (9, Signal::Correction("c".into())));
    assert_eq!(ledger.add_feedback(&rating("g", 1.0)).unwrap().feedback_id, 10);

    let mut seen = Vec::new();
    let reader = LedgerReader::open(home.place()).unwrap();
    reader
        .for_each(&mut |said| {
            seen.push(said.prompt().to_vec());
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, [[1], [1], [1]]);
}

suite! {
    one_user_fills_at_most_their_share_of_a_batch_once_there_are_others
    what_is_over_a_users_limit_of_the_hour_is_kept_and_does_not_count
    the_same_word_of_the_same_answer_counts_once_while_it_waits
    several_users_of_one_answer_count_by_their_mean_and_each_by_their_last_word
    a_user_who_disagrees_with_everyone_waits_until_somebody_decides
    feedback_in_quarantine_waits_and_is_used_once_it_is_ripe
    a_share_delays_and_never_starves
    times_of_the_future_hold_no_feedback_up_and_count_for_no_hour
    times_that_a_wrong_clock_gave_neither_delete_what_is_young_nor_keep_what_is_old
    what_nothing_can_be_learned_from_is_kept_with_its_reason_and_waits_no_more
    signals_corrections_and_remarks_are_kept_and_teach_as_the_rules_say
    pairs_of_a_reward_model_have_the_limits_of_ratings
    what_made_a_sample_is_on_record_and_answers_nobody_rated_are_found
    what_is_said_of_one_answer_is_bounded
}

//! Tests of forgetting: no byte of a user's words stays, and nobody else is held up. None of limits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::home_tests::{Home, suite};
use super::rules_tests::names;
use super::sqlite::Sqlite;
use super::tests::{answer, id, rate, record, version};
use super::*;
use crate::error::Code;
use crate::types::*;

fn a_forgotten_users_words_are_gone_from_the_disk_and_others_stay(home: &Home) {
    let ledger = home.open_with(Rules { flag_after: 1, ..Rules::default() });
    let of = |name: &str, user: &str, text: &str| Generation {
        text: text.into(),
        prompt: text.bytes().map(u32::from).collect(),
        user: Some(user.into()),
        ..answer(name)
    };
    record(&ledger, of("hers", "ann", "SECRET-OF-ANN")).unwrap();
    record(&ledger, of("his", "bob", "words of bob")).unwrap();
    let say = |name: &str, user: &str, signal: Signal, comment: &str| {
        let comment = Some(comment.to_owned());
        ledger.add_feedback(&NewFeedback { signal, user: Some(user.into()), comment, generation_id: id(name) }).unwrap()
    };
    say("hers", "bob", Signal::Rating(1.0), "QUOTES-ANN");
    say("his", "ann", Signal::Correction("ANN-CORRECTS".into()), "ANN-REMARKS");
    say("his", "ann", Signal::Rating(1.0), "ANN-RATES");
    let last = say("his", "bob", Signal::Rating(-1.0), "bob rates").feedback_id;
    ledger.add_preference(&id("his"), &id("hers"), Some("bob")).unwrap();
    assert_eq!(ledger.pending_ratings(), 2);
    let words: [&[u8]; 5] = [b"SECRET-OF-ANN", b"QUOTES-ANN", b"ANN-CORRECTS", b"ANN-REMARKS", b"ANN-RATES"];
    assert!(!home.overwrites() || words.iter().all(|words| home.on_disk(words)));

    let gone = ledger.forget("ann").unwrap();
    assert_eq!(
        gone,
        Forgotten { generations: 1, feedback: 3, preferences: 1, samples: 0, overwritten: home.overwrites() }
    );
    assert!(words.iter().all(|words| !home.on_disk(words)), "words of hers are still on disk");
    let prompt: Vec<u8> = "SECRET-OF-ANN".bytes().flat_map(|b| u32::from(b).to_le_bytes()).collect();
    assert!(!home.on_disk(&prompt), "her prompt's tokens are still on disk");
    assert_eq!(ledger.generation(&id("hers")).unwrap(), None);
    let batch = ledger.pending_batch(9).unwrap();
    assert_eq!((names(&batch), batch[0].rating, ledger.pending_ratings()), (vec!["his"], Some(-1.0), 1));
    assert!(say("his", "bob", Signal::Rating(0.5), "again").feedback_id > last, "numbers of feedback only grow");
    assert_eq!(ledger.forget("nobody").unwrap(), Forgotten { overwritten: home.overwrites(), ..Forgotten::default() });
}

fn rollouts_to_a_users_prompt_go_with_the_user(home: &Home) {
    let ledger = home.open();
    let prompt: Vec<TokenId> = "SECRET-OF-ANN".bytes().map(u32::from).collect();
    let of = |name: &str, user: Option<&str>| Generation {
        user: user.map(str::to_owned),
        prompt: prompt.clone(),
        ..answer(name)
    };
    record(&ledger, of("gen-1", Some("ann"))).unwrap();
    let asked = ledger.recent_prompts(9).unwrap();
    assert_eq!(asked, [AskedPrompt { tokens: prompt.clone(), user: Some("ann".into()), origin: Some(id("gen-1")) }]);
    // One with her name, as they are now, and one without, as earlier builds wrote them.
    record(&ledger, of("rol-1", Some("ann"))).unwrap();
    record(&ledger, of("rol-2", None)).unwrap();
    record(&ledger, Generation { user: None, prompt: vec![7], ..answer("rol-3") }).unwrap();
    assert_eq!(ledger.forget("ann").unwrap().generations, 3);
    let words: Vec<u8> = prompt.iter().flat_map(|token| token.to_le_bytes()).collect();
    assert!(!home.on_disk(&words), "her prompt's tokens are still on disk");
    assert!(ledger.generation(&id("rol-3")).unwrap().is_some());
}

#[test]
fn forgetting_beside_a_reader_holds_up_nobody_and_empties_the_log_when_that_ends() {
    let home = Home::sqlite();
    let ledger = home.open();
    record(&ledger, Generation { text: "SECRET-OF-ANN".into(), ..answer("hers") }).unwrap();
    record(&ledger, Generation { user: Some("bob".into()), ..answer("his") }).unwrap();
    let other = home.db();
    let other = &other.engine::<Sqlite>().0;
    other.execute_batch("BEGIN; SELECT count(*) FROM generations;").unwrap();
    let began = Instant::now();
    let gone = ledger.forget("ann").unwrap();
    assert_eq!((gone.generations, gone.overwritten), (1, false));
    rate(&ledger, "his", 1.0);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    other.execute_batch("COMMIT").unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while home.on_disk(b"SECRET-OF-ANN") {
        assert!(Instant::now() < until, "the log was never emptied");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn a_step_whose_feedback_was_forgotten_meanwhile_is_to_be_made_again(home: &Home) {
    let ledger = home.open();
    record(&ledger, answer("a")).unwrap();
    record(&ledger, Generation { user: None, ..answer("b") }).unwrap();
    let used = [rate(&ledger, "a", 1.0).feedback_id, rate(&ledger, "b", 1.0).feedback_id];
    ledger.forget("ann").unwrap();
    let error = ledger.commit_version(&version(1, 0), TrainedBatch::of(&used, &[])).unwrap_err();
    assert_eq!(error.code(), Code::Busy, "{error}");
    assert!(error.message().contains("was forgotten or rejected"), "{error}");
    assert_eq!(ledger.pending_ratings(), 1);
    ledger.commit_version(&version(1, 0), TrainedBatch::of(&used[1..], &[])).unwrap();
    assert_eq!(ledger.commit_skipped("r", &[999]).unwrap_err().code(), Code::Arg);
}

/// Records an answer that goes on from another; whether it was recorded.
fn record_from(ledger: &Ledger, g: Generation, origin: &str) -> bool {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let done = Box::new(move |outcome| sender.send(outcome).unwrap());
    ledger.record_from(Arc::new(g), Some(id(origin)), done).unwrap();
    receiver.recv().unwrap().unwrap()
}

fn what_repeats_a_users_words_goes_with_them_and_what_comes_after_is_not_recorded(home: &Home) {
    let ledger = home.open();
    let of = |name: &str, user: Option<&str>| Generation { user: user.map(str::to_owned), ..answer(name) };
    record(&ledger, of("gen-1", Some("ann"))).unwrap();
    assert!(record_from(&ledger, of("gen-2", Some("bob")), "gen-1"));
    assert!(record_from(&ledger, of("gen-3", Some("eve")), "gen-2"));
    assert!(record_from(&ledger, of("rol-1", Some("eve")), "gen-3"));
    record(&ledger, of("gen-4", Some("bob"))).unwrap();
    assert!(record_from(&ledger, of("gen-5", Some("eve")), "gen-4"));
    // What is in between may be gone first.
    let gone = ledger.forget("eve").unwrap().generations;
    assert_eq!(gone, 3);
    assert!(record_from(&ledger, of("gen-6", Some("eve")), "gen-2"));
    assert_eq!(ledger.forget("ann").unwrap().generations, 3);
    assert!(ledger.generation(&id("gen-4")).unwrap().is_some());
    assert!(!record_from(&ledger, of("gen-7", Some("bob")), "gen-2"), "it was under way");
    assert_eq!(ledger.generation(&id("gen-7")).unwrap(), None);
}

#[test]
fn whose_words_responses_of_earlier_builds_repeat_is_found_at_the_next_start() {
    let home = Home::sqlite();
    {
        let db = sqlite::of_format(&home.file(), 8);
        db.execute_batch(
            "INSERT INTO generations VALUES (1, 'gen-1', 0, x'01000000', x'02000000', 't', '{}', 'stop', 'ann', 5),
             (2, 'gen-2', 0, x'03000000', x'02000000', 't', '{}', 'stop', NULL, 5),
             (3, 'gen-3', 0, x'04000000', x'02000000', 't', '{}', 'stop', 'bob', 5),
             (4, 'rol-4', 0, x'04000000', x'02000000', 't', '{}', 'stop', 'bob', 5),
             (5, 'gen-5', 0, x'05000000', x'02000000', 't', '{}', 'stop', 'bob', 5);
             INSERT INTO responses VALUES (1, NULL, '[]', '{}'), (2, 'gen-1', '[]', '{}'), (3, 'gen-2', '[]', '{}'),
             (5, 'gen-9', '[]', '{}');",
        )
        .unwrap();
    }
    let ledger = home.open();
    assert_eq!(ledger.forget("ann").unwrap().generations, 4);
    assert!(ledger.generation(&id("gen-5")).unwrap().is_some());
}

suite! {
    a_forgotten_users_words_are_gone_from_the_disk_and_others_stay
    rollouts_to_a_users_prompt_go_with_the_user
    a_step_whose_feedback_was_forgotten_meanwhile_is_to_be_made_again
    what_repeats_a_users_words_goes_with_them_and_what_comes_after_is_not_recorded
}

//! Which of the requests that wait is taken next. A tiny model.

use std::time::{Duration, Instant};

use apa::Engine;
use apa::engine::{Event, GenerateRequest, GenerationStream, Next};
use apa::types::{Sampling, TokenId};

use crate::support::engine::{finish, open_with};
use crate::support::tiny::vocabulary;

/// An answer of that many tokens: what ends one is banned.
fn of_length(prompt: usize, tokens: u32) -> GenerateRequest {
    let ends = vocabulary().len() as TokenId - 3..vocabulary().len() as TokenId;
    let logit_bias = ends.map(|token| (token, -100.0)).collect();
    let sampling = Sampling { seed: Some(1), logit_bias, ..Sampling::default() };
    // Prompts that begin alike would be had from one another.
    let prompt = (0..prompt as TokenId).map(|i| (i * 7 + tokens) % 200).collect();
    GenerateRequest { prompt, max_tokens: Some(tokens), sampling, ..GenerateRequest::default() }
}

fn begins(stream: &GenerationStream) {
    let next = stream.next(Some(Duration::from_secs(60))).unwrap();
    assert!(matches!(next, Next::Event(Event::Text(_))), "{next:?}");
}

/// Four slots, three answers that take most of the context for a while, and one that waits for room.
fn crowded(engine: &Engine, context: u32) -> (Vec<GenerationStream>, GenerationStream) {
    let fair = context / 4;
    let running: Vec<_> = (0..3).map(|i| engine.generate(of_length(10 + i, fair - 62)).unwrap()).collect();
    running.iter().for_each(begins);
    let big = engine.generate(of_length(fair as usize * 3, 8)).unwrap();
    (running, big)
}

#[test]
fn short_requests_pass_a_long_one_that_has_no_room_yet() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| (c.serve.context, c.serve.slots) = (8192, 4)).unwrap();
    let (running, big) = crowded(&engine, 8192);
    for i in 0..20 {
        finish(&engine.generate(of_length(5 + i, 1)).unwrap()).unwrap();
    }
    let load = engine.status().load;
    assert_eq!((load.queued, load.running), (1, 3), "the long one waits, those before it still run");
    running.iter().for_each(GenerationStream::cancel);
    finish(&big).unwrap();
    engine.shutdown();
}

#[test]
fn a_long_request_is_not_passed_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), |c| (c.serve.context, c.serve.slots) = (2048, 4)).unwrap();
    let (running, big) = crowded(&engine, 2048);
    // Without end, as far as the long one can tell.
    let others: Vec<_> = (0..20).map(|i| engine.generate(of_length(10 + i, 400)).unwrap()).collect();
    let asked = Instant::now();
    finish(&big).unwrap();
    let load = engine.status().load;
    assert!(load.queued >= 10, "{} others passed it, in {:?}", 20 - load.queued, asked.elapsed());
    for stream in running.iter().chain(&others) {
        stream.cancel();
    }
    engine.shutdown();
}

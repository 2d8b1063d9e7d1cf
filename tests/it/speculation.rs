//! Answers guessed ahead by what was said before: every token has the log-probability that it has without guesses, and
//! limits and ends hold. On a tiny model.

use std::path::Path;

use apa::Engine;
use apa::engine::GenerateRequest;
use apa::types::{FinishReason, Generation, Sampling, TokenLogprob};

use crate::support::engine::{finish, open_with, request};

fn engine(dir: &Path, speculate: bool) -> Engine {
    open_with(dir, |c| (c.serve.speculate, c.serve.slots) = (speculate, 2)).unwrap()
}

/// Answers that repeat themselves, the first two greedy.
fn requests(engine: &Engine) -> Vec<GenerateRequest> {
    let greedy = |text: &str, max_tokens: u32| {
        let mut asked = request(engine, text, 7);
        (asked.sampling.temperature, asked.max_tokens, asked.logprobs) = (0.0, Some(max_tokens), Some(20));
        (asked.sampling.ignore_eos, asked.sampling.seed) = (true, None);
        asked
    };
    let mut sampled = greedy("the rain the rain the rain the rain", 150);
    sampled.sampling.temperature = 0.3;
    let mut penalized = greedy("in spain in spain in spain", 60);
    penalized.sampling.frequency_penalty = 0.5;
    // Three tokens by chance: there is always something to guess, and most of it fails.
    let mut random = greedy("the rain the rain the rain the rain", 150);
    random.sampling.temperature = 5.0;
    random.sampling.logit_bias = [(65, 100.0), (66, 100.0), (67, 100.0)].into();
    vec![greedy("the", 200), greedy("the rain in spain falls on the rain in spain", 199), sampled, penalized, random]
}

/// The answers of requests that run together, with the log-probabilities of their tokens and of the likeliest.
fn answers(engine: &Engine, asked: &[GenerateRequest]) -> Vec<(Generation, Vec<(f64, f64)>)> {
    let streams: Vec<_> = asked.iter().map(|a| engine.generate(a.clone()).unwrap()).collect();
    let whole = |stream| {
        let generation = finish(stream).unwrap().1;
        let logprobs = stream.logprobs(0);
        // What ends answers is never sampled here.
        let likeliest = |l: &TokenLogprob| l.top_logprobs.iter().find(|t| !t.token.starts_with("<|")).unwrap().logprob;
        let both = logprobs.iter().map(|l| (l.chosen.logprob.into(), likeliest(l).into())).collect();
        ((*generation).clone(), both)
    };
    streams.iter().map(whole).collect()
}

/// What a token's log-probability is after a beginning, without guesses; `None` if it is none of the likeliest.
fn fresh(engine: &Engine, beginning: &[u32], token: u32) -> Option<f64> {
    let sampling = Sampling { temperature: 0.0, logit_bias: [(token, 100.0)].into(), ..Sampling::default() };
    let asked = GenerateRequest {
        prompt: beginning.to_vec(),
        max_tokens: Some(1),
        logprobs: Some(0),
        sampling,
        ..GenerateRequest::default()
    };
    let stream = engine.generate(asked).unwrap();
    let said = finish(&stream).unwrap().1;
    (said.response == [token]).then(|| stream.logprobs(0)[0].chosen.logprob.into())
}

#[test]
fn every_token_is_as_likely_as_without_guesses_alone_and_together() {
    let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (with, without) = (engine(one.path(), true), engine(two.path(), false));
    let asked = requests(&with);
    let alone: Vec<_> = asked.iter().flat_map(|a| answers(&with, std::slice::from_ref(a))).collect();
    let together = answers(&with, &asked);
    let mut compared = 0;
    for (generation, logprobs) in alone.iter().chain(&together) {
        for (i, (token, (logprob, _))) in generation.response.iter().zip(logprobs).enumerate().step_by(3) {
            let beginning = [&generation.prompt[..], &generation.response[..i]].concat();
            let Some(fresh) = fresh(&without, &beginning, *token) else { continue };
            assert!((fresh - logprob).abs() < 0.02, "token {i}: {logprob}, without guesses {fresh}");
            compared += 1;
        }
    }
    assert!(compared > 300, "{compared}");
    for (greedy, logprobs) in [&alone[..2], &together[..2]].concat() {
        assert_eq!(greedy.finish, FinishReason::Length);
        assert!(logprobs.iter().all(|(chosen, likeliest)| chosen == likeliest));
    }
    assert_eq!([alone[0].0.response.len(), alone[1].0.response.len()], [200, 199]);
    let load = with.status().load;
    let made: usize = alone.iter().chain(&together).map(|(g, _)| g.response.len()).sum();
    assert_eq!(load.generated_tokens as usize, made);
    // How many is decided by what turns take.
    assert!(load.drafted_tokens > 0 && load.accepted_tokens <= load.drafted_tokens, "{load:?}");
    assert_eq!(without.status().load.drafted_tokens, 0);
}

#[test]
fn a_request_with_a_seed_is_not_guessed_at() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), true);
    let mut asked = requests(&engine).remove(0);
    asked.sampling.seed = Some(7);
    answers(&engine, &[asked]);
    assert_eq!(engine.status().load.drafted_tokens, 0);
}

#[test]
fn a_stop_string_within_a_guess_ends_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), true);
    let mut asked = requests(&engine).remove(1);
    let whole = answers(&engine, std::slice::from_ref(&asked)).remove(0).0;
    let at = whole.text.char_indices().map(|(i, _)| i).nth(40).unwrap();
    asked.stop = vec![whole.text[at..].chars().take(8).collect()];
    let stopped = answers(&engine, std::slice::from_ref(&asked)).remove(0).0;
    assert_eq!(stopped.finish, FinishReason::Stop);
    assert!(!stopped.text.contains(&asked.stop[0]));
}

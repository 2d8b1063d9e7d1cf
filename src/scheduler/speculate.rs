//! Speculative decoding by prompt lookup: guesses how answers go on from what was said before, where measurements say
//! that it is faster. Never samples.
//!
//! A guess is evaluated in the batch that evaluates an answer's last token, and holds as far as what is sampled agrees:
//! answers are as likely as without, and differ by rounding alone. Source: A. Saxena, Prompt Lookup Decoding (2023).

use std::time::Duration;

use crate::types::TokenId;

/// Last tokens of an answer that must have been said before.
const ALIKE: usize = 3;
/// Most tokens of a guess.
const LONGEST: usize = 8;
/// Weight of a new measurement.
const NEW: f64 = 0.2;
/// How much less a guessed token is thought to cost after each turn without.
const LESS: f64 = 0.01;
/// How much an answer in which guessing doesn't pay gets back of its first hope, with each guess that is not made.
const AGAIN: f64 = 0.02;

/// How many tokens of an answer's guesses have held, as a share of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Hope(f64);

impl Hope {
    /// Before the first guess.
    pub(super) const FIRST: Hope = Hope(0.5);

    /// Records a guess.
    pub(super) fn guessed(&mut self, tokens: usize, held: usize) {
        self.0 += NEW * (held as f64 / tokens as f64 - self.0);
    }

    /// Records that there was something to guess, and it was not worth it.
    pub(super) fn rested(&mut self) {
        self.0 += AGAIN * (Self::FIRST.0 - self.0);
    }
}

/// What guessed tokens cost on a lane.
pub(super) struct Speculation {
    /// Whether there are guesses.
    on: bool,
    /// Time that a guessed token adds to a turn. [s]
    token: Option<f64>,
}

impl Speculation {
    pub(super) fn new(on: bool) -> Self {
        Self { on, token: None }
    }

    /// How many tokens to guess for one of `answers` answers whose turns take `steady` seconds without guesses. A token
    /// that holds saves its answer a turn; one that doesn't makes all of them wait.
    pub(super) fn most(&self, Hope(hope): Hope, answers: usize, steady: Option<f64>) -> usize {
        let Some(steady) = steady.filter(|_| self.on) else { return 0 };
        if hope * steady <= self.token.unwrap_or(0.0) * answers as f64 {
            return 0;
        }
        (hope * LONGEST as f64).ceil() as usize
    }

    /// Records a turn without guesses: a cost that was measured too high, once, must not end them for good.
    pub(super) fn rested(&mut self) {
        self.token = self.token.map(|token| token * (1.0 - LESS));
    }

    /// Records the time of a turn with guessed tokens, which takes `steady` seconds without.
    pub(super) fn took(&mut self, guessed: usize, time: Duration, steady: f64) {
        let token = (time.as_secs_f64() - steady).max(0.0) / guessed as f64;
        self.token = Some(self.token.map_or(token, |mean| mean + NEW * (token - mean)));
    }
}

/// What came after the last time that the end of `said`, a prompt and an answer, was said: at most `most` tokens.
pub(super) fn guess(said: [&[TokenId]; 2], most: usize) -> Vec<TokenId> {
    let [prompt, answer] = said;
    let length = prompt.len() + answer.len();
    let at = |i: usize| if i < prompt.len() { prompt[i] } else { answer[i - prompt.len()] };
    let Some(end) = length.checked_sub(ALIKE) else { return Vec::new() };
    let alike = |begin: &usize| (0..ALIKE).all(|i| at(begin + i) == at(end + i));
    match (0..end).rev().find(alike) {
        Some(begin) => (begin + ALIKE..length).take(most).map(at).collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_is_what_came_after_the_last_time() {
        assert_eq!(guess([&[1, 2, 3, 4, 5, 9, 1, 2, 3, 6, 7], &[8, 1, 2, 3]], 2), [6, 7]);
        assert_eq!(guess([&[1, 2, 3, 4], &[1, 2, 3]], 9), [4, 1, 2, 3]);
        // A repetition goes on by itself.
        assert_eq!(guess([&[5], &[7, 7, 7, 7]], 3), [7]);
        for nothing in [[&[1, 2][..], &[3, 4][..]], [&[1], &[2]], [&[], &[]]] {
            assert!(guess(nothing, 3).is_empty(), "{nothing:?}");
        }
    }

    #[test]
    fn guesses_stop_where_they_cost_more_than_they_save_and_are_tried_again() {
        let mut lane = Speculation::new(true);
        let mut hope = Hope::FIRST;
        assert_eq!(lane.most(hope, 1, None), 0, "nothing is known of turns");
        assert_eq!(lane.most(hope, 1, Some(5e-3)), 4);
        lane.took(4, Duration::from_secs_f64(9e-3), 5e-3);
        // One token costs 1 ms, and saves 5 ms if it holds.
        assert_eq!(lane.most(hope, 1, Some(5e-3)), 4);
        assert_eq!(lane.most(hope, 8, Some(5e-3)), 0, "seven others would wait for it");
        (0..9).for_each(|_| hope.guessed(4, 0));
        assert_eq!(lane.most(hope, 1, Some(5e-3)), 0);
        (0..50).for_each(|_| hope.rested());
        assert!(lane.most(hope, 1, Some(5e-3)) > 0);
        (0..20).for_each(|_| hope.guessed(8, 8));
        assert_eq!(lane.most(hope, 1, Some(5e-3)), LONGEST);
        // A turn that was disturbed, and many after it.
        lane.took(1, Duration::from_secs(1), 5e-3);
        assert_eq!(lane.most(hope, 1, Some(5e-3)), 0);
        (0..400).for_each(|_| lane.rested());
        assert_eq!(lane.most(hope, 1, Some(5e-3)), LONGEST);
        lane.on = false;
        assert_eq!(lane.most(hope, 1, Some(5e-3)), 0);
    }
}

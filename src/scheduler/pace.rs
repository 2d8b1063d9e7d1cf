//! Chooses how many prompt tokens a turn reads while answers wait for their next token, by measuring what turns take.
//! Never fills a batch.

use std::time::Duration;

/// Most time of a turn while answers wait...
const TURN: Duration = Duration::from_millis(25);
/// ... or, where reading the answers' own tokens takes long, this many times as much: prompts then get the rest.
const TIMES: f64 = 3.0;
/// Most tokens of a prompt that a turn reads while answers wait: larger chunks read prompts no faster.
const MOST: usize = 128;
/// Fewest: smaller chunks read prompts much slower.
const LEAST: usize = 16;
/// Weight of a new measurement.
const NEW: f64 = 0.2;

/// What turns took so far. [s]
#[derive(Default)]
pub(super) struct Pace {
    /// A turn in which each answer advances by a token, and no prompt is read.
    steady: Option<f64>,
    /// A token of a prompt.
    token: Option<f64>,
}

impl Pace {
    /// What a turn takes in which each answer advances by a token. [s]
    pub(super) fn steady(&self) -> Option<f64> {
        self.steady
    }

    /// Prompt tokens of the next turn, in all, if answers wait.
    pub(super) fn chunk(&self) -> usize {
        let Some(token) = self.token else { return LEAST };
        let steady = self.steady.unwrap_or(0.0);
        let left = (TIMES * steady).max(TURN.as_secs_f64()) - steady;
        // Whole tiles of the products.
        ((left / token) as usize / LEAST * LEAST).clamp(LEAST, MOST)
    }

    /// Records the time of a turn over `answers` tokens of answers and `prompts` of prompts.
    pub(super) fn took(&mut self, answers: usize, prompts: usize, time: Duration) {
        let seconds = time.as_secs_f64();
        if prompts == 0 {
            note(&mut self.steady, seconds);
        } else if prompts >= LEAST {
            let own = if answers == 0 { 0.0 } else { self.steady.unwrap_or(0.0) };
            note(&mut self.token, (seconds - own).max(0.0) / prompts as f64);
        }
    }
}

fn note(mean: &mut Option<f64>, seconds: f64) {
    *mean = Some(mean.map_or(seconds, |mean| mean + NEW * (seconds - mean)));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chunk after turns on a machine with these times. [ms]
    fn chunk(steady: f64, token: f64) -> usize {
        let mut pace = Pace::default();
        let ms = |ms: f64| Duration::from_secs_f64(ms / 1e3);
        pace.took(0, 512, ms(512.0 * token));
        for _ in 0..50 {
            pace.took(4, 0, ms(steady));
            let prompts = pace.chunk();
            pace.took(4, prompts, ms(steady + prompts as f64 * token));
        }
        pace.chunk()
    }

    #[test]
    fn a_turn_takes_as_long_as_answers_may_wait() {
        // 5 + 32 * 0.5 = 21 ms, 48 would take 29.
        assert_eq!(chunk(5.0, 0.5), 32);
        assert_eq!(chunk(5.0, 0.25), 80);
        assert_eq!(chunk(5.0, 0.01), MOST);
    }

    #[test]
    fn prompts_of_a_large_model_are_read_all_the_same() {
        // Three times 400 ms.
        assert_eq!(chunk(400.0, 25.0), 32);
        assert_eq!(chunk(1.0, 50.0), LEAST);
    }

    #[test]
    fn before_anything_is_known_little_is_read() {
        assert_eq!(Pace::default().chunk(), LEAST);
    }
}

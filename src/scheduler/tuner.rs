//! Chooses how many threads decode, by measuring during decoding, and pins the leading thread. Never changes what is
//! computed, except for rounding: ggml splits the attention of a single sequence among its threads.
//!
//! ggml's threads spin at a barrier after every operation. On idle cores two threads are almost twice as fast as one;
//! when another program wants a core, each barrier waits for a time slice, and two are ten times slower.

use std::time::{Duration, Instant};

use crate::llama::DecoderPin;

/// Decodes with each choice in one trial.
const ROUNDS: usize = 3;
/// The other choice must be faster by this factor, so that noise causes no switch.
const MARGIN: f64 = 1.15;
/// Time between two trials: the first, and the limit. Each trial that confirms the present choice doubles it.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(8);

/// Chooses between all threads and one.
pub(super) struct Tuner {
    all: u32,
    /// Whether there are trials.
    trials: bool,
    /// The present choice.
    threads: u32,
    interval: Duration,
    last_trial: Instant,
    trial: Option<Trial>,
    pin: DecoderPin,
    /// Whether the trainer is working: one processor is left to it then. If they shared it, every barrier would wait
    /// for the trainer's time slices.
    pub(super) beside_training: bool,
}

/// Both choices in turn, on decodes of one size.
struct Trial {
    tokens: usize,
    /// Seconds with the present choice and with the other one.
    seconds: [Vec<f64>; 2],
}

impl Tuner {
    /// Starts with `all` threads.
    pub(super) fn new(all: u32, pin: DecoderPin) -> Tuner {
        Tuner {
            all,
            trials: all > 1,
            threads: all,
            interval: FIRST,
            last_trial: Instant::now(),
            trial: None,
            pin,
            beside_training: false,
        }
    }

    /// Always `all` threads.
    pub(super) fn fixed(all: u32, pin: DecoderPin) -> Tuner {
        Tuner { trials: false, ..Tuner::new(all, pin) }
    }

    /// Number of threads for a decode of `tokens` tokens by the calling thread, which is pinned for it. Only decodes
    /// without prompt chunks (`steady`) are alike, so only they are compared.
    pub(super) fn threads(&mut self, tokens: usize, steady: bool) -> u32 {
        let threads = if self.beside_training { 1.max(self.all - 1) } else { self.choose(tokens, steady) };
        self.pin.set(threads);
        threads
    }

    fn choose(&mut self, tokens: usize, steady: bool) -> u32 {
        if !self.trials || !steady {
            return self.threads;
        }
        if self.trial.as_ref().is_some_and(|t| t.tokens != tokens) {
            self.trial = None;
        }
        if self.trial.is_none() && self.last_trial.elapsed() >= self.interval {
            self.trial = Some(Trial { tokens, seconds: [Vec::new(), Vec::new()] });
        }
        match &self.trial {
            Some(trial) if trial.seconds[1].len() < trial.seconds[0].len() => self.other(),
            _ => self.threads,
        }
    }

    /// Records the time of the decode for which [`Tuner::threads`] was last called.
    pub(super) fn took(&mut self, tokens: usize, steady: bool, threads: u32, time: Duration) {
        let present = self.threads;
        let Some(trial) = self.trial.as_mut().filter(|t| steady && t.tokens == tokens) else { return };
        trial.seconds[usize::from(threads != present)].push(time.as_secs_f64());
        // A first measurement clearly in favour of the present choice is enough: on an idle machine a trial then costs
        // one slow decode.
        let clear = matches!(trial.seconds.as_slice(), [a, b] if a.len() == 1 && b.len() == 1 && a[0] * MARGIN < b[0]);
        if trial.seconds[1].len() < ROUNDS && !clear {
            return;
        }
        let [present, other] = [0, 1].map(|i| median(&mut trial.seconds[i]));
        self.trial = None;
        self.last_trial = Instant::now();
        if other * MARGIN < present {
            self.threads = self.other();
            self.interval = FIRST;
            tracing::debug!(threads = self.threads, "decoding threads changed");
        } else {
            self.interval = (2 * self.interval).min(LONGEST);
        }
    }

    fn other(&self) -> u32 {
        if self.threads == 1 { self.all } else { 1 }
    }
}

fn median(x: &mut [f64]) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs decodes of 8 tokens with the durations of `cost`, and returns the final choice.
    fn settle(tuner: &mut Tuner, cost: impl Fn(u32) -> u64) -> u32 {
        for _ in 0..4 * ROUNDS {
            // As if it were time for the next trial.
            tuner.last_trial = Instant::now().checked_sub(LONGEST).unwrap();
            let threads = tuner.threads(8, true);
            tuner.took(8, true, threads, Duration::from_millis(cost(threads)));
        }
        tuner.trial = None;
        tuner.last_trial = Instant::now();
        tuner.threads(8, true)
    }

    #[test]
    fn threads_that_wait_for_each_other_give_way_to_one_and_come_back() {
        let mut tuner = Tuner::new(2, DecoderPin::none());
        assert_eq!(tuner.threads(8, true), 2);
        assert_eq!(settle(&mut tuner, |threads| if threads == 2 { 200 } else { 20 }), 1);
        assert_eq!(settle(&mut tuner, |threads| if threads == 2 { 11 } else { 20 }), 2);
    }

    #[test]
    fn a_difference_within_the_noise_changes_nothing() {
        let mut tuner = Tuner::new(2, DecoderPin::none());
        assert_eq!(settle(&mut tuner, |threads| if threads == 2 { 21 } else { 20 }), 2);
    }

    #[test]
    fn decodes_of_another_size_are_not_compared() {
        let mut tuner = Tuner::new(2, DecoderPin::none());
        tuner.last_trial = Instant::now().checked_sub(LONGEST).unwrap();
        for tokens in 1..100 {
            let threads = tuner.threads(tokens, true);
            assert_eq!(threads, 2);
            tuner.took(tokens, true, threads, Duration::from_millis(1000));
        }
    }

    #[test]
    fn beside_training_a_processor_is_left_to_it() {
        let mut tuner = Tuner::new(2, DecoderPin::none());
        tuner.beside_training = true;
        assert_eq!((tuner.threads(8, true), tuner.threads(100, false)), (1, 1));
        tuner.beside_training = false;
        assert_eq!(tuner.threads(8, true), 2);
        assert_eq!(Tuner { beside_training: true, ..Tuner::fixed(1, DecoderPin::none()) }.threads(8, true), 1);
    }

    #[test]
    fn with_one_thread_there_is_nothing_to_choose() {
        let mut tuner = Tuner::new(1, DecoderPin::none());
        assert_eq!(settle(&mut tuner, |_| 100), 1);
        assert!(tuner.trial.is_none());
    }

    #[test]
    fn a_fixed_number_stays_whatever_it_costs() {
        let mut tuner = Tuner::fixed(2, DecoderPin::none());
        assert_eq!(settle(&mut tuner, |threads| if threads == 2 { 200 } else { 20 }), 2);
    }
}

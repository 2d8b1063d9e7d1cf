//! A lane: one policy version on one context, with the requests pinned to it. Builds batches, samples, frees slots.
//! Never queues a request.

mod cache;

use std::sync::Arc;
use std::time::Instant;

use super::finished::Finished;
use super::pace::Pace;
use super::slot::{Job, Running};
use super::speculate::Speculation;
use super::tuner::Tuner;
use crate::error::{Error, Result};
use crate::guide::Guide;
use crate::llama::{Batch, Context, Model};
use crate::types::{FinishReason, PolicyVersion, TokenId};

/// A sequence of the context: in use, or idle with cached tokens.
enum Slot {
    Idle { cached: Vec<TokenId>, since: Instant },
    Busy(Box<Running>),
}

impl Slot {
    fn empty() -> Slot {
        Slot::Idle { cached: Vec::new(), since: Instant::now() }
    }
}

/// The contents of a batch.
#[derive(Default)]
struct Filled {
    /// Rows with logits: index of the first in the batch, their number, and slot.
    outputs: Vec<(usize, usize, usize)>,
    /// Slots with their numbers of tokens.
    added: Vec<(usize, usize)>,
    /// Number of answers that advance by a token.
    answers: usize,
    /// Number of guessed tokens after those.
    guessed: usize,
}

/// Counters of one turn.
#[derive(Default)]
pub(super) struct Turn {
    pub(super) prompt_tokens: u64,
    pub(super) generated_tokens: u64,
    pub(super) drafted_tokens: u64,
    /// Guessed tokens that were sampled.
    pub(super) accepted_tokens: u64,
}

/// Whether a request was admitted.
pub(super) enum Admitted {
    Taken,
    /// There is no free slot.
    NoSlot(Box<Job>),
    /// There is a free slot, but the cache has no room for the request beside the running ones.
    NoRoom(Box<Job>),
}

pub(super) struct Lane {
    pub(super) version: PolicyVersion,
    context: Context,
    slots: Vec<Slot>,
    batch: Batch,
    pace: Pace,
    speculation: Speculation,
}

impl Lane {
    pub(super) fn new(version: PolicyVersion, context: Context, speculate: bool) -> Lane {
        let slots = (0..context.options().sequences).map(|_| Slot::empty()).collect();
        let speculation = Speculation::new(speculate && context.takes_back());
        Lane { version, context, slots, batch: Batch::default(), pace: Pace::default(), speculation }
    }

    /// Returns the context; the lane must have no running request.
    pub(super) fn into_context(self) -> Context {
        self.context
    }

    pub(super) fn running(&self) -> usize {
        self.slots.iter().filter(|s| matches!(s, Slot::Busy(_))).count()
    }

    /// Number of tokens in the cache, and its capacity.
    pub(super) fn cache(&self) -> (usize, usize) {
        let held = |slot: &Slot| match slot {
            Slot::Idle { cached, .. } => cached.len(),
            Slot::Busy(running) => running.evaluated,
        };
        (self.slots.iter().map(held).sum(), self.context.options().context as usize)
    }

    /// A slot's share of the cache. [tokens]
    pub(super) fn fair_share(&self) -> usize {
        self.context.options().context as usize / self.slots.len().max(1)
    }

    /// Admits the request if there is a slot and room for it; otherwise returns it.
    pub(super) fn admit(&mut self, job: Job) -> Admitted {
        let Some((index, reused)) = self.best_slot(&job.request.prompt) else {
            return Admitted::NoSlot(Box::new(job));
        };
        let fair = self.fair_share();
        let reserved: usize = self.slots.iter().map(|s| if let Slot::Busy(r) = s { r.reserve(fair) } else { 0 }).sum();
        let capacity = self.context.options().context as usize;
        let needed = reserved + job.reserve(fair);
        // Alone it always fits: prompt and answer are shorter than the context.
        if reserved > 0 && needed > capacity {
            return Admitted::NoRoom(Box::new(job));
        }
        // If the sequence can't be cut there, it is cleared completely.
        let reused = if self.context.forget(index as i32, reused as u32) { reused } else { 0 };
        if reused == 0 {
            self.context.forget(index as i32, 0);
        }
        self.slots[index] = Slot::Busy(Box::new(Running::new(job, reused)));
        self.share_prefix(index);
        self.evict(capacity.saturating_sub(needed));
        Admitted::Taken
    }

    /// One turn: a token for every running answer, prompt chunks up to a limit, decode, sample. When the cache is full,
    /// idle prefixes are cleared first, then chunks get smaller, then the largest request ends.
    pub(super) fn turn(&mut self, tuner: &mut Tuner, finished: &mut Vec<Finished>) -> Turn {
        self.drop_cancelled(finished);
        let resumed = self.resume(finished);
        // Fewer after the cache was found to be full.
        let mut most = None;
        loop {
            let Filled { outputs, added, answers, guessed } = self.fill_batch(most);
            if self.batch.is_empty() {
                return resumed;
            }
            // A row of logits for every token: each answer advances by one, and no prompt is being read.
            let (tokens, steady) = (self.batch.len(), self.batch.len() == outputs.len() && guessed == 0);
            let threads = tuner.threads(tokens, steady);
            self.context.set_threads(threads);
            let start = Instant::now();
            let decoded = self.context.decode(&self.batch);
            let time = start.elapsed();
            tuner.took(tokens, steady, threads, time);
            match decoded {
                Ok(true) => {
                    let prompts = tokens - answers - guessed;
                    match self.pace.steady().filter(|_| guessed > 0 && prompts == 0) {
                        Some(steady) => self.speculation.took(guessed, time, steady),
                        None => self.pace.took(answers, prompts, time),
                    }
                    return self.sample(outputs, resumed, finished);
                }
                Ok(false) => {
                    let largest_chunk = added.iter().map(|(_, count)| *count).max().unwrap_or(0);
                    self.take_back(&added);
                    if self.evict(0) {
                        continue;
                    }
                    if largest_chunk > 1 {
                        most = Some(largest_chunk / 2);
                        continue;
                    }
                    self.end_largest(finished);
                    return resumed;
                }
                Err(error) => {
                    tracing::error!(version = self.version.0, %error, "decoding failed");
                    self.fail_all(&error, finished);
                    return resumed;
                }
            }
        }
    }

    fn drop_cancelled(&mut self, finished: &mut Vec<Finished>) {
        for index in 0..self.slots.len() {
            let Slot::Busy(running) = &self.slots[index] else { continue };
            if running.job.sink.cancelled() {
                self.end(index, Ok(FinishReason::Cancelled), finished);
            } else if let Some(error) = running.job.late() {
                self.end(index, Err(error), finished);
            }
        }
    }

    /// An answer that waits for the allowed tokens of its format.
    pub(super) fn held(&mut self) -> Option<&mut Guide> {
        self.slots.iter_mut().find_map(|slot| match slot {
            Slot::Busy(running) => running.held(),
            Slot::Idle { .. } => None,
        })
    }

    /// Continues the answers whose allowed tokens are known by now.
    fn resume(&mut self, finished: &mut Vec<Finished>) -> Turn {
        let mut turn = Turn::default();
        let model: Arc<Model> = self.context.model().clone();
        for index in 0..self.slots.len() {
            let Slot::Busy(running) = &mut self.slots[index] else { continue };
            let before = running.response.len();
            let resumed = running.resume(&model);
            turn.generated_tokens += (running.response.len() - before) as u64;
            if let Some(end) = resumed.transpose() {
                self.end(index, end, finished);
            }
        }
        turn
    }

    /// Fills the batch: a token for every running answer with those guessed after it, then prompts in order of arrival,
    /// at the lane's pace if answers wait. With `most`, it holds at most so many tokens of prompts, and no guess.
    fn fill_batch(&mut self, most: Option<usize>) -> Filled {
        self.batch.clear();
        let mut filled = Filled::default();
        let (mut reading, mut answering) = (Vec::new(), Vec::new());
        for (index, slot) in self.slots.iter().enumerate() {
            match slot {
                Slot::Busy(running) if running.is_held() => {}
                Slot::Busy(running) if running.generating() => answering.push(index),
                Slot::Busy(running) => reading.push((running.job.submitted, index)),
                Slot::Idle { .. } => {}
            }
        }
        filled.answers = answering.len();
        let limit = self.context.options().batch as usize;
        // Beside prompts there is no turn to save: answers advance while those are read.
        let guesses = most.is_none() && reading.is_empty();
        let mut spare = if guesses { limit.saturating_sub(answering.len()) } else { 0 };
        for index in answering {
            spare -= self.add_answer(index, spare, &mut filled);
        }
        if filled.guessed == 0 {
            self.speculation.rested();
        }
        reading.sort_unstable();
        let mut room = limit.saturating_sub(self.batch.len());
        if filled.answers > 0 {
            room = room.min(self.pace.chunk());
        }
        room = room.min(most.unwrap_or(room));
        // The contents of each sequence before this batch.
        for &(_, index) in &reading {
            self.share_prefix(index);
        }
        for (place, &(_, index)) in reading.iter().enumerate() {
            // Another request reads the same prefix, which will be shared from there.
            if room == 0 || reading[..place].iter().any(|&(_, before)| self.reads_same_prefix(index, before)) {
                continue;
            }
            let before = self.batch.len();
            self.add(index, room, &mut filled);
            room -= self.batch.len() - before;
        }
        filled
    }

    /// Adds the last token of an answer, and those guessed to come after it, at most `spare`. Returns their number.
    fn add_answer(&mut self, index: usize, spare: usize, filled: &mut Filled) -> usize {
        let Slot::Busy(running) = &mut self.slots[index] else { return 0 };
        let most = self.speculation.most(running.hope, filled.answers, self.pace.steady());
        running.guess(most.min(spare));
        let (begin, first) = (self.batch.len(), running.evaluated);
        for (i, token) in running.last_and_guessed().enumerate() {
            self.batch.add(token, (first + i) as u32, index as i32, true);
        }
        let count = self.batch.len() - begin;
        if most == 0 {
            running.hope.rested();
        }
        running.evaluated += count;
        filled.outputs.push((begin, count, index));
        filled.added.push((index, count));
        filled.guessed += count - 1;
        count - 1
    }

    /// Adds the next tokens of a prompt, at most `room`.
    fn add(&mut self, index: usize, room: usize, filled: &mut Filled) {
        let Slot::Busy(running) = &mut self.slots[index] else { return };
        let (tokens, last) = running.pending(room);
        let (count, first) = (tokens.len(), running.evaluated);
        for (i, &token) in tokens.iter().enumerate() {
            let output = last && i + 1 == count;
            let at = self.batch.add(token, (first + i) as u32, index as i32, output);
            if output {
                filled.outputs.push((at, 1, index));
            }
        }
        running.evaluated += count;
        filled.added.push((index, count));
    }

    /// Reverts the counts of a batch that was not evaluated.
    fn take_back(&mut self, added: &[(usize, usize)]) {
        for &(index, count) in added {
            if let Slot::Busy(running) = &mut self.slots[index] {
                running.evaluated -= count;
            }
        }
    }

    /// Samples from the rows of logits, and adds to the counters of `turn`.
    fn sample(&mut self, outputs: Vec<(usize, usize, usize)>, mut turn: Turn, finished: &mut Vec<Finished>) -> Turn {
        turn.prompt_tokens += self.batch.len() as u64;
        let model: Arc<Model> = self.context.model().clone();
        for (row, count, index) in outputs {
            let Slot::Busy(running) = &mut self.slots[index] else { continue };
            let before = running.response.len();
            if before > 0 {
                turn.prompt_tokens -= count as u64;
            }
            let (mut used, mut end) = (0, None);
            while used < count && end.is_none() && running.guess_holds(before, used) {
                end = self.context.logits(row + used).and_then(|logits| running.advance(&model, logits)).transpose();
                used += 1;
            }
            let (drafted, accepted) = running.settle_guess(before);
            turn.drafted_tokens += drafted as u64;
            turn.accepted_tokens += accepted as u64;
            turn.generated_tokens += (running.response.len() - before) as u64;
            if used < count {
                running.evaluated -= count - used;
                let kept = running.evaluated as u32;
                self.context.forget(index as i32, kept);
            }
            if let Some(end) = end {
                self.end(index, end, finished);
            }
        }
        turn
    }

    /// Ends the request in a slot, and keeps its cache for prompts with the same prefix.
    fn end(&mut self, index: usize, how: Result<FinishReason>, finished: &mut Vec<Finished>) {
        let slot = std::mem::replace(&mut self.slots[index], Slot::empty());
        let Slot::Busy(running) = slot else { return };
        match how {
            Ok(reason) => {
                let (generation, sink, cached) = running.finish(reason, self.version);
                self.slots[index] = Slot::Idle { cached, since: Instant::now() };
                finished.push(Finished { outcome: Ok(generation), sink });
            }
            Err(error) => {
                self.context.forget(index as i32, 0);
                finished.push(Finished { outcome: Err(error), sink: running.job.sink });
            }
        }
    }

    /// Ends the request with the largest cache: an answer as too long, a prompt with an error.
    fn end_largest(&mut self, finished: &mut Vec<Finished>) {
        let busy = self.slots.iter().enumerate().filter_map(|(i, s)| match s {
            Slot::Busy(r) => Some((r.evaluated, i, r.generating())),
            Slot::Idle { .. } => None,
        });
        let Some((held, index, generating)) = busy.max() else { return };
        tracing::warn!(tokens = held, "the cache is full: the largest request ends");
        let full = || Err(Error::nomem("the context has no room left for this request"));
        self.end(index, if generating { Ok(FinishReason::Length) } else { full() }, finished);
        self.evict(0);
    }

    /// Ends every request with the error, and clears all caches.
    pub(super) fn fail_all(&mut self, error: &Error, finished: &mut Vec<Finished>) {
        for index in 0..self.slots.len() {
            self.end(index, Err(error.clone()), finished);
            self.context.forget(index as i32, 0);
            self.slots[index] = Slot::empty();
        }
    }
}

//! A lane: one policy version on one context, with the requests pinned to it. Builds batches, samples, frees slots.
//! Never queues a request.

use std::sync::Arc;
use std::time::Instant;

use super::finished::Finished;
use super::pace::Pace;
use super::slot::{Job, Running};
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

impl Slot {
    /// How many of the prompt's first tokens are cached, without its last one, whose logits are needed.
    fn prefix_of(&self, prompt: &[TokenId]) -> usize {
        match self {
            Slot::Idle { cached, .. } => common_prefix(cached, prompt),
            Slot::Busy(running) => common_prefix(&running.job.request.prompt, prompt).min(running.evaluated),
        }
    }
}

/// Number of first tokens that both share, without the prompt's last one, whose logits are needed.
fn common_prefix(other: &[TokenId], prompt: &[TokenId]) -> usize {
    let alike = other.iter().zip(prompt).take_while(|(a, b)| a == b).count();
    alike.min(prompt.len().saturating_sub(1))
}

/// Least number of prompt tokens worth waiting for while another request reads them.
const WORTH_WAITING: usize = 16;

/// The contents of a batch.
#[derive(Default)]
struct Filled {
    /// Rows with logits: index in the batch, and slot.
    outputs: Vec<(usize, usize)>,
    /// Slots with their numbers of tokens.
    added: Vec<(usize, usize)>,
    /// Number of answers that advance by a token.
    answers: usize,
}

/// Counters of one turn.
#[derive(Default)]
pub(super) struct Turn {
    pub(super) prompt_tokens: u64,
    pub(super) generated_tokens: u64,
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
}

impl Lane {
    pub(super) fn new(version: PolicyVersion, context: Context) -> Lane {
        let slots = (0..context.options().sequences).map(|_| Slot::empty()).collect();
        Lane { version, context, slots, batch: Batch::default(), pace: Pace::default() }
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

    /// The idle slot to use, and how much of its cache: the one that shares the longest prefix with the prompt. If that
    /// is only a small part of its cache, another slot is used, since the prefix can still be shared
    /// ([`Lane::share_prefix`]).
    fn best_slot(&self, prompt: &[TokenId]) -> Option<(usize, usize)> {
        let idle = || {
            self.slots.iter().enumerate().filter_map(|(i, slot)| match slot {
                Slot::Idle { cached, since } => Some((i, cached, since)),
                Slot::Busy(_) => None,
            })
        };
        let best = idle()
            .map(|(i, cached, since)| (common_prefix(cached, prompt), std::cmp::Reverse(*since), i, cached.len()));
        let (alike, _, index, held) = best.max()?;
        if alike * 2 >= held {
            return Some((index, alike));
        }
        idle()
            .min_by_key(|(_, cached, since)| (!cached.is_empty(), **since))
            .map(|(i, cached, _)| (i, common_prefix(cached, prompt)))
    }

    /// The prefix cache: a request that reads its prompt gets what any other sequence has cached of it.
    fn share_prefix(&mut self, index: usize) {
        let Slot::Busy(running) = &self.slots[index] else { return };
        let (prompt, have) = (&running.job.request.prompt, running.evaluated);
        let others = self.slots.iter().enumerate().filter(|(i, _)| *i != index);
        let Some((most, from)) = others.map(|(i, slot)| (slot.prefix_of(prompt), i)).max() else { return };
        if most > have && self.context.share(from as i32, index as i32, have as u32..most as u32) {
            let Slot::Busy(running) = &mut self.slots[index] else { return };
            running.evaluated = most;
        }
    }

    /// Clears idle caches, the oldest first, until the rest fits `room` tokens. Returns whether there was one to clear.
    fn evict(&mut self, room: usize) -> bool {
        let mut any = false;
        loop {
            let idle = self.slots.iter().enumerate().filter_map(|(i, slot)| match slot {
                Slot::Idle { cached, since } if !cached.is_empty() => Some((i, cached.len(), *since)),
                _ => None,
            });
            let (held, oldest) = idle.fold((0, None::<(usize, Instant)>), |(held, oldest), (i, n, since)| {
                let older = oldest.is_none_or(|(_, s)| since < s);
                (held + n, if older { Some((i, since)) } else { oldest })
            });
            let Some((index, _)) = oldest.filter(|_| held > room) else {
                return any;
            };
            self.context.forget(index as i32, 0);
            self.slots[index] = Slot::empty();
            any = true;
        }
    }

    /// One turn: a token for every running answer, prompt chunks up to a limit, decode, sample. When the cache is full,
    /// idle prefixes are cleared first, then chunks get smaller, then the largest request ends.
    pub(super) fn turn(&mut self, tuner: &mut Tuner, finished: &mut Vec<Finished>) -> Turn {
        self.drop_cancelled(finished);
        let resumed = self.resume(finished);
        // Fewer after the cache was found to be full.
        let mut most = None;
        loop {
            let Filled { outputs, added, answers } = self.fill_batch(most);
            if self.batch.is_empty() {
                return resumed;
            }
            // A row of logits for every token: each answer advances by one, and no prompt is being read.
            let (tokens, steady) = (self.batch.len(), self.batch.len() == outputs.len());
            let threads = tuner.threads(tokens, steady);
            self.context.set_threads(threads);
            let start = Instant::now();
            let decoded = self.context.decode(&self.batch);
            let time = start.elapsed();
            tuner.took(tokens, steady, threads, time);
            match decoded {
                Ok(true) => {
                    self.pace.took(answers, tokens - answers, time);
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

    /// Fills the batch: a token for every running answer, then prompts in order of arrival, with at most `most` tokens
    /// in all, and at the lane's pace if answers wait.
    fn fill_batch(&mut self, most: Option<usize>) -> Filled {
        self.batch.clear();
        let mut filled = Filled::default();
        let mut reading = Vec::new();
        for index in 0..self.slots.len() {
            match &self.slots[index] {
                Slot::Busy(running) if running.is_held() => {}
                Slot::Busy(running) if running.generating() => self.add(index, 1, &mut filled),
                Slot::Busy(running) => reading.push((running.job.submitted, index)),
                Slot::Idle { .. } => {}
            }
        }
        reading.sort_unstable();
        let limit = self.context.options().batch as usize;
        let mut room = limit.saturating_sub(self.batch.len());
        filled.answers = self.batch.len();
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

    /// Adds the next tokens of a request, at most `room`.
    fn add(&mut self, index: usize, room: usize, filled: &mut Filled) {
        let Slot::Busy(running) = &mut self.slots[index] else { return };
        let (tokens, last) = running.pending(room);
        let (count, first) = (tokens.len(), running.evaluated);
        for (i, &token) in tokens.iter().enumerate() {
            let output = last && i + 1 == count;
            let at = self.batch.add(token, (first + i) as u32, index as i32, output);
            if output {
                filled.outputs.push((at, index));
            }
        }
        running.evaluated += count;
        filled.added.push((index, count));
    }

    /// Whether a prompt continues like that of `before` for more tokens than are worth reading twice.
    fn reads_same_prefix(&self, index: usize, before: usize) -> bool {
        let (Slot::Busy(this), Slot::Busy(other)) = (&self.slots[index], &self.slots[before]) else { return false };
        common_prefix(&other.job.request.prompt, &this.job.request.prompt) >= this.evaluated + WORTH_WAITING
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
    fn sample(&mut self, outputs: Vec<(usize, usize)>, mut turn: Turn, finished: &mut Vec<Finished>) -> Turn {
        turn.prompt_tokens += self.batch.len() as u64;
        let model: Arc<Model> = self.context.model().clone();
        for (row, index) in outputs {
            let Slot::Busy(running) = &mut self.slots[index] else { continue };
            turn.prompt_tokens -= u64::from(running.generating());
            let before = running.response.len();
            let advanced = self.context.logits(row).and_then(|logits| running.advance(&model, logits));
            turn.generated_tokens += (running.response.len() - before) as u64;
            if let Some(end) = advanced.transpose() {
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

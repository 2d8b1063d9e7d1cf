//! A lane: one policy version on one context, and the requests that are pinned to it. Builds batches, samples, frees slots.

use std::sync::Arc;
use std::time::Instant;

use super::Finished;
use super::slot::{Job, Running};
use super::tuner::Tuner;
use crate::error::{Error, Result};
use crate::llama::{Batch, Context, Model};
use crate::types::{FinishReason, PolicyVersion, TokenId};

/// A sequence of the context: in use, or idle with the tokens that its cache still holds.
enum Slot {
    Idle { cached: Vec<TokenId>, since: Instant },
    Busy(Box<Running>),
}

impl Slot {
    fn empty() -> Slot {
        Slot::Idle { cached: Vec::new(), since: Instant::now() }
    }
}

/// Counts of one turn.
#[derive(Default)]
pub(super) struct Turn {
    pub(super) prompt_tokens: u64,
    pub(super) generated_tokens: u64,
}

pub(super) struct Lane {
    pub(super) version: PolicyVersion,
    context: Context,
    slots: Vec<Slot>,
    batch: Batch,
}

impl Lane {
    pub(super) fn new(version: PolicyVersion, context: Context) -> Lane {
        let slots = (0..context.options().sequences).map(|_| Slot::empty()).collect();
        Lane { version, context, slots, batch: Batch::default() }
    }

    /// Gives the context back; the lane must have no running request.
    pub(super) fn into_context(self) -> Context {
        self.context
    }

    pub(super) fn running(&self) -> usize {
        self.slots.iter().filter(|s| matches!(s, Slot::Busy(_))).count()
    }

    /// Tokens that its cache holds, and has room for.
    pub(super) fn cache(&self) -> (usize, usize) {
        let held = |slot: &Slot| match slot {
            Slot::Idle { cached, .. } => cached.len(),
            Slot::Busy(running) => running.evaluated,
        };
        (self.slots.iter().map(held).sum(), self.context.options().context as usize)
    }

    /// Takes the request if there is a slot and room for the longest answer it may give; else returns it.
    pub(super) fn admit(&mut self, job: Job) -> Option<Job> {
        let Some((index, reused)) = self.best_slot(&job.prompt) else {
            return Some(job);
        };
        let reserved: usize = self.slots.iter().map(|s| if let Slot::Busy(r) = s { r.job.reserve() } else { 0 }).sum();
        let capacity = self.context.options().context as usize;
        if reserved + job.reserve() > capacity {
            return Some(job);
        }
        self.evict(capacity - reserved - job.reserve(), index);
        self.context.forget(index as i32, reused as u32);
        let running = Running::new(job, reused);
        self.slots[index] = Slot::Busy(Box::new(running));
        None
    }

    /// The idle slot whose cache shares the longest beginning with the prompt, and how much of it can be kept.
    fn best_slot(&self, prompt: &[TokenId]) -> Option<(usize, usize)> {
        let shared = |cached: &[TokenId]| cached.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let idle = self.slots.iter().enumerate().filter_map(|(i, slot)| match slot {
            Slot::Idle { cached, since } => Some((i, shared(cached), std::cmp::Reverse(*since))),
            Slot::Busy(_) => None,
        });
        // The last token of the prompt is always evaluated: its logits are needed.
        idle.max_by_key(|(_, n, since)| (*n, *since)).map(|(i, n, _)| (i, n.min(prompt.len().saturating_sub(1))))
    }

    /// Forgets idle caches, the oldest first, until those left fit `room` tokens. The one at `keep` is about to be used.
    fn evict(&mut self, room: usize, keep: usize) {
        loop {
            let idle = self.slots.iter().enumerate().filter_map(|(i, slot)| match slot {
                Slot::Idle { cached, since } if i != keep && !cached.is_empty() => Some((i, cached.len(), *since)),
                _ => None,
            });
            let (held, oldest) = idle.fold((0, None::<(usize, Instant)>), |(held, oldest), (i, n, since)| {
                let older = oldest.is_none_or(|(_, s)| since < s);
                (held + n, if older { Some((i, since)) } else { oldest })
            });
            let Some((index, _)) = oldest.filter(|_| held > room) else {
                return;
            };
            self.context.forget(index as i32, 0);
            self.slots[index] = Slot::empty();
        }
    }

    /// One turn: a token for every running answer, prompt chunks up to a cap, decode, sample.
    pub(super) fn turn(&mut self, tuner: &mut Tuner, finished: &mut Vec<Finished>) -> Turn {
        self.drop_cancelled(finished);
        let outputs = self.fill_batch();
        if self.batch.is_empty() {
            return Turn::default();
        }
        // A row of logits for every token: each answer goes on by one, and no prompt is being read.
        let (tokens, steady) = (self.batch.len(), self.batch.len() == outputs.len());
        let threads = tuner.threads(tokens, steady);
        self.context.set_threads(threads);
        let start = Instant::now();
        let decoded = self.context.decode(&self.batch);
        tuner.took(tokens, steady, threads, start.elapsed());
        match decoded {
            Ok(true) => self.sample(outputs, finished),
            // Admission reserves the room, so this is a bug or a context that can't be cut: give up the largest.
            Ok(false) => {
                self.fail_largest(finished);
                Turn::default()
            }
            Err(error) => {
                tracing::error!(version = self.version.0, %error, "decoding failed");
                self.fail_all(&error, finished);
                Turn::default()
            }
        }
    }

    fn drop_cancelled(&mut self, finished: &mut Vec<Finished>) {
        for index in 0..self.slots.len() {
            if matches!(&self.slots[index], Slot::Busy(r) if r.job.sink.cancelled()) {
                self.end(index, Ok(FinishReason::Cancelled), finished);
            }
        }
    }

    /// Fills the batch; returns for each row with logits: its index in the batch, and its slot.
    fn fill_batch(&mut self) -> Vec<(usize, usize)> {
        self.batch.clear();
        let limit = self.context.options().batch as usize;
        let generating = self.slots.iter().filter(|s| matches!(s, Slot::Busy(r) if r.generating())).count();
        // With answers under way, prompts take half a batch at most: the gap between tokens stays short.
        let mut prompt_room = if generating == 0 { limit } else { (limit / 2).min(limit - generating.min(limit)) };
        let mut outputs = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Slot::Busy(running) = slot else { continue };
            let room = if running.generating() { 1 } else { prompt_room };
            let (tokens, last) = running.pending(room);
            let (count, first) = (tokens.len(), running.evaluated);
            for (i, &token) in tokens.iter().enumerate() {
                let output = last && i + 1 == count;
                let at = self.batch.add(token, (first + i) as u32, index as i32, output);
                if output {
                    outputs.push((at, index));
                }
            }
            if !running.generating() {
                prompt_room -= count;
            }
            running.evaluated += count;
        }
        outputs
    }

    fn sample(&mut self, outputs: Vec<(usize, usize)>, finished: &mut Vec<Finished>) -> Turn {
        let prompt_tokens = self.batch.len() as u64;
        let mut turn = Turn { prompt_tokens, generated_tokens: 0 };
        let model: Arc<Model> = self.context.model().clone();
        for (row, index) in outputs {
            let Slot::Busy(running) = &mut self.slots[index] else { continue };
            turn.prompt_tokens -= u64::from(running.generating());
            turn.generated_tokens += 1;
            let advanced = self.context.logits(row).and_then(|logits| running.advance(&model, logits));
            if let Some(end) = advanced.transpose() {
                self.end(index, end, finished);
            }
        }
        turn
    }

    /// Ends the request in a slot and keeps its cache for a prompt that begins alike.
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

    fn fail_largest(&mut self, finished: &mut Vec<Finished>) {
        let busy = self.slots.iter().enumerate().filter_map(|(i, s)| match s {
            Slot::Busy(r) => Some((r.evaluated, i)),
            Slot::Idle { .. } => None,
        });
        if let Some((_, index)) = busy.max() {
            self.end(index, Err(Error::nomem("the context has no room left for this request")), finished);
            // The batch was not evaluated: take back what it counted.
            self.rewind();
        }
    }

    /// Sets every request back to what the cache really holds: nothing of the failed batch.
    fn rewind(&mut self) {
        for slot in &mut self.slots {
            if let Slot::Busy(running) = slot {
                let known = running.job.prompt.len() + running.response.len();
                // A generating request had one token in the batch; one in its prompt starts over.
                running.evaluated = if running.generating() { known - 1 } else { 0 };
            }
        }
        for index in 0..self.slots.len() {
            if let Slot::Busy(running) = &self.slots[index] {
                let held = running.evaluated as u32;
                self.context.forget(index as i32, held);
            }
        }
    }

    /// Ends every request with the error and forgets every cache.
    pub(super) fn fail_all(&mut self, error: &Error, finished: &mut Vec<Finished>) {
        for index in 0..self.slots.len() {
            self.end(index, Err(error.clone()), finished);
            self.context.forget(index as i32, 0);
            self.slots[index] = Slot::empty();
        }
    }
}

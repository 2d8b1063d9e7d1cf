//! The thread that decodes: takes requests into slots, turns lanes, makes prepared weights those of new requests. Never
//! checks a request, never reads a file.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::finished::{Finished, OnFinished};
use super::lane::Lane;
use super::load::Counters;
use super::slot::{Job, Running};
use super::swapper::Ready;
use super::tuner::Tuner;
use crate::error::Error;
use crate::llama::Context;
use crate::lock::lock;
use crate::types::FinishReason;

/// What the thread is told.
pub(super) enum Command {
    Submit(Vec<Job>),
    Swap(Box<Ready>),
}

/// What the thread owns.
pub(super) struct Core {
    /// The versions on a context; the last one is active and takes new requests.
    pub(super) lanes: Vec<Lane>,
    pub(super) tuner: Tuner,
    /// Takes contexts whose last request ended, for the next swap.
    pub(super) drained: Sender<Context>,
    pub(super) waiting: VecDeque<Box<Job>>,
    pub(super) on_finished: OnFinished,
    pub(super) counters: Arc<Counters>,
}

/// How long the thread sleeps without work before it looks whether it should stop.
const IDLE: Duration = Duration::from_millis(50);

impl Core {
    /// Decodes until `stopping` is set; what is under way ends as `Closed` then.
    pub(super) fn run(mut self, commands: &Receiver<Command>, stopping: &AtomicBool) {
        let mut finished = Vec::new();
        while !stopping.load(Ordering::Acquire) {
            let idle = self.waiting.is_empty() && self.lanes.iter().all(|l| l.running() == 0);
            if idle && let Ok(command) = commands.recv_timeout(IDLE) {
                self.take(command);
            }
            while let Ok(command) = commands.try_recv() {
                self.take(command);
            }
            self.admit(&mut finished);
            self.publish_load();
            for lane in &mut self.lanes {
                self.tuner.beside_training = self.counters.meters.training.load(Ordering::Relaxed);
                let turn = lane.turn(&mut self.tuner, &mut finished);
                self.counters.prompt_tokens.fetch_add(turn.prompt_tokens, Ordering::Relaxed);
                self.counters.generated_tokens.fetch_add(turn.generated_tokens, Ordering::Relaxed);
            }
            self.hand_on(&mut finished);
            self.retire();
            self.publish_load();
        }
        // Dropping a request's sink tells its client that the engine closed; so for those that are still on their way.
        self.waiting.clear();
        let closed = Error::closed("the engine is closing");
        for lane in &mut self.lanes {
            lane.fail_all(&closed, &mut finished);
        }
        self.hand_on(&mut finished);
        self.counters.queued.store(0, Ordering::Relaxed);
        self.counters.running.store(0, Ordering::Relaxed);
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Submit(jobs) => self.waiting.extend(jobs.into_iter().map(Box::new)),
            Command::Swap(ready) => self.swap(*ready),
        }
    }

    /// Moves waiting requests into free slots of the active lane, in order.
    fn admit(&mut self, finished: &mut Vec<Finished>) {
        let before = self.waiting.len();
        let Some(active) = self.lanes.last_mut() else { return };
        for job in std::mem::take(&mut self.waiting) {
            if job.sink.cancelled() {
                let unborn = Running::new(*job, 0);
                let (generation, sink, _) = unborn.finish(FinishReason::Cancelled, active.version);
                finished.push(Finished { outcome: Ok(generation), sink });
            } else if let Some(error) = job.late() {
                finished.push(Finished { outcome: Err(error), sink: job.sink });
            } else {
                self.waiting.push_back(job);
            }
        }
        while let Some(job) = self.waiting.pop_front() {
            if let Some(refused) = active.admit(*job) {
                self.waiting.push_front(Box::new(refused));
                break;
            }
        }
        self.counters.queued.fetch_sub(before - self.waiting.len(), Ordering::AcqRel);
    }

    /// Makes the prepared weights those that new requests get.
    fn swap(&mut self, ready: Ready) {
        self.lanes.push(Lane::new(ready.weights.version, ready.context));
        self.counters.swaps.fetch_add(1, Ordering::Relaxed);
        tracing::info!(version = ready.weights.version.0, "serving");
        self.retire();
        self.publish_load();
        ready.replies.iter().for_each(|r| drop(r.send(Ok(()))));
    }

    /// Gives the contexts of versions that have drained to the next swap.
    fn retire(&mut self) {
        let active = self.lanes.len().saturating_sub(1);
        for index in (0..active).rev() {
            if self.lanes[index].running() == 0 {
                // There is a place for each context; nobody takes it only when the engine closes.
                let _ = self.drained.try_send(self.lanes.remove(index).into_context());
            }
        }
    }

    fn hand_on(&mut self, finished: &mut Vec<Finished>) {
        self.counters.completed.fetch_add(finished.len() as u64, Ordering::Relaxed);
        for f in finished.drain(..) {
            (self.on_finished)(f);
        }
    }

    /// Shows the present load to whoever asks the handle.
    pub(super) fn publish_load(&self) {
        let running = self.lanes.iter().map(Lane::running).sum();
        self.counters.running.store(running, Ordering::Relaxed);
        let (held, room) = self.lanes.iter().map(Lane::cache).fold((0, 0), |(a, b), (held, room)| (a + held, b + room));
        self.counters.cached_tokens.store(held, Ordering::Relaxed);
        self.counters.cache_capacity.store(room, Ordering::Relaxed);
        let mut versions = lock(&self.counters.versions);
        if !versions.iter().copied().eq(self.lanes.iter().map(|l| l.version)) {
            *versions = self.lanes.iter().map(|l| l.version).collect();
        }
    }
}

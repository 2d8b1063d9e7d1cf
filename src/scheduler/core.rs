//! The decoding thread: admits requests into slots, runs the lanes, and switches new requests to prepared weights.
//! Never checks a request or reads a file.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::finished::{Finished, OnFinished};
use super::lane::{Admitted, Lane};
use super::load::Counters;
use super::slot::{Job, Running};
use super::swapper::{Ready, Role};
use super::tuner::Tuner;
use crate::error::Error;
use crate::llama::Context;
use crate::lock::lock;
use crate::scheduler::Weights;
use crate::types::{FinishReason, PolicyVersion};

/// Commands for the thread.
pub(super) enum Command {
    Submit(Vec<Job>),
    Swap(Box<Ready>),
    /// Serve this version beside the active one once more, if it is; the reply says whether.
    Share(PolicyVersion, Sender<bool>),
    /// Stop serving this version beside the active one.
    Leave(PolicyVersion),
}

/// State owned by the thread.
pub(super) struct Core {
    /// The versions on contexts; the last one is active and takes new requests, except those that name another.
    pub(super) lanes: Vec<Lane>,
    /// Versions that are served beside the active one.
    pub(super) beside: Vec<PolicyVersion>,
    pub(super) tuner: Tuner,
    pub(super) speculate: bool,
    /// Receives contexts whose last request ended, for the next swap.
    pub(super) drained: Sender<Context>,
    pub(super) waiting: VecDeque<Box<Job>>,
    pub(super) on_finished: OnFinished,
    pub(super) counters: Arc<Counters>,
}

/// Longest wait when all requests wait for the allowed tokens of their format.
const HELD: Duration = Duration::from_millis(2);
/// How long the idle thread sleeps before it checks whether to stop.
const IDLE: Duration = Duration::from_millis(50);

impl Core {
    /// Decodes until `stopping` is set; running requests then end as `Closed`.
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
            let mut worked = false;
            for lane in &mut self.lanes {
                self.tuner.beside_training = self.counters.meters.training.load(Ordering::Relaxed);
                let turn = lane.turn(&mut self.tuner, &mut finished);
                self.counters.drafted_tokens.fetch_add(turn.drafted_tokens, Ordering::Relaxed);
                self.counters.accepted_tokens.fetch_add(turn.accepted_tokens, Ordering::Relaxed);
                worked |= turn.prompt_tokens + turn.generated_tokens > 0;
                self.counters.prompt_tokens.fetch_add(turn.prompt_tokens, Ordering::Relaxed);
                self.counters.generated_tokens.fetch_add(turn.generated_tokens, Ordering::Relaxed);
            }
            // All running requests wait for the allowed tokens of their format.
            if !worked && let Some(guide) = self.lanes.iter_mut().find_map(Lane::held) {
                guide.wait(HELD);
            }
            self.hand_on(&mut finished);
            self.retire();
            self.publish_load();
        }
        // Dropping a request's sink tells its client that the engine closed; also for requests still in the channel.
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
            Command::Share(version, reply) => {
                let served = self.beside.contains(&version);
                // Nobody would leave it who has gone.
                if reply.send(served).is_ok() && served {
                    self.beside.push(version);
                }
            }
            // Once for each time that it was brought in.
            Command::Leave(version) => self.leave(version),
        }
    }

    /// Admits waiting requests into free slots of their lanes, in order. If the cache has no room for the next one,
    /// later ones that fit may overtake it, within the bound of [`Job::may_be_passed`]. A lane without a free slot
    /// admits nothing.
    fn admit(&mut self, finished: &mut Vec<Finished>) {
        let before = self.waiting.len();
        // For each lane, how many tokens may still overtake those that wait; 0 if none.
        let mut may_pass = vec![usize::MAX; self.lanes.len()];
        for mut job in std::mem::take(&mut self.waiting) {
            let index = self.lane_of(&job);
            let Some(lane) = self.lanes.get_mut(index) else { continue };
            let needed = job.reserve(lane.fair_share());
            if job.sink.cancelled() {
                let unborn = Running::new(*job, 0);
                let (generation, sink, _) = unborn.finish(FinishReason::Cancelled, lane.version);
                finished.push(Finished { outcome: Ok(generation), sink });
                continue;
            }
            if let Some(error) = job.late() {
                finished.push(Finished { outcome: Err(error), sink: job.sink });
                continue;
            }
            if let Some(error) = job.other_version(lane.version) {
                finished.push(Finished { outcome: Err(error), sink: job.sink });
                continue;
            }
            if needed <= may_pass[index] {
                match lane.admit(*job) {
                    Admitted::Taken => {
                        self.pass(index, needed);
                        may_pass[index] = may_pass[index].saturating_sub(needed);
                        continue;
                    }
                    Admitted::NoRoom(refused) => job = refused,
                    Admitted::NoSlot(refused) => {
                        may_pass[index] = 0;
                        job = refused;
                    }
                }
            }
            let room = self.lanes[index].cache().1;
            may_pass[index] = may_pass[index].min(job.may_be_passed(room));
            self.waiting.push_back(job);
        }
        self.counters.queued.fetch_sub(before - self.waiting.len(), Ordering::AcqRel);
    }

    /// Counts a request of that many tokens as having overtaken those of its lane that already wait.
    fn pass(&mut self, index: usize, tokens: usize) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.iter_mut().filter(|job| self.lane_of(job) == index).for_each(|job| job.passed += tokens);
        self.waiting = waiting;
    }

    /// The lane of the version that a request names, if it is served; otherwise the active one.
    fn lane_of(&self, job: &Job) -> usize {
        let active = self.lanes.len().saturating_sub(1);
        let named = job.request.version.filter(|v| self.beside.contains(v));
        named.and_then(|v| self.lanes.iter().position(|l| l.version == v)).unwrap_or(active)
    }

    /// Switches new requests to the prepared weights: all of them, or those that name that version. Who waits for it
    /// is told when the load says so, too.
    fn swap(&mut self, ready: Ready) {
        let Ready { weights: Weights { version, .. }, role, context, replies } = ready;
        match role {
            Role::Active => {
                self.lanes.push(Lane::new(version, context, self.speculate));
                self.counters.swaps.fetch_add(1, Ordering::Relaxed);
                tracing::info!(version = version.0, "serving");
            }
            // Brought in for others meanwhile. There is space for every context, as below.
            Role::Beside if self.beside.contains(&version) => drop(self.drained.try_send(context)),
            Role::Beside => {
                let lane = Lane::new(version, context, self.speculate);
                self.lanes.insert(self.lanes.len().saturating_sub(1), lane);
                tracing::info!(version = version.0, "serving beside");
            }
        }
        if role == Role::Beside {
            self.beside.extend(std::iter::repeat_n(version, replies.len()));
        }
        self.retire();
        self.publish_load();
        let gone = replies.iter().filter(|reply| reply.send(Ok(())).is_err()).count();
        if role == Role::Beside {
            // Nobody would leave it for those who have gone.
            (0..gone).for_each(|_| self.leave(version));
        }
    }

    /// Serves a version beside the active one once less.
    fn leave(&mut self, version: PolicyVersion) {
        if let Some(at) = self.beside.iter().position(|v| *v == version) {
            self.beside.remove(at);
        }
    }

    /// Returns the contexts of drained versions for the next swap.
    fn retire(&mut self) {
        let active = self.lanes.len().saturating_sub(1);
        for index in (0..active).rev() {
            if self.lanes[index].running() == 0 && !self.beside.contains(&self.lanes[index].version) {
                // There is space for every context; it is only refused when the engine closes.
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

    /// Publishes the present load to the handle.
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

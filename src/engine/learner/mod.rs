//! The learning loop on its own thread: ratings → trainer → versions on disk → ledger → scheduler. Never decodes, and
//! never leaves the policy in memory ahead of the one on record.

mod step;
mod versions;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};

use super::feed::{Hub, News, Topic};
use super::judge::{Judge, Samples};
use super::rollouts::Rollouts;
use super::status::TrainerStatus;
use super::{cores_or, weights_of};
use crate::config::{Config, TrainConfig};
use crate::error::{Code, Error, Result};
use crate::gate::{self, Candidate};
use crate::ledger::Ledger;
use crate::llama::{Model, give_way_to_decoding};
use crate::policy::{self, Decoder};
use crate::publish::{About, VersionStore};
use crate::scheduler::{Scheduler, Weights};
use crate::trainer::{self, Trainer};
use crate::types::*;

/// What came of a training step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum StepOutcome {
    /// A new version was trained, published and activated.
    Published {
        /// The new version.
        version: PolicyVersion,
        /// What its batch measured.
        metrics: StepMetrics,
    },
    /// Nothing was changed, for the reason given.
    Skipped {
        /// One sentence.
        reason: String,
        /// Ratings that were used up by it.
        consumed: usize,
    },
}

/// Feedback in quarantine becomes ripe by itself: how often the thread looks for it.
const LOOK: Duration = Duration::from_secs(5);

enum Order {
    /// Train while full batches are in.
    Due,
    /// Train one batch, even a small one.
    Step(Sender<Result<StepOutcome>>),
    /// Train a batch with fresh answers in it.
    RollOut(Sender<Result<StepOutcome>>),
    /// Serve a version, by its adapter or by a file of its whole weights.
    Activate(PolicyVersion, Option<PathBuf>, Sender<Result<()>>),
    /// Take in a snapshot and serve it.
    Restore(PathBuf, Sender<Result<PolicyVersion>>),
}

/// What the loop goes through.
pub(super) struct Parts {
    pub(super) ledger: Arc<Ledger>,
    pub(super) store: VersionStore,
    pub(super) scheduler: Arc<Scheduler>,
    /// For the tokens of corrections.
    pub(super) model: Arc<Model>,
    pub(super) hub: Arc<Hub>,
}

/// What the thread and its handle share.
struct Shared {
    status: Mutex<TrainerStatus>,
    /// Gives up the step under way: set while an activation or the end waits for the thread.
    interrupt: AtomicBool,
    /// Trains by itself.
    auto: AtomicBool,
    /// Ends the thread.
    stopping: AtomicBool,
}

impl Shared {
    fn status(&self) -> MutexGuard<'_, TrainerStatus> {
        self.status.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn set_state(&self, state: &str) {
        self.status().state = state.to_string();
    }
}

/// The handle to the learning thread.
pub(super) struct Learner {
    orders: Sender<Order>,
    due: Sender<Order>,
    /// Gives an error once the thread has ended; an order it left in its channel is never answered.
    ended: Receiver<()>,
    shared: Arc<Shared>,
    ledger: Arc<Ledger>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Learner {
    /// Starts the thread. The trainer is built on it, so that serving doesn't wait.
    pub(super) fn start(config: &Config, base_sha256: String, parts: Parts, active: PolicyVersion) -> Result<Learner> {
        let Parts { ledger, store, scheduler, model, hub } = parts;
        let (orders, inbox) = bounded(16);
        // One reminder is as good as many.
        let (due, reminders) = bounded(1);
        let (running, ended) = bounded(0);
        let status = TrainerStatus { state: "loading".into(), batch: config.train.batch, ..TrainerStatus::default() };
        let shared = Arc::new(Shared {
            status: Mutex::new(status),
            interrupt: AtomicBool::new(false),
            auto: AtomicBool::new(config.train.auto),
            stopping: AtomicBool::new(false),
        });
        let worker = Worker {
            config: config.clone(),
            base_sha256,
            ledger: ledger.clone(),
            store,
            scheduler,
            hub,
            shared: shared.clone(),
            active,
            model,
            decoder: None,
            judge: None,
            rollouts: None,
            trainer: None,
            threads: Arc::default(),
        };
        let thread = std::thread::Builder::new()
            .name("apa-trainer".into())
            .spawn(move || {
                let _running = running;
                worker.run(&inbox, &reminders);
            })
            .map_err(|e| Error::nomem(format!("can't start the trainer's thread: {e}")))?;
        Ok(Learner { orders, due, ended, shared, ledger, thread: Mutex::new(Some(thread)) })
    }

    /// Tells the thread that a batch is in. Never waits.
    pub(super) fn nudge(&self) {
        // A full channel holds the same reminder already.
        let _ = self.due.try_send(Order::Due);
    }

    /// Trains one batch and returns what came of it.
    pub(super) fn step(&self) -> Result<StepOutcome> {
        let (reply, answer) = bounded(1);
        self.ask(Order::Step(reply), &answer)
    }

    /// Trains one batch with fresh answers in it.
    pub(super) fn roll_out(&self) -> Result<StepOutcome> {
        let (reply, answer) = bounded(1);
        self.ask(Order::RollOut(reply), &answer)
    }

    /// Serves a version and goes on from it; interrupts a step under way.
    pub(super) fn activate(&self, version: PolicyVersion, whole: Option<PathBuf>) -> Result<()> {
        let (reply, answer) = bounded(1);
        self.shared.interrupt.store(true, Ordering::Release);
        self.ask(Order::Activate(version, whole, reply), &answer)
    }

    /// Serves a snapshot as a new version and goes on from it; interrupts a step under way.
    pub(super) fn restore(&self, path: &Path) -> Result<PolicyVersion> {
        let (reply, answer) = bounded(1);
        self.shared.interrupt.store(true, Ordering::Release);
        self.ask(Order::Restore(path.to_path_buf(), reply), &answer)
    }

    /// Whether it trains by itself.
    pub(super) fn auto(&self) -> bool {
        self.shared.auto.load(Ordering::Acquire)
    }

    pub(super) fn set_auto(&self, auto: bool) {
        self.shared.auto.store(auto, Ordering::Release);
    }

    fn ask<T>(&self, order: Order, answer: &Receiver<Result<T>>) -> Result<T> {
        let closed = || Error::closed("the engine is closed");
        self.orders.send(order).map_err(|_| closed())?;
        crossbeam_channel::select! {
            recv(answer) -> answer => answer.map_err(|_| closed())?,
            recv(self.ended) -> _ => answer.try_recv().map_err(|_| closed())?,
        }
    }

    pub(super) fn status(&self) -> TrainerStatus {
        let mut status = self.shared.status().clone();
        status.auto = self.auto();
        status.pending_ratings = self.ledger.pending_ratings();
        status
    }

    /// Gives up the step under way, for good.
    pub(super) fn interrupt(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.interrupt.store(true, Ordering::Release);
        self.nudge();
    }

    /// Ends the thread. Idempotent.
    pub(super) fn stop(&self) {
        self.interrupt();
        if let Some(thread) = self.thread.lock().unwrap_or_else(|e| e.into_inner()).take()
            && thread.join().is_err()
        {
            tracing::error!("the trainer's thread panicked");
        }
    }
}

/// What the thread owns.
struct Worker {
    config: Config,
    base_sha256: String,
    ledger: Arc<Ledger>,
    store: VersionStore,
    scheduler: Arc<Scheduler>,
    hub: Arc<Hub>,
    shared: Arc<Shared>,
    active: PolicyVersion,
    model: Arc<Model>,
    decoder: Option<Arc<Decoder>>,
    /// Makes rewards of what people say; there whenever the trainer is.
    judge: Option<Judge>,
    rollouts: Option<Rollouts>,
    /// The state that belongs to `active`. `None` while training is off, or after a failure until it is loaded again.
    trainer: Option<Trainer>,
    /// Its threads, as names under `/proc`.
    threads: Arc<Mutex<Vec<PathBuf>>>,
}

/// The trainer at work, for the meters.
struct Work {
    since: Instant,
    waited: f64,
}

impl Worker {
    fn begin(&self) -> Work {
        self.shared.set_state("training");
        self.scheduler.beside_training(true);
        Work { since: Instant::now(), waited: self.waited() }
    }

    fn end(&self, work: Work) {
        self.scheduler.beside_training(false);
        let waited = self.waited() - work.waited;
        let mut status = self.shared.status();
        status.state = "idle".into();
        status.seconds += work.since.elapsed().as_secs_f64();
        status.waited_seconds += waited;
    }

    /// Seconds that the trainer's threads have been ready without a core. 0 where the system doesn't say.
    fn waited(&self) -> f64 {
        let threads = self.threads.lock().unwrap_or_else(|e| e.into_inner());
        let of = |name: &PathBuf| -> Option<f64> {
            let line = std::fs::read_to_string(Path::new("/proc").join(name).join("schedstat")).ok()?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        threads.iter().filter_map(of).sum::<f64>() / 1e9
    }

    fn run(mut self, orders: &Receiver<Order>, reminders: &Receiver<Order>) {
        let threads = cores_or(self.config.train.threads) as usize;
        let started = self.threads.clone();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("apa-train-{i}"))
            .start_handler(move |_| {
                give_way_to_decoding();
                started.lock().unwrap_or_else(|e| e.into_inner()).extend(std::fs::read_link("/proc/thread-self").ok());
            })
            .build();
        let pool = match pool {
            Ok(pool) => pool,
            Err(error) => return self.turn_off("unsupported", format!("can't start the trainer's threads: {error}")),
        };
        pool.install(|| self.prepare());
        loop {
            let order = crossbeam_channel::select! {
                recv(orders) -> order => order,
                recv(reminders) -> order => order,
                default(LOOK) => Ok(Order::Due),
            };
            if self.shared.stopping.load(Ordering::Acquire) {
                return;
            }
            // The handle is gone.
            let Ok(order) = order else { return };
            pool.install(|| self.obey(order, orders));
        }
    }

    fn obey(&mut self, order: Order, orders: &Receiver<Order>) {
        match order {
            Order::Due => {}
            Order::Step(reply) => {
                let _ = reply.send(self.step(2));
            }
            Order::RollOut(reply) => {
                let _ = reply.send(self.roll_out());
            }
            Order::Activate(version, whole, reply) => {
                self.go_on();
                let _ = reply.send(self.activate(version, whole));
            }
            Order::Restore(path, reply) => {
                self.go_on();
                let _ = reply.send(self.restore(&path));
            }
        }
        self.learn(orders);
        if orders.is_empty() && !self.interrupted() {
            self.learn_reward();
            self.roll_out_if_idle();
        }
    }

    /// Trains while full batches are in; orders come between two of them.
    fn learn(&mut self, orders: &Receiver<Order>) {
        while self.shared.auto.load(Ordering::Acquire) && self.full_batch() && orders.is_empty() && !self.interrupted()
        {
            let full = self.config.train.batch as usize;
            let outcome = self.step(full);
            // Enough is in, but limits or a quarantine hold it back: what comes next tries again.
            if let Ok(StepOutcome::Skipped { reason, consumed: 0 }) = outcome {
                self.shared.status().reason = Some(reason);
                return;
            }
            if let Err(error) = outcome {
                if error.code() == Code::Closed {
                    tracing::info!("training step given up; its ratings stay in");
                    return;
                }
                // What fails again and again must not spin: the next rating or order tries again.
                tracing::error!(%error, "training step failed");
                self.shared.status().reason = Some(error.to_string());
                return;
            }
        }
    }

    /// Lets the reward model learn, once enough pairs are in.
    fn learn_reward(&mut self) {
        if !self.shared.auto.load(Ordering::Acquire) {
            return;
        }
        if self.judge.as_ref().is_some_and(|judge| judge.learning_is_due(&self.ledger)) {
            let work = self.begin();
            let shared = self.shared.clone();
            let learned =
                self.judge.as_mut().map(|j| j.learn(&self.ledger, &|| shared.interrupt.load(Ordering::Acquire)));
            self.end(work);
            if let Some(Err(error)) = learned
                && error.code() != Code::Closed
            {
                tracing::error!(%error, "the reward model did not learn");
            }
        }
        if let Some(judge) = &self.judge {
            self.shared.status().reward = judge.status().clone();
        }
    }

    /// Trains on fresh answers while nobody asks.
    fn roll_out_if_idle(&mut self) {
        let load = self.scheduler.load();
        let due = self.rollouts.as_mut().is_some_and(|r| r.due(&load)) && self.config.reward.rollout_idle > 0;
        if !due || self.trainer.is_none() || !self.shared.auto.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = self.roll_out()
            && error.code() != Code::Closed
        {
            tracing::error!(%error, "rollouts failed");
            self.shared.status().reason = Some(error.to_string());
            // Not again at every look.
            if let Some(rollouts) = &mut self.rollouts {
                rollouts.postpone();
            }
        }
    }

    fn roll_out(&mut self) -> Result<StepOutcome> {
        let (Some(rollouts), Some(judge)) = (&mut self.rollouts, &self.judge) else {
            return Err(Error::arg("reward.rollouts is not set, expected a file of prompts or users"));
        };
        if !judge.judges_alone() {
            return Err(Error::arg("nothing judges rollouts, expected reward.model, reward.command or reward.url"));
        }
        let size = self.config.train.batch as usize;
        let shared = self.shared.clone();
        let stop = || shared.interrupt.load(Ordering::Acquire);
        let fresh = rollouts.sample(rollouts.share_of(size), &self.scheduler, &self.ledger, &stop)?;
        let mut batch = self.ledger.pending_batch(size.saturating_sub(fresh.len()))?;
        batch.extend(fresh);
        self.work(batch)
    }

    fn full_batch(&self) -> bool {
        self.trainer.is_some() && self.ledger.pending_ratings() >= u64::from(self.config.train.batch)
    }

    /// Takes back the interruption by an order that has come.
    fn go_on(&self) {
        self.shared.interrupt.store(self.shared.stopping.load(Ordering::Acquire), Ordering::Release);
    }

    fn interrupted(&self) -> bool {
        self.shared.interrupt.load(Ordering::Acquire)
    }

    fn turn_off(&self, state: &str, reason: String) {
        let mut status = self.shared.status();
        status.state = state.into();
        status.reason = Some(reason);
    }

    /// Loads the frozen base and the state of the active version. What can't be trained is served all the same.
    fn prepare(&mut self) {
        if !self.config.train.enabled {
            return self.turn_off("off", "training is switched off (train.enabled)".into());
        }
        let TrainConfig { device, dtype, .. } = &self.config.train;
        let loaded = policy::device(device)
            .and_then(|device| Decoder::load(&self.config.model, &device, *dtype))
            .and_then(|decoder| {
                let decoder = Arc::new(decoder);
                let most = self.config.serve.max_tokens;
                self.rollouts = Rollouts::new(&self.config.reward, most, &self.model)?;
                self.judge = Some(Judge::new(&self.config, &decoder, self.model.clone())?);
                self.decoder = Some(decoder);
                self.load_trainer()
            });
        match loaded {
            Ok(()) => self.shared.set_state("idle"),
            Err(error) => {
                tracing::warn!(%error, "this model is served but not trained");
                self.decoder = None;
                self.turn_off("unsupported", error.to_string());
            }
        }
    }

    fn tell(&self, news: impl FnOnce() -> News) {
        self.hub.send(Topic::Learning, news);
    }
}

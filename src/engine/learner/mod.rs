//! The learning loop, on its own thread: ratings → trainer → versions on disk → ledger → scheduler. Never decodes, and
//! never leaves the policy in memory ahead of the one on record.

mod beside;
mod fit;
mod follow;
mod handle;
mod lease;
mod panics;
mod retention;
mod retry;
mod start;
mod step;
mod trial;
mod unlearn;
mod unlearn_plan;
mod versions;
mod watch;
mod work;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};

pub(super) use handle::LearningLoop;
pub(super) use lease::at_start;
pub use trial::VerdictRecord;
pub(super) use trial::resume;
pub(super) use unlearn_plan::plan;
pub use unlearn_plan::{UnlearnPlan, UnlearnReceipt};

use super::alerts::{AlertKind, Alerts};
use super::archive::{self, Adopted};
use super::disk;
use super::examiner::Examiner;
use super::feed::{Hub, News, Topic};
use super::in_flight::InFlight;
use super::judge::{Judge, Samples};
use super::rollouts::Rollouts;
use super::routes::Routes;
use super::status::{TrainerState, TrainerStatus, TrialStatus, UnlearnStatus};
use super::weights::weights_of;
use crate::config::{Algorithm, Config, Role, TrainConfig};
use crate::error::{Code, Error, Result};
use crate::forecast;
use crate::gate::{self, Candidate};
use crate::ids::GenerationKind;
use crate::ledger::{Decides, Ledger};
use crate::llama::{Model, give_way_to_decoding};
use crate::lock::lock;
use crate::policy::{self, Decoder, Lora};
use crate::publish::{About, VersionStore};
use crate::reward::RewardModel;
use crate::scheduler::{Scheduler, Source};
use crate::system::{cores_or, unix_millis};
use crate::trainer::{self, Trainer};
use crate::types::*;
use panics::caught;
use retry::Retry;

/// The outcome of a training step, whoever started it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum PublishOutcome {
    /// A new version was trained, published and activated.
    Published {
        /// The new version.
        version: PolicyVersion,
        /// The measurements of its batch.
        metrics: StepMetrics,
    },
    /// A new version was trained but doesn't serve everyone yet.
    Pending {
        /// The new version.
        version: PolicyVersion,
        /// What happens to it: a trial by users, or a proposal to a person.
        ruling: Ruling,
        /// The reason, in one sentence.
        reason: String,
        /// The measurements of its batch.
        metrics: StepMetrics,
    },
    /// Nothing was changed, for the reason given.
    Skipped {
        /// Why, in one sentence.
        reason: String,
        /// Ratings that were used up.
        consumed: usize,
    },
}

const NOT_READY: &str = "the trainer is not ready";
/// Why a user is not unlearned.
const NOT_REPLACED: &str = "nothing is deleted, since what was learned can't be replaced";
/// Why another user has to wait to be unlearned.
pub(super) const BEING_UNLEARNED: &str = "a user is being unlearned already; the trainer's status says how far it is";
/// Polling interval for feedback whose quarantine ends.
const LOOK: Duration = Duration::from_secs(5);

enum Order {
    /// Train while there are full batches.
    Due,
    /// Train one batch, even a small one.
    Step(Sender<Result<PublishOutcome>>),
    /// Train one batch that includes fresh answers.
    RollOut(Sender<Result<PublishOutcome>>),
    /// Serve a version, as adapter or from a file of merged weights.
    Activate(PolicyVersion, Option<PathBuf>, Sender<Result<()>>),
    /// Serve the newest version.
    Sync(Sender<Result<PolicyVersion>>),
    /// Adopt the version that was set aside under that name, or all of them.
    Adopt(Option<String>, Sender<Result<Vec<Adopted>>>),
    /// Delete a user's data, and replace the versions that learned from it.
    Unlearn(String, Sender<Result<UnlearnReceipt>>),
    /// Restore a snapshot and serve it.
    Restore(PathBuf, Sender<Result<PolicyVersion>>),
}

/// The parts that the loop connects.
pub(super) struct Parts {
    pub(super) ledger: Arc<Ledger>,
    pub(super) store: VersionStore,
    pub(super) scheduler: Arc<Scheduler>,
    /// Tokenizes corrections.
    pub(super) model: Arc<Model>,
    pub(super) hub: Arc<Hub>,
    pub(super) routes: Arc<Routes>,
    /// The candidate of a trial that goes on: it is served already.
    pub(super) resumed: Option<PolicyVersion>,
    pub(super) alerts: Arc<Alerts>,
    pub(super) in_flight: Arc<InFlight>,
}

/// State shared between the thread and its handle.
struct Shared {
    status: Mutex<TrainerStatus>,
    /// Aborts the running step: set while an activation or the shutdown waits for the thread.
    interrupt: AtomicBool,
    /// Whether the thread trains by itself when there are enough ratings.
    auto: AtomicBool,
    /// The reward model in use, if there is one.
    reward_model: Mutex<Option<RewardModel>>,
    /// Tells the thread to end.
    stopping: AtomicBool,
}

impl Shared {
    fn status(&self) -> MutexGuard<'_, TrainerStatus> {
        lock(&self.status)
    }

    fn set_state(&self, state: TrainerState) {
        self.status().state = state;
    }

    fn interrupted(&self) -> bool {
        self.interrupt.load(Ordering::Acquire)
    }
}

/// State owned by the thread.
struct Worker {
    config: Config,
    base_sha256: String,
    ledger: Arc<Ledger>,
    store: VersionStore,
    scheduler: Arc<Scheduler>,
    hub: Arc<Hub>,
    alerts: Arc<Alerts>,
    in_flight: Arc<InFlight>,
    shared: Arc<Shared>,
    active: PolicyVersion,
    model: Arc<Model>,
    /// Chooses the version for each user.
    routes: Arc<Routes>,
    /// The candidate on trial.
    trial: Option<trial::OnTrial>,
    /// The active version, if it is watched.
    watched: Option<watch::Watched>,
    /// The candidate that is served since the start of the engine, until its trial goes on.
    resumed: Option<PolicyVersion>,
    /// The means of training. `None` while the model is loading, if training is off, and for a model that can't be
    /// trained.
    ready: Option<Ready>,
    /// Number of waiting ratings when they were all alike: more must come before the next try.
    waiting: Option<u64>,
    /// When a failed step is tried again.
    retry: Retry,
    /// When old records are deleted.
    tidy: retention::Tidy,
    /// Batches since the active version that only set the mean.
    noted: Vec<u64>,
    /// The replay that replaces versions which learned from a forgotten user.
    unlearning: Option<unlearn::Replay>,
    /// Its threads, as names under `/proc`.
    threads: Arc<Mutex<Vec<PathBuf>>>,
}

/// The means of training, once the frozen base is loaded.
struct Ready {
    decoder: Arc<Decoder>,
    /// Turns feedback into rewards.
    judge: Judge,
    /// State of the active version. `None` after a failure, until another version is activated.
    trainer: Option<Trainer>,
    rollouts: Option<Rollouts>,
    /// Examines candidates, if the settings ask for it.
    examiner: Option<Examiner>,
}

impl Worker {
    fn run(mut self, orders: &Receiver<Order>, reminders: &Receiver<Order>) {
        let Some(pool) = self.pool() else { return };
        let mut first = None;
        while let Err(panic) = caught(|| self.live(&pool, first.take(), orders, reminders)) {
            // Dropping what was thrown could throw again.
            std::mem::forget(panic);
            let wait = self.retry.failed();
            // Listeners that are told may panic as well.
            drop(caught(|| self.fallen(wait)));
            let Some(order) = self.rest(wait, orders, reminders) else { return };
            first = order;
        }
    }

    fn obey(&mut self, order: Order, orders: &Receiver<Order>) {
        self.tidy_record();
        match order {
            Order::Due => {}
            Order::Step(reply) => {
                let _ = reply.send(self.step(2));
            }
            Order::RollOut(reply) => {
                let _ = reply.send(self.roll_out());
            }
            Order::Activate(version, whole, reply) => {
                self.take_back_interrupt();
                let _ = reply.send(self.activate(version, whole));
            }
            Order::Sync(reply) => {
                self.take_back_interrupt();
                let _ = reply.send(self.sync());
            }
            Order::Adopt(name, reply) => {
                self.take_back_interrupt();
                let adopted = archive::adopt(&self.store, &self.ledger, name.as_deref());
                match self.store.aside() {
                    Ok(left) if left.is_empty() => self.alerts.clear(AlertKind::VersionsAside),
                    Ok(left) => super::recovery::tell_aside(&left, &self.alerts),
                    Err(error) => tracing::warn!(%error, "versions that were set aside can't be listed"),
                }
                let _ = reply.send(adopted);
            }
            Order::Unlearn(user, reply) => {
                self.take_back_interrupt();
                let _ = reply.send(self.unlearn(&user));
            }
            Order::Restore(path, reply) => {
                self.take_back_interrupt();
                let _ = reply.send(self.restore(&path));
            }
        }
        // Nothing that is learned could be served.
        if !self.scheduler.is_open() {
            return;
        }
        self.look_at_versions();
        self.replay_on(orders);
        if self.unlearning.is_some() {
            return;
        }
        self.learn(orders);
        if orders.is_empty() && !self.shared.interrupted() {
            self.learn_reward();
            self.roll_out_if_idle();
        }
    }

    /// Updates the watch on the active version and the trial of the candidate.
    fn look_at_versions(&mut self) {
        if self.unlearning.is_some() {
            return;
        }
        if let Err(error) = self.hear().and_then(|()| self.look_at_trial()).and_then(|()| self.look_back()) {
            tracing::error!(%error, "versions could not be compared");
            self.shared.status().reason = Some(error.to_string());
        }
    }

    /// Trains while there are full batches; orders are handled between them.
    fn learn(&mut self, orders: &Receiver<Order>) {
        while self.shared.auto.load(Ordering::Acquire)
            && self.trial.is_none()
            && self.retry.due()
            && self.full_batch()
            && orders.is_empty()
            && !self.shared.interrupted()
        {
            let outcome = self.step(self.config.train.batch as usize);
            // Ratings may come faster than they are learned from.
            self.look_at_versions();
            self.tidy_record();
            // There are enough ratings, but limits or a quarantine hold them back: later feedback tries again.
            if let Ok(PublishOutcome::Skipped { reason, consumed: 0 }) = outcome {
                let told = self.shared.status().reason.replace(reason.clone());
                if told.as_ref() != Some(&reason) && self.trial.is_none() {
                    tracing::warn!(reason, pending = self.ledger.pending_ratings(), "learning waits");
                }
                return;
            }
            if let Err(error) = outcome {
                if matches!(error.code(), Code::Closed | Code::Busy) {
                    tracing::info!(%error, "training step given up; its ratings stay in");
                    return;
                }
                if self.ledger.is_shared() && self.ledger.active().is_err() {
                    tracing::warn!(%error, "learning waits for the database");
                    self.shared.status().reason = Some("learning waits for the database".into());
                    return;
                }
                // Repeated failures must not spin.
                let wait = self.retry.failed().as_secs();
                tracing::error!(%error, again_in_seconds = wait, "training step failed");
                self.shared.status().reason = Some(format!("{error}; it is tried again in {wait} s"));
                return;
            }
        }
    }

    fn full_batch(&self) -> bool {
        let pending = self.ledger.pending_ratings();
        self.trainer().is_some() && pending >= u64::from(self.config.train.batch) && self.waiting != Some(pending)
    }

    /// Clears an interruption whose order has arrived.
    fn take_back_interrupt(&self) {
        self.shared.interrupt.store(self.shared.stopping.load(Ordering::Acquire), Ordering::Release);
    }

    fn turn_off(&self, state: TrainerState, reason: String) {
        let mut status = self.shared.status();
        status.state = state;
        status.reason = Some(reason);
    }

    /// The trainer, if it holds the active version's state.
    fn trainer(&self) -> Option<&Trainer> {
        self.ready.as_ref()?.trainer.as_ref()
    }

    fn tell(&self, news: impl FnOnce() -> News) {
        self.hub.send(Topic::Learning, news);
    }
}

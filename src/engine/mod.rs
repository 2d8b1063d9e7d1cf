//! The composition root: threads, bounded channels, shutdown, and the loop from a rating to new weights. `ffi` and
//! `http` expose the methods here.

mod alerts;
mod archive;
mod backup;
mod disk;
mod embeddings;
mod examiner;
pub mod exchange;
mod feed;
mod feedback;
mod figures;
mod generate;
mod in_flight;
mod judge;
mod learner;
mod metrics;
mod named;
mod open;
mod questions;
mod recovery;
mod responses;
mod reward_versions;
mod rollouts;
mod routes;
mod sample;
mod sampling;
mod score;
mod status;
mod versions;
mod weight_format;
mod weights;

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::ledger::Ledger;
use crate::llama::{ChatTemplate, Model};
use crate::publish::VersionStore;
use crate::scheduler::Scheduler;
use crate::types::Sampling;

pub use crate::scheduler::{Event, GenerationStream, Load, Next, Wake};
pub use crate::types::GenerateRequest;
pub use alerts::{Alert, AlertKind};
pub use archive::{Adopted, Archive, AsideVersion, VersionRecord};
pub use backup::{Backup, backup, restore};
pub use disk::DiskUse;
pub use feed::{Answer, Feed, News, Topic};
pub use feedback::GenerationRecord;
pub use figures::{Figure, VersionFigures};
pub use learner::{PublishOutcome, UnlearnPlan, UnlearnReceipt, VerdictRecord};
pub use reward_versions::RewardStatus;
pub use sample::{NewSample, SampleReceipt};
pub use status::{Status, TrainerState, TrainerStatus, TrialStatus, UnlearnStatus};
pub use weight_format::{FormatMeasurement, WeightFormat};

use alerts::Alerts;
use embeddings::Embeddings;
use feed::Hub;
use in_flight::InFlight;
use learner::LearningLoop;
use named::Named;
use routes::Routes;

/// A serving, learning model. Cheap to clone; every method is safe from any thread. Dropping the last clone shuts it
/// down.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    model: Arc<Model>,
    template: Result<ChatTemplate>,
    scheduler: Arc<Scheduler>,
    ledger: Arc<Ledger>,
    learner: LearningLoop,
    store: VersionStore,
    hub: Arc<Hub>,
    /// Chooses the version for each user while a candidate is on trial.
    routes: Arc<Routes>,
    named: Named,
    alerts: Arc<Alerts>,
    format: WeightFormat,
    /// Of requests that say nothing of it.
    sampling: Sampling,
    embeddings: Embeddings,
    in_flight: Arc<InFlight>,
    /// Held by the one call that scores.
    scoring: Mutex<()>,
    /// The model's files, marked as used so that no command writes over them.
    _served: Vec<File>,
    closed: AtomicBool,
}

impl Engine {
    /// Subscribes to the events of a topic. At most 64 feeds are open at a time, and each keeps at most 256 events.
    ///
    /// # Errors
    /// `Busy` if there are too many, `Closed`.
    pub fn subscribe(&self, topic: Topic) -> Result<Arc<Feed>> {
        self.inner.hub.open(topic)
    }

    /// A snapshot of the state.
    pub fn status(&self) -> Status {
        let Inner { model, scheduler, format, learner, alerts, .. } = &*self.inner;
        status::snapshot(model, scheduler.load(), format, learner.status(), alerts.list())
    }

    /// Disk use of the data folder. Walks all its files.
    pub fn disk_use(&self) -> DiskUse {
        disk::measure(&self.inner.config.data)
    }

    /// The settings it was opened with.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Shuts the engine down: refuses new requests, ends running ones as `Closed`, wakes every waiter, stops the
    /// threads, and releases the data folder. Idempotent.
    pub fn shutdown(&self) {
        self.inner.shutdown();
    }

    /// Checks that the engine is open.
    ///
    /// # Errors
    /// `Closed` if it is not.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.inner.closed.load(Ordering::Acquire) {
            return Err(Error::closed("the engine is closed"));
        }
        if !self.inner.scheduler.is_open() {
            return Err(Error::closed("a bug stopped the engine, the log has the details; expected a restart"));
        }
        Ok(())
    }

    /// Reports an error that no caller is waiting for.
    pub(crate) fn report(&self, error: &Error) {
        tracing::warn!(%error, "failed in the background");
        let news = || News::Error { code: error.code().as_str(), message: error.to_string() };
        self.inner.hub.send(Topic::Learning, news);
    }
}

impl Inner {
    fn shutdown(&self) {
        self.closed.store(true, Ordering::Release);
        // The learner first: it waits for the scheduler while it swaps.
        self.learner.interrupt();
        self.hub.close();
        self.embeddings.stop();
        self.scheduler.stop();
        self.learner.stop();
        self.ledger.close();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown();
    }
}

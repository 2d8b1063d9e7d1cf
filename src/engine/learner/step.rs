//! One step of the learner: a batch becomes samples, then a candidate, then a version on record that is served. Never
//! decides when.

use super::fit::Fit;
use super::trial::VerdictRecord;
use super::*;
use crate::gate::{Examination, Outcome};
use crate::ledger::TrainedBatch;

/// Why nothing is learned meanwhile.
const UNLEARNING: &str = "a user is being unlearned; what is rated meanwhile is learned from afterwards";
/// Most batches of ratings that wait together while all ratings agree.
const MOST_BATCHES: usize = 8;

/// What became of a candidate.
#[expect(clippy::large_enum_variant, reason = "one for a batch, never many")]
pub(super) enum Judged {
    /// It is a version.
    Made(PublishOutcome),
    /// It was refused, for this reason. The trainer still holds it.
    Refused(String),
}

impl Worker {
    /// One batch of at least `least` answers: train, publish, commit, serve.
    pub(super) fn step(&mut self, least: usize) -> Result<PublishOutcome> {
        self.check_ready()?;
        if self.unlearning.is_some() {
            return Ok(PublishOutcome::Skipped { reason: UNLEARNING.to_owned(), consumed: 0 });
        }
        if let Some(on) = &self.trial {
            let reason =
                format!("version {} is on trial; what is rated meanwhile is learned from afterwards", on.candidate);
            return Ok(PublishOutcome::Skipped { reason, consumed: 0 });
        }
        let planned = self.config.train.batch as usize;
        let most = planned * MOST_BATCHES;
        let mut size = planned;
        let (batch, outcome) = loop {
            let batch = self.ledger.pending_batch(size)?;
            if batch.len() < least {
                return Ok(PublishOutcome::Skipped { reason: too_few(batch.len(), least).into(), consumed: 0 });
            }
            let full = batch.len() >= size;
            match self.work(batch.clone())? {
                // These ratings don't distinguish good from bad; with more of them they may.
                PublishOutcome::Skipped { consumed: 0, .. } if full && size < most => size = (size * 2).min(most),
                outcome => break (batch, outcome),
            }
        };
        match outcome {
            PublishOutcome::Skipped { consumed: 0, .. } if batch.len() >= most => self.set_mean(planned),
            outcome => Ok(outcome),
        }
    }

    /// Whether there is a trainer; the error says why there is none.
    pub(super) fn check_ready(&self) -> Result<()> {
        if self.trainer().is_some() {
            return Ok(());
        }
        let status = self.shared.status().clone();
        let reason = status.reason.unwrap_or_else(|| NOT_READY.into());
        let off = matches!(status.state, TrainerState::Off | TrainerState::Unsupported);
        Err(if off { Error::unsupported(reason) } else { Error::train(reason) })
    }

    /// So many ratings agree that the oldest batch sets the mean that others are compared with; nothing more is
    /// trained.
    fn set_mean(&mut self, planned: usize) -> Result<PublishOutcome> {
        let batch = self.ledger.pending_batch(planned)?;
        let Samples { rollouts, used, .. } = self.samples(&batch)?;
        let scores: Vec<f64> = rollouts.iter().map(|rollout| rollout.score).collect();
        if let Some(Ready { trainer: Some(trainer), .. }) = &mut self.ready {
            trainer.note(&scores);
        }
        let reason = "all that waits got the same: the oldest set the mean that others are compared with".to_owned();
        let batch = self.ledger.commit_skipped(&reason, &used)?;
        // It belongs to the version that is made next.
        self.noted.push(batch);
        let outcome = PublishOutcome::Skipped { reason, consumed: used.len() };
        self.announce(&outcome);
        Ok(outcome)
    }

    /// Trains on one batch of any size. If its ratings must wait for others, none are used up.
    pub(super) fn work(&mut self, batch: Vec<RatedGeneration>) -> Result<PublishOutcome> {
        let work = self.begin();
        let room = self.check_room();
        let told = room.is_err();
        let scales = self.ready.as_ref().map(|ready| ready.judge.scales());
        let samples = room.and_then(|()| self.with_unrated(batch)).and_then(|batch| self.samples(&batch));
        let outcome = samples.and_then(|samples| self.train(&samples));
        self.end(work);
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                // The weights in memory may be ahead of those on record, so reload those.
                if let Err(again) = self.load_trainer() {
                    self.turn_off(
                        TrainerState::Off,
                        format!("{error}; and version {} can't be loaded: {again}", self.active),
                    );
                }
                if !told && !matches!(error.code(), Code::Closed | Code::Busy) {
                    self.alerts.raise(AlertKind::StepFails, format!("a training step failed: {error}"));
                    self.tell(|| News::Error { code: error.code().as_str(), message: error.to_string() });
                }
                return Err(error);
            }
        };
        self.retry.reset();
        self.alerts.clear(AlertKind::StepFails);
        self.alerts.clear(AlertKind::TrainerPanicked);
        let mut status = self.shared.status();
        if let PublishOutcome::Skipped { reason, consumed: 0 } = &outcome {
            status.reason = Some(reason.clone());
            drop(status);
            if let (Some(ready), Some(scales)) = (&mut self.ready, scales) {
                ready.judge.restore(scales);
            }
            self.waiting = Some(self.ledger.pending_ratings());
            return Ok(outcome);
        }
        drop(status);
        self.announce(&outcome);
        let mut status = self.shared.status();
        match &outcome {
            PublishOutcome::Published { metrics, .. } | PublishOutcome::Pending { metrics, .. } => {
                status.steps += 1;
                status.dropped_steps += metrics.dropped_steps as u64;
                status.last = Some(metrics.clone());
                status.reason = None;
            }
            PublishOutcome::Skipped { reason, .. } => {
                status.skipped += 1;
                status.reason = Some(reason.clone());
            }
        }
        drop(status);
        Ok(outcome)
    }

    /// Whether another version fits on the disk.
    fn check_room(&self) -> Result<()> {
        let bytes = self.trainer().map_or(0, Trainer::checkpoint_bytes);
        let room = disk::check_room(&self.config.data, bytes);
        match &room {
            Ok(()) => self.alerts.clear(AlertKind::NoRoom),
            Err(error) => self.alerts.raise(AlertKind::NoRoom, error.message()),
        }
        room
    }

    pub(super) fn announce(&self, outcome: &PublishOutcome) {
        match outcome {
            PublishOutcome::Published { version, metrics } | PublishOutcome::Pending { version, metrics, .. } => {
                self.tell(|| News::StepDone { version: *version, metrics: metrics.clone() });
            }
            PublishOutcome::Skipped { reason, consumed } => {
                self.tell(|| News::StepDropped { reason: reason.clone(), consumed: *consumed });
            }
        }
    }

    /// A batch with unrated answers, if the settings ask for them.
    fn with_unrated(&self, mut batch: Vec<RatedGeneration>) -> Result<Vec<RatedGeneration>> {
        if let Some(Ready { judge, .. }) = self.ready.as_ref().filter(|ready| ready.judge.unrated() > 0) {
            batch.extend(self.ledger.unrated(judge.unrated(), judge.oldest(self.active))?);
        }
        Ok(batch)
    }

    /// The training samples of a batch.
    fn samples(&mut self, batch: &[RatedGeneration]) -> Result<Samples> {
        let Some(Ready { judge, .. }) = &mut self.ready else { return Err(Error::train(NOT_READY)) };
        let samples = judge.samples(batch, self.active, &self.shared.interrupt)?;
        if !samples.unusable.is_empty() {
            let answers = samples.unusable.len();
            tracing::warn!(answers, "feedback that nothing can be learned from is set aside; `apad review` shows it");
            self.ledger.leave_out(&samples.unusable)?;
        }
        Ok(samples)
    }

    fn train(&mut self, samples: &Samples) -> Result<PublishOutcome> {
        let Samples { rollouts, records, used, stale, .. } = samples;
        if *stale > 0 {
            tracing::warn!(stale, "answers of versions too old are left out (reward.staleness)");
        }
        let metrics = match self.fit(rollouts, Some(self.active), None)? {
            Fit::Trained(metrics) => *metrics,
            Fit::Waits(reason) => {
                tracing::info!(reason, ratings = used.len(), "ratings wait for others");
                return Ok(PublishOutcome::Skipped { reason, consumed: 0 });
            }
            Fit::Dropped(reason) => {
                self.ledger.commit_skipped(&reason, used)?;
                tracing::warn!(reason, ratings = used.len(), "training step skipped");
                return Ok(PublishOutcome::Skipped { reason, consumed: used.len() });
            }
            Fit::Refused(reason) => return self.refuse(reason, used),
        };
        let noted = std::mem::take(&mut self.noted);
        let batch = TrainedBatch { used: used.clone(), samples: records.clone(), settings: self.settings(), noted };
        match self.publish(&metrics, 1, &|of, info, _| of.ledger.commit_version(info, batch.clone()))? {
            Judged::Made(outcome) => Ok(outcome),
            Judged::Refused(reason) => self.refuse(reason, used),
        }
    }

    /// Has what the trainer holds, which came of so many `batches`, examined beside the active version, and makes it a
    /// version unless it is refused. `commit` puts it on record, given the reason of the ruling.
    pub(super) fn publish(
        &mut self,
        metrics: &StepMetrics,
        batches: usize,
        commit: &dyn Fn(&Self, &VersionInfo, &str) -> Result<()>,
    ) -> Result<Judged> {
        let Some(Ready { trainer: Some(trainer), judge, .. }) = &self.ready else {
            return Err(Error::train(NOT_READY));
        };
        let (version, parent) = (self.ledger.next_version()?, self.active);
        let stage = self.store.stage(version)?;
        trainer.save(stage.path())?;
        judge.save(stage.path())?;
        let (examination, seconds) = self.examine(version, stage.path(), batches)?.unzip();
        if let Some(Examination { outcome: Outcome::Refused, reason, .. }) = &examination {
            let record =
                VerdictRecord { reason: reason.clone(), examination: examination.clone(), seconds, trial: None };
            self.ledger.add_verdict(None, parent, Ruling::Refused, record.json())?;
            self.tell(|| News::VersionRefused { version: None, reason: reason.clone() });
            return Ok(Judged::Refused(reason.clone()));
        }
        let (ruling, reason) = self.ruling(examination.as_ref())?;
        let active = ruling == Ruling::Promoted;
        let info = VersionInfo {
            version,
            parent: Some(parent),
            active,
            created: unix_millis(),
            metrics: metrics.clone(),
            ruling: None,
        };
        stage.commit(self.about(&info))?;
        if let Err(error) = commit(self, &info, &reason) {
            // The number is free again: the folder must not block the next try.
            self.withdraw(&info);
            return Err(error);
        }
        let record = VerdictRecord { reason: reason.clone(), examination, seconds, trial: None };
        let verdict = self.ledger.add_verdict(Some(version), parent, ruling, record.json())?;
        if active {
            // On record from here on: whatever fails later, a restart serves it.
            self.active = version;
            self.scheduler.swap(weights_of(&self.store, version)?)?;
            self.begin_watch()?;
        } else {
            // Training continues from the version that serves.
            self.load_trainer()?;
            if ruling == Ruling::Trial
                && let Some(verdict) = self.ledger.trial()?.filter(|v| v.id == verdict)
            {
                self.begin_trial(&verdict)?;
            }
        }
        tracing::info!(
            version = version.0,
            ?ruling,
            mean_reward = metrics.mean_reward,
            kl_nats = metrics.kl_per_response.0,
            seconds = metrics.seconds,
            "policy published"
        );
        self.prune();
        let metrics = metrics.clone();
        if !active {
            if ruling == Ruling::Proposed {
                self.tell(|| News::VersionProposed { version, parent, reason: reason.clone() });
            }
            return Ok(Judged::Made(PublishOutcome::Pending { version, ruling, reason, metrics }));
        }
        self.tell(|| News::VersionPublished { version, parent });
        Ok(Judged::Made(PublishOutcome::Published { version, metrics }))
    }

    /// Records that a batch's candidate was refused, and goes back to the active version.
    fn refuse(&mut self, reason: String, used: &[u64]) -> Result<PublishOutcome> {
        let reason = format!("the candidate was refused: {reason}");
        self.ledger.commit_skipped(&reason, used)?;
        self.shared.status().refused += 1;
        tracing::warn!(reason, ratings = used.len(), "candidate refused");
        self.load_trainer()?;
        Ok(PublishOutcome::Skipped { reason, consumed: used.len() })
    }
}

/// Why a batch is not started.
fn too_few(answers: usize, least: usize) -> &'static str {
    match answers {
        0 => "there is no new feedback that counts yet",
        1 if least == 2 => "one rating alone can't be told from the mean, so it waits for others",
        _ => {
            "less feedback than a batch counts yet: limits of users (reward.user_share, reward.user_hourly), a review \
             or reward.quarantine hold the rest back; what reward.user_share leaves out is taken after \
             reward.user_patience"
        }
    }
}

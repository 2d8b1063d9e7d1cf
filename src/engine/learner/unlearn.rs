//! Replaces versions that learned from a forgotten user: goes back to one that did not, and trains on the recorded
//! batches again, without the user's samples. Never knows who the user was.

use super::fit::{Fit, Settings};
use super::step::Judged;
use super::*;
use crate::ledger::{Replayed, Unlearned, Unlearning};

/// The folder of the replay's state in the data folder.
const FOLDER: &str = "unlearning";
const PROGRESS_FILE: &str = "progress.json";

/// A replay under way.
pub(super) struct Replay {
    record: Unlearning,
    progress: Progress,
    /// Whether the trainer holds its state.
    pub(super) loaded: bool,
}

/// How far a replay has come, as it is written beside the trainer's state.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Progress {
    /// Batches that are done.
    replayed: usize,
    /// Of those, batches that moved the policy.
    trained: usize,
    /// Rows of batches too small to learn from, which go into the next one.
    waiting: Vec<u64>,
    /// Measurements of the last batch that moved the policy; seconds of all of them.
    metrics: StepMetrics,
}

impl Replay {
    /// Whether a version may be served while this goes on.
    pub(super) fn may_serve(&self, version: PolicyVersion) -> Result<()> {
        if !self.record.removed().contains(&version.0) {
            return Ok(());
        }
        Err(Error::busy(format!("version {version} learned from a user who is being forgotten, and will be removed")))
    }

    fn status(&self) -> UnlearnStatus {
        let Unlearning { asked, first, back, batches, seconds, .. } = &self.record;
        let (replayed, all) = (self.progress.replayed, batches.len());
        let left = if all == 0 { 0.0 } else { (all - replayed.min(all)) as f64 / all as f64 };
        let seconds_left = seconds * left;
        UnlearnStatus { asked: *asked, first: *first, back: *back, replayed, batches: all, seconds_left }
    }
}

impl Worker {
    /// Deletes a user's data, and begins to replace the versions that learned from it.
    pub(super) fn unlearn(&mut self, user: &str) -> Result<UnlearnReceipt> {
        if self.unlearning.is_some() {
            return Err(Error::busy(BEING_UNLEARNED));
        }
        let planned = plan(&self.store, &self.ledger, user)?;
        if planned.is_some() {
            self.check_ready().map_err(|e| e.context(NOT_REPLACED))?;
        }
        self.in_flight.forget(user);
        let Some((record, plan)) = planned else {
            return Ok(UnlearnReceipt { forgotten: self.ledger.forget(user)?, unlearning: None });
        };
        let forgotten = self.ledger.forget_and_unlearn(user, &record)?;
        let UnlearnPlan { first, back, start, versions, batches, seconds, .. } = &plan;
        tracing::info!(%first, %back, %start, versions, batches, seconds, "what learned from a user is replaced");
        self.remove_replay()?;
        self.begin_replay(record, Progress::default());
        self.end_trial_of_removed();
        Ok(UnlearnReceipt { forgotten, unlearning: Some(plan) })
    }

    /// Resumes a replay that was under way when the engine was closed.
    pub(super) fn resume_unlearning(&mut self) {
        let resumed = self.ledger.unlearning().and_then(|record| match record {
            Some(record) => self.progress_on_disk().map(|progress| Some((record, progress))),
            None => Ok(None),
        });
        match resumed {
            Ok(Some((record, progress))) => self.begin_replay(record, progress),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "the replacement of versions that learned from a user can't go on"),
        }
    }

    fn begin_replay(&mut self, record: Unlearning, progress: Progress) {
        self.retry.reset();
        self.unlearning = Some(Replay { record, progress, loaded: false });
        self.show_replay();
    }

    /// Ends the trial of a candidate that learned from a forgotten user.
    pub(super) fn end_trial_of_removed(&mut self) {
        let (Some(on), Some(replay)) = (&self.trial, &self.unlearning) else { return };
        if replay.may_serve(on.candidate).is_err()
            && let Err(error) = self.end_trial(Ruling::Refused, "it learned from a user who is forgotten".to_owned())
        {
            tracing::error!(%error, "the trial could not be ended");
        }
    }

    /// Replays batches until an order comes, and ends the replay after the last one.
    pub(super) fn replay_on(&mut self, orders: &Receiver<Order>) {
        while self.unlearning.is_some() && self.retry.due() && orders.is_empty() && !self.shared.interrupted() {
            let work = self.begin();
            let done = self.replay_some();
            self.end(work);
            self.show_replay();
            match done {
                Ok(()) => {
                    self.retry.reset();
                    self.alerts.clear(AlertKind::StepFails);
                }
                Err(error) => {
                    if let Some(replay) = &mut self.unlearning {
                        replay.loaded = false;
                    }
                    if error.code() == Code::Closed {
                        tracing::info!(%error, "the replay is interrupted; it goes on from the last batch");
                        return;
                    }
                    let wait = self.retry.failed().as_secs();
                    let reason =
                        format!("a forgotten user is not unlearned yet: {error}; it is tried again in {wait} s");
                    self.shared.status().reason = Some(reason.clone());
                    self.alerts.raise(AlertKind::StepFails, reason);
                }
            }
        }
    }

    /// The next batch, or the end.
    fn replay_some(&mut self) -> Result<()> {
        let Some(Replay { record, progress, loaded }) = &self.unlearning else { return Ok(()) };
        if record.ended.is_some() {
            return self.remove_unlearned();
        }
        let (next, loaded, start) = (record.batches.get(progress.replayed).copied(), *loaded, record.start);
        if !loaded && (next.is_some() || progress.trained > 0) {
            let progress = self.progress_on_disk()?;
            match progress.replayed as u64 {
                0 => self.load_state(&self.store.clone(), start)?,
                done => self.load_state(&self.replay_store()?, PolicyVersion(done))?,
            }
            if let Some(replay) = &mut self.unlearning {
                (replay.progress, replay.loaded) = (progress, true);
            }
        }
        match next {
            Some(batch) => self.replay(batch),
            None => self.end_replay(),
        }
    }

    /// Trains on a recorded batch again, with those that were too small before it, and saves the state.
    fn replay(&mut self, batch: u64) -> Result<()> {
        let Some(Replay { record, progress, .. }) = &self.unlearning else { return Ok(()) };
        let (mut progress, start) = (progress.clone(), record.start);
        disk::check_room(&self.config.data, self.trainer().map_or(0, Trainer::checkpoint_bytes))?;
        let (settings, only_mean) = self.ledger.settings_of(batch)?;
        let settings = settings.and_then(|json| {
            serde_json::from_value::<Settings>(json)
                .inspect_err(|error| tracing::warn!(%error, "a batch is replayed with the present settings"))
                .ok()
        });
        let mut batches = if only_mean { Vec::new() } else { progress.waiting.clone() };
        batches.push(batch);
        // Those that wait have taught nobody yet.
        let first = batches.first().copied();
        let recorded = self.ledger.recorded(&batches)?;
        let Some(Ready { trainer: Some(trainer), judge, .. }) = &mut self.ready else {
            return Err(Error::train(NOT_READY));
        };
        let scales = judge.scales();
        let version = settings.as_ref().map_or(scales.reward_version, |settings| settings.reward_version);
        trainer.reconfigure(settings.as_ref().map_or(&self.config.train, |settings| &settings.train))?;
        let samples = judge.samples_again(&recorded, version)?;
        progress.replayed += 1;
        if only_mean {
            trainer.note(&samples.rollouts.iter().map(|rollout| rollout.score).collect::<Vec<f64>>());
            return self.save_replay(progress);
        }
        let held = (progress.trained == 0).then_some(start);
        let fit = loop {
            let pace = self.trainer().map_or(0.0, Trainer::pace);
            let fit = self.fit(&samples.rollouts, held, first)?;
            // A batch that moved too fast comes again, at the lower rate.
            let slower = self.trainer().is_some_and(|trainer| trainer.pace() < pace);
            if !slower || !matches!(fit, Fit::Waits(_)) {
                break fit;
            }
        };
        let replayed = match fit {
            Fit::Waits(_) if samples.rollouts.is_empty() => Replayed::Dropped("nothing of it is left".to_owned()),
            Fit::Waits(_) => {
                if let Some(Ready { judge, .. }) = &mut self.ready {
                    judge.restore(scales);
                }
                progress.waiting.push(batch);
                return self.save_replay(progress);
            }
            Fit::Dropped(reason) => Replayed::Dropped(reason),
            Fit::Refused(reason) => {
                self.ledger.set_replayed(batch, &progress.waiting, Replayed::Dropped(reason))?;
                let before = progress.replayed as u64 - 1;
                match before {
                    0 => self.load_state(&self.store.clone(), start)?,
                    before => self.load_state(&self.replay_store()?, PolicyVersion(before))?,
                }
                progress.waiting.clear();
                return self.save_replay(progress);
            }
            Fit::Trained(metrics) => {
                let seconds = progress.metrics.seconds + metrics.seconds;
                progress.metrics = StepMetrics { seconds, ..*metrics };
                progress.trained += 1;
                Replayed::Trained(samples.records)
            }
        };
        // First the record: a batch that is replayed once more finds the same in it.
        self.ledger.set_replayed(batch, &progress.waiting, replayed)?;
        progress.waiting.clear();
        self.save_replay(progress)
    }

    /// Writes the state after a batch, so that a restart goes on from it.
    fn save_replay(&mut self, progress: Progress) -> Result<()> {
        let store = self.replay_store()?;
        let Some(Ready { trainer: Some(trainer), judge, .. }) = &self.ready else {
            return Err(Error::train(NOT_READY));
        };
        let done = PolicyVersion(progress.replayed as u64);
        if store.path(done).exists() {
            store.discard(done)?;
        }
        let stage = store.stage(done)?;
        trainer.save(stage.path())?;
        judge.save(stage.path())?;
        let json = serde_json::to_vec(&progress).map_err(|e| Error::io(e.to_string()))?;
        std::fs::write(stage.path().join(PROGRESS_FILE), json)?;
        let metrics = progress.metrics.clone();
        let info =
            VersionInfo { version: done, parent: None, active: false, created: unix_millis(), metrics, ruling: None };
        stage.commit(self.about(&info))?;
        store.prune(1, &[])?;
        let Some(replay) = &mut self.unlearning else { return Ok(()) };
        (replay.progress, replay.loaded) = (progress, true);
        let (replayed, batches) = (replay.progress.replayed, replay.record.batches.len());
        tracing::info!(replayed, batches, "a batch is replayed without a forgotten user's samples");
        self.tell(|| News::Unlearning { replayed, batches });
        Ok(())
    }

    /// Goes back to the last version that saw nothing of the user, and has the replayed policy judged beside it.
    fn end_replay(&mut self) -> Result<()> {
        let Some(Replay { record, progress, .. }) = &self.unlearning else { return Ok(()) };
        let (record, progress) = (record.clone(), progress.clone());
        if self.active != record.back {
            self.serve(record.back)?;
        }
        let ended = |version, reason: &str| Unlearning {
            ended: Some(Unlearned { version, reason: reason.to_owned() }),
            ..record.clone()
        };
        if progress.trained == 0 {
            let reason = match record.batches.len() {
                0 => "what serves did not learn from the user",
                _ => "nothing else was learned since, or what was is too little without the user",
            };
            return self.close_replay(ended(None, reason), &progress.waiting);
        }
        if self.unlearning.as_ref().is_some_and(|replay| !replay.loaded) {
            self.load_state(&self.replay_store()?, PolicyVersion(progress.replayed as u64))?;
        }
        if let Some(Ready { trainer: Some(trainer), .. }) = &mut self.ready {
            trainer.reconfigure(&self.config.train)?;
        }
        let commit = |of: &Self, info: &VersionInfo, reason: &str| {
            of.ledger.end_unlearning(&ended(Some(info.version), reason), Some(info), &progress.waiting)
        };
        match self.publish(&progress.metrics, progress.trained, &commit)? {
            Judged::Made(outcome) => {
                self.announce(&outcome);
                let made = self.ledger.unlearning()?;
                if let (Some(replay), Some(made)) = (&mut self.unlearning, made) {
                    replay.record = made;
                }
                Ok(())
            }
            Judged::Refused(reason) => {
                self.shared.status().refused += 1;
                let reason = format!("what was learned without the user was refused: {reason}");
                self.close_replay(ended(None, &reason), &progress.waiting)
            }
        }
    }

    /// Ends a replay without a version.
    fn close_replay(&mut self, ended: Unlearning, waiting: &[u64]) -> Result<()> {
        self.ledger.end_unlearning(&ended, None, waiting)?;
        if let Some(replay) = &mut self.unlearning {
            replay.record = ended;
        }
        self.load_trainer()
    }

    /// A person chose a version that learned nothing from the user, so nothing is replayed any more.
    pub(super) fn overrule_unlearning(&mut self, version: PolicyVersion) -> Result<()> {
        let Some(replay) = self.unlearning.as_ref().filter(|replay| replay.record.ended.is_none()) else {
            return Ok(());
        };
        let ended = Some(Unlearned { version: None, reason: format!("a person chose version {version}") });
        let (ended, waiting) = (Unlearning { ended, ..replay.record.clone() }, replay.progress.waiting.clone());
        self.close_replay(ended, &waiting)
    }

    /// Removes the versions that learned from the user, and the replay's state.
    fn remove_unlearned(&mut self) -> Result<()> {
        let Some(Replay { record, .. }) = &self.unlearning else { return Ok(()) };
        let (record, removed) = (record.clone(), record.removed());
        let Some(Unlearned { version, reason }) = record.ended else { return Ok(()) };
        let known = self.ledger.versions()?;
        for gone in known.iter().filter(|v| removed.contains(&v.version.0)) {
            let reason = "it learned from a user who was forgotten, and its files were removed";
            match self.ledger.verdict_of(gone.version)? {
                Some(verdict) => self.settle(&verdict, Ruling::Unlearned, reason)?,
                None => {
                    let record = VerdictRecord { reason: reason.to_owned(), ..VerdictRecord::default() };
                    let parent = gone.parent.unwrap_or_default();
                    self.ledger.add_verdict(Some(gone.version), parent, Ruling::Unlearned, record.json())?;
                }
            }
        }
        for gone in known.iter().filter(|v| removed.contains(&v.version.0)) {
            self.store.discard(gone.version)?;
        }
        for gone in removed {
            let merged = self.config.data.join("whole").join(format!("{gone}.gguf"));
            if merged.exists() {
                std::fs::remove_file(&merged).map_err(|e| Error::from(e).context(merged.display()))?;
            }
        }
        self.remove_replay()?;
        self.ledger.clear_unlearning()?;
        self.unlearning = None;
        self.begin_watch()?;
        let mut status = self.shared.status();
        status.reason = None;
        // Before anyone sees that it is over.
        status.unlearned = Some(Unlearned { version, reason: reason.clone() });
        drop(status);
        tracing::info!(
            version = version.map(|v| v.0),
            reason,
            "versions that learned from a forgotten user are removed"
        );
        self.tell(|| News::Unlearned { version, parent: record.back, reason });
        Ok(())
    }

    /// The states of the replay, one for each batch that is done, of which the newest stays.
    fn replay_store(&self) -> Result<VersionStore> {
        VersionStore::open(&self.config.data.join(FOLDER))
    }

    fn remove_replay(&self) -> Result<()> {
        let folder = self.config.data.join(FOLDER);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(|e| Error::from(e).context(folder.display()))?;
        }
        Ok(())
    }

    fn progress_on_disk(&self) -> Result<Progress> {
        if !self.config.data.join(FOLDER).exists() {
            return Ok(Progress::default());
        }
        let store = self.replay_store()?;
        store.remove_leftovers()?;
        let Some(newest) = store.list()?.pop() else { return Ok(Progress::default()) };
        let json = crate::files::read(&store.path(newest).join(PROGRESS_FILE), crate::files::MOST)?;
        serde_json::from_slice(&json).map_err(|e| Error::io(format!("{FOLDER}/{PROGRESS_FILE} is damaged: {e}")))
    }

    fn show_replay(&self) {
        self.shared.status().unlearning = self.unlearning.as_ref().map(Replay::status);
    }
}

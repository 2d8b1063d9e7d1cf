//! One step of the learner: a batch becomes samples, a candidate, a version on record that is served. Never decides
//! when.

use super::*;

impl Worker {
    /// One batch of at least `least` answers: train, publish, commit, serve.
    pub(super) fn step(&mut self, least: usize) -> Result<StepOutcome> {
        if self.trainer.is_none() {
            let status = self.shared.status().clone();
            let reason = status.reason.unwrap_or_else(|| "the trainer is not ready".into());
            let unsupported = status.state == "unsupported" || !self.config.train.enabled;
            return Err(if unsupported { Error::unsupported(reason) } else { Error::train(reason) });
        }
        let batch = self.ledger.pending_batch(self.config.train.batch as usize)?;
        if batch.len() < least {
            let reason = match batch.len() {
                0 => "there is no new feedback that counts yet",
                1 if least == 2 => "one rating alone can't be told from the mean, so it waits for others",
                _ => {
                    "less feedback than a batch counts yet: limits of users, a review or a quarantine hold the rest back"
                }
            };
            return Ok(StepOutcome::Skipped { reason: reason.into(), consumed: 0 });
        }
        self.work(batch)
    }

    pub(super) fn work(&mut self, batch: Vec<RatedGeneration>) -> Result<StepOutcome> {
        let work = self.begin();
        let outcome = self.samples(batch).and_then(|samples| self.train(&samples));
        self.end(work);
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                // The weights in memory may be ahead of those on record: go back to them.
                if let Err(again) = self.load_trainer() {
                    self.turn_off("off", format!("{error}; and version {} can't be loaded: {again}", self.active));
                }
                if error.code() != Code::Closed {
                    self.tell(|| News::Error { code: error.code().as_str(), message: error.to_string() });
                }
                return Err(error);
            }
        };
        self.announce(&outcome);
        let mut status = self.shared.status();
        match &outcome {
            StepOutcome::Published { metrics, .. } => {
                status.steps += 1;
                status.dropped_steps += metrics.dropped_steps as u64;
                status.last = Some(metrics.clone());
                status.reason = None;
            }
            StepOutcome::Skipped { reason, .. } => {
                status.skipped += 1;
                status.reason = Some(reason.clone());
            }
        }
        drop(status);
        Ok(outcome)
    }

    fn announce(&self, outcome: &StepOutcome) {
        match outcome {
            StepOutcome::Published { version, metrics } => {
                self.tell(|| News::StepDone { version: *version, metrics: metrics.clone() });
            }
            StepOutcome::Skipped { reason, consumed } => {
                self.tell(|| News::StepDropped { reason: reason.clone(), consumed: *consumed });
            }
        }
    }

    /// What the batch teaches, with answers that nobody rated where the settings ask for them.
    fn samples(&mut self, mut batch: Vec<RatedGeneration>) -> Result<Samples> {
        let Some(judge) = &mut self.judge else { return Err(Error::train("the trainer is not ready")) };
        if judge.unrated() > 0 {
            batch.extend(self.ledger.unrated(judge.unrated(), judge.oldest(self.active))?);
        }
        judge.samples(&batch, self.active, &self.shared.interrupt)
    }

    fn train(&mut self, samples: &Samples) -> Result<StepOutcome> {
        let Some(trainer) = &mut self.trainer else { return Err(Error::train("the trainer is not ready")) };
        let Samples { rollouts, records, used, stale } = samples;
        if *stale > 0 {
            tracing::info!(stale, "answers of versions too old are left out");
        }
        let shared = self.shared.clone();
        let metrics = match trainer.step(rollouts, &|| shared.interrupt.load(Ordering::Acquire))? {
            trainer::StepOutcome::Trained(metrics) => metrics,
            trainer::StepOutcome::Skipped { reason, dropped_steps } => {
                self.shared.status().dropped_steps += dropped_steps as u64;
                self.ledger.commit_skipped(&reason, used)?;
                tracing::warn!(reason, ratings = used.len(), "training step skipped");
                return Ok(StepOutcome::Skipped { reason, consumed: used.len() });
            }
        };
        let finite = trainer.is_finite()?;
        if let Verdict::Refused { reason } = self.judge(&metrics, finite)? {
            return self.refuse(reason, used);
        }
        let Some(trainer) = &self.trainer else { return Err(Error::train("the trainer is not ready")) };
        let version = self.ledger.next_version()?;
        let info = VersionInfo {
            version,
            parent: Some(self.active),
            active: true,
            created: unix_millis(),
            metrics: metrics.clone(),
        };
        let stage = self.store.stage(version)?;
        trainer.save(stage.path())?;
        if let Some(judge) = &self.judge {
            judge.save(stage.path())?;
        }
        stage.commit(self.about(&info))?;
        if let Err(error) = self.ledger.commit_version(&info, used, records) {
            // Its number is not taken: the folder must not stand in the way of the next try.
            self.remove_orphans();
            return Err(error);
        }
        // From here on it is on record: whatever fails later, a restart serves it.
        self.active = version;
        self.scheduler.swap(weights_of(&self.store, version)?)?;
        tracing::info!(
            version = version.0,
            mean_reward = metrics.mean_reward,
            kl_nats = metrics.kl_per_response.0,
            seconds = metrics.seconds,
            "policy published"
        );
        self.tell(|| News::VersionPublished { version, parent: info.parent.unwrap_or_default() });
        self.prune(info.parent.unwrap_or_default());
        Ok(StepOutcome::Published { version, metrics })
    }

    fn judge(&self, metrics: &StepMetrics, finite: bool) -> Result<Verdict> {
        let versions = self.ledger.versions()?;
        let parent = versions.iter().find(|v| v.version == self.active && v.version != PolicyVersion::INITIAL);
        let candidate = Candidate { metrics, parent: parent.map(|v| &v.metrics), finite };
        Ok(gate::judge(&candidate, &self.config.train.gate))
    }

    /// Records that a batch made a candidate that may not be served, and goes back to the version that is.
    fn refuse(&mut self, reason: String, used: &[u64]) -> Result<StepOutcome> {
        let reason = format!("the candidate was refused: {reason}");
        self.ledger.commit_skipped(&reason, used)?;
        self.shared.status().refused += 1;
        tracing::warn!(reason, ratings = used.len(), "candidate refused");
        self.load_trainer()?;
        Ok(StepOutcome::Skipped { reason, consumed: used.len() })
    }
}

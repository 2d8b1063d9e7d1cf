//! Has the trainer learn from samples, live ones and recorded ones alike. Never puts anything on record.

use super::*;

/// What training on a batch came to.
pub(super) enum Fit {
    /// The policy moved.
    Trained(Box<StepMetrics>),
    /// The samples may train later, together with others; nothing changed.
    Waits(String),
    /// The samples teach nothing; nothing changed.
    Dropped(String),
    /// The policy moved further than it may. The trainer holds the refused policy.
    Refused(String),
}

/// What a batch is trained with, as it is recorded with it.
#[derive(Serialize, Deserialize)]
pub(super) struct Settings {
    pub(super) train: TrainConfig,
    /// Version of the reward model that judged it.
    pub(super) reward_version: u64,
}

impl Worker {
    /// Has the trainer learn from samples, and judges how far that moved it. `held` is the version whose policy the
    /// trainer holds, if it is one. Of earlier batches only those before the row `before` remind the critic.
    pub(super) fn fit(
        &mut self,
        rollouts: &[Rollout],
        held: Option<PolicyVersion>,
        before: Option<u64>,
    ) -> Result<Fit> {
        let rollouts = self.with_behavior(rollouts, held)?;
        let replay = self.earlier(before)?;
        let Some(Ready { trainer: Some(trainer), .. }) = &mut self.ready else { return Err(Error::train(NOT_READY)) };
        let metrics = match trainer.step_with(&rollouts, &replay, &|| self.shared.interrupted())? {
            trainer::StepOutcome::Trained(metrics) => metrics,
            trainer::StepOutcome::Skipped { reason, wait: true, .. } => return Ok(Fit::Waits(reason)),
            trainer::StepOutcome::Skipped { reason, dropped_steps, .. } => {
                self.shared.status().dropped_steps += dropped_steps as u64;
                return Ok(Fit::Dropped(reason));
            }
        };
        if let Some(reason) = &metrics.stopped {
            tracing::info!(reason, "training on the batch ended early");
        }
        let candidate = Candidate { metrics: &metrics, finite: trainer.is_finite()? };
        Ok(match gate::judge(&candidate, &trainer.config().gate) {
            Verdict::Refused { reason } => Fit::Refused(reason),
            Verdict::Accepted => Fit::Trained(Box::new(metrics)),
        })
    }

    /// What the next batch is trained with, for a replay.
    pub(super) fn settings(&self) -> Option<serde_json::Value> {
        let Ready { trainer, judge, .. } = self.ready.as_ref()?;
        let train = trainer.as_ref()?.config().clone();
        serde_json::to_value(Settings { train, reward_version: judge.scales().reward_version }).ok()
    }

    /// Earlier answers, for the critic alone.
    fn earlier(&self, before: Option<u64>) -> Result<Vec<Rollout>> {
        let rollout = |(g, score): (Generation, f64)| Rollout {
            prompt: g.prompt,
            response: g.response,
            temperature: g.sampling.temperature,
            score,
            version: Some(g.policy_version),
            ..Rollout::default()
        };
        let Some(trainer) = self.trainer() else { return Err(Error::train(NOT_READY)) };
        // Depends on the batch's number alone, so that a resumed run equals one that was not stopped.
        let taught = self.ledger.taught(trainer.config().replay as usize, trainer.batches(), before)?;
        Ok(taught.into_iter().map(rollout).filter(|r| !r.prompt.is_empty() && !r.response.is_empty()).collect())
    }

    /// For PPO and RLOO, whose ratio is taken to the policy that sampled: the log-probabilities of answers by older
    /// versions, under those versions. Answers by versions that are no longer on disk are left out.
    fn with_behavior(&self, rollouts: &[Rollout], held: Option<PolicyVersion>) -> Result<Vec<Rollout>> {
        let mut rollouts = rollouts.to_vec();
        let Some(Ready { trainer: Some(trainer), decoder, .. }) = &self.ready else {
            return Err(Error::train(NOT_READY));
        };
        if !matches!(trainer.config().algorithm, Algorithm::Ppo | Algorithm::Rloo) {
            return Ok(rollouts);
        }
        let mut versions: Vec<PolicyVersion> = rollouts.iter().filter_map(|r| r.version).collect();
        versions.sort_unstable();
        versions.dedup();
        for version in versions.into_iter().filter(|version| Some(*version) != held) {
            let path = self.store.path(version).join(trainer::ADAPTER_FILE);
            let policy = match version {
                PolicyVersion::INITIAL => None,
                _ if !path.exists() => {
                    let before = rollouts.len();
                    rollouts.retain(|r| r.version != Some(version));
                    let answers = before - rollouts.len();
                    tracing::warn!(version = version.0, answers, "left out: their version is no longer on disk");
                    continue;
                }
                _ => Some(Lora::read_gguf(&path, decoder)?),
            };
            let of_version = |rollout: &&mut Rollout| rollout.version == Some(version);
            let theirs: Vec<Rollout> = rollouts.iter_mut().filter(of_version).map(|r| r.clone()).collect();
            let logprobs = trainer.logprobs(&theirs, policy.as_ref(), &|| self.shared.interrupted())?;
            for (rollout, logprobs) in rollouts.iter_mut().filter(of_version).zip(logprobs) {
                rollout.behavior_logprobs = Some(logprobs);
            }
        }
        Ok(rollouts)
    }
}

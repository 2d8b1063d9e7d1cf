//! What the learner does besides training on live feedback: it trains the reward model, and trains on rollouts while
//! the engine is idle. Never publishes by itself: rollouts go through the same step.

use super::*;

impl Worker {
    /// Trains the reward model once there are enough pairs.
    pub(super) fn learn_reward(&mut self) {
        if !self.shared.auto.load(Ordering::Acquire) {
            return;
        }
        let Some(mut ready) = self.ready.take() else { return };
        if ready.judge.learning_is_due(&self.ledger) {
            let work = self.begin();
            let learned = ready.judge.learn(&self.ledger, &|| self.shared.interrupted());
            self.end(work);
            if let Err(error) = learned
                && error.code() != Code::Closed
            {
                tracing::error!(%error, "the reward model did not learn");
            }
        }
        self.shared.status().reward = ready.judge.status().clone();
        *lock(&self.shared.reward_model) = ready.judge.reward_model();
        self.ready = Some(ready);
    }

    /// Trains on fresh answers while the engine is idle.
    pub(super) fn roll_out_if_idle(&mut self) {
        let Some(Ready { trainer, rollouts: Some(rollouts), .. }) = &mut self.ready else { return };
        let due = rollouts.due(&self.scheduler.load()) && self.config.reward.rollout_idle > 0;
        if !due || trainer.is_none() || !self.shared.auto.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = self.roll_out()
            && error.code() != Code::Closed
        {
            tracing::error!(%error, "rollouts failed");
            self.shared.status().reason = Some(error.to_string());
            // Waits again, instead of retrying at every look.
            if let Some(Ready { rollouts: Some(rollouts), .. }) = &mut self.ready {
                rollouts.postpone();
            }
        }
    }

    pub(super) fn roll_out(&mut self) -> Result<PublishOutcome> {
        if self.unlearning.is_some() {
            return Err(Error::busy("a user is being unlearned; rollouts go on afterwards"));
        }
        let Some(Ready { rollouts: Some(rollouts), judge, .. }) = &mut self.ready else {
            return Err(Error::arg("reward.rollouts is not set, expected a file of prompts or users"));
        };
        if !judge.judges_alone() {
            return Err(Error::arg("nothing judges rollouts, expected reward.model, reward.command or reward.url"));
        }
        let size = self.config.train.batch as usize;
        let stop = || self.shared.interrupted();
        let ask = |request| {
            let id = GenerationId::new(GenerationKind::Rollout);
            self.in_flight.submit(id, request, |id, request| self.scheduler.submit(id, request))
        };
        let fresh = rollouts.sample(rollouts.share_of(size), &ask, &self.ledger, &stop)?;
        let mut batch = self.ledger.pending_batch(size.saturating_sub(fresh.len()))?;
        batch.extend(fresh);
        self.work(batch)
    }
}

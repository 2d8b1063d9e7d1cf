//! What follows a panic of the trainer: it is reported, what the thread held is released, and after a wait training
//! starts again from what is on record. Never hides one.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

/// Runs `body`; a panic is an error. What the body changes is looked at again, or made anew, after one.
pub(super) fn caught<T>(body: impl FnOnce() -> T) -> std::result::Result<T, Box<dyn Any + Send>> {
    catch_unwind(AssertUnwindSafe(body))
}

impl Worker {
    /// Tells of a panic and goes back to what is on record: the version that is active there, no trial, no trainer.
    pub(super) fn fallen(&mut self, wait: Duration) {
        self.shared.status().panics += 1;
        let seconds = wait.as_secs();
        let reason = format!("a bug stopped the trainer; it starts again in {seconds} s, or with the next order");
        self.turn_off(TrainerState::Off, reason.clone());
        if let Err(error) = self.forget_all() {
            tracing::error!(%error, "the version on record could not be served after a panic");
        }
        self.alerts.raise(AlertKind::TrainerPanicked, reason);
    }

    /// Lets go of all that deciding needs, and goes back to what is on record.
    pub(super) fn forget_all(&mut self) -> Result<()> {
        (self.ready, self.trial, self.watched, self.waiting) = (None, None, None, None);
        (self.unlearning, self.resumed) = (None, None);
        self.noted.clear();
        self.routes.end();
        self.scheduler.beside_training(false);
        let mut status = self.shared.status();
        (status.trial, status.unlearning) = (None, None);
        drop(status);
        self.go_back_to_record()
    }

    fn go_back_to_record(&mut self) -> Result<()> {
        self.active = self.ledger.active()?;
        let served = self.scheduler.load().versions;
        // Versions of an examination or a trial. The active version keeps serving.
        for version in served.iter().filter(|version| **version != self.active) {
            self.scheduler.leave(*version)?;
        }
        if served.last() != Some(&self.active) {
            self.scheduler.swap(weights_of(&self.store, self.active)?)?;
        }
        Ok(())
    }

    /// Waits before the trainer starts again: `wait`, or until the next order, which is returned. `None` at the end of
    /// the engine.
    pub(super) fn rest(
        &self,
        wait: Duration,
        orders: &Receiver<Order>,
        reminders: &Receiver<Order>,
    ) -> Option<Option<Order>> {
        let until = Instant::now() + wait;
        loop {
            let order = crossbeam_channel::select! {
                recv(orders) -> order => Some(order.ok()?),
                // Ratings wait, but a reminder may also announce the shutdown.
                recv(reminders) -> _ => None,
                default(until.saturating_duration_since(Instant::now())) => return Some(None),
            };
            if self.shared.stopping.load(Ordering::Acquire) {
                return None;
            }
            if order.is_some() {
                return Some(order);
            }
        }
    }
}

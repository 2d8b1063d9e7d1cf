//! Has the record deleted that is older than the settings keep, a part at a time. Never says what is deleted of it.

use super::*;

/// How often the record is looked through.
const EVERY: Duration = Duration::from_secs(3600);
/// Answers that are deleted at once: others' writes wait for that long.
const AT_ONCE: usize = 1000;
const DAY: u64 = 24 * 3600 * 1000;

impl Worker {
    /// Deletes what is too old, if it is time for it.
    pub(super) fn tidy_record(&mut self) {
        let days = u64::from(self.config.ledger.keep_days);
        if days == 0 || self.tidied.is_some_and(|last| last.elapsed() < EVERY) {
            return;
        }
        self.tidied = Some(Instant::now());
        match self.ledger.expire(unix_millis().saturating_sub(days * DAY), AT_ONCE) {
            Ok(expired) if expired.generations == 0 => {}
            Ok(expired) => {
                let (answers, feedback) = (expired.generations, expired.feedback);
                tracing::info!(answers, feedback, days, "what was too old is deleted (ledger.keep_days)");
                // There may be more: at the next look.
                self.tidied = None;
            }
            Err(error) => tracing::error!(%error, "what is too old could not be deleted"),
        }
    }
}

//! Measures what clients experience: time to the first token, gaps between tokens, refused requests. Decides nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::durations::Meter;

/// Shared by all requests of a scheduler.
#[derive(Default)]
pub(super) struct Meters {
    /// From submission to the first token.
    pub(super) first_token: Meter,
    /// From one token of an answer to the next.
    pub(super) gap: Meter,
    /// From one token to the next while the trainer is working.
    pub(super) gap_training: Meter,
    /// Whether the trainer is working.
    pub(super) training: AtomicBool,
    /// Requests refused because the queue was full.
    pub(super) refused: AtomicU64,
}

impl Meters {
    /// Counts the gap before a token.
    pub(super) fn waited(&self, time: Duration) {
        self.gap.add(time);
        if self.training.load(Ordering::Relaxed) {
            self.gap_training.add(time);
        }
    }
}

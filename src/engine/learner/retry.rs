//! Decides when a failed step is tried again: later each time, up to a limit. Knows nothing of the reason.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// Factor from each wait to the next.
const GROWTH: u32 = 4;

/// The waits between tries.
#[derive(Default)]
pub(super) struct Retry {
    wait: Option<Duration>,
    until: Option<Instant>,
}

impl Retry {
    /// Whether to try now.
    pub(super) fn due(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() >= until)
    }

    /// Registers a failure and returns how long to wait.
    pub(super) fn failed(&mut self) -> Duration {
        let wait = self.wait.map_or(FIRST, |wait| (wait * GROWTH).min(LONGEST));
        (self.wait, self.until) = (Some(wait), Some(Instant::now() + wait));
        wait
    }

    /// Forgets failures after a success, or when the conditions changed.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_quarter_of_an_hour_and_begin_anew_after_a_success() {
        let mut retry = Retry::default();
        assert!(retry.due());
        let waits: Vec<u64> = (0..6).map(|_| retry.failed().as_secs()).collect();
        assert_eq!(waits, [5, 20, 80, 320, 900, 900]);
        assert!(!retry.due());
        retry.reset();
        assert!(retry.due());
        assert_eq!(retry.failed().as_secs(), 5);
    }
}
